"""Delivers reminders when their time comes.

A reminder and the message that it becomes are one transaction, so a crash doubles none and loses none.
What has to be written into a file is written before; writing it again does no harm.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final

import apsw
import trio

from hive_core.domain import reminder as rules
from hive_core.domain.letter import Leave, Letter
from hive_core.domain.reminder import CannotWrite, Reminder
from hive_core.store import reminders, repeats
from hive_core.store.database import Store
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR, REMINDER

LONGEST_NAP_S: Final = 30.0
"""How far the wall clock may be set before it is looked at again."""

RETRY_S: Final = 5.0
"""Between two tries of one that could not be delivered."""

MAX_DELIVERED: Final = 64
"""Delivered in one tick; other work comes between two ticks."""

MAX_AT_ONCE: Final = 4
"""Agents that are delivered to at the same time: a file takes a process, and perhaps its time limit."""

log = logging.getLogger(__name__)


class Scheduler:
    """All reminders of the hive.

    *leave* stores messages; *write_file* puts a text into a file below an agent's state directory, as the
    agent, and gives the path as the agent sees it; *agents* are those that could take a message;
    *changed* is called with an agent whose number of reminders changed; *clock* gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        *,
        leave: Leave,
        write_file: Callable[[str, str, str], Awaitable[str]],
        agents: Callable[[], Collection[str]],
        changed: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._leave = leave
        self._write_file = write_file
        self._agents = agents
        self._changed = changed
        self._clock = clock
        self._sooner = trio.Event()
        self._counts: dict[str, int] = {}

    def count(self, agent: str) -> int:
        """How many reminders of *agent* are pending."""
        return self._counts.get(agent, 0)

    def look_again(self) -> None:
        """An agent appeared whose reminders may be due."""
        self._sooner.set()

    async def remind(
        self,
        agent: str,
        message: str,
        *,
        delay_seconds: float | None = None,
        at: float | None = None,
        file_path: str | None = None,
        key: str | None = None,
    ) -> Reminder:
        """Store a reminder of *agent* to itself; a repeated *key* stores nothing and gives the first id.

        Raises:
            Refused: INVALID_ARGUMENT; PRECONDITION_FAILED, when it has too many.
        """
        now = self._clock()
        rules.check_message(message)
        reminder = Reminder(
            id=0,
            agent=agent,
            message=message,
            due_at=rules.due_at(now, delay_seconds, at),
            created_at=now,
            file_path=None if file_path is None else rules.file_below_state(agent, file_path),
        )

        def store(db: apsw.Connection) -> int:
            if (first_id := repeats.find(db, agent, key)) is not None:
                return first_id
            rules.check_room(agent, reminders.count_of(db, agent))
            reminder_id = reminders.insert(db, reminder)
            repeats.remember(db, agent, key, reminder_id)
            return reminder_id

        reminder_id = await self._store.write(store)
        await self._recount(agent)
        self._sooner.set()
        return Reminder(reminder_id, agent, message, reminder.due_at, now, reminder.file_path)

    async def cancel(self, reminder_id: int, *, by: str, key: str | None = None) -> None:
        """Delete a reminder; an agent its own ones, the operator any.  A repeated *key* does nothing again.

        Raises:
            Refused: NOT_FOUND.
        """

        def remove(db: apsw.Connection) -> str:
            if repeats.find(db, by, key) == reminder_id:
                return by
            agent = _owned(db, "cancel", reminder_id, by).agent
            reminders.remove(db, reminder_id)
            repeats.remember(db, by, key, reminder_id)
            return agent

        await self._recount(await self._store.write(remove))

    async def forget(self, agent: str) -> None:
        """Delete the reminders of an agent that was purged, and what it may want to repeat."""

        def forget(db: apsw.Connection) -> None:
            reminders.forget(db, agent)
            repeats.forget(db, agent)

        await self._store.write(forget)
        await self._recount(agent)

    async def retry(self, reminder_id: int) -> None:
        """Try one again that is stuck, or soon would be.

        Raises:
            Refused: NOT_FOUND.
        """

        def reset(db: apsw.Connection) -> None:
            _owned(db, "retry", reminder_id, OPERATOR)
            reminders.reset(db, reminder_id)

        await self._store.write(reset)
        self._sooner.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver what is due, those first that became so before we started."""
        self._counts = await self._store.read(reminders.counts)
        task_status.started()
        while True:
            self._sooner = trio.Event()
            try:
                nap_s = await self._tick()
            except Refused as error:
                log.error("Reminders cannot be read, the next look tries again: %s", error.text)
                nap_s = RETRY_S
            with trio.move_on_after(min(nap_s, LONGEST_NAP_S)):
                await self._sooner.wait()

    async def _tick(self) -> float:
        """Deliver what is due, and give how long to wait for the next one."""
        all_well = await self._deliver_due()
        due_at = await self._store.read(reminders.next_due, self._agents())
        nap_s = LONGEST_NAP_S if due_at is None else due_at - self._clock()
        return max(nap_s, 0.0 if all_well else RETRY_S)

    async def _deliver_due(self) -> bool:
        """Deliver one tick's worth; say whether nothing went wrong."""
        due = await self._store.read(reminders.due, self._clock(), self._agents(), MAX_DELIVERED)
        of_agents: dict[str, list[Reminder]] = {}
        for reminder in due:
            of_agents.setdefault(reminder.agent, []).append(reminder)
        limiter, failed = trio.CapacityLimiter(MAX_AT_ONCE), list[str]()

        async def deliver(agent: str, its: list[Reminder]) -> None:
            async with limiter:
                if not await self._deliver_to(agent, its):
                    failed.append(agent)

        async with trio.open_nursery() as nursery:
            for agent, its in of_agents.items():
                nursery.start_soon(deliver, agent, its)
        return not failed

    async def _deliver_to(self, agent: str, due: list[Reminder]) -> bool:
        """Deliver to one agent; say whether nothing went wrong."""
        writable = True
        for reminder in due:
            # When one file cannot be written the next one waits for the next tick, so that an agent whose
            # disk does not answer costs the others one time limit and not fifty.
            if writable or rules.spill_path(reminder) is None:
                writable = await self._deliver(reminder) and writable
        await self._recount(agent)
        return writable

    async def _deliver(self, reminder: Reminder) -> bool:
        try:
            path = rules.spill_path(reminder)
            shown = None if path is None else await self._write_file(reminder.agent, path, reminder.message)
            if reminder.agent not in self._agents():
                return True  # it was destroyed meanwhile: its reminders wait for it
            letter = Letter(reminder.agent, rules.body(reminder, shown))

            def store(db: apsw.Connection) -> tuple[None, list[Letter]]:
                if reminders.get(db, reminder.id) is None:
                    return None, []  # it was cancelled meanwhile
                reminders.remove(db, reminder.id)
                return None, [letter]

            await self._leave(REMINDER, 1, store)
        except (CannotWrite, Refused) as error:
            await self._note_failure(reminder, str(error))
            return False
        log.info("Reminder delivered id=%d agent=%s", reminder.id, reminder.agent)
        return True

    async def _note_failure(self, reminder: Reminder, why: str) -> None:
        log.warning("Reminder not delivered id=%d agent=%s: %s", reminder.id, reminder.agent, why)
        try:
            await self._store.write(reminders.note_failure, reminder.id, why)
        except Refused as error:
            log.error("Reminder's failure not noted id=%d: %s", reminder.id, error.text)

    async def _recount(self, agent: str) -> None:
        try:
            self._counts = await self._store.read(reminders.counts)
        except Refused as error:  # what was to be counted has happened, and its caller is to hear that
            log.error("Reminders not counted: %s", error.text)
        self._changed(agent)


def _owned(db: apsw.Connection, verb: str, reminder_id: int, by: str) -> Reminder:
    reminder = reminders.get(db, reminder_id)
    if reminder is None or by not in {OPERATOR, reminder.agent}:
        raise Refused(ErrorCode.NOT_FOUND, f"cannot {verb} reminder {reminder_id}: there is no such reminder")
    return reminder

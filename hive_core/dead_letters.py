"""Sets messages aside that nobody can work on, and takes them up again.  The rule is in domain/dead.py.

That a message is dead, and the message that tells of it, are one transaction.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import apsw
import trio

from hive_core.deferred import Deferred
from hive_core.domain import dead as rules
from hive_core.domain.helper_event import Allowance, MessageDead, render_body
from hive_core.domain.letter import Letter
from hive_core.store import dead
from hive_core.store.database import Store
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import MANAGER, OPERATOR, SYSTEM

Reasons = dict[int, str]

RETRIED_AT_ONCE: Final = 100
"""In one transaction."""

log = logging.getLogger(__name__)


class Held(Protocol):
    """Messages kept back, until those that are dead are buried and the others released."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def bury(self) -> Callable[[Iterable[int]], list[int]]: ...
    @property
    def release(self) -> Callable[[bool], int]: ...


class Mailboxes(Protocol):
    """What the broker does."""

    @property
    def agents(self) -> list[str]: ...
    def requeue(self, agent: str) -> int: ...
    def hold(self, agent: str, ids: Iterable[int] | None = None) -> Held: ...
    def revive(self, agent: str, count: int) -> None: ...
    def submit_with(
        self, sender: str, most: int, fn: Callable[[apsw.Connection], tuple[Reasons, list[Letter]]]
    ) -> Deferred[Reasons]: ...


class DeadLetters:
    """All dead letters of the hive.

    A message is dead after *max_deliveries*.  *changed* is called with an agent whose number of dead
    letters changed, *clock* gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        mailboxes: Mailboxes,
        *,
        max_deliveries: Callable[[], int] = lambda: rules.MAX_DELIVERIES,
        changed: Callable[[str], None] = lambda _agent: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._mailboxes = mailboxes
        self._max_deliveries = max_deliveries
        self._changed = changed
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._told = Allowance(rules.TOLD_MOST, rules.TOLD_WINDOW_S)

    async def recover(self) -> None:
        """Count what there is.  Before anybody asks for anything."""
        self._counts = await self._store.read(dead.counts)

    @property
    def total(self) -> int:
        """Those to destroyed agents too."""
        return self._counts.total()

    def note_imported(self, agent: str, count: int) -> None:
        """Count those that came with *agent* from another hive."""
        self._counts[agent] += count

    def count(self, agent: str) -> int:
        return self._counts[agent]

    def requeue_failed(self, agent: str) -> Deferred[int]:
        """Requeue what *agent* has leased after it failed over that; give how many.

        What it failed over too often is dead instead.

        Raises:
            Refused: NOT_FOUND, when the agent was destroyed; the deferred fails with UNAVAILABLE if the
                disk refuses: everything is deliverable again, and nothing was counted.
        """
        held = self._mailboxes.hold(agent)
        along = self._mailboxes.requeue(agent)
        most = self._max_deliveries()

        def judge(db: apsw.Connection) -> Reasons:
            counts = dead.note_failures(db, held.ids)
            return {i: rules.reason_of(count) for i, count in counts.items() if rules.is_dead(count, most)}

        return self._judge(agent, held, judge).map(lambda back: along + back)

    def set_aside(self, agent: str, ids: Iterable[int], reason: str) -> Deferred[int]:
        """Let those of *ids* that *agent* has in hand and has not acked be dead for *reason*.

        Raises:
            Refused: as `requeue_failed`.
        """
        held = self._mailboxes.hold(agent, ids)
        said = rules.one_line(reason)
        return self._judge(agent, held, lambda db: dict.fromkeys(dead.note_failures(db, held.ids), said))

    def _judge(self, agent: str, held: Held, judge: Callable[[apsw.Connection], Reasons]) -> Deferred[int]:
        """Bury those for which *judge* gives a reason, release the others; give how many those are."""
        answer: Deferred[int] = Deferred()
        if not held.ids:
            answer.resolve(0)
            return answer
        now = self._clock()
        to = MANAGER if MANAGER in self._mailboxes.agents and agent != MANAGER else OPERATOR
        _, room = self._tell(len(held.ids))

        def bury(db: apsw.Connection) -> tuple[Reasons, list[Letter]]:
            reasons = judge(db)
            letters: list[Letter] = []
            for message_id, reason in reasons.items():
                dead.bury(db, message_id, reason, now)
                body = render_body(MessageDead(agent=agent, id=message_id, reason=reason))
                letters.append(Letter(to, body, cause_id=message_id))
            return reasons, letters[:room]

        def buried(reasons: Reasons) -> None:
            self._told, _ = self._tell(min(len(reasons), room))
            for message_id in held.bury(reasons):
                self._counts[agent] += 1
                log.warning("Message dead message=%d agent=%s: %s", message_id, agent, reasons[message_id])
            back = held.release(True)
            self._changed(agent)
            answer.resolve(back)

        def failed(error: Exception) -> None:
            held.release(False)
            answer.fail(error)

        self._mailboxes.submit_with(SYSTEM, room, bury).then(buried, failed)
        return answer

    def _tell(self, count: int) -> tuple[Allowance, int]:
        """Give the allowance after telling of *count*, and of how many of them may be told."""
        left, room, now = self._told, 0, trio.current_time()
        while room < count and (after := left.use(now)) is not None:
            left, room = after, room + 1
        return left, room

    async def retry(self, message_id: int) -> None:
        """Make a dead message deliverable as if nobody had ever failed over it.

        Raises:
            Refused: NOT_FOUND, when there is no such dead message.
        """
        if not await self._retry([message_id]):
            raise _no_dead_message("retry", message_id)

    async def retry_all(self, agent: str | None) -> int:
        """Do so with all to *agent*, or to anyone, that are dead now; give how many."""
        total, left = 0, self.total if agent is None else self.count(agent)
        # One that fails and dies again meanwhile is not taken up a second time, for ever.
        while left > 0 and (ids := await self._store.read(dead.find, agent, min(left, RETRIED_AT_ONCE))):
            total += await self._retry(ids)
            left -= len(ids)
        return total

    async def _retry(self, ids: list[int]) -> int:
        done: Deferred[int] = Deferred()

        def stored(counts: Mapping[str, int]) -> None:
            for agent, count in counts.items():
                self._counts[agent] -= count
                self._mailboxes.revive(agent, count)
                self._changed(agent)
            done.resolve(sum(counts.values()))

        self._store.submit(lambda db: dead.retry(db, ids)).then(stored, done.fail)
        with trio.CancelScope(shield=True):
            count = await done.wait()
        return count  # noqa: RET504 - mypy cannot know that the scope swallows nothing

    async def drop(self, message_id: int) -> None:
        """Be done with a dead message: it is kept as long as those that were acked.

        Raises:
            Refused: NOT_FOUND, when there is no such dead message.
        """
        agent = await self._store.write(dead.drop, message_id, self._clock())
        if agent is None:
            raise _no_dead_message("drop", message_id)
        self._counts[agent] -= 1
        self._changed(agent)


def _no_dead_message(verb: str, message_id: int) -> Refused:
    return Refused(ErrorCode.NOT_FOUND, f"cannot {verb} message {message_id}: it is no dead message")

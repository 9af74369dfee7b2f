"""Deletes what is old, every hour and when asked to.

Messages go in slices, each a job of the store's writer, with a rest after it that is several times as long:
who sends meanwhile waits for one slice at most.  The databases of agents are pruned by a child for each, two
at a time; one that hangs costs its own deadline.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import trio

from hive_core.domain import retention
from hive_core.domain.retention import (
    EVENTS,
    GENERATIONS,
    TURN_STATS,
    AgentFile,
    Count,
    Cutoffs,
    Inventory,
    Messages,
    Policy,
    Row,
)
from hive_core.store import inventory
from hive_core.store.database import Store
from hive_core.wire.errors import Refused

START_S: Final = 3.0
"""After the start, so that machines come up first."""
INTERVAL_S: Final = 3600.0
NAP_S: Final = 30.0
"""How long the machine may have slept before an hour by the wall clock is seen to be over."""

MAX_LEAP_S: Final = 86400.0
"""A clock that is suddenly ahead by more may be wrong: an hour is left to set it right."""

REST: Final = 4.0
"""Times a slice's own time that the writer is left to others after it."""
MIN_REST_S: Final = 0.005
MAX_REST_S: Final = 1.0
"""For a disk that stands still now and then."""

PROGRESS_S: Final = 30.0
COUNT_S: Final = 5.0
"""How long a plan counts; beyond that it says *at least*."""
MAX_COUNTED: Final = 1_000_000
MAX_CHILDREN: Final = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swept:
    """What a sweep did, or has done so far.  Times of a slice are the writer's, in seconds."""

    number: int
    started_at: float
    seconds: float = 0.0
    running: bool = True
    messages: int = 0
    slices: int = 0
    longest_slice_s: float = 0.0
    files: tuple[AgentFile, ...] = ()
    freed_bytes: int = 0
    trouble: str | None = None
    """Why the messages could not all be swept."""

    def rows_of(self, file: str) -> int:
        return sum(each.old.number for each in self.files if each.file == file)

    @property
    def troubles(self) -> int:
        return (self.trouble is not None) + sum(each.trouble is not None for each in self.files)


class Vacuum:
    """Everything of the hive that gets too old.

    *prune* deletes, or with True only counts, what is old in the files of one agent; it contains whatever
    goes wrong with them.  *agents* are those whose state is kept, *policy* is asked each time, *wall_clock*
    gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        *,
        policy: Callable[[], Policy],
        agents: Callable[[], Awaitable[Sequence[str]]],
        prune: Callable[[str, Cutoffs, bool], Awaitable[list[tuple[AgentFile, int]]]],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._policy = policy
        self._agents = agents
        self._prune = prune
        self._wall_clock = wall_clock
        self._asked = trio.Event()
        self._over = trio.Event()
        self._now: Swept | None = None
        self.last: Swept | None = None
        """The sweep that ended last."""

    @property
    def current(self) -> Swept | None:
        """The sweep that is running, as far as it is."""
        return self._now

    async def plan(self) -> list[Row]:
        """Say what would go, what would stay and why.  Changes nothing.

        Raises:
            Refused: UNAVAILABLE, when the store cannot be read.
        """
        policy, now = self._policy(), self._wall_clock()
        cutoffs = retention.cutoffs(policy, now)
        files: list[AgentFile] = []
        refused: Refused | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._prune_all, cutoffs, True, lambda file, _freed: files.append(file))
            try:
                messages = await self._count(cutoffs.messages)
                kept = await self._store.read(inventory.count_kept)
            except Refused as error:  # out of the nursery it would come as a group
                refused = error
                nursery.cancel_scope.cancel()
        if refused is not None:
            raise refused
        files.sort(key=lambda file: (file.agent, file.file))
        return retention.plan(policy, Inventory(messages, *kept, tuple(files)))

    def ask(self) -> int:
        """Begin a sweep, or take the one that is running, and give its number."""
        if self._now is not None:
            return self._now.number
        self._asked.set()
        return self._next_number()

    async def wait_end(self, number: int, timeout_s: float) -> Swept | None:
        """Wait until sweep *number* is over, at most *timeout_s*, and give how far it is."""
        with trio.move_on_after(timeout_s):
            while self.last is None or self.last.number < number:
                await self._over.wait()
            return self.last
        return self._now

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep when the hive has come up, and then every hour and when asked."""
        task_status.started()
        with trio.move_on_after(START_S):
            await self._asked.wait()
        while True:
            self._asked = trio.Event()
            began_at, began = self._wall_clock(), trio.current_time()
            await self._sweep()
            await self._wait_hour(began_at, began)
            slept_s = self._wall_clock() - began_at - (trio.current_time() - began)
            if slept_s > MAX_LEAP_S:
                log.warning(
                    "Vacuum waits: the clock leapt ahead by %.1f days; what is old by it goes in an hour",
                    slept_s / retention.DAY_S,
                )
                await self._wait_hour(self._wall_clock(), trio.current_time())

    async def _wait_hour(self, began_at: float, began: float) -> None:
        # By both clocks: one of them stands still while the machine sleeps, the other may be set back.
        while abs(self._wall_clock() - began_at) < INTERVAL_S and trio.current_time() - began < INTERVAL_S:
            with trio.move_on_after(NAP_S):
                await self._asked.wait()
                return

    def _next_number(self) -> int:
        return 1 if self.last is None else self.last.number + 1

    async def _sweep(self) -> None:
        began = trio.current_time()
        self._now = Swept(self._next_number(), self._wall_clock())
        cutoffs = retention.cutoffs(self._policy(), self._wall_clock())
        async with trio.open_nursery() as reporting:
            reporting.start_soon(self._report_progress)
            async with trio.open_nursery() as working:
                working.start_soon(self._prune_all, cutoffs, False, self._note_file)
                try:
                    await self._sweep_messages(cutoffs.messages)
                except Refused as error:
                    self._now = replace(self._now, trouble=error.text)
                    log.error("Messages not swept, the next vacuum goes on: %s", error.text)
            reporting.cancel_scope.cancel()
        self.last = replace(self._now, seconds=trio.current_time() - began, running=False)
        self._now = None
        over, self._over = self._over, trio.Event()
        over.set()
        _log_summary(self.last)

    async def _sweep_messages(self, cutoff: float | None) -> None:
        if cutoff is None:
            return
        upto = await self._store.read(inventory.border, cutoff)
        after: int | None = -(2**63)
        while after is not None:
            ids, after = await self._store.read(inventory.find_old, after, upto, cutoff)
            if not ids:
                continue
            deleted, took_s = await self._store.write(_timed_delete, ids, cutoff)
            assert self._now is not None
            self._now = replace(
                self._now,
                messages=self._now.messages + deleted,
                slices=self._now.slices + 1,
                longest_slice_s=max(self._now.longest_slice_s, took_s),
            )
            await trio.sleep(min(max(took_s * REST, MIN_REST_S), MAX_REST_S))

    async def _prune_all(
        self, cutoffs: Cutoffs, dry_run: bool, note: Callable[[AgentFile, int], None]
    ) -> None:
        try:
            agents = await self._agents()
        except Refused as error:
            log.error("Files of agents not swept, the next vacuum does it: %s", error.text)
            return
        limiter = trio.CapacityLimiter(MAX_CHILDREN)

        async def prune(agent: str) -> None:
            async with limiter:
                try:
                    found = await self._prune(agent, cutoffs, dry_run)
                except Refused as error:
                    found = [(AgentFile(agent, EVENTS, trouble=error.text), 0)]
                for file, freed_bytes in found:
                    note(file, freed_bytes)
                    if file.trouble is not None and not dry_run:
                        log.warning("File left alone agent=%s file=%s: %s", agent, file.file, file.trouble)

        async with trio.open_nursery() as nursery:
            for agent in agents:
                nursery.start_soon(prune, agent)

    def _note_file(self, file: AgentFile, freed_bytes: int) -> None:
        assert self._now is not None
        self._now = replace(
            self._now, files=(*self._now.files, file), freed_bytes=self._now.freed_bytes + freed_bytes
        )

    async def _report_progress(self) -> None:
        while True:
            await trio.sleep(PROGRESS_S)
            assert self._now is not None
            log.info("Vacuum goes on messages=%d files=%d", self._now.messages, len(self._now.files))

    async def _count(self, cutoff: float | None) -> Messages:
        # Without a cutoff nothing is old; no message was acked before the beginning of time.
        before = 0.0 if cutoff is None else cutoff
        old = acked = 0
        after: int | None = -(2**63)
        deadline = trio.current_time() + COUNT_S
        while after is not None and trio.current_time() < deadline:
            rows = await self._store.read(inventory.count_some, after, before)
            old, acked, after = old + rows.old, acked + rows.acked, rows.after
        unacked = await self._store.read(inventory.count_waiting, MAX_COUNTED)
        more = after is not None
        waiting, dead = (Count(number, number == MAX_COUNTED) for number in unacked)
        return Messages(Count(old, more), Count(acked - old, more), waiting, dead)


def _timed_delete(db: Any, ids: list[int], cutoff: float) -> tuple[int, float]:
    began = time.perf_counter()
    deleted = inventory.delete_old(db, ids, cutoff)
    return deleted, time.perf_counter() - began


def _log_summary(swept: Swept) -> None:
    log.info(
        "Vacuum done messages=%d events=%d turn_stats=%d generations=%d troubles=%d freed_bytes=%d"
        " slices=%d longest_slice_ms=%.1f seconds=%.1f",
        swept.messages,
        swept.rows_of(EVENTS),
        swept.rows_of(TURN_STATS),
        swept.rows_of(GENERATIONS),
        swept.troubles,
        swept.freed_bytes,
        swept.slices,
        swept.longest_slice_s * 1000,
        swept.seconds,
    )

"""The sweep over a real store: what must stay stays, who writes meanwhile gets his turn, a crash costs nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core import vacuum as doing
from hive_core.domain.retention import DAY_S, EVENTS, AgentFile, Count, Cutoffs, Policy
from hive_core.store import inventory, mailbox
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.store.schema import migrate
from hive_core.vacuum import INTERVAL_S, Swept, Vacuum
from hive_core.wire.errors import ErrorCode, Refused

NOW = 1000 * DAY_S
OLD, YOUNG = NOW - 31 * DAY_S, NOW - 29 * DAY_S


def fill(path: Path, rows: Sequence[tuple[str, float, float | None]]) -> Path:
    """Messages of (recipient, sent_at, acked_at) with ids from 1 on."""
    db = apsw.Connection(str(path))
    db.execute("pragma journal_mode = wal").fetchall()
    migrate(db, str(path))
    with db:
        db.executemany(
            "insert into messages (sender, recipient, body, sent_at, delivered_at, acked_at, thread_id, in_reply_to)"
            " values ('bob', ?, 'text', ?, ?, ?, 1, 1)",
            [(recipient, sent_at, acked_at, acked_at) for recipient, sent_at, acked_at in rows],
        )
        db.execute("insert into operator_questions (asker, question, asked_at) values ('alice', 'why?', 1)")
        db.execute("insert into approvals (agent, requested_at) values ('alice', 1)")
        db.execute("insert into reminders (agent, message, due_at) values ('alice', 'tea', 1)")
    db.close()
    return path


def ids(path: Path) -> list[int]:
    with closing(apsw.Connection(str(path))) as db:
        return [row[0] for row in db.execute("select id from messages order by id")]


class Hive:
    def __init__(self, store: Store[MailboxOp]) -> None:
        self.store = store
        self.wall = NOW
        self.pruned: list[tuple[str, bool]] = []
        self.hanging: set[str] = set()
        self.agents = ["alice", "bob"]
        self.vacuum = Vacuum(
            store,
            policy=Policy,
            agents=self.named,
            prune=self.prune,
            wall_clock=lambda: self.wall,
        )

    async def named(self) -> list[str]:
        return self.agents

    async def prune(self, agent: str, cutoffs: Cutoffs, dry_run: bool) -> list[tuple[AgentFile, int]]:
        self.pruned.append((agent, dry_run))
        if agent in self.hanging:
            await trio.sleep(20)
            return [(AgentFile(agent, EVENTS, trouble="it takes too long"), 0)]
        return [(AgentFile(agent, EVENTS, Count(3)), 1000)]

    async def sweep(self) -> Swept:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.vacuum.run)
            swept = await self.vacuum.wait_end(self.vacuum.ask(), 60)
            nursery.cancel_scope.cancel()
        assert swept is not None
        return swept


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Hive]:
    async with open_store(path, apply_batch) as store:
        yield Hive(store)


async def test_acked_messages_that_are_old_go_and_nothing_else(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "db",
        [
            ("alice", OLD, OLD),
            ("alice", OLD, None),
            ("operator", OLD, None),
            ("alice", OLD, YOUNG),
            ("alice", YOUNG, YOUNG),
            ("alice", YOUNG, None),
        ],
    )
    async with opened(path) as hive:
        swept = await hive.sweep()
    assert ids(path) == [2, 3, 4, 5, 6]
    assert (swept.messages, swept.rows_of(EVENTS), swept.freed_bytes) == (1, 6, 2000)
    with closing(apsw.Connection(str(path))) as db:
        for table in ("operator_questions", "approvals", "reminders"):
            assert db.execute(f"select count(*) from {table}").fetchone() == (1,)


async def test_dead_messages_stay(tmp_path: Path) -> None:
    path = fill(tmp_path / "db", [("alice", OLD, None)])
    with closing(apsw.Connection(str(path))) as db:
        db.execute("update messages set dead_at = ?, dead_reason = 'in vain'", (OLD,))
    async with opened(path) as hive:
        await hive.sweep()
        rows = {row.what: row for row in await hive.vacuum.plan()}
    assert ids(path) == [1]
    assert (rows["dead messages"].stays, rows["waiting messages"].stays) == (Count(1), Count(0))


async def test_a_plan_says_what_the_sweep_then_does(tmp_path: Path) -> None:
    path = fill(
        tmp_path / "db", [("alice", OLD, OLD)] * 250 + [("alice", OLD, None)] * 3 + [("a", YOUNG, YOUNG)]
    )
    async with opened(path) as hive:
        before = {(row.agent, row.what): row for row in await hive.vacuum.plan()}
        assert len(ids(path)) == 254
        swept = await hive.sweep()
        after = {(row.agent, row.what): row for row in await hive.vacuum.plan()}

    acked, waiting = before[None, "acked messages"], before[None, "waiting messages"]
    assert (acked.goes, acked.stays, waiting.stays) == (Count(250), Count(1), Count(3))
    assert before["alice", EVENTS].goes == Count(3)
    assert swept.messages == 250
    assert after[None, "acked messages"].goes == Count(0)
    assert set(hive.pruned[:2]) == {("alice", True), ("bob", True)}


async def test_why_copes_with_causes_and_threads_that_are_gone(tmp_path: Path) -> None:
    path = fill(tmp_path / "db", [("alice", OLD, OLD), ("alice", OLD, None)])
    async with opened(path) as hive:
        await hive.sweep()
        chain = await hive.store.read(mailbox.chain, 2)
    assert [(message.id, message.in_reply_to, message.thread_id) for message in chain] == [(2, 1, 1)]


async def test_ids_are_not_given_again_when_the_newest_are_gone(tmp_path: Path) -> None:
    path = fill(tmp_path / "db", [("alice", OLD, OLD)] * 5)
    async with opened(path) as hive:
        await hive.sweep()
        assert await hive.store.read(mailbox.last_id) == 5


async def test_a_sender_waits_for_one_slice_at_most(tmp_path: Path) -> None:
    path = fill(tmp_path / "db", [("alice", OLD, OLD)] * 2000)
    between: list[int] = []
    async with opened(path) as hive:
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                while True:
                    await hive.store.write(lambda db: between.append(mailbox.count(db)))
                    await trio.sleep(0)

            nursery.start_soon(write)
            await hive.sweep()
            nursery.cancel_scope.cancel()
    steps = {before - after for before, after in pairwise(between)}
    assert max(steps) <= inventory.SLICE_ROWS
    assert len(set(between)) > 10


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(-50, 0), st.none() | st.floats(0, 50), st.booleans()), max_size=300))
def test_exactly_what_is_old_and_acked_goes_whatever_the_order_of_times(
    rows: list[tuple[float, float | None, bool]],
) -> None:
    db = apsw.Connection(":memory:")
    migrate(db, ":memory:")
    times = sorted(NOW + days * DAY_S for days, _, _ in rows)
    kept, at = [], 0
    for sent_at, (_, ack_days, gap) in zip(times, rows, strict=True):
        acked_at = None if ack_days is None else sent_at + ack_days * DAY_S
        at += 3000 if gap else 1
        message_id = at
        db.execute(
            "insert into messages (id, sender, recipient, body, sent_at, acked_at) values (?, 'a', 'b', '', ?, ?)",
            (message_id, sent_at, acked_at),
        )
        if acked_at is None or acked_at >= OLD:
            kept.append(message_id)

    upto = inventory.border(db, OLD)
    after: int | None = -(2**63)
    while after is not None:
        found, after = inventory.find_old(db, after, upto, OLD)
        assert len(found) <= inventory.SLICE_ROWS
        assert inventory.delete_old(db, found, OLD) == len(found)

    assert [row[0] for row in db.execute("select id from messages order by id")] == kept
    db.close()


async def test_one_agent_that_hangs_does_not_hold_up_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = fill(tmp_path / "db", [])
    async with opened(path) as hive:
        hive.agents = ["bad", *(f"a{number}" for number in range(20))]
        hive.hanging = {"bad"}
        swept = await hive.sweep()
    assert len(swept.files) == 21
    assert swept.files[-1].agent == "bad"
    assert swept.troubles == 1


async def test_a_store_that_cannot_be_read_ends_neither_the_sweep_nor_the_plan(tmp_path: Path) -> None:
    path = fill(tmp_path / "db", [("alice", OLD, OLD)])
    async with opened(path) as hive:

        async def refuse(*_: object) -> list[tuple[AgentFile, int]]:
            raise Refused(ErrorCode.UNAVAILABLE, "cannot read what is stored: disk I/O error")

        hive.vacuum._prune = refuse
        swept = await hive.sweep()
        rows = [row for row in await hive.vacuum.plan() if row.trouble]
        assert swept.messages == 1
        assert swept.troubles == 2
        assert [row.why for row in rows] == ["left alone: cannot read what is stored: disk I/O error"] * 2
        hive.store.read = refuse  # type: ignore[assignment]
        swept = await hive.sweep()
        assert swept.trouble == "cannot read what is stored: disk I/O error"
        with pytest.raises(Refused):
            await hive.vacuum.plan()


# ── clocks ──────────────────────────────────────────────────────────────────────────────────────


async def elapse(hive: Hive, clock: MockClock, seconds: float, *, wall: float | None = None) -> None:
    """Let time pass in small steps; the wall clock is set by *wall* more or less."""
    hive.wall += (seconds if wall is None else wall) - seconds
    while seconds > 0:
        step = min(seconds, 20)
        hive.wall += step
        clock.jump(step)
        seconds -= step
        for _ in range(5):
            await wait_all_tasks_blocked()
            await hive.store.read(lambda _db: None)


def sweeps(hive: Hive) -> int:
    return hive.vacuum.last.number if hive.vacuum.last else 0


async def test_it_sweeps_soon_after_the_start_and_every_hour(tmp_path: Path, mock_clock: MockClock) -> None:
    async with opened(fill(tmp_path / "db", [])) as hive, trio.open_nursery() as nursery:
        await nursery.start(hive.vacuum.run)
        await elapse(hive, mock_clock, doing.START_S + 1)
        assert sweeps(hive) == 1
        await elapse(hive, mock_clock, INTERVAL_S - 60)
        assert sweeps(hive) == 1
        await elapse(hive, mock_clock, 120)
        assert sweeps(hive) == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("hours", [-1.0, 1.0, 2.0, -48.0])
async def test_a_clock_that_is_set_costs_one_sweep_more_at_most(
    tmp_path: Path, mock_clock: MockClock, hours: float
) -> None:
    async with opened(fill(tmp_path / "db", [("alice", YOUNG + 5 * DAY_S, YOUNG + 5 * DAY_S)])) as hive:
        async with trio.open_nursery() as nursery:
            await nursery.start(hive.vacuum.run)
            await elapse(hive, mock_clock, 60)
            await elapse(hive, mock_clock, 120, wall=hours * 3600)
            assert sweeps(hive) in {1, 2}
            await elapse(hive, mock_clock, INTERVAL_S * 3)
            assert sweeps(hive) in {4, 5}
            nursery.cancel_scope.cancel()
        assert ids(hive.store.path) == [1]


async def test_a_clock_that_leaps_ahead_deletes_nothing_for_an_hour(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with opened(fill(tmp_path / "db", [("alice", YOUNG, YOUNG)])) as hive:
        async with trio.open_nursery() as nursery:
            await nursery.start(hive.vacuum.run)
            await elapse(hive, mock_clock, 60)
            await elapse(hive, mock_clock, 60, wall=1000 * DAY_S)
            assert ids(hive.store.path) == [1]
            hive.wall -= 1000 * DAY_S  # somebody saw it
            await elapse(hive, mock_clock, 2 * INTERVAL_S)
            assert ids(hive.store.path) == [1]
            hive.wall += 1000 * DAY_S  # or it was right
            await elapse(hive, mock_clock, 2 * INTERVAL_S)
            assert ids(hive.store.path) == []
            nursery.cancel_scope.cancel()


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────

SWEEP_AND_DIE = """
import os, sys, signal
from pathlib import Path
import trio
from hive_core.store.database import open_store
from hive_core.store.mailbox import apply_batch
from hive_core.domain.retention import Policy
from hive_core.vacuum import Vacuum

left = int(sys.argv[2])

def count(_cursor, _sql, _bindings):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return True

async def nobody():
    return []

async def nothing(*_):
    return []

async def main():
    async with open_store(Path(sys.argv[1]), apply_batch) as store:
        store._db.exec_trace = count
        store._reader.exec_trace = count
        vacuum = Vacuum(store, policy=Policy, agents=nobody, prune=nothing, wall_clock=lambda: float(sys.argv[3]))
        async with trio.open_nursery() as nursery:
            await nursery.start(vacuum.run)
            await vacuum.wait_end(vacuum.ask(), 60)
            nursery.cancel_scope.cancel()

trio.run(main)
"""


def sweep_and_die(path: Path, after: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SWEEP_AND_DIE, str(path), str(after), str(NOW)], check=False, timeout=30
    )
    return done.returncode


def test_a_sweep_killed_at_any_statement_loses_nothing_and_the_next_one_finishes(tmp_path: Path) -> None:
    rows: list[tuple[str, float, float | None]] = []
    for number in range(250):
        rows += [("alice", OLD, OLD), ("alice", OLD, None if number % 2 else YOUNG)]
    stays = set(range(2, 501, 2))
    statement, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        path = fill(tmp_path / f"db{statement}", rows)
        status = sweep_and_die(path, statement)
        found = set(ids(path))
        assert stays <= found, f"killed at statement {statement}"
        assert len(found - stays) % 50 == 0
        with closing(apsw.Connection(str(path))) as db:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        if statement % 7 == 0:
            assert sweep_and_die(path, 10_000) == 0
            assert set(ids(path)) == stays
        os.unlink(path)
        statement += 1
    assert status == 0
    assert statement > 15

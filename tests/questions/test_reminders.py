"""Reminders over a real store and broker: each comes once, at its time, whatever clocks and files do."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.broker import Broker
from hive_core.domain import reminder as rules
from hive_core.scheduler import MAX_DELIVERED, CannotWrite, Scheduler
from hive_core.store import reminders as rows
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused

NOON = 1_000_000.0


class Wall:
    def __init__(self) -> None:
        self.set_by = NOON

    def __call__(self) -> float:
        return trio.current_time() + self.set_by


class Hive:
    def __init__(self, store: Store[MailboxOp]) -> None:
        self.store, self.wall = store, Wall()
        self.files: dict[tuple[str, str], str] = {}
        self.disk_says: str | None = None
        self.broker = Broker(
            store, announce=lambda _message: None, changed=lambda _agent: None, clock=self.wall
        )
        self.scheduler = Scheduler(
            store,
            leave=self.broker.leave_with,
            write_file=self.write_file,
            agents=lambda: self.broker.agents,
            changed=lambda _agent: None,
            clock=self.wall,
        )

    async def write_file(self, agent: str, path: str, text: str) -> str:
        if self.disk_says is not None:
            raise CannotWrite(self.disk_says)
        self.files[agent, path] = text
        return f"/agents/{agent}/state/{path}"

    async def inbox(self, agent: str = "alice") -> list[Message]:
        return await self.broker.recv(agent, 32, None).wait()

    async def bodies(self, agent: str = "alice") -> list[str]:
        return [message.body for message in await self.inbox(agent)]

    async def elapse(self, clock: MockClock, seconds: float) -> None:
        while seconds > 0:
            clock.jump(min(seconds, 10))
            seconds -= 10
            await self.settle()

    async def settle(self) -> None:
        for _ in range(4):
            await wait_all_tasks_blocked()
            await self.store.write(lambda _db: None)
            await wait_all_tasks_blocked()
            await self.store.read(lambda _db: None)

    async def pending(self) -> list[rules.Reminder]:
        return await self.store.read(rows.pending, None, 1000)


@asynccontextmanager
async def hive_at(path: Path, *agents: str) -> AsyncIterator[Hive]:
    async with open_store(path, apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store)
        await hive.broker.recover()
        await nursery.start(hive.broker.run)
        for agent in agents:
            await hive.broker.register(agent, paused=False)
        await nursery.start(hive.scheduler.run)
        yield hive
        nursery.cancel_scope.cancel()


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "alice", "bob") as hive:
        yield hive


async def test_a_reminder_comes_at_its_time_from_reminder(hive: Hive, mock_clock: MockClock) -> None:
    await hive.scheduler.remind("alice", "look at the build", delay_seconds=100)

    await hive.elapse(mock_clock, 99)
    assert await hive.inbox() == []
    await hive.elapse(mock_clock, 2)

    [message] = await hive.inbox()
    assert (message.sender, message.body) == ("reminder", "look at the build")
    assert await hive.pending() == []


async def test_a_moment_that_has_passed_is_now(hive: Hive, mock_clock: MockClock) -> None:
    await hive.scheduler.remind("alice", "late", at=1.0)

    await hive.elapse(mock_clock, 1)

    assert await hive.bodies() == ["late"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "give either delay_seconds or at"),
        ({"delay_seconds": 1.0, "at": NOON}, "give either delay_seconds or at"),
        ({"delay_seconds": 367 * 86400.0}, "more than 366 days away"),
        ({"delay_seconds": 1.0, "message": " "}, "the message is empty"),
        ({"delay_seconds": 1.0, "message": "x" * 65537}, "65537 bytes, the limit is 65536"),
        ({"delay_seconds": 1.0, "file_path": "/etc/passwd"}, "no file below /agents/alice/state"),
    ],
)
async def test_what_cannot_be_kept_is_refused(hive: Hive, change: dict[str, object], text: str) -> None:
    with pytest.raises(Refused, match=text) as refusal:
        await hive.scheduler.remind("alice", **({"message": "m"} | change))  # type: ignore[arg-type]

    assert refusal.value.code is ErrorCode.INVALID_ARGUMENT
    assert await hive.pending() == []


async def test_one_agent_has_room_for_fifty(hive: Hive) -> None:
    for _ in range(50):
        last = await hive.scheduler.remind("alice", "m", delay_seconds=100)
    assert hive.scheduler.count("alice") == 50

    with pytest.raises(Refused, match="alice has 50 pending reminders, the limit"):
        await hive.scheduler.remind("alice", "m", delay_seconds=100)

    await hive.scheduler.remind("bob", "m", delay_seconds=100)
    await hive.scheduler.cancel(last.id, by="alice")
    await hive.scheduler.remind("alice", "m", delay_seconds=100)


async def test_more_than_one_tick_takes_come_all_of_them(hive: Hive, mock_clock: MockClock) -> None:
    def many(db: apsw.Connection) -> None:
        for number in range(2 * MAX_DELIVERED + 1):
            rows.insert(db, rules.Reminder(0, "alice", f"{number}", NOON, NOON))

    await hive.store.write(many)
    hive.scheduler.look_again()
    bodies: list[str] = []
    with trio.fail_after(1e9):
        while len(bodies) < 2 * MAX_DELIVERED + 1:
            bodies += [message.body for message in await hive.broker.recv("alice", 32, 60).wait()]

    assert bodies == [str(number) for number in range(2 * MAX_DELIVERED + 1)]
    await hive.settle()
    assert await hive.pending() == []


async def test_its_agent_or_the_operator_cancels_and_nobody_else_learns_of_it(hive: Hive) -> None:
    first = await hive.scheduler.remind("alice", "m", delay_seconds=100)
    second = await hive.scheduler.remind("alice", "m", delay_seconds=100)

    with pytest.raises(Refused, match="there is no such reminder"):
        await hive.scheduler.cancel(first.id, by="bob")
    await hive.scheduler.cancel(first.id, by="alice")
    await hive.scheduler.cancel(second.id, by="operator")

    assert await hive.pending() == []
    assert hive.scheduler.count("alice") == 0


# ── files ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_long_text_comes_as_a_file(hive: Hive, mock_clock: MockClock) -> None:
    long = await hive.scheduler.remind("alice", "x" * 4097, delay_seconds=1)
    await hive.scheduler.remind("alice", "y" * 4096, delay_seconds=2)

    await hive.elapse(mock_clock, 3)

    assert await hive.bodies() == [
        f"Your reminder {long.id} is in the file /agents/alice/state/reminders/{long.id}.md (4097 bytes).",
        "y" * 4096,
    ]
    assert hive.files == {("alice", f"reminders/{long.id}.md"): "x" * 4097}


@pytest.mark.parametrize(
    "path", ["notes/todo.md", "/agents/alice/state/notes/todo.md", "/state/notes/todo.md"]
)
async def test_a_text_goes_into_the_file_that_was_named(hive: Hive, mock_clock: MockClock, path: str) -> None:
    await hive.scheduler.remind("alice", "short", delay_seconds=1, file_path=path)

    await hive.elapse(mock_clock, 2)

    assert hive.files == {("alice", "notes/todo.md"): "short"}
    assert "/agents/alice/state/notes/todo.md" in (await hive.bodies())[0]


@given(st.text(alphabet="./ab\x00\n ", max_size=20))
def test_no_path_leads_out_of_the_state_directory(path: str) -> None:
    try:
        inside = rules.file_below_state("alice", path)
    except Refused:
        return
    assert inside
    assert not inside.startswith("/")
    assert ".." not in inside.split("/")
    assert inside.isprintable()


async def test_what_cannot_be_written_is_tried_five_times_and_then_waits_for_the_operator(
    hive: Hive, mock_clock: MockClock
) -> None:
    stuck = await hive.scheduler.remind("alice", "short", delay_seconds=1, file_path="a.md")
    await hive.scheduler.remind("bob", "mine", delay_seconds=2)
    hive.disk_says = "No space left on device"

    await hive.elapse(mock_clock, 100)

    [left] = await hive.pending()
    assert (left.id, left.attempts, left.last_error) == (stuck.id, 5, "No space left on device")
    assert left.is_stuck
    assert await hive.bodies("bob") == ["mine"]

    hive.disk_says = None
    await hive.elapse(mock_clock, 100)
    assert await hive.inbox() == []
    await hive.scheduler.retry(stuck.id)
    await hive.elapse(mock_clock, 1)
    assert len(await hive.inbox()) == 1


# ── time and restarts ───────────────────────────────────────────────────────────────────────────


async def test_what_became_due_while_the_daemon_was_down_comes_once(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice") as hive:
        await hive.scheduler.remind("alice", "one", delay_seconds=100)
        await hive.scheduler.remind("alice", "two", delay_seconds=200)

    mock_clock.jump(1000)
    for _ in range(2):
        async with hive_at(path, "alice") as hive:
            await hive.elapse(mock_clock, 1)
            bodies = await hive.bodies()

    assert bodies == ["one", "two"]


async def test_those_of_an_agent_that_is_gone_wait_for_it(hive: Hive, mock_clock: MockClock) -> None:
    await hive.scheduler.remind("alice", "back again", delay_seconds=1)
    hive.broker.unregister("alice")
    await hive.elapse(mock_clock, 100)
    assert len(await hive.pending()) == 1

    await hive.broker.register("alice", paused=False)
    hive.scheduler.look_again()
    await hive.elapse(mock_clock, 1)

    assert await hive.bodies() == ["back again"]


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
async def test_a_clock_that_is_set_loses_and_doubles_nothing(
    hive: Hive, mock_clock: MockClock, jump_s: float
) -> None:
    await hive.scheduler.remind("alice", "in an hour", delay_seconds=3600)

    hive.wall.set_by += jump_s
    await hive.elapse(mock_clock, 40)
    early = await hive.bodies()
    await hive.elapse(mock_clock, 3600 + 7200)

    assert early + await hive.bodies() == ["in an hour"]
    assert bool(early) == (jump_s > 0)


async def test_one_that_was_cancelled_while_its_file_was_written_does_not_come(
    hive: Hive, mock_clock: MockClock
) -> None:
    writing, go_on = trio.Event(), trio.Event()

    async def slow(_agent: str, path: str, _text: str) -> str:
        writing.set()
        await go_on.wait()
        return path

    hive.scheduler._write_file = slow
    reminder = await hive.scheduler.remind("alice", "m", delay_seconds=0, file_path="a.md")
    await writing.wait()
    await hive.scheduler.cancel(reminder.id, by="alice")
    go_on.set()
    await hive.settle()

    assert await hive.inbox() == []


async def test_a_full_disk_only_delays_it(
    hive: Hive, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr("hive_core.store.mailbox.insert_posts", full)
    await hive.scheduler.remind("alice", "m", delay_seconds=1)
    await hive.elapse(mock_clock, 3)
    assert await hive.inbox() == []
    monkeypatch.undo()

    await hive.elapse(mock_clock, 20)

    assert await hive.bodies() == ["m"]


async def test_a_repeated_key_is_kept_once_even_when_it_has_come(hive: Hive, mock_clock: MockClock) -> None:
    first = await hive.scheduler.remind("alice", "m", delay_seconds=1, key="k")
    again = await hive.scheduler.remind("alice", "m", delay_seconds=1, key="k")
    await hive.elapse(mock_clock, 3)
    late = await hive.scheduler.remind("alice", "m", delay_seconds=1, key="k")
    await hive.elapse(mock_clock, 3)

    assert first.id == again.id == late.id
    assert await hive.bodies() == ["m"]


async def test_a_repeated_cancel_is_the_same_one(hive: Hive) -> None:
    reminder = await hive.scheduler.remind("alice", "m", delay_seconds=100)

    for _ in range(2):
        await hive.scheduler.cancel(reminder.id, by="alice", key="k")
    with pytest.raises(Refused, match="there is no such reminder"):
        await hive.scheduler.cancel(reminder.id, by="alice", key="l")


async def test_one_whose_agent_goes_while_its_file_is_written_waits_for_it(
    hive: Hive, mock_clock: MockClock
) -> None:
    async def destroyed_meanwhile(agent: str, path: str, text: str) -> str:
        hive.broker.unregister("alice")
        return path

    hive.scheduler._write_file = destroyed_meanwhile
    reminder = await hive.scheduler.remind("alice", "m", delay_seconds=1, file_path="a.md")
    await hive.elapse(mock_clock, 3)

    assert [left.id for left in await hive.pending()] == [reminder.id]
    hive.scheduler._write_file = hive.write_file
    await hive.broker.register("alice", paused=False)
    hive.scheduler.look_again()
    await hive.settle()
    assert len(await hive.inbox()) == 1


async def test_an_agent_whose_files_cannot_be_written_does_not_hold_up_the_others(
    hive: Hive, mock_clock: MockClock
) -> None:
    tried: list[str] = []

    async def never(agent: str, path: str, text: str) -> str:
        tried.append(path)
        await trio.sleep(10)
        raise CannotWrite("it takes too long")

    hive.scheduler._write_file = never
    for number in range(40):
        await hive.scheduler.remind("alice", "m", at=NOON + 1, file_path=f"{number}.md")
    await hive.scheduler.remind("alice", "plain", at=NOON + 2)
    await hive.scheduler.remind("bob", "mine", at=NOON + 2)
    mock_clock.jump(3)
    await hive.settle()
    mock_clock.jump(10)
    await hive.settle()

    assert tried == ["0.md"]
    assert await hive.bodies("bob") == ["mine"]
    assert await hive.bodies("alice") == ["plain"]


async def test_those_of_an_agent_that_was_purged_are_forgotten(hive: Hive, mock_clock: MockClock) -> None:
    await hive.scheduler.remind("alice", "secret", delay_seconds=10, key="k")
    bobs = await hive.scheduler.remind("bob", "mine", delay_seconds=10)

    await hive.scheduler.forget("alice")

    assert [left.id for left in await hive.pending()] == [bobs.id]
    assert hive.scheduler.count("alice") == 0
    await hive.elapse(mock_clock, 20)
    assert await hive.inbox("alice") == []

"""Dead letters over a real store: counted, buried and told of in one transaction, retried and dropped."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest
from trio.testing import MockClock

from hive_core.dead_letters import DeadLetters
from hive_core.domain.dead import TOLD_MOST, TOLD_WINDOW_S
from hive_core.store import inventory, mailbox
from hive_core.store.mailbox import StoredMessage
from hive_core.wire.errors import ErrorCode, Refused

from .test_broker import Hive, hive_at, ids


@dataclass
class Failing:
    """A hive, its dead letters, and an agent `alice` that fails over everything."""

    hive: Hive
    dead: DeadLetters
    changed: list[str] = field(default_factory=list)

    async def fail_over(self, *wanted: int) -> None:
        assert ids(await self.hive.recv("alice")) == list(wanted)
        await self.dead.requeue_failed("alice").wait()

    async def row(self, message_id: int) -> StoredMessage:
        (row,) = await self.hive.store.read(mailbox.by_ids, [message_id])
        return row

    async def bodies(self, agent: str) -> list[dict[str, Any]]:
        rows = await self.hive.store.read(mailbox.recent, agent, 100)
        return [msgspec.json.decode(row.body) for row in rows if row.sender == "system"]

    async def reasons(self) -> list[tuple[int, str | None]]:
        return [(row.id, row.dead_reason) for row in await self.hive.store.read(mailbox.dead, None, 100)]


@asynccontextmanager
async def failing_at(path: Path, *agents: str) -> AsyncIterator[Failing]:
    async with hive_at(path, *agents) as hive:
        changed: list[str] = []
        dead = DeadLetters(
            hive.store, hive.broker, max_deliveries=lambda: 3, changed=changed.append, clock=lambda: 2000.0
        )
        await dead.recover()
        yield Failing(hive, dead, changed)


@pytest.fixture
async def failing(tmp_path: Path) -> AsyncIterator[Failing]:
    async with failing_at(tmp_path / "broker.sqlite", "alice", "bob") as failing:
        yield failing


async def kill(failing: Failing, *, count: int = 1) -> list[int]:
    """Send *count* messages to alice and let them be dead."""
    sent = [await failing.hive.send("bob", "alice") for _ in range(count)]
    for message_id in sent:
        for _ in range(3):
            await failing.fail_over(message_id)
    return sent


async def test_a_message_comes_again_until_it_has_failed_too_often(failing: Failing) -> None:
    poison = await failing.hive.send("bob", "alice")
    for _ in range(3):
        (message,) = await failing.hive.recv("alice")
        await failing.dead.requeue_failed("alice").wait()
    assert message.redelivered

    assert await failing.hive.recv("alice") == []

    row = await failing.row(poison)
    assert (row.attempts, row.dead_at, row.acked_at) == (3, 2000.0, None)
    assert row.dead_reason == "handed out 3 times, and its agent failed over it each time"
    assert failing.hive.broker.count_unread("alice") == 0
    assert (failing.dead.count("alice"), failing.dead.total) == (1, 1)
    assert "alice" in failing.changed


async def test_what_comes_after_it_is_handed_out(failing: Failing) -> None:
    await kill(failing)

    sent = await failing.hive.send("bob", "alice")

    assert ids(await failing.hive.recv("alice")) == [sent]


async def test_the_answer_says_how_many_come_again(failing: Failing) -> None:
    begun, drained = [await failing.hive.send("bob", "alice") for _ in range(2)]
    counts = []
    for _ in range(3):
        assert ids(await failing.hive.recv("alice")) == [begun]
        assert ids(await failing.hive.broker.recv("alice", 9, None, drained=True).wait()) == [drained]
        counts.append(await failing.dead.requeue_failed("alice").wait())

    assert counts == [2, 2, 1]


async def test_what_was_drained_in_failing_turns_is_not_counted(failing: Failing) -> None:
    begun, drained = [await failing.hive.send("bob", "alice") for _ in range(2)]
    for _ in range(3):
        assert ids(await failing.hive.recv("alice")) == [begun]
        assert ids(await failing.hive.broker.recv("alice", 9, None, drained=True).wait()) == [drained]
        await failing.dead.requeue_failed("alice").wait()

    assert [message_id for message_id, _ in await failing.reasons()] == [begun]
    assert ids(await failing.hive.recv("alice")) == [drained]
    assert (await failing.row(drained)).attempts == 0


async def test_an_answer_that_nobody_read_is_not_counted(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    for _ in range(9):
        assert ids(await failing.hive.recv("alice")) == [sent]
        failing.hive.broker.hand_over("alice", [sent]).undo()

    assert ids(await failing.hive.recv("alice")) == [sent]
    assert (await failing.row(sent)).attempts == 0


async def test_what_is_given_back_without_a_failure_is_not_counted(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    for _ in range(9):
        assert ids(await failing.hive.recv("alice")) == [sent]
        failing.hive.broker.requeue("alice")

    assert ids(await failing.hive.recv("alice")) == [sent]


async def test_failures_are_counted_on_disk_and_a_daemon_that_ends_is_none(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with failing_at(path, "alice", "bob") as failing:
        poison = await failing.hive.send("bob", "alice")
        for _ in range(2):
            await failing.fail_over(poison)
        assert ids(await failing.hive.recv("alice")) == [poison]

    async with failing_at(path, "alice") as failing:
        assert await failing.dead.requeue_failed("alice").wait() == 0
        await failing.fail_over(poison)
        assert await failing.hive.recv("alice") == []

    async with failing_at(path, "alice") as failing:
        assert failing.dead.count("alice") == 1
        assert await failing.hive.recv("alice") == []
        assert failing.hive.broker.count_unread("alice") == 0


async def test_a_daemon_killed_after_any_commit_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Its files as they are on disk after each step, opened by the next daemon."""
    path = tmp_path / "broker.sqlite"
    found = []
    async with failing_at(path, "alice", "bob") as failing:
        poison = await failing.hive.send("bob", "alice")
        for step in range(3):
            await failing.fail_over(poison)
            copy = tmp_path / f"killed-{step}"
            copy.mkdir()
            for file in tmp_path.glob("broker.sqlite*"):
                shutil.copy(file, copy)
            async with failing_at(copy / "broker.sqlite", "alice") as after:
                told = len(await after.bodies("operator"))
                found.append((len(await after.hive.recv("alice")), after.dead.total, told))

    assert found == [(1, 0, 0), (1, 0, 0), (0, 1, 1)]


async def test_the_operator_is_told_once_where_there_is_no_manager(failing: Failing) -> None:
    (poison,) = await kill(failing)

    assert await failing.bodies("operator") == [
        {
            "event": "message_dead",
            "agent": "alice",
            "id": poison,
            "reason": "handed out 3 times, and its agent failed over it each time",
        }
    ]


async def test_the_manager_is_told_unless_it_is_its_own(failing: Failing) -> None:
    await failing.hive.broker.register("manager", paused=False)
    (poison,) = await kill(failing)
    (told,) = await failing.hive.recv("manager")
    assert msgspec.json.decode(told.body)["id"] == poison

    assert await failing.dead.set_aside("manager", [told.id], "I cannot").wait() == 0

    assert [body["id"] for body in await failing.bodies("operator")] == [told.id]


async def test_of_many_at_once_some_are_told_and_all_are_counted(
    failing: Failing, mock_clock: MockClock
) -> None:
    for _ in range(TOLD_MOST + 5):
        sent = await failing.hive.send("bob", "alice")
        await failing.hive.recv("alice")
        await failing.dead.set_aside("alice", [sent], "no").wait()
    assert failing.dead.total == TOLD_MOST + 5
    assert len(await failing.bodies("operator")) == TOLD_MOST

    mock_clock.jump(TOLD_WINDOW_S)
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")
    await failing.dead.set_aside("alice", [sent], "no").wait()

    assert (await failing.bodies("operator"))[-1]["id"] == sent


async def test_a_harness_sets_aside_what_it_has_in_hand_for_its_own_reason(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")

    await failing.dead.set_aside("alice", [sent], "too\nlong").wait()

    assert await failing.reasons() == [(sent, "too long")]
    assert (await failing.row(sent)).attempts == 1
    assert await failing.hive.recv("alice") == []


async def test_what_an_earlier_daemon_handed_out_can_be_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with failing_at(path, "alice", "bob") as failing:
        sent = await failing.hive.send("bob", "alice")
        await failing.hive.recv("alice")

    async with failing_at(path, "alice") as failing:
        await failing.dead.set_aside("alice", [sent], "no").wait()
        assert failing.hive.broker.count_unread("alice") == 0
        assert await failing.hive.recv("alice") == []


async def test_nobody_sets_aside_what_is_another_ones_or_done(failing: Failing) -> None:
    other = await failing.hive.send("alice", "bob")
    done = await failing.hive.send("bob", "alice")
    await failing.hive.recv("bob")
    await failing.hive.recv("alice")
    failing.hive.broker.ack("alice", None)

    await failing.dead.set_aside("alice", [other, done, 99, -1], "no").wait()

    assert await failing.reasons() == []
    assert failing.hive.broker.ack("bob", [other]) == 1


async def test_an_ack_while_it_is_judged_wins(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")

    judging = failing.dead.set_aside("alice", [sent], "no")
    assert failing.hive.broker.ack("alice", [sent]) == 1
    await judging.wait()
    await failing.hive.send("bob", "alice")

    assert (await failing.row(sent)).acked_at is not None
    assert (failing.dead.total, await failing.reasons()) == (0, [])


async def test_nothing_is_handed_out_while_it_is_judged(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")

    judging = failing.dead.requeue_failed("alice")
    failing.hive.broker.requeue("alice")
    parked = failing.hive.broker.recv("alice", 1, 60)

    assert not parked.done
    await judging.wait()
    assert ids(await parked.wait()) == [sent]
    assert (await failing.row(sent)).attempts == 1


async def test_a_disk_that_refuses_costs_the_count_and_no_message(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> dict[int, int]:
        raise apsw.FullError("the disk is full")

    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")
    with monkeypatch.context() as patch:
        patch.setattr("hive_core.store.dead.note_failures", full)
        with pytest.raises(Refused) as caught:
            await failing.dead.requeue_failed("alice").wait()
    assert caught.value.code is ErrorCode.UNAVAILABLE

    (message,) = await failing.hive.recv("alice")

    assert (message.id, message.redelivered) == (sent, True)
    assert (await failing.row(sent)).attempts == 0


async def test_an_agent_destroyed_while_its_message_is_judged_leaves_it_dead(failing: Failing) -> None:
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")

    judging = failing.dead.set_aside("alice", [sent], "no")
    failing.hive.broker.unregister("alice")
    await judging.wait()
    await failing.hive.broker.register("alice", paused=False)

    assert failing.dead.count("alice") == 1
    assert failing.hive.broker.count_unread("alice") == 0


# ── what the operator does with them ────────────────────────────────────────────────────────────


async def test_a_retried_one_comes_before_what_was_sent_later_and_has_all_its_chances(
    failing: Failing,
) -> None:
    (poison,) = await kill(failing)
    later = await failing.hive.send("bob", "alice")

    await failing.dead.retry(poison)

    for _ in range(2):
        await failing.fail_over(poison)
    assert ids(await failing.hive.recv("alice", 9)) == [poison, later]
    assert failing.dead.total == 0
    assert (await failing.row(poison)).dead_reason is None


async def test_a_parked_recv_gets_a_retried_one(failing: Failing) -> None:
    (poison,) = await kill(failing)
    parked = failing.hive.broker.recv("alice", 1, 60)

    await failing.dead.retry(poison)

    assert ids(await parked.wait()) == [poison]


@pytest.mark.parametrize(("agent", "left"), [(None, 0), ("alice", 1), ("bob", 2)])
async def test_all_of_one_agent_or_of_everyone_are_retried(
    failing: Failing, agent: str | None, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hive_core.dead_letters.RETRIED_AT_ONCE", 1)
    await kill(failing, count=2)
    other = await failing.hive.send("alice", "bob")
    await failing.hive.recv("bob")
    await failing.dead.set_aside("bob", [other], "no").wait()

    assert await failing.dead.retry_all(agent) == 3 - left
    assert failing.dead.total == left


async def test_a_message_of_a_destroyed_agent_is_retried_for_the_next_of_that_name(failing: Failing) -> None:
    (poison,) = await kill(failing)
    failing.hive.broker.unregister("alice")

    await failing.dead.retry(poison)
    await failing.hive.broker.register("alice", paused=False)

    assert ids(await failing.hive.recv("alice")) == [poison]


async def test_one_retried_while_its_agent_is_made_anew_is_delivered(failing: Failing) -> None:
    (poison,) = await kill(failing)
    failing.hive.broker.unregister("alice")
    import trio

    async with trio.open_nursery() as nursery:

        async def register() -> None:
            await failing.hive.broker.register("alice", paused=False)

        nursery.start_soon(failing.dead.retry, poison)
        nursery.start_soon(register)

    assert ids(await failing.hive.recv("alice")) == [poison]


async def test_a_dropped_one_is_as_if_it_were_acked(failing: Failing) -> None:
    (poison,) = await kill(failing)

    await failing.dead.drop(poison)

    row = await failing.row(poison)
    assert (row.acked_at, row.dead_at is not None) == (2000.0, True)
    assert (failing.dead.total, await failing.reasons()) == (0, [])
    assert (await failing.hive.store.read(inventory.find_old, 0, poison, 3000.0)).ids == [poison]


async def test_a_dead_one_is_never_old(failing: Failing) -> None:
    (poison,) = await kill(failing)

    assert (await failing.hive.store.read(inventory.find_old, 0, poison, 1e12)).ids == []


@pytest.mark.parametrize("verb", ["retry", "drop"])
@pytest.mark.parametrize("prepare", [lambda _: None, lambda failing: failing.hive.broker.ack("alice", None)])
async def test_what_is_not_dead_is_neither_retried_nor_dropped(
    failing: Failing, verb: str, prepare: Callable[[Failing], object]
) -> None:
    sent = await failing.hive.send("bob", "alice")
    await failing.hive.recv("alice")
    prepare(failing)

    with pytest.raises(Refused) as caught:
        await getattr(failing.dead, verb)(sent)

    assert caught.value.text == f"cannot {verb} message {sent}: it is no dead message"


async def test_the_dead_ones_of_an_agent_are_shown_oldest_first(failing: Failing) -> None:
    sent = await kill(failing, count=3)

    shown = await failing.hive.store.read(mailbox.dead, "alice", 2)

    assert [row.id for row in shown] == sent[1:]
    assert await failing.hive.store.read(mailbox.dead, "bob", 2) == []
    assert await failing.hive.store.read(mailbox.unfinished, "alice", 9) == []


async def test_an_unclean_end_touches_no_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with failing_at(path, "alice", "bob") as failing:
        await kill(failing)
        (tmp_path / "copy").mkdir()
        for file in tmp_path.glob("broker.sqlite*"):
            shutil.copy(file, tmp_path / "copy")

    async with failing_at(tmp_path / "copy/broker.sqlite", "alice") as failing:
        assert not failing.hive.store.was_clean
        assert failing.dead.count("alice") == 1
        assert await failing.hive.recv("alice") == []

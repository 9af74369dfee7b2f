"""Answers on their way: what they hand over is done with its turn when somebody has read them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hive_core.broker import Handover

from .test_broker import Hive, hive_at, ids


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "alice", "bob") as hive:
        yield hive


async def begin(hive: Hive, count: int = 2) -> tuple[int, list[int], Handover]:
    """Begin a turn and hand over *count* messages in it."""
    begun, *drained = [await hive.send("bob", "alice") for _ in range(count + 1)]
    assert ids(await hive.recv("alice")) == [begun]
    assert ids(await hive.broker.recv("alice", count, None, drained=True).wait()) == drained
    return begun, drained, hive.broker.hand_over("alice", drained)


async def test_what_has_arrived_is_done_with_its_turn(hive: Hive) -> None:
    begun, _, handover = await begin(hive)

    handover.arrived()

    assert hive.broker.ack("alice", [begun]) == 3


async def test_what_arrives_after_its_turn_is_done_then(hive: Hive) -> None:
    begun, _, handover = await begin(hive)
    assert hive.broker.ack("alice", [begun]) == 1

    handover.arrived()

    assert hive.broker.requeue("alice") == 0
    assert hive.broker.count_unread("alice") == 0


@pytest.mark.parametrize("blanket", [False, True])
async def test_what_never_arrives_is_not_taken_along_by_its_turn(hive: Hive, blanket: bool) -> None:
    begun, drained, handover = await begin(hive)
    assert hive.broker.ack("alice", None if blanket else [begun]) == 1

    handover.undo()

    again = await hive.recv("alice", 9)
    assert ids(again) == drained
    assert all(message.redelivered for message in again)


async def test_what_is_acked_by_its_own_id_is_done_wherever_it_is(hive: Hive) -> None:
    begun, drained, handover = await begin(hive)
    assert hive.broker.ack("alice", [begun, *drained]) == 3

    handover.undo()
    handover.arrived()

    assert hive.broker.count_unread("alice") == 0


@pytest.mark.parametrize("end", ["arrived", "undo"])
async def test_an_old_answer_has_no_say_in_a_new_lease(hive: Hive, end: str) -> None:
    begun, drained, old = await begin(hive)
    hive.broker.requeue("alice")
    assert ids(await hive.recv("alice")) == [begun]
    assert ids(await hive.broker.recv("alice", 2, None, drained=True).wait()) == drained
    new = hive.broker.hand_over("alice", drained)

    getattr(old, end)()

    assert hive.broker.count_unread("alice") == 0
    assert hive.broker.ack("alice", [begun]) == 1
    new.arrived()
    assert hive.broker.requeue("alice") == 0


async def test_an_answer_outlives_the_agent_it_was_for(hive: Hive) -> None:
    _, _, handover = await begin(hive)
    hive.broker.unregister("alice")
    await hive.broker.register("alice", paused=False)

    handover.undo()
    handover.arrived()

    assert hive.broker.count_unread("alice") == 3


async def test_what_begins_a_turn_waits_for_nothing(hive: Hive) -> None:
    sent = await hive.send("bob", "alice")
    assert ids(await hive.recv("alice")) == [sent]
    hive.broker.hand_over("alice", [sent])

    assert hive.broker.ack("alice", [sent]) == 1


async def test_what_is_set_aside_keeps_what_was_drained_with_it(hive: Hive) -> None:
    begun, drained, handover = await begin(hive)
    handover.arrived()
    other = await hive.send("bob", "alice")
    assert ids(await hive.recv("alice")) == [other]

    assert hive.broker.ack("alice", [other]) == 1

    assert hive.broker.requeue("alice") == 3
    assert ids(await hive.recv("alice", 9)) == [begun, *drained]


async def test_what_began_a_turn_that_failed_and_is_drained_later_is_done_with_the_next_turn(
    hive: Hive,
) -> None:
    failed = await hive.send("bob", "alice")
    assert ids(await hive.recv("alice")) == [failed]
    hive.broker.requeue("alice")
    assert ids(await hive.broker.recv("alice", 1, None, drained=True).wait()) == [failed]
    begun = await hive.send("bob", "alice")
    assert ids(await hive.recv("alice")) == [begun]

    assert hive.broker.ack("alice", [begun]) == 2

"""The broker over a real store: what is accepted is delivered, in order, once or flagged."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.broker import Broker
from hive_core.domain import delivery
from hive_core.store import mailbox
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, StoredMessage, apply_batch
from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused


class Hive:
    """A broker, its store, and what it announced."""

    def __init__(self, store: Store[MailboxOp]) -> None:
        self.store = store
        self.announced: list[StoredMessage] = []
        self.changed: list[str] = []
        self.broker = Broker(
            store, announce=self.announced.append, changed=self.changed.append, clock=lambda: 1000.0
        )

    async def send(self, sender: str, to: str, body: str = "hi", **options: object) -> int:
        return await self.broker.send(sender, to, body, sender_uid=7, **options).wait()  # type: ignore[arg-type]

    async def recv(self, agent: str, limit: int = 1, wait_s: float | None = None) -> list[Message]:
        with trio.fail_after(1000):
            return await self.broker.recv(agent, limit, wait_s).wait()


@asynccontextmanager
async def hive_at(path: Path, *agents: str) -> AsyncIterator[Hive]:
    async with open_store(path, apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store)
        await hive.broker.recover()
        await nursery.start(hive.broker.run)
        for agent in agents:
            await hive.broker.register(agent, paused=False)
        yield hive
        nursery.cancel_scope.cancel()


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "alice", "bob", "carol") as hive:
        yield hive


def ids(messages: list[Message]) -> list[int]:
    return [message.id for message in messages]


async def test_a_message_is_handed_out_with_all_that_its_reader_needs(hive: Hive) -> None:
    sent = await hive.send("alice", "bob", "hello")
    (message,) = await hive.recv("bob")
    assert message == Message(
        id=sent, sender="alice", recipient="bob", body="hello", sent_at=1000.0, thread_id=sent
    )


async def test_a_recv_without_waiting_answers_at_once(hive: Hive) -> None:
    assert await hive.recv("bob") == []


async def test_a_parked_recv_wakes_when_the_message_is_on_disk(hive: Hive) -> None:
    parked = hive.broker.recv("bob", 1, 180)
    await wait_all_tasks_blocked()
    sent = await hive.send("alice", "bob")
    assert parked.done
    assert ids(await parked.wait()) == [sent]


async def test_a_parked_recv_is_answered_empty_when_its_time_is_up(hive: Hive, mock_clock: MockClock) -> None:
    long, short = hive.broker.recv("bob", 1, 1e9), hive.broker.recv("bob", 1, 30)
    await wait_all_tasks_blocked()
    mock_clock.jump(29.9)
    await wait_all_tasks_blocked()
    assert not short.done
    mock_clock.jump(0.2)
    await wait_all_tasks_blocked()
    assert await short.wait() == []
    mock_clock.jump(149)
    await wait_all_tasks_blocked()
    assert not long.done
    mock_clock.jump(1.0)
    await wait_all_tasks_blocked()
    assert await long.wait() == []


async def test_an_impatient_recv_is_not_held_up_by_a_patient_one(hive: Hive) -> None:
    parked = hive.broker.recv("bob", 1, 180)
    assert await hive.recv("bob") == []
    assert not parked.done


async def test_parked_recvs_are_served_in_their_order(hive: Hive) -> None:
    first, second = hive.broker.recv("bob", 1, 180), hive.broker.recv("bob", 1, 180)
    one = await hive.send("alice", "bob")
    assert ids(await first.wait()) == [one]
    two = await hive.send("alice", "bob")
    assert ids(await second.wait()) == [two]


async def test_a_cancelled_recv_takes_no_message(hive: Hive) -> None:
    parked = hive.broker.recv("bob", 1, 180)
    assert parked.cancel()
    with pytest.raises(Refused) as refused:
        await parked.wait()
    assert refused.value.code is ErrorCode.CANCELLED
    sent = await hive.send("alice", "bob")
    assert ids(await hive.recv("bob")) == [sent]
    assert not parked.cancel()


async def test_what_is_leased_does_not_come_again_until_it_is_requeued(hive: Hive) -> None:
    sent = await hive.send("alice", "bob")
    assert [message.redelivered for message in await hive.recv("bob")] == [False]
    assert await hive.recv("bob") == []
    assert hive.broker.requeue("bob") == 1
    (again,) = await hive.recv("bob")
    assert (again.id, again.redelivered) == (sent, True)
    assert hive.broker.ack("bob", None) == 1
    assert hive.broker.requeue("bob") == 0


async def test_requeued_messages_come_before_later_ones(hive: Hive) -> None:
    sent = [await hive.send("alice", "bob", str(number)) for number in range(5)]
    await hive.recv("bob", 2)
    hive.broker.requeue("bob")
    assert ids(await hive.recv("bob", 32)) == sent


async def test_order_is_kept_beyond_what_fits_in_memory(hive: Hive) -> None:
    count = delivery.WINDOW_MESSAGES * 2 + 50
    sent = [await hive.send("alice", "bob", str(number)) for number in range(count)]
    got: list[int] = []
    while len(got) < count:
        got += ids(await hive.recv("bob", 32, 10))
        hive.broker.ack("bob", None)
    assert got == sent
    assert hive.broker.count_unread("bob") == 0


async def test_a_paused_agent_gets_nothing_and_loses_nothing(hive: Hive) -> None:
    hive.broker.set_paused("bob", True)
    sent = await hive.send("alice", "bob")
    assert await hive.recv("bob") == []
    parked = hive.broker.recv("bob", 1, 180)
    assert not parked.done
    hive.broker.set_paused("bob", False)
    assert ids(await parked.wait()) == [sent]


async def test_a_broadcast_reaches_everyone_but_its_sender(hive: Hive) -> None:
    first = await hive.send("alice", "*", "all hands")
    assert await hive.recv("alice") == []
    (to_bob,), (to_carol,) = await hive.recv("bob"), await hive.recv("carol")
    assert (to_bob.id, to_carol.id) == (first, first + 1)
    assert to_bob.broadcast
    assert to_carol.broadcast


async def test_a_message_to_an_unknown_agent_is_refused_at_once(hive: Hive) -> None:
    with pytest.raises(Refused, match="no agent is named 'dave'"):
        hive.broker.send("alice", "dave", "x", sender_uid=1)


async def test_a_repeat_is_delivered_once(hive: Hive) -> None:
    first = await hive.send("alice", "bob", "x", idempotency_key="k")
    assert await hive.send("alice", "bob", "x", idempotency_key="k") == first
    assert ids(await hive.recv("bob", 32)) == [first]
    assert hive.broker.count_unread("bob") == 0


async def test_repeats_in_flight_at_once_are_delivered_once(hive: Hive) -> None:
    answers = [hive.broker.send("alice", "bob", "x", sender_uid=1, idempotency_key="k") for _ in range(20)]
    assert len({await answer.wait() for answer in answers}) == 1
    assert len(await hive.recv("bob", 32)) == 1


async def test_rows_keep_who_why_and_which_thread(hive: Hive) -> None:
    asked = await hive.send("operator", "alice", "ask bob")
    await hive.recv("alice")
    told = await hive.send("alice", "bob", "alice asks")
    await hive.recv("bob")
    await hive.send("bob", "alice", "bob answers", in_reply_to=told)

    rows = await hive.store.read(mailbox.page, 0, 10)

    assert [(row.cause_id, row.thread_id, row.in_reply_to, row.sender_uid) for row in rows] == [
        (None, asked, None, 7),
        (asked, told, None, 7),
        (told, told, told, 7),
    ]
    assert hive.announced == [
        StoredMessage(**{field: getattr(row, field) for field in row.__slots__} | {"delivered_at": None})
        for row in rows
    ]


async def test_a_wake_lands_in_the_own_inbox_under_its_label(hive: Hive) -> None:
    await hive.broker.wake("bob", "ci", "build 7 failed", sender_uid=1).wait()
    (message,) = await hive.recv("bob")
    assert (message.sender, message.body) == ("ci", "build 7 failed")


# ── turns ───────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_drained_is_acked_with_its_turn_and_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        begun, drained, later = [await hive.send("alice", "bob", text) for text in "abc"]
        assert ids(await hive.recv("bob")) == [begun]
        assert ids(await hive.broker.recv("bob", 1, None, drained=True).wait()) == [drained]
        assert hive.broker.ack("bob", [begun]) == 2
    async with hive_at(path, "alice", "bob") as hive:
        found = await hive.recv("bob", 32, 5)
        assert [(message.id, message.redelivered) for message in found] == [(later, False)]


async def test_a_turn_asked_for_begins_with_a_message_from_self(hive: Hive) -> None:
    begun = await hive.send("alice", "bob")
    await hive.recv("bob")
    requested = hive.broker.request_next_turn("bob", sender_uid=7)
    assert requested is not None
    own_id = await requested.wait()
    hive.broker.ack("bob", [begun])

    (message,) = await hive.recv("bob")

    assert (message.id, message.sender, message.body) == (own_id, "self", "continue")
    (row,) = [row for row in await hive.store.read(mailbox.page, 0, 10) if row.id == own_id]
    assert (row.cause_id, row.sender_uid, row.redelivered) == (begun, 7, 0)


async def test_a_turn_asked_for_often_comes_once(hive: Hive) -> None:
    await hive.send("alice", "bob")
    await hive.recv("bob")
    asked = [hive.broker.request_next_turn("bob", sender_uid=7) for _ in range(5)]
    assert len({await answer.wait() for answer in asked if answer is not None}) == 1
    assert hive.broker.request_next_turn("bob", sender_uid=7) is None
    assert hive.broker.count_unread("bob") == 1

    # Taken in the same turn, it is spent: the turn cannot ask for another.
    await hive.broker.recv("bob", 1, None, drained=True).wait()
    again = hive.broker.request_next_turn("bob", sender_uid=7)
    assert again is not None
    await again.wait()
    assert hive.broker.count_unread("bob") == 0


async def test_a_turn_is_not_asked_for_while_messages_are_pending(hive: Hive) -> None:
    await hive.send("alice", "bob", "one")
    pending = await hive.send("alice", "bob", "two")
    await hive.recv("bob")
    assert hive.broker.request_next_turn("bob", sender_uid=7) is None
    assert ids(await hive.recv("bob", 32)) == [pending]


async def test_turns_of_different_messages_and_agents_each_get_their_own(hive: Hive) -> None:
    asked = []
    for _ in range(2):
        for agent in ("bob", "carol"):
            await hive.send("alice", agent)
            await hive.recv(agent)
            requested = hive.broker.request_next_turn(agent, sender_uid=7)
            assert requested is not None
            asked.append(await requested.wait())
            hive.broker.ack(agent, None)
            await hive.recv(agent)
            hive.broker.ack(agent, None)
    assert len(set(asked)) == 4


async def test_a_turn_can_be_asked_for_without_one_running(hive: Hive) -> None:
    for _ in range(2):
        requested = hive.broker.request_next_turn("bob", sender_uid=7)
        assert requested is not None
        assert ids(await hive.recv("bob", 1, 5)) == [await requested.wait()]
        hive.broker.ack("bob", None)


async def test_an_agent_that_was_destroyed_gets_its_messages_when_it_comes_back(hive: Hive) -> None:
    sent = await hive.send("alice", "bob")
    parked = hive.broker.recv("carol", 1, 180)
    hive.broker.unregister("bob")
    hive.broker.unregister("carol")
    with pytest.raises(Refused):
        await parked.wait()
    with pytest.raises(Refused):
        hive.broker.send("alice", "bob", "x", sender_uid=1)
    await hive.broker.register("bob", paused=False)
    assert ids(await hive.recv("bob", 5, 5)) == [sent]


async def test_after_a_clean_restart_only_what_was_handed_out_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        done, begun, fresh = [await hive.send("alice", "bob", text) for text in "abc"]
        await hive.recv("bob")
        hive.broker.ack("bob", None)
        await hive.recv("bob")
    async with hive_at(path, "alice", "bob") as hive:
        assert hive.broker.count_unread("bob") == 2
        found = await hive.recv("bob", 32, 5)
        assert [(message.id, message.redelivered) for message in found] == [(begun, True), (fresh, False)]
        assert await hive.send("alice", "bob") > fresh > done


async def test_after_an_unclean_end_everything_unacked_comes_again_flagged(tmp_path: Path) -> None:
    path, copy = tmp_path / "broker.sqlite", tmp_path / "copy.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        begun, fresh = [await hive.send("alice", "bob", text) for text in "ab"]
        await hive.recv("bob")
        for suffix in ("", "-wal"):  # what a kill leaves behind
            shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    async with hive_at(copy, "alice", "bob") as hive:
        found = await hive.recv("bob", 32, 5)
        assert [(message.id, message.redelivered) for message in found] == [(begun, True), (fresh, True)]


async def test_a_turn_that_outlived_its_daemon_can_be_acked_by_ids(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        begun, fresh = [await hive.send("alice", "bob", text) for text in "ab"]
        await hive.recv("bob")
    async with hive_at(path, "alice", "bob") as hive:
        assert hive.broker.ack("bob", None) == 0
        assert hive.broker.ack("bob", [begun]) == 1
        assert ids(await hive.recv("bob", 32, 5)) == [fresh]


async def test_a_send_caused_by_a_turn_that_outlived_its_daemon_knows_it(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        begun = await hive.send("operator", "alice")
        await hive.recv("alice")
    async with hive_at(path, "alice", "bob") as hive:
        sent = await hive.send("alice", "bob")
        (row,) = [row for row in await hive.store.read(mailbox.page, 0, 10) if row.id == sent]
        assert row.cause_id == begun


async def test_many_senders_share_commits_and_keep_their_order(hive: Hive) -> None:
    async def sender(name: str) -> None:
        for number in range(50):
            await hive.send(name, "carol", f"{name} {number}")

    async with trio.open_nursery() as nursery:
        for name in ("alice", "bob", "operator"):
            nursery.start_soon(sender, name)
    got: list[str] = []
    while len(got) < 150:
        got += [message.body for message in await hive.recv("carol", 32, 5)]
    for name in ("alice", "bob", "operator"):
        assert [text for text in got if text.startswith(name)] == [f"{name} {number}" for number in range(50)]


async def test_what_is_held_is_handed_out_when_that_is_over_unless_it_is_paused(hive: Hive) -> None:
    hive.broker.hold_up("alice", True)
    first = await hive.send("bob", "alice")
    assert await hive.recv("alice") == []

    hive.broker.set_paused("alice", True)
    hive.broker.hold_up("alice", False)
    assert await hive.recv("alice") == []
    hive.broker.set_paused("alice", False)

    assert ids(await hive.recv("alice")) == [first]
    hive.broker.hold_up("nobody", True)

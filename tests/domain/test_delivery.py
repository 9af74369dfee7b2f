from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hive_core.domain import delivery
from hive_core.domain.delivery import Mailbox, check_body, check_label, route
from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused

AGENTS = ("alice", "bob", "carol")


def message(message_id: int, body: str = "x") -> Message:
    return Message(id=message_id, sender="bob", recipient="alice", body=body, sent_at=0.0)


@pytest.mark.parametrize(
    ("sender", "to", "recipients"),
    [
        ("operator", "alice", ["alice"]),
        ("alice", "bob", ["bob"]),
        ("alice", "alice", ["alice"]),
        ("alice", "operator", ["operator"]),
        ("alice", "*", ["bob", "carol"]),
        ("operator", "*", ["alice", "bob", "carol"]),
    ],
)
def test_a_message_goes_to_whom_it_names(sender: str, to: str, recipients: list[str]) -> None:
    assert route(sender, to, AGENTS) == recipients


@pytest.mark.parametrize(
    ("sender", "to", "code"),
    [
        ("alice", "dave", ErrorCode.NOT_FOUND),
        ("alice", "", ErrorCode.NOT_FOUND),
        ("alice", "self", ErrorCode.NOT_FOUND),
        ("alice", "manager", ErrorCode.NOT_FOUND),
        ("alice", "../alice", ErrorCode.NOT_FOUND),
        ("operator", "operator", ErrorCode.INVALID_ARGUMENT),
    ],
)
def test_a_message_to_nobody_is_refused(sender: str, to: str, code: ErrorCode) -> None:
    with pytest.raises(Refused, match=r"^cannot send") as refused:
        route(sender, to, AGENTS)
    assert refused.value.code is code


def test_a_broadcast_to_nobody_is_refused() -> None:
    with pytest.raises(Refused, match="no other agent"):
        route("alice", "*", ["alice"])


def test_bodies_are_measured_in_bytes_of_utf8() -> None:
    check_body("a" * 65536)
    check_body("é" * 32768)
    with pytest.raises(Refused, match="65538 bytes, the limit is 65536"):
        check_body("é" * 32769)
    with pytest.raises(Refused, match="empty"):
        check_body("")


@pytest.mark.parametrize("label", ["operator", "system", "manager", "alice"])
def test_a_wake_cannot_pretend_to_be_somebody(label: str) -> None:
    with pytest.raises(Refused) as refused:
        check_label(label, AGENTS)
    assert refused.value.code is ErrorCode.FORBIDDEN


@pytest.mark.parametrize("label", ["ci", "mail from bob", "Alice", "bash-task-3"])
def test_a_wake_may_call_its_source_anything_else(label: str) -> None:
    check_label(label, AGENTS)


def test_messages_are_taken_in_order_and_counted() -> None:
    box = Mailbox()
    for message_id in (1, 2, 3):
        box.committed(message(message_id))
    assert box.waiting == 3
    assert [taken.id for taken in box.take(2)] == [1, 2]
    assert box.waiting == 1
    assert box.leased == [1, 2]


def test_an_ack_without_ids_ends_all_leases_and_with_ids_only_those() -> None:
    box = Mailbox()
    for message_id in (1, 2, 3):
        box.committed(message(message_id))
    box.take(3)
    assert box.ack([2, 99]) == [2]
    assert box.ack(None) == [1, 3]
    assert box.ack(None) == []


def test_what_an_earlier_daemon_handed_out_may_be_acked_before_it_comes_again() -> None:
    box = Mailbox(waiting=2, working=[5])
    assert box.needs_load()
    box.loaded([message(5), message(6)], whole=True)
    assert box.ack([5]) == [5]
    assert box.waiting == 1
    assert [taken.id for taken in box.take(9)] == [6]


def test_an_ack_during_a_load_is_not_undone_by_it() -> None:
    box = Mailbox(waiting=2, working=[5])
    assert box.needs_load()
    assert box.ack([5]) == [5]
    box.loaded([message(5), message(6)], whole=True)
    assert [taken.id for taken in box.take(9)] == [6]


def test_a_requeue_during_a_load_makes_the_load_begin_again() -> None:
    box = Mailbox()
    for message_id in range(1, delivery.WINDOW_MESSAGES + 11):
        box.committed(message(message_id))
    box.take(delivery.WINDOW_MESSAGES)
    assert box.needs_load()
    box.requeue()
    box.loaded(
        [message(i) for i in range(delivery.WINDOW_MESSAGES + 1, delivery.WINDOW_MESSAGES + 11)], whole=True
    )
    assert not box.has_ready
    assert box.needs_load()
    assert box.loaded_to == 0


def test_the_window_is_bounded_by_bytes_too() -> None:
    box = Mailbox()
    for message_id in range(1, 101):
        box.committed(message(message_id, "x" * 60_000))
    assert len(box.take(1000)) == delivery.WINDOW_BYTES // 60_000
    assert box.needs_load()


def test_the_cause_of_a_send_is_what_its_turn_began_with() -> None:
    box = Mailbox()
    assert box.cause(None) is None
    for message_id in (1, 2):
        box.committed(message(message_id))
    box.take(1)
    box.take(1, drained=True)
    assert box.cause(None) == 1
    assert box.cause(2) == 2
    assert box.cause(77) == 1
    box.ack(None)
    assert box.cause(None) is None


def test_after_a_restart_the_cause_is_what_was_handed_out_before() -> None:
    assert Mailbox(waiting=3, working=[4, 5]).cause(None) == 4


def test_a_message_that_was_set_aside_is_no_cause_of_later_turns() -> None:
    box = mailbox_with(1, 2)
    box.take(1)
    box.take(1)
    assert box.cause(None) == 2
    box.ack([2])
    assert box.cause(None) is None


# ── what a model takes in a turn ────────────────────────────────────────────────────────────────


def mailbox_with(*ids: int, body: str = "x") -> Mailbox:
    box = Mailbox()
    for message_id in ids:
        box.committed(message(message_id, body))
    return box


def test_what_was_drained_in_a_turn_is_done_with_it() -> None:
    box = mailbox_with(1, 2, 3, 4)
    box.take(1)
    box.take(2, drained=True)
    assert sorted(box.ack([1])) == [1, 2, 3]
    assert box.leased == []
    assert box.waiting == 1


def test_what_was_drained_in_a_turn_that_failed_is_not_done_by_the_next_one() -> None:
    box = mailbox_with(1, 2, 3)
    box.take(1)
    box.take(1, drained=True)
    box.take(1)  # the harness has set message 1 aside, and goes on
    assert box.ack([3]) == [3]
    assert box.leased == [1, 2]
    assert box.requeue() == [1, 2]
    assert [taken.id for taken in reloaded(box, 1, 2).take(9)] == [1, 2]
    assert box.ack([1]) == [1]


def test_what_was_drained_comes_again_when_the_turn_is_requeued() -> None:
    box = mailbox_with(1, 2)
    box.take(1)
    box.take(1, drained=True)
    assert box.requeue() == [1, 2]
    assert box.ack([1]) == []


def test_what_was_drained_and_handed_back_is_not_done_with_the_turn() -> None:
    box = mailbox_with(1, 2)
    box.take(1)
    box.take(1, drained=True)
    assert box.requeue([2]) == [2]
    assert box.ack([1]) == [1]
    assert box.waiting == 1


def test_what_was_drained_without_a_turn_is_done_with_the_next_one() -> None:
    box = mailbox_with(1, 2)
    box.take(1, drained=True)
    box.take(1)
    assert sorted(box.ack([2])) == [1, 2]


def test_draining_does_not_begin_a_turn() -> None:
    box = Mailbox(waiting=2, working=[4])
    assert box.needs_load()
    box.loaded([message(4), message(5)], whole=True)
    box.take(2, drained=True)
    assert box.cause(None) == 4
    assert sorted(box.ack([4])) == [4, 5]


def test_draining_stops_where_a_client_would_cut() -> None:
    half = "x" * (delivery.DRAIN_CHARS // 2)
    box = mailbox_with(1, 2, 3, body=half)
    assert [taken.id for taken in box.take(9, drained=True)] == [1, 2]
    assert [taken.id for taken in mailbox_with(1, body=half * 3).take(9, drained=True)] == [1]
    assert len(mailbox_with(1, 2, 3, body=half).take(9)) == 3


def reloaded(box: Mailbox, *ids: int) -> Mailbox:
    assert box.needs_load()
    box.loaded([message(message_id) for message_id in ids], whole=True)
    return box


class MailboxModel(RuleBasedStateMachine):
    """A mailbox with a small window against a plain list of rows, with loads that take their time."""

    def __init__(self) -> None:
        super().__init__()
        delivery.WINDOW_MESSAGES = 4  # type: ignore[misc]
        self.box = Mailbox()
        self.unacked: list[int] = []
        self.leased: list[int] = []
        self.turn: int | None = None
        self.drained: dict[int, int | None] = {}
        self.next_id = 1
        self.load: tuple[list[Message], bool] | None = None

    def teardown(self) -> None:
        delivery.WINDOW_MESSAGES = 256  # type: ignore[misc]

    @rule(count=st.integers(1, 6))
    def commit(self, count: int) -> None:
        for _ in range(count):
            self.unacked.append(self.next_id)
            self.box.committed(message(self.next_id))
            self.next_id += 1

    @rule(limit=st.integers(1, 5), drained=st.booleans())
    def take(self, limit: int, drained: bool) -> None:
        taken = [taken.id for taken in self.box.take(limit, drained=drained)]
        if drained:
            turn = self.turn if self.turn in self.leased else None
            self.drained |= dict.fromkeys(taken, turn)
        elif taken:
            self.turn = taken[0]
        deliverable = [i for i in self.unacked if i not in self.leased]
        assert taken == deliverable[: len(taken)]
        self.leased += taken
        if not taken and deliverable:
            assert not self.box.settled

    @rule(ids=st.none() | st.lists(st.integers(1, 60)))
    def ack(self, ids: Iterable[int] | None) -> None:
        acked = self.box.ack(ids)
        expected = set(self.leased)
        if ids is not None:
            with_turn = {i for i, turn in self.drained.items() if turn is None or turn in ids}
            expected &= set(ids) | with_turn
        assert expected <= set(acked)
        # Beyond what is leased, only what was named may be done: an ack that crossed a restart.
        assert set(acked) - expected <= set(ids or ())
        assert set(acked) <= set(self.unacked)
        assert len(acked) == len(set(acked))
        self._forget(acked)
        self.unacked = [i for i in self.unacked if i not in acked]

    @rule()
    def requeue(self) -> None:
        assert sorted(self.box.requeue()) == sorted(self.leased)
        self._forget(self.leased)

    @rule(ids=st.lists(st.integers(1, 60)))
    def hand_back(self, ids: list[int]) -> None:
        back = self.box.requeue(dict.fromkeys(ids))
        assert set(back) == set(ids) & set(self.leased)
        self._forget(back)

    def _forget(self, ids: Iterable[int]) -> None:
        gone = set(ids)
        self.leased = [i for i in self.leased if i not in gone]
        self.drained = {i: turn for i, turn in self.drained.items() if i not in gone}

    @precondition(lambda self: self.load is None)
    @rule()
    def begin_load(self) -> None:
        if self.box.needs_load():
            rows = [i for i in self.unacked if i > self.box.loaded_to and i not in self.box.leased]
            self.load = [message(i) for i in rows[:4]], len(rows) <= 4

    @precondition(lambda self: self.load is not None)
    @rule()
    def end_load(self) -> None:
        assert self.load is not None
        self.box.loaded(*self.load)
        self.load = None

    @invariant()
    def counts_what_waits(self) -> None:
        assert self.box.waiting == len(self.unacked) - len(self.leased)

    @invariant()
    def knows_its_leases(self) -> None:
        assert sorted(self.box.leased) == sorted(self.leased)


TestMailboxModel = MailboxModel.TestCase
TestMailboxModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)

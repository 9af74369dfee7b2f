"""The rows of messages."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from hive_core.store import mailbox
from hive_core.store.mailbox import Acked, Delivered, Post, Posted, Requeued, apply_batch
from hive_core.store.schema import migrate
from hive_core.wire.errors import ErrorCode, Refused


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    db = apsw.Connection(str(tmp_path / "x.sqlite"))
    migrate(db, "x.sqlite")
    yield db
    db.close()


def post(first_id: int, to: str = "alice", **more: object) -> Post:
    return Post(first_id, str(more.pop("sender", "bob")), [to], f"body {first_id}", 100.0 + first_id, **more)  # type: ignore[arg-type]


def bodies(messages: list[mailbox.StoredMessage]) -> list[str]:
    return [message.body for message in messages]


def test_a_batch_of_any_size_is_stored_whole_and_in_order(db: apsw.Connection) -> None:
    outcomes = apply_batch(db, [post(number) for number in range(1, 151)])
    assert outcomes == [Posted(number, number, new=True) for number in range(1, 151)]
    assert [row.id for row in mailbox.page(db, 0, 1000)] == list(range(1, 151))


def test_a_repeat_with_the_same_key_gives_the_first_id_and_stores_nothing(db: apsw.Connection) -> None:
    again = Post(7, "bob", ["alice"], "body 1", 900.0, idempotency_key="k")
    outcomes = apply_batch(db, [post(1, idempotency_key="k"), again])
    assert outcomes == [Posted(1, 1, new=True), Posted(1, 1, new=False)]
    assert mailbox.count(db) == 1


def test_a_key_belongs_to_its_sender(db: apsw.Connection) -> None:
    apply_batch(db, [post(1, idempotency_key="k")])
    assert apply_batch(db, [post(2, sender="carol", idempotency_key="k")]) == [Posted(2, 2, new=True)]


def test_a_key_used_for_another_message_conflicts(db: apsw.Connection) -> None:
    apply_batch(db, [post(1, idempotency_key="k")])
    (outcome,) = apply_batch(db, [post(2, idempotency_key="k")])
    assert isinstance(outcome, Refused)
    assert (outcome.code, outcome.reason) == (ErrorCode.CONFLICT, "idempotency_key")


def test_a_broadcast_is_one_row_each_and_its_repeat_none(db: apsw.Connection) -> None:
    everyone = Post(1, "bob", ["alice", "carol"], "hi", 1.0, idempotency_key="k", broadcast=True)
    again = Post(3, "bob", ["alice", "carol", "dave"], "hi", 2.0, idempotency_key="k", broadcast=True)
    assert apply_batch(db, [everyone, again]) == [Posted(1, 1, new=True), Posted(1, 1, new=False)]
    rows = mailbox.page(db, 0, 10)
    assert [(row.recipient, row.thread_id, bool(row.broadcast)) for row in rows] == [
        ("alice", 1, True),
        ("carol", 2, True),
    ]


def test_a_reply_joins_the_thread_also_within_one_batch(db: apsw.Connection) -> None:
    outcomes = apply_batch(
        db, [post(1), post(2, to="bob", sender="alice", in_reply_to=1), post(3, in_reply_to=2)]
    )
    assert outcomes == [Posted(1, 1, new=True), Posted(2, 1, new=True), Posted(3, 1, new=True)]


def test_an_agent_replies_only_to_what_it_wrote_or_got(db: apsw.Connection) -> None:
    apply_batch(db, [post(1)])
    (foreign,) = apply_batch(db, [post(2, sender="mallory", in_reply_to=1)])
    (missing,) = apply_batch(db, [post(3, in_reply_to=99)])
    (operator,) = apply_batch(db, [post(4, sender="operator", in_reply_to=1)])
    assert isinstance(foreign, Refused)
    assert isinstance(missing, Refused)
    assert foreign.text.replace("1", "N") == missing.text.replace("99", "N")
    assert operator == Posted(4, 1, new=True)


def test_marks_of_the_same_batch_reach_its_rows(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), post(2), Delivered([1, 2], 200.0), Acked([1], 201.0), Requeued([2])])
    first, second = mailbox.page(db, 0, 10)
    assert (first.delivered_at, first.acked_at) == (200.0, 201.0)
    assert (second.delivered_at, second.acked_at, bool(second.redelivered)) == (200.0, None, True)


def test_an_ack_keeps_the_first_time(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), Acked([1], 200.0), Acked([1], 300.0)])
    assert mailbox.page(db, 0, 10)[0].acked_at == 200.0


def test_a_window_leaves_out_what_is_acked_leased_or_somebody_elses(db: apsw.Connection) -> None:
    apply_batch(db, [post(n) for n in range(1, 7)] + [post(7, to="carol"), Acked([1], 1.0)])
    found, whole = mailbox.load_window(db, "alice", 0, [3], 3, 10**6)
    assert ([message.id for message in found], whole) == ([2, 4, 5], False)
    found, whole = mailbox.load_window(db, "alice", 5, [3], 3, 10**6)
    assert ([message.id for message in found], whole) == ([6], True)


def test_a_window_is_bounded_by_bytes_but_never_empty(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), post(2)])
    found, whole = mailbox.load_window(db, "alice", 0, [], 10, 1)
    assert ([message.id for message in found], whole) == ([1], False)


def test_what_was_handed_out_comes_flagged(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), post(2), Delivered([1], 5.0)])
    found, _ = mailbox.load_window(db, "alice", 0, [], 10, 10**6)
    assert [message.redelivered for message in found] == [True, False]


def test_after_an_unclean_end_everything_unacked_is_flagged_but_the_operators(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), post(2), post(3, to="operator"), Acked([1], 5.0)])
    mailbox.flag_unacked(db)
    assert [bool(row.redelivered) for row in mailbox.page(db, 0, 10)] == [False, True, False]


def test_the_chain_goes_back_to_the_first_cause(db: apsw.Connection) -> None:
    apply_batch(db, [post(1), post(2, cause_id=1), post(3), post(4, cause_id=2)])
    assert [row.id for row in mailbox.chain(db, 4)] == [1, 2, 4]
    assert mailbox.chain(db, 99) == []


def test_a_chain_that_bites_its_tail_ends(db: apsw.Connection) -> None:
    apply_batch(db, [post(1, cause_id=2), post(2, cause_id=1)])
    assert [row.id for row in mailbox.chain(db, 2)] == [1, 2]


def test_newest_messages_are_given_oldest_first(db: apsw.Connection) -> None:
    apply_batch(db, [post(n) for n in range(1, 6)])
    assert bodies(mailbox.recent(db, "alice", 2)) == ["body 4", "body 5"]
    assert bodies(mailbox.page(db, None, 2)) == ["body 4", "body 5"]
    assert bodies(mailbox.page(db, 1, 2)) == ["body 2", "body 3"]


def test_finding_what_waits_does_not_walk_through_what_is_done(db: apsw.Connection) -> None:
    apply_batch(db, [post(number) for number in range(1, 5001)])
    apply_batch(db, [Acked(list(range(1, 5000)), 1.0)])
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    db.set_progress_handler(count, 100)
    found, _ = mailbox.load_window(db, "alice", 0, [], 100, 10**6)
    waiting = mailbox.waiting_of(db, "alice")
    to_operator = mailbox.recent(db, "operator", 10)
    unfinished = mailbox.unfinished(db, "alice", 100)
    db.set_progress_handler(None)

    assert [message.id for message in found] == [row.id for row in unfinished] == [5000]
    assert (waiting, to_operator) == ((1, []), [])
    assert steps < 10


def test_recent_looks_back_only_so_far(db: apsw.Connection) -> None:
    last = mailbox.RECENT_IDS + 2
    apply_batch(db, [post(1), post(2), post(last, to="bob")])
    assert bodies(mailbox.recent(db, "alice", 10)) == []
    apply_batch(db, [post(3), post(last + 1, to="operator")])
    assert bodies(mailbox.recent(db, "alice", 10)) == []
    assert [row.id for row in mailbox.recent(db, "operator", 10)] == [last + 1]

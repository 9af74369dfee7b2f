"""The rows of approvals and deploys in a real file."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.approval import PENDING, TABLE, Approval, Happening, Status
from hive_core.domain.deploy import Deploy, DeployKind, Step
from hive_core.store import approvals, deploys
from hive_core.store.schema import migrate
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_NOTE_CHARS

SHA, OTHER = "a" * 40, "b" * 40
ASKED = Approval(
    0, "bob", "apply_commit", "", 1.0, Status.PENDING, False, "manager", description="why", expires_at=9.0
)


@pytest.fixture
def db() -> Iterator[apsw.Connection]:
    db = apsw.Connection(":memory:")
    migrate(db, ":memory:")
    yield db
    db.close()


def insert(db: apsw.Connection, **changes: object) -> int:
    return approvals.insert(db, replace(ASKED, **changes))  # type: ignore[arg-type]


def ids(found: list[Approval]) -> list[int]:
    return [approval.id for approval in found]


# ── approvals ───────────────────────────────────────────────────────────────────────────────────


def test_a_request_comes_back_as_it_was_stored(db: apsw.Connection) -> None:
    whole = replace(
        ASKED, fetched_sha=SHA, base_sha=OTHER, note="n", resolved_at=2.0, decided_by_uid=5, tag="proposal/1"
    )

    approval_id = approvals.insert(db, whole)

    assert approvals.get(db, approval_id) == replace(whole, id=approval_id)


@given(happenings=st.lists(st.sampled_from(Happening), max_size=6))
def test_rows_go_the_way_of_the_table_and_no_other(happenings: list[Happening]) -> None:
    db = apsw.Connection(":memory:")
    migrate(db, ":memory:")
    approval_id, state = approvals.insert(db, ASKED), PENDING
    for happening in happenings:
        after = TABLE.get((state, happening))
        if after is None:
            before = approvals.get(db, approval_id)
            with pytest.raises(Refused, match="already") as refused:
                approvals.advance(db, approval_id, happening, 5.0, note="other", uid=9, tag="x/1")
            assert (refused.value.code, refused.value.reason) == (ErrorCode.CONFLICT, "decided")
            assert approvals.get(db, approval_id) == before
        else:
            assert approvals.advance(db, approval_id, happening, 5.0).state == after
            state = after
    db.close()


def test_the_decision_keeps_who_made_it_and_when_and_its_end_adds_to_that(db: apsw.Connection) -> None:
    approval_id = insert(db)

    approvals.advance(db, approval_id, Happening.APPROVE, 5.0, uid=1000)
    after = approvals.advance(db, approval_id, Happening.FAIL, 8.0, note="no", tag="failed/1")

    assert (after.decided_by_uid, after.resolved_at, after.note, after.tag) == (1000, 5.0, "no", "failed/1")
    assert (after.status, after.finished) == (Status.FAILED, True)


def test_of_a_long_note_the_end_is_kept(db: apsw.Connection) -> None:
    after = approvals.advance(db, insert(db), Happening.FAIL, 5.0, note="x" * 9999 + "the error")

    assert after.note is not None
    assert len(after.note) == MAX_NOTE_CHARS
    assert after.note.endswith("the error")


def test_there_is_no_such_approval(db: apsw.Connection) -> None:
    for unknown in (7, -1, 2**63 - 1, -(2**63)):
        with pytest.raises(Refused, match="no such approval") as refused:
            approvals.advance(db, unknown, Happening.APPROVE, 5.0)
        assert refused.value.code is ErrorCode.NOT_FOUND


def test_a_commit_is_pinned_while_it_waits_and_never_after(db: apsw.Connection) -> None:
    approval_id = insert(db)

    pinned = approvals.pin(db, approval_id, SHA, OTHER, "proposal/1")
    approvals.advance(db, approval_id, Happening.APPROVE, 5.0)

    assert (pinned.fetched_sha, pinned.base_sha, pinned.tag) == (SHA, OTHER, "proposal/1")
    assert pinned.commit_ref == SHA, "who named none meant the newest, and that was it"
    with pytest.raises(Refused, match="already"):
        approvals.pin(db, approval_id, OTHER, None)


def test_what_was_named_is_kept_and_a_new_agent_names_nothing(db: apsw.Connection) -> None:
    named = approvals.pin(db, insert(db, commit_ref="aaaaaaa"), SHA, None)
    new = approvals.pin(db, insert(db, kind="spawn"), SHA, None)

    assert (named.commit_ref, new.commit_ref) == ("aaaaaaa", "")


def test_only_what_waits_for_a_decision_is_pending(db: apsw.Connection) -> None:
    waits, approved, other = insert(db), insert(db), insert(db, agent="carol", proposer="operator")
    approvals.advance(db, approved, Happening.APPROVE, 5.0)

    assert ids(approvals.pending(db, 9)) == [waits, other]
    assert ids(approvals.pending(db, 1)) == [waits]
    assert ids(approvals.pending_of(db, "bob")) == [waits]
    assert ids(approvals.pending_by(db, "operator", 9)) == [other]
    assert (approvals.count_pending(db), approvals.count_pending_by(db, "manager")) == (2, 1)
    assert ids(approvals.newest(db, 2)) == [approved, other]
    assert ids(approvals.newest(db, 9, "bob")) == [waits, approved]


def test_those_are_due_whose_time_is_up_and_nobody_decided(db: apsw.Connection) -> None:
    late, early, decided, never = (insert(db, expires_at=at) for at in (8.0, 6.0, 5.0, None))
    approvals.advance(db, decided, Happening.DENY, 4.0)

    assert approvals.next_expiry(db) == 6.0
    assert ids(approvals.due(db, 8.0, 9)) == [early, late]
    assert ids(approvals.due(db, 7.9, 9)) == [early]

    approvals.give_time(db, 7.0)

    assert ids(approvals.due(db, 9.0, 9)) == [early, never, late]


def test_what_was_being_taken_in_has_no_commit_yet(db: apsw.Connection) -> None:
    half, whole, spawn, failed = insert(db), insert(db), insert(db, kind="spawn"), insert(db)
    approvals.pin(db, whole, SHA, None)
    approvals.advance(db, failed, Happening.FAIL, 5.0)

    assert ids(approvals.cut_off(db)) == [half]
    assert spawn


def test_it_is_compared_with_what_came_before_it_for_the_same_agent(db: apsw.Connection) -> None:
    approved, denied, others, failed, mine = (
        insert(db, agent=agent, fetched_sha=SHA) for agent in ("bob", "bob", "carol", "bob", "bob")
    )
    approvals.advance(db, approved, Happening.APPROVE, 5.0, uid=1)
    approvals.advance(db, denied, Happening.DENY, 5.0, uid=1)
    approvals.advance(db, others, Happening.APPROVE, 5.0, uid=1)
    approvals.advance(db, failed, Happening.FAIL, 5.0)

    previous, last = approvals.previous(db, mine), approvals.last_approved(db, mine)

    assert previous is not None
    assert last is not None
    assert (previous.id, last.id) == (failed, approved), "what failed before anybody approved it was never"
    assert approvals.previous(db, approved) is None


def test_a_file_of_the_original_shows_what_it_has(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "broker.sqlite"))
    db.execute(
        "create table messages (id integer primary key, sender text, recipient text, body text,"
        " sent_at integer, delivered_at integer);"
        "create table approvals (id integer primary key autoincrement, agent text not null,"
        " kind text not null, commit_ref text not null, requested_at integer not null,"
        " status text not null, resolved_at integer, note text, fetched_sha text, description text);"
        "insert into approvals (agent, kind, commit_ref, requested_at, status) values"
        " ('bob', 'merge_config_pr', '17', 1, 'pending'), ('bob', 'spawn', '', 2, 'approved'),"
        " ('bob', 'schedule_prompt', '', 3, 'superseded')"
    )
    migrate(db, "it")

    pending, approved, unknown = approvals.newest(db, 9)

    assert (pending.kind, pending.commit_ref, pending.proposer) == ("merge_config_pr", "17", "manager")
    assert [each.state for each in approvals.pending(db, 9)] == [PENDING]
    assert (approved.status, approved.finished) == (Status.APPROVED, True)
    assert (unknown.kind, unknown.status, unknown.finished) == ("schedule_prompt", "superseded", True)
    for decided in (approved, unknown):
        for happening in Happening:
            with pytest.raises(Refused, match="already"):
                approvals.advance(db, decided.id, happening, 5.0)
    db.close()


# ── deploys ─────────────────────────────────────────────────────────────────────────────────────

DEPLOY = Deploy(0, "bob", DeployKind.APPLY, Step.QUEUED, 1.0, approval_id=7, sha=SHA, tag="deployed/7", uid=5)


def test_a_deploy_comes_back_as_it_was_stored(db: apsw.Connection) -> None:
    deploy_id = deploys.insert(db, DEPLOY)

    stored = replace(DEPLOY, id=deploy_id, steps=((Step.QUEUED, 1.0),))
    assert deploys.get(db, deploy_id) == stored


def test_an_approval_has_one_deploy(db: apsw.Connection) -> None:
    deploys.insert(db, DEPLOY)

    with pytest.raises(apsw.ConstraintError):
        deploys.insert(db, DEPLOY)
    for _ in range(2):
        deploys.insert(db, replace(DEPLOY, kind=DeployKind.ROLLBACK, approval_id=None))


def test_every_step_is_recorded_also_one_that_is_done_again(db: apsw.Connection) -> None:
    deploy_id = deploys.insert(db, DEPLOY)

    deploys.advance(db, deploy_id, Step.PREPARING, 2.0)
    deploys.advance(db, deploy_id, Step.BUILDING, 3.0)
    deploys.advance(db, deploy_id, Step.PREPARING, 4.0)
    deploys.advance(db, deploy_id, Step.ABORTING, 5.0, error="no", from_sha=OTHER)
    failed = deploys.advance(db, deploy_id, Step.FAILED, 6.0, tag="failed/7")

    assert [at for _, at in failed.steps] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert (failed.started_at, failed.finished_at) == (2.0, 6.0)
    assert (failed.error, failed.from_sha, failed.tag) == ("no", OTHER, "failed/7")


def test_what_has_ended_goes_no_further(db: apsw.Connection) -> None:
    deploy_id = deploys.insert(db, DEPLOY)
    deploys.advance(db, deploy_id, Step.DONE, 2.0)

    with pytest.raises(Refused, match="done already") as refused:
        deploys.advance(db, deploy_id, Step.ABORTING, 3.0)
    assert refused.value.reason == "ended"
    with pytest.raises(Refused, match="no such deploy"):
        deploys.advance(db, 99, Step.DONE, 3.0)


def test_the_queue_gives_the_oldest_first(db: apsw.Connection) -> None:
    first, second, third = (deploys.insert(db, replace(DEPLOY, approval_id=number)) for number in range(3))
    deploys.advance(db, first, Step.DONE, 2.0)
    deploys.advance(db, second, Step.ACTIVATING, 2.0)

    assert [deploy.id for deploy in deploys.open_ones(db)] == [second, third]
    assert [deploy.id for deploy in deploys.newest(db, 2)] == [second, third]
    assert [deploy.id for deploy in deploys.newest(db, 9, "carol")] == []


def test_the_last_one_that_made_a_commit_run_is_found(db: apsw.Connection) -> None:
    spawn, failed, apply, inputs = (
        deploys.insert(db, replace(DEPLOY, kind=kind, approval_id=None, tag=f"deployed/{number}"))
        for number, kind in enumerate(
            (DeployKind.SPAWN, DeployKind.APPLY, DeployKind.APPLY, DeployKind.INPUTS)
        )
    )
    for deploy_id, end in (
        (spawn, Step.DONE),
        (failed, Step.FAILED),
        (apply, Step.DONE),
        (inputs, Step.DONE),
    ):
        deploys.advance(db, deploy_id, end, 2.0)

    def last(before: int | None = None) -> int | None:
        found = deploys.last_done(db, "bob", before)
        return found.id if found else None

    assert (last(), last(apply), last(spawn)) == (apply, spawn, None)
    found = deploys.last_with(db, "bob", "deployed/0")
    assert found is not None
    assert found.id == spawn
    assert deploys.last_with(db, "bob", "deployed/1") is None

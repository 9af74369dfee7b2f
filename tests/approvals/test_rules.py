"""What may happen to a request, as a table; and what an operator decides on, as a digest."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.approval import (
    APPROVED,
    PENDING,
    TABLE,
    Approval,
    Happening,
    State,
    Status,
    advance,
    digest,
)

STATES = [State(status, finished) for status in (*Status, "merged") for finished in (False, True)]
DECIDED = {Happening.APPROVE, Happening.DENY, Happening.CANCEL, Happening.EXPIRE}

ASKED = Approval(7, "bob", "apply_commit", "a" * 7, 1.0, Status.PENDING, False, "manager", "a" * 40)


@pytest.mark.parametrize(("state", "happening"), list(itertools.product(STATES, Happening)))
def test_nothing_happens_that_is_not_in_the_table(state: State, happening: Happening) -> None:
    assert advance(state, happening) == TABLE.get((state, happening))
    if state.finished or state not in {PENDING, APPROVED}:
        assert advance(state, happening) is None


@given(st.lists(st.sampled_from(Happening), max_size=8))
def test_one_decision_at_most_and_a_finished_one_never_changes(happenings: list[Happening]) -> None:
    state, passed = PENDING, []
    for happening in happenings:
        after = advance(state, happening)
        if after is not None:
            assert not state.finished
            state = after
            passed.append(happening)

    assert sum(happening in DECIDED for happening in passed) <= 1
    assert len(passed) <= 2
    assert state.finished == (bool(passed) and passed != [Happening.APPROVE])


@pytest.mark.parametrize(
    "other",
    [
        replace(ASKED, kind="spawn"),
        replace(ASKED, agent="bo"),
        replace(ASKED, fetched_sha="b" * 40),
        replace(ASKED, fetched_sha=None),
        replace(ASKED, commit_ref="b" * 7),
        replace(ASKED, description="harmless"),
        replace(ASKED, description=""),
    ],
)
def test_the_digest_is_of_all_that_is_decided_on(other: Approval) -> None:
    assert digest(other, "c" * 40) != digest(ASKED, "c" * 40)


def test_the_digest_is_another_one_when_something_else_runs() -> None:
    assert len({digest(ASKED, running) for running in (None, "c" * 40, "d" * 40)}) == 3


def test_the_digest_stays_when_only_its_state_changes() -> None:
    seen = replace(ASKED, status=Status.APPROVED, tag="approved/7", note="x", resolved_at=5.0)

    assert digest(seen, None) == digest(ASKED, None)


@given(st.text(max_size=9), st.text(max_size=9), st.text(max_size=9), st.text(max_size=9))
def test_no_two_requests_share_a_digest(agent: str, ref: str, other_agent: str, other_ref: str) -> None:
    one = digest(replace(ASKED, agent=agent, commit_ref=ref), None)
    other = digest(replace(ASKED, agent=other_agent, commit_ref=other_ref), None)

    assert (one == other) == ((agent, ref) == (other_agent, other_ref))

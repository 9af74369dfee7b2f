"""What goes and what stays, as a table and for all inventories."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.retention import (
    DAY_S,
    EVENTS,
    TURN_STATS,
    AgentFile,
    Count,
    Cutoffs,
    Inventory,
    Messages,
    Policy,
    cutoffs,
    plan,
    surplus_generations,
)

NOW = 1000 * DAY_S

CUTOFFS = {
    "as delivered": (
        Policy(),
        Cutoffs(
            messages=970 * DAY_S, events=993 * DAY_S, streams=None, turn_stats=910 * DAY_S, generations=5
        ),
    ),
    "streams alone": (
        Policy(stream_events_days=14),
        Cutoffs(
            messages=970 * DAY_S, events=None, streams=986 * DAY_S, turn_stats=910 * DAY_S, generations=5
        ),
    ),
    "for ever": (
        Policy(messages_days=0, events_days=0, turn_stats_days=0),
        Cutoffs(messages=None, events=None, streams=None, turn_stats=None, generations=5),
    ),
}


@pytest.mark.parametrize("case", CUTOFFS)
def test_days_become_moments(case: str) -> None:
    policy, expected = CUTOFFS[case]
    assert cutoffs(policy, NOW) == expected


@pytest.mark.parametrize(
    ("policy", "file", "why"),
    [
        (Policy(), EVENTS, "older than 7 days go"),
        (Policy(events_days=1), EVENTS, "older than 1 day go"),
        (Policy(stream_events_days=14), EVENTS, "of kind stream and older than 14 days go"),
        (Policy(), TURN_STATS, "older than 90 days go"),
        (Policy(events_days=0), EVENTS, "kept for ever, as configured"),
        (Policy(turn_stats_days=0), TURN_STATS, "kept for ever, as configured"),
    ],
)
def test_a_file_says_why(policy: Policy, file: str, why: str) -> None:
    row = plan(policy, Inventory(files=(AgentFile("alice", file, Count(3)),)))[-1]
    assert (row.agent, row.what, row.goes, row.why) == ("alice", file, Count(3), why)


def test_a_file_that_is_left_alone_says_so() -> None:
    row = plan(Policy(), Inventory(files=(AgentFile("alice", EVENTS, trouble="it is leased"),)))[-1]
    assert (row.goes, row.why, row.trouble) == (None, "left alone: it is leased", True)


counts = st.builds(Count, st.integers(0, 10**9), st.booleans())
days = st.integers(0, 10_000)
policies = st.builds(Policy, days, days, days, days, st.integers(1, 50))
inventories = st.builds(
    Inventory,
    st.builds(Messages, counts, counts, counts, counts),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
)


@given(policies, inventories)
def test_what_waits_and_what_was_decided_or_asked_never_goes(policy: Policy, inventory: Inventory) -> None:
    rows = {row.what: row for row in plan(policy, inventory)}
    for what in ("waiting messages", "dead messages", "questions", "approvals", "reminders"):
        assert rows[what].goes == Count(0)
    assert rows["waiting messages"].stays == inventory.messages.waiting
    assert all(row.why for row in rows.values())
    if not policy.messages_days:
        assert rows["acked messages"].goes == Count(0)


@given(policies, st.floats(0, 2**40))
def test_no_moment_lies_ahead(policy: Policy, now: float) -> None:
    found = cutoffs(policy, now)
    moments = (found.messages, found.events, found.streams, found.turn_stats)
    assert all(moment is None or moment < now or moment == now - DAY_S for moment in moments)
    assert found.events is None or found.streams is None


@given(st.sets(st.integers(1, 100)), st.integers(1, 100), st.none() | st.integers(1, 100), st.integers(1, 10))
def test_generations_go_but_the_newest_the_current_and_the_booted_one(
    numbers: set[int], current: int, booted: int | None, keep: int
) -> None:
    gone = surplus_generations(sorted(numbers), current=current, booted=booted, keep=keep)
    kept = numbers - set(gone)
    assert set(sorted(numbers)[-keep:]) <= kept
    assert {current, booted} & numbers <= kept
    assert len(kept) <= keep + 2
    assert set(gone) <= numbers

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.allow import permit
from hive_core.wire.errors import ErrorCode, Refused

NAMES = st.sampled_from(["alice", "bob", "carol", "manager", "operator"])


def test_without_a_list_anyone_may_be_written_to() -> None:
    assert permit("alice", "*", ["bob", "carol"], None) == ["bob", "carol"]


@given(recipients=st.lists(NAMES, unique=True), allowed=st.frozensets(NAMES))
def test_what_is_left_is_listed_or_the_manager(recipients: list[str], allowed: frozenset[str]) -> None:
    wanted = [name for name in recipients if name in allowed | {"manager"}]

    if wanted:
        assert permit("dave", "*", recipients, allowed) == wanted
    else:
        with pytest.raises(Refused):
            permit("dave", "*", recipients, allowed)


def test_a_refusal_names_who_is_allowed_and_what_to_do() -> None:
    with pytest.raises(Refused) as refused:
        permit("alice", "carol", ["carol"], frozenset({"bob"}))

    assert refused.value.code is ErrorCode.FORBIDDEN
    assert refused.value.text == (
        "cannot send: alice may write to bob, manager only;"
        " the operator changes that with: hive allow alice …"
    )


def test_a_long_list_is_cut_and_keeps_the_manager() -> None:
    allowed = frozenset(f"agent-{number:02}" for number in range(40))

    with pytest.raises(Refused) as refused:
        permit("alice", "*", ["bob"], allowed, "ask")

    assert "cannot ask to *: alice may write to agent-00, agent-01," in refused.value.text
    assert "agent-08, 31 more, manager only" in refused.value.text

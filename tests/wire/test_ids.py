import re
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.wire.ids import RESERVED_NAMES, AgentName, Label, RowId, why_no_agent_name

GOOD = ["a", "7", "alice", "a-b", "a--b", "0x", "x" * 63]
BAD = [
    "", ".", "..", "a/b", "/", "-a", "a-", "-", "A", "aB", "a_b", "a b", "a.b", "a\n", "\na", "a\x00", "ä",
    "٣", "é", "a\u200b", "x" * 64, "*", "~", "$HOME", "a;b", "%i", "@a",
]  # fmt: skip


def decodes(name: str, type_: object) -> bool:
    try:
        msgspec.convert(name, type_)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_passes_everywhere(name: str) -> None:
    assert why_no_agent_name(name) is None
    assert decodes(name, AgentName)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_passes_nowhere(name: str) -> None:
    why = why_no_agent_name(name)

    assert why is not None
    assert "is no agent name" in why
    assert not decodes(name, AgentName)


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES))
def test_a_reserved_name_is_never_given_to_an_agent(name: str) -> None:
    assert why_no_agent_name(name) == f"{name!r} is reserved"


def test_the_reserved_names_are_those_of_the_design() -> None:
    assert {"operator", "system", "manager", "reminder", "self", "all"} == RESERVED_NAMES


def test_a_refusal_of_a_giant_name_is_short() -> None:
    assert len(why_no_agent_name("x" * 100_000) or "") < 300


@given(
    st.one_of(
        st.text(),
        st.text(alphabet=string.ascii_lowercase + string.digits + "-./\n\x00_", max_size=70),
        st.from_regex(re.compile(r"[a-z0-9-]{1,64}\n?")),
    )
)
def test_whatever_passes_is_a_safe_path_component(name: str) -> None:
    if why_no_agent_name(name) is not None:
        return

    assert 1 <= len(name.encode()) <= 63
    assert set(name) <= set(string.ascii_lowercase + string.digits + "-")
    assert not name.startswith("-")
    assert not name.endswith("-")
    assert name == name.strip()
    assert decodes(name, AgentName)


@pytest.mark.parametrize("label", ["ci", "mail from bob", "ünïcode", "x" * 64, "a/b", "-x"])
def test_a_label_is_one_line_of_text(label: str) -> None:
    assert decodes(label, Label)


@pytest.mark.parametrize(
    "label", ["", "x" * 65, "a\n", "\n", "a\tb", "\x1b[31m", "\x7f", "\x9b31m", "a\x85b", "a\u2028b", "\x00"]
)
def test_a_label_holds_no_control_characters(label: str) -> None:
    assert not decodes(label, Label)


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 1, 2**63 - 1])
def test_every_signed_64_bit_number_is_a_row_id(number: int) -> None:
    assert msgspec.json.decode(str(number), type=RowId) == number


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**63, 2**64, 10**40])
def test_a_number_that_sqlite_cannot_hold_is_no_row_id(number: int) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(str(number), type=RowId)

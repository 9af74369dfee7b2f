import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.cli.safe import visible

HARMLESS = {"\u00a0", "\u3000", "\u200c", "\u200d"} | {chr(code) for code in range(0x2000, 0x200B)}
HARMLESS |= {"\u1680", "\u202f", "\u205f"}


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\x00\x7f\x08", "\\x00\\x7f\\x08"),
        ("a\rb", "a\\rb"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\u2066\u2069\u061c\u200e", "\\u2066\\u2069\\u061c\\u200e"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_acts_on_a_terminal_is_spelled_out(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@pytest.mark.parametrize(
    "text", ["", "plain", "Grüße, 世界", "👩‍👩‍👧 ❤️", "می‌خواهم", "שלום", "a\u00a0b\u3000c"]
)
def test_text_of_any_language_stays(text: str) -> None:
    assert visible(text) == text


def test_lines_and_tabs_stay_where_many_lines_are_shown() -> None:
    assert visible("a\n\tb\r\nc\rd\x1b", multiline=True) == "a\n\tb\nc\\rd\\x1b"


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_nothing_but_printable_characters_comes_out(text: str) -> None:
    shown = visible(text)

    assert all(char.isprintable() or char in HARMLESS for char in shown)
    shown.encode()
    assert visible(shown) == shown

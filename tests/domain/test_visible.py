"""What cannot be seen, or makes a line look like another one, is spelled out."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.visible import one_line, visible

ANY = st.text(alphabet=st.characters(exclude_categories=[]))
BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
UNSEEN = "\u200b\u200c\u200d\u2060\ufeff\u00ad\ufe0f\U000e0041\U000e0100\u3164\u115f\u034f\u180b\u2800\u00a0"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred", "\\u{1b}[31mred"),
        ("\x9b2J\x00\x7f", "\\u{9b}2J\\u{0}\\u{7f}"),
        ("safe\rrm -rf", "safe\\u{d}rm -rf"),
        ("a\u2028b\u0085c", "a\\u{2028}b\\u{85}c"),
        ("user\u202etxt.exe", "user\\u{202e}txt.exe"),
        ("\ud800\udc80", "\\u{d800}\\u{dc80}"),
        ("curl\u200b", "curl\\u{200b}"),
        ("rm\u00a0-rf", "rm\\u{a0}-rf"),
        ("\U000e0041", "\\u{e0041}"),
        ("\ue000\uffff", "\\u{e000}\\u{ffff}"),
    ],
)
def test_what_acts_or_hides_is_spelled_out(hostile: str, shown: str) -> None:
    assert visible(hostile) == shown


@pytest.mark.parametrize("char", BIDI + UNSEEN)
def test_no_character_of_direction_or_without_a_shape_stays(char: str) -> None:
    assert visible(f"a{char}b") == f"a\\u{{{ord(char):x}}}b"


@pytest.mark.parametrize(
    "text", ["", "plain", "a\n\tb\n", "Grüße, 世界", "שלום", "naïve", "🙂", "a/b-c_d.nix"]
)
def test_text_that_can_be_seen_stays(text: str) -> None:
    assert visible(text) == text


@given(ANY)
def test_nothing_that_acts_or_hides_comes_out(text: str) -> None:
    shown = visible(text)

    assert all(char in "\n\t" or char.isprintable() for char in shown)
    assert not set(shown) & set(BIDI + UNSEEN + "\x1b\r")
    assert not any(unicodedata.category(char) in {"Cf", "Cs", "Co", "Zl", "Zp"} for char in shown)
    shown.encode()
    assert visible(shown) == shown


@given(ANY)
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
    assert "\t" not in one_line(text)


@given(st.text(alphabet=[chr(code) for code in range(0x20, 0x7F)] + ["\n", "\t", "ü", "世"]))
def test_harmless_text_is_left_alone(text: str) -> None:
    assert visible(text) == text

"""Every row of every decision about the conversation's size."""

import pytest

from hive_agent.context import (
    MAX_COMPACT_FAILURES,
    AfterTooLong,
    AfterTurn,
    BeforeTurn,
    ContextSettings,
    after_good_turn,
    after_too_long,
    before_turn,
    compact_watermark,
    compaction_helped,
    parse_windows,
    reset_watermark,
    window_tokens,
)

PLAIN = ContextSettings()
TOLD = ContextSettings(windows={"": 500_000, "haiku": 100_000})


@pytest.mark.parametrize(
    ("model", "reported", "settings", "window"),
    [
        ("haiku", None, PLAIN, 200_000),
        ("haiku", 0, PLAIN, 200_000),
        ("haiku", 1_000_000, PLAIN, 1_000_000),
        ("haiku", 170_000, TOLD, 170_000),
        ("haiku", None, TOLD, 100_000),
        ("opus", None, TOLD, 500_000),
        ("opus", None, ContextSettings(windows={"haiku": 100_000}), 200_000),
    ],
)
def test_the_window_is_what_was_reported_then_what_was_told_then_the_usual(
    model: str, reported: int | None, settings: ContextSettings, window: int
) -> None:
    assert window_tokens(model, reported, settings) == window


@pytest.mark.parametrize(
    ("tokens", "window", "compact", "reset"),
    [
        (None, 200_000, 150_000, 100_000),
        (None, 1_000_000, 750_000, 500_000),
        (120_000, 200_000, 120_000, 120_000),
        (0, 200_000, None, None),
    ],
)
def test_a_watermark_is_a_share_of_the_window_a_number_or_off(
    tokens: int | None, window: int, compact: int | None, reset: int | None
) -> None:
    settings = ContextSettings(compact_tokens=tokens, reset_tokens=tokens)

    assert compact_watermark(window, settings) == compact
    assert reset_watermark(window, settings) == reset


COMPACT = AfterTurn.CHECKPOINT_THEN_COMPACT


@pytest.mark.parametrize(
    ("ctx", "settings", "can_compact", "failures", "plan"),
    [
        (None, PLAIN, True, 0, AfterTurn.NOTHING),
        (149_999, PLAIN, True, 0, AfterTurn.NOTHING),
        (150_000, PLAIN, True, 0, COMPACT),
        (900_000, PLAIN, True, 0, COMPACT),
        (150_000, PLAIN, False, 0, AfterTurn.NOTHING),
        (150_000, PLAIN, True, MAX_COMPACT_FAILURES - 1, COMPACT),
        (150_000, PLAIN, True, MAX_COMPACT_FAILURES, AfterTurn.NOTHING),
        (150_000, ContextSettings(compact_tokens=0), True, 0, AfterTurn.NOTHING),
        (10, ContextSettings(compact_tokens=10), True, 0, COMPACT),
    ],
)
def test_after_a_good_turn(
    ctx: int | None, settings: ContextSettings, can_compact: bool, failures: int, plan: AfterTurn
) -> None:
    assert after_good_turn(ctx, 200_000, settings, can_compact=can_compact, failures=failures) == plan


FRESH = BeforeTurn.CHECKPOINT_THEN_FRESH


@pytest.mark.parametrize(
    ("ctx", "idle_s", "settings", "has_sessions", "plan"),
    [
        (None, 1000.0, PLAIN, True, BeforeTurn.CONTINUE),
        (100_000, None, PLAIN, True, BeforeTurn.CONTINUE),
        (100_000, 300.0, PLAIN, True, BeforeTurn.CONTINUE),
        (100_000, 300.1, PLAIN, True, FRESH),
        (99_999, 1000.0, PLAIN, True, BeforeTurn.CONTINUE),
        (100_000, 1000.0, PLAIN, False, BeforeTurn.CONTINUE),
        (100_000, -5.0, PLAIN, True, BeforeTurn.CONTINUE),
        (100_000, 11.0, ContextSettings(cache_ttl_s=10), True, FRESH),
        (100_000, 1000.0, ContextSettings(reset_tokens=0), True, BeforeTurn.CONTINUE),
        (50, 1000.0, ContextSettings(reset_tokens=50), True, FRESH),
    ],
)
def test_before_a_turn(
    ctx: int | None, idle_s: float | None, settings: ContextSettings, has_sessions: bool, plan: BeforeTurn
) -> None:
    assert before_turn(ctx, 200_000, settings, idle_s=idle_s, has_sessions=has_sessions) == plan


@pytest.mark.parametrize(
    ("can_compact", "retried", "plan"),
    [
        (True, False, AfterTooLong.COMPACT_AND_RETRY),
        (True, True, AfterTooLong.FAIL),
        (False, False, AfterTooLong.FAIL),
        (False, True, AfterTooLong.FAIL),
    ],
)
def test_a_prompt_that_is_too_long_is_tried_again_once(
    can_compact: bool, retried: bool, plan: AfterTooLong
) -> None:
    assert after_too_long(can_compact=can_compact, retried=retried) == plan


@pytest.mark.parametrize(
    ("after", "settings", "helped"),
    [
        (None, PLAIN, True),
        (149_999, PLAIN, True),
        (150_000, PLAIN, False),
        (150_000, ContextSettings(compact_tokens=0), True),
    ],
)
def test_a_compaction_helped_when_the_next_turn_needs_none(
    after: int | None, settings: ContextSettings, helped: bool
) -> None:
    assert compaction_helped(after, 200_000, settings) == helped


@pytest.mark.parametrize(
    ("text", "windows"),
    [
        ("", {}),
        ("200000", {"": 200_000}),
        ("haiku=200000, opus=1000000", {"haiku": 200_000, "opus": 1_000_000}),
        ("500000,claude-haiku-4-5=200000", {"": 500_000, "claude-haiku-4-5": 200_000}),
    ],
)
def test_windows_are_told_for_all_models_or_by_name(text: str, windows: dict[str, int]) -> None:
    assert parse_windows(text) == windows


@pytest.mark.parametrize("text", ["lots", "haiku=", "haiku=-1", "0", "1e6", "haiku:5", "9" * 13, "²"])
def test_what_is_no_window_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="HIVE_CONTEXT_WINDOW_TOKENS"):
        parse_windows(text)


def test_the_environment_says_it_all() -> None:
    environ = {
        "HIVE_CONTEXT_WINDOW_TOKENS": "100000",
        "HIVE_COMPACT_WATERMARK_TOKENS": "0",
        "HIVE_AUTO_RESET_WATERMARK_TOKENS": "60000",
        "HIVE_CACHE_TTL_SECS": "3600",
    }

    assert ContextSettings.from_environ(environ) == ContextSettings(
        windows={"": 100_000}, compact_tokens=0, reset_tokens=60_000, cache_ttl_s=3600.0
    )
    assert ContextSettings.from_environ({}) == PLAIN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HIVE_COMPACT_WATERMARK_TOKENS", "75%"),
        ("HIVE_AUTO_RESET_WATERMARK_TOKENS", "-1"),
        ("HIVE_CACHE_TTL_SECS", "soon"),
        ("HIVE_CACHE_TTL_SECS", "nan"),
    ],
)
def test_what_the_environment_says_wrongly_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name}='{value}'"):
        ContextSettings.from_environ({name: value})

"""When to shorten the conversation, and when to begin a new one.  Pure: no clock, no I/O.

*ctx* is the prompt of the last inference, which is how full the model's context is; what a turn read
in sum says what it cost and nothing about that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from hive_agent.retry import seconds

DEFAULT_WINDOW_TOKENS: Final = 200_000
COMPACT_SHARE: Final = 0.75
RESET_SHARE: Final = 0.5
CACHE_TTL_S: Final = 300.0
"""The provider keeps a conversation in its cache for that long; later it is read anew in any case."""
MAX_COMPACT_FAILURES: Final = 3
"""Compactions in a row that failed or gained nothing; then only a prompt that is too long asks for one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSettings:
    """Tokens.  A watermark of None is the share of the window, 0 is off."""

    windows: Mapping[str, int] = field(default_factory=dict)
    """By model; the one of "" is for all others."""
    compact_tokens: int | None = None
    reset_tokens: int | None = None
    cache_ttl_s: float = CACHE_TTL_S

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "ContextSettings":
        """Read the HIVE_ variables.

        Raises:
            ValueError: one of them says nothing that could be used; the text names it.
        """
        ttl = environ.get("HIVE_CACHE_TTL_SECS", "")
        return cls(
            windows=parse_windows(environ.get("HIVE_CONTEXT_WINDOW_TOKENS", "")),
            compact_tokens=_watermark(environ, "HIVE_COMPACT_WATERMARK_TOKENS"),
            reset_tokens=_watermark(environ, "HIVE_AUTO_RESET_WATERMARK_TOKENS"),
            cache_ttl_s=seconds("HIVE_CACHE_TTL_SECS", ttl) if ttl else CACHE_TTL_S,
        )


class AfterTurn(StrEnum):
    NOTHING = "nothing"
    CHECKPOINT_THEN_COMPACT = "checkpoint_then_compact"


class BeforeTurn(StrEnum):
    CONTINUE = "continue"
    CHECKPOINT_THEN_FRESH = "checkpoint_then_fresh"


class AfterTooLong(StrEnum):
    COMPACT_AND_RETRY = "compact_and_retry"
    FAIL = "fail"


def window_tokens(model: str, reported: int | None, settings: ContextSettings) -> int:
    """Give the size of *model*'s context: what the provider said, what we were told, or the usual."""
    if reported is not None and reported > 0:
        return reported
    return settings.windows.get(model) or settings.windows.get("") or DEFAULT_WINDOW_TOKENS


def compact_watermark(window: int, settings: ContextSettings) -> int | None:
    """Give the ctx from which a good turn is followed by a compaction, or None for never."""
    return _from_share(settings.compact_tokens, window, COMPACT_SHARE)


def reset_watermark(window: int, settings: ContextSettings) -> int | None:
    """Give the ctx from which a cold conversation is given up for a new one, or None for never."""
    return _from_share(settings.reset_tokens, window, RESET_SHARE)


def after_good_turn(
    ctx: int | None, window: int, settings: ContextSettings, *, can_compact: bool, failures: int = 0
) -> AfterTurn:
    """Decide what to do after a turn that ended well.  *failures* counts compactions that did not help."""
    watermark = compact_watermark(window, settings)
    full = ctx is not None and watermark is not None and ctx >= watermark
    if can_compact and full and failures < MAX_COMPACT_FAILURES:
        return AfterTurn.CHECKPOINT_THEN_COMPACT
    return AfterTurn.NOTHING


def before_turn(
    ctx: int | None, window: int, settings: ContextSettings, *, idle_s: float | None, has_sessions: bool
) -> BeforeTurn:
    """Decide how the next turn begins.  *idle_s* is how long ago the last one ended, None for never."""
    watermark = reset_watermark(window, settings)
    large = ctx is not None and watermark is not None and ctx >= watermark
    cold = idle_s is not None and idle_s > settings.cache_ttl_s
    if has_sessions and large and cold:
        return BeforeTurn.CHECKPOINT_THEN_FRESH
    return BeforeTurn.CONTINUE


def after_too_long(*, can_compact: bool, retried: bool) -> AfterTooLong:
    """Decide what to do when the prompt was too long: once in a turn it is worth another try."""
    if can_compact and not retried:
        return AfterTooLong.COMPACT_AND_RETRY
    return AfterTooLong.FAIL


def compaction_helped(after: int | None, window: int, settings: ContextSettings) -> bool:
    """Whether a compaction that left *after* tokens, None if nobody said, is worth being repeated."""
    watermark = compact_watermark(window, settings)
    return after is None or watermark is None or after < watermark


def parse_windows(text: str) -> dict[str, int]:
    """Read `200000`, or `haiku=200000,opus=1000000`, or both as `200000,opus=1000000`.

    Raises:
        ValueError: that is neither.
    """
    windows: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        model, _, size = part.rpartition("=")
        if not _is_count(size.strip()) or int(size) == 0:
            raise ValueError(f"HIVE_CONTEXT_WINDOW_TOKENS: {part!r} is neither TOKENS nor MODEL=TOKENS")
        windows[model.strip()] = int(size)
    return windows


def _from_share(tokens: int | None, window: int, share: float) -> int | None:
    if tokens is None:
        return int(window * share)
    return tokens or None


def _watermark(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not _is_count(text):
        raise ValueError(f"{name}={text!r} is no number of tokens")
    return int(text)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12

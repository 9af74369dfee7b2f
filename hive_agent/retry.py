"""How long to wait before the next try.  Pure: no clock, no I/O."""

from collections.abc import Mapping
from typing import Final

LONGEST_BACK_OFF_S: Final = 60.0
RATE_LIMIT_SLEEP_S: Final = 300.0
LONGEST_PARK_S: Final = 8 * 86400.0
"""The longest limit there is covers a week; a moment beyond that is a mistake of whoever named it."""


def back_off_s(failures: int) -> float:
    """Give the pause after that many failures in a row: 1, 2, 4 … 60 s."""
    return float(min(2 ** min(failures - 1, 6), LONGEST_BACK_OFF_S))


def park_s(reset_at: float | None, now: float, *, sleep_s: float, parks: int = 1) -> float:
    """Give how long to rest after a rate limit: until *reset_at*, or *sleep_s* if that makes no sense.

    Times are unix seconds.  *parks* counts the limits in a row, this one included: a moment that is
    always just ahead must not become a tight loop.
    """
    wait_s = sleep_s
    if reset_at is not None and 0 < reset_at - now <= LONGEST_PARK_S:
        wait_s = reset_at - now
    return max(wait_s, back_off_s(parks))


def rate_limit_sleep_s(environ: Mapping[str, str]) -> float:
    """Read HIVE_RATE_LIMIT_SLEEP_SECS.

    Raises:
        ValueError: it is no number of seconds.
    """
    text = environ.get("HIVE_RATE_LIMIT_SLEEP_SECS", "")
    if not text:
        return RATE_LIMIT_SLEEP_S
    return seconds("HIVE_RATE_LIMIT_SLEEP_SECS", text)


def seconds(name: str, text: str) -> float:
    """Read a number of seconds from the variable *name*.

    Raises:
        ValueError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={text!r} is no number of seconds")
    return value

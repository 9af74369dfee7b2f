"""Dead letters: messages that are handed out no more, since whoever got them failed each time.

Counted is the message that a turn began with, each time its harness gives it back because the turn
failed, or because the harness before it died with it in hand.  What was taken within that turn came
along, and is not counted: it begins turns of its own when the first one is dead.  Nor is counted what
was given back for any other reason: an answer that nobody read, a rate limit or a login that was
missing, a harness that was told to stop, or a daemon that ended, which remembers no leases.

A message is dead while dead_at is set and acked_at is not.  It stays until the operator has it retried,
or drops it; it is then as if acked, and goes with the acked ones.
"""

from typing import Final

MAX_DELIVERIES: Final = 5
"""Unless the configuration says another number."""

TOLD_MOST: Final = 20
TOLD_WINDOW_S: Final = 600.0
"""So many are told of one by one in that time; the roster counts them all."""


def is_dead(attempts: int, max_deliveries: int) -> bool:
    return attempts >= max_deliveries


def reason_of(attempts: int) -> str:
    """Say why, when nobody else does."""
    return f"handed out {attempts} times, and its agent failed over it each time"


def one_line(reason: str) -> str:
    """Give *reason*, which an agent wrote, as one line that is safe to show and to put into JSON."""
    printable = "".join(char if char.isprintable() else " " for char in reason)
    return " ".join(printable.split()) or "no reason was given"

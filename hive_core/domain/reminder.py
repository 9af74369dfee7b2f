"""Reminders: what an agent may leave for itself, when it comes, and in which words."""

from dataclasses import dataclass
from typing import Final

from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import (
    MAX_BODY_BYTES,
    MAX_REMINDER_BYTES,
    MAX_REMINDER_DELAY_S,
    MAX_REMINDERS,
)

MAX_ATTEMPTS: Final = 5
"""Failed deliveries after which a reminder is stuck until the operator retries it."""

MAX_PATH_CHARS: Final = 500
SPILL_DIR: Final = "reminders"


class CannotWrite(Exception):
    """The file of a reminder cannot be written.  The text says why."""


@dataclass(frozen=True, slots=True)
class Reminder:
    """One that has not been delivered.  Times are unix seconds."""

    id: int
    agent: str
    message: str
    due_at: float
    created_at: float
    file_path: str | None = None
    """Where its text goes, below the agent's state directory; None: into the message."""
    attempts: int = 0
    last_error: str | None = None

    @property
    def is_stuck(self) -> bool:
        return self.attempts >= MAX_ATTEMPTS


def due_at(now: float, delay_seconds: float | None, at: float | None) -> float:
    """Give the moment that was asked for; one that has passed is now.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if (delay_seconds is None) == (at is None):
        raise _wrong("give either delay_seconds or at, and one of them")
    moment = now + delay_seconds if delay_seconds is not None else at
    assert moment is not None
    if moment > now + MAX_REMINDER_DELAY_S:
        raise _wrong(f"the time is more than {MAX_REMINDER_DELAY_S / 86400:g} days away")
    return max(moment, now)


def check_message(message: str) -> None:
    """Refuse what is empty or too large.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    size = len(message.encode("utf-8", "surrogatepass"))
    if not message.strip():
        raise _wrong("the message is empty")
    if size > MAX_BODY_BYTES:
        raise _wrong(f"the message has {size} bytes, the limit is {MAX_BODY_BYTES}")


def check_room(agent: str, pending: int) -> None:
    """Refuse one more when *agent* has too many.

    Raises:
        Refused: PRECONDITION_FAILED.
    """
    if pending >= MAX_REMINDERS:
        raise Refused(
            ErrorCode.PRECONDITION_FAILED,
            f"cannot remind: {agent} has {pending} pending reminders, the limit; cancel some",
        )


def file_below_state(agent: str, file_path: str) -> str:
    """Give *file_path*, as the agent sees it, relative to its state directory.

    Raises:
        Refused: INVALID_ARGUMENT: it leads elsewhere.
    """
    path = file_path
    for root in (f"/agents/{agent}/state/", "/state/"):
        if path.startswith(root):
            path = path.removeprefix(root)
            break
    parts = [part for part in path.split("/") if part not in {"", "."}]
    leads_out = path.startswith("/") or ".." in parts or not parts
    if leads_out or not file_path.isprintable() or len(file_path) > MAX_PATH_CHARS:
        raise _wrong(f"{file_path[:80]!r} is no file below /agents/{agent}/state")
    return "/".join(parts)


def spill_path(reminder: Reminder) -> str | None:
    """Give the file, relative to the state directory, that the text goes into; None: into the message."""
    if reminder.file_path is not None:
        return reminder.file_path
    if len(reminder.message.encode("utf-8", "surrogatepass")) > MAX_REMINDER_BYTES:
        return f"{SPILL_DIR}/{reminder.id}.md"
    return None


def body(reminder: Reminder, shown_path: str | None) -> str:
    """Give the text of the message, when the reminder's own is in the file *shown_path* or in none."""
    if shown_path is None:
        return reminder.message
    size = len(reminder.message.encode("utf-8", "surrogatepass"))
    return f"Your reminder {reminder.id} is in the file {shown_path} ({size} bytes)."


def _wrong(why: str) -> Refused:
    return Refused(ErrorCode.INVALID_ARGUMENT, f"cannot remind: {why}")

"""What can go wrong between two peers, and how it is said."""

from enum import StrEnum


class ErrorCode(StrEnum):
    """The machine-readable half of a refusal; the sentence is the other half."""

    INVALID_ARGUMENT = "invalid_argument"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION_FAILED = "precondition_failed"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"
    CANCELLED = "cancelled"


class ProtocolError(Exception):
    """The peer broke the protocol.  The text says how; the connection is done after it."""


class LineTooLong(ProtocolError):
    """A line passed its limit.  It is skipped to its end, and the lines after it are read as usual."""


class Refused(Exception):
    """The answer is no.

    The text begins "cannot …" and names the thing.  *reason* is a machine-readable detail of a CONFLICT.
    """

    def __init__(self, code: ErrorCode, text: str, reason: str | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.reason = reason


class Disconnected(Exception):
    """The connection ended before the answer came."""

"""How the CLI fails: a sentence on stderr, perhaps a hint, and an exit code a script can act on."""

import errno
import os
import sys
from typing import Final

from hive_core.cli.safe import visible
from hive_core.wire.client import RequestFailed, TimedOut, Unreachable

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
REFUSED: Final = 4
UNREACHABLE: Final = 5
TIMED_OUT: Final = 6
CONFLICT: Final = 7
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141

MEANING: Final = {
    OK: "done",
    FAILED: "failed, or not possible just now",
    USAGE: "the command line is wrong, or an argument of it",
    NOT_FOUND: "there is no such agent, message or approval",
    REFUSED: "not allowed, or not in this state",
    UNREACHABLE: "no daemon answers",
    TIMED_OUT: "not done in time; what was asked for stays recorded",
    CONFLICT: "in conflict with what is there, such as a name that is taken",
    INTERRUPTED: "interrupted by Ctrl-C",
}

EXIT_OF_CODE: Final = {
    "invalid_argument": USAGE,
    "not_found": NOT_FOUND,
    "forbidden": REFUSED,
    "precondition_failed": REFUSED,
    "conflict": CONFLICT,
    "unavailable": FAILED,
    "internal": FAILED,
    "cancelled": FAILED,
}
"""Exit code of each wire.errors.ErrorCode.  `unavailable` is about a harness, not the daemon: 1, not 5."""


class Problem(Exception):
    """What ends a command.  The text begins "cannot …"."""

    def __init__(self, exit_code: int, text: str, hint: str | None = None) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.text = text
        self.hint = hint


def of_error(error: Exception) -> Problem:
    """Put any exception that a command ended with into words for the operator."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Unreachable):
        return Problem(UNREACHABLE, str(error))
    if isinstance(error, TimedOut):
        return Problem(TIMED_OUT, f"cannot go on: {error}")
    if isinstance(error, RequestFailed):
        return Problem(EXIT_OF_CODE.get(error.code, FAILED), str(error))
    return Problem(
        FAILED,
        f"cannot go on: {type(error).__name__}: {error}",
        "this is a bug; set HIVE_DEBUG=1 to see where",
    )


def report(problem: Problem) -> int:
    """Write *problem* to stderr and give its exit code."""
    lines = f"hive: {visible(problem.text)}\n"
    if problem.hint:
        lines += f"hint: {visible(problem.hint)}\n"
    sys.stderr.write(lines)
    return problem.exit_code


def interrupted() -> int:
    """Leave the line that Ctrl-C or Ctrl-D was typed in, and give the exit code."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    return INTERRUPTED


def output_failed(error: OSError) -> int:
    """Give the exit code for output that could not be written; say nothing when nobody wants it."""
    if error.errno == errno.EPIPE:
        # What is still buffered cannot be written either, and Python would complain about it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return report(Problem(FAILED, f"cannot go on: {error}"))

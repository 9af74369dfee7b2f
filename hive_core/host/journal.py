"""The journal of a unit, as lines that are safe to show.

Only the host's own journal is read, never that of a machine: an agent could have forged it.  What is in it
may still come from an agent: each line is bounded, and nothing in it can move a cursor.
"""

import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import msgspec
import trio

from hive_core.host import machinectl, process

READ_S: Final = 10.0
"""journalctl looks through every file of the journal; a cold one on a slow disk takes seconds."""
MAX_LINE_CHARS: Final = 4000
MAX_READ_BYTES: Final = 4 * 2**20
"""Of entries as JSON, each some 400 bytes longer than its message."""
MAX_ANSWER_BYTES: Final = 384 * 2**10
"""Of lines.  As JSON they are twice as long at worst, and fit a line of host.sock."""
REASON_ENTRIES: Final = 100
MAX_ENTRY_BYTES: Final = 64 * 2**10
"""One entry as JSON: a message of up to 4096 bytes, written as numbers at worst, and what stands round it."""

_TOO_LONG: Final = "(a line of more than 4096 bytes)"
_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)"  # titles, links, device control
    r"|\x1b[ -/]*[0-~]?"
)
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


_NOISE: Final = "[FAILED] Failed unmounting "
"""What systemd says of each mount that is the host's whenever a machine stops: nothing has failed."""
_NOISY_ENTRIES: Final = 64
"""Of some three stops."""


class _Entry(msgspec.Struct, frozen=True):
    message: Any = msgspec.field(name="MESSAGE", default="")
    identifier: Any = msgspec.field(name="SYSLOG_IDENTIFIER", default="")


_ENTRY: Final = msgspec.json.Decoder(_Entry)


async def read(unit: str, lines: int) -> list[str]:
    """Give the last *lines* lines of *unit*, fewer when they are too much for one answer; the oldest first.

    Raises:
        process.CommandError: the journal cannot be read.
    """
    # By entries: one may be several lines, and then the oldest are too many.
    most = lines + _NOISY_ENTRIES
    entries = await _read(_argv(most, f"--unit={unit}"), most)
    kept: deque[str] = deque(maxlen=lines)
    for entry in entries:
        kept.extend(to_lines(entry))
        await trio.lowlevel.checkpoint()  # a hostile one takes most of a millisecond
    size_bytes = sum(len(line.encode()) for line in kept)
    while size_bytes > MAX_ANSWER_BYTES:
        size_bytes -= len(kept.popleft().encode())
    return list(kept)


async def read_reason(unit: str, since: float, lines: int) -> list[str]:
    """Give the last *lines* lines that may say why a machine's *unit* failed; *since* is in unix seconds.

    Those of the machine's console only when nothing else said a word: it goes on while it is shut down.

    Raises:
        process.CommandError: the journal cannot be read.
    """
    # What was written a moment ago may still be on its way.
    await machinectl.run(["journalctl", "--sync"], timeout_s=READ_S)
    # Not by the id of the invocation: journald does not find it of a process that ended at once.
    argv = [*_argv(REASON_ENTRIES, f"_SYSTEMD_UNIT={unit}"), f"--since=@{since:.6f}"]
    entries = await _read(argv, REASON_ENTRIES)
    others = [entry for entry in entries if read_identifier(entry) != "systemd-nspawn"]
    return [line for entry in others or entries for line in to_lines(entry)][-lines:]


async def _read(argv: list[str], entries: int) -> list[bytes]:
    kept: deque[bytes] = deque(maxlen=entries)
    size_bytes = 0
    try:
        with trio.fail_after(READ_S):
            async with _open(argv) as found:
                while batch := await found.receive():
                    for entry in batch:
                        size_bytes += len(entry)
                        kept.append(entry)
                    while size_bytes > MAX_READ_BYTES:
                        size_bytes -= len(kept.popleft())
                end = await found.end()
    except OSError as error:
        raise process.CommandError(f"{' '.join(argv)}: {error.strerror}") from None
    except trio.TooSlowError:
        raise process.CommandError(f"{' '.join(argv)}: not done within {READ_S:g} s") from None
    if end != process.describe_exit(0):
        raise process.CommandError(f"{' '.join(argv)}: {end}")
    return list(kept)


async def follow(unit: str, lines: int) -> AsyncGenerator[list[str], None]:
    """Give the last *lines* lines of *unit*, and then batches of new ones, until it is closed.

    A reader that is behind holds journalctl up, and no memory.

    Raises:
        process.CommandError: journalctl cannot be started, or ended by itself.
    """
    argv = [*_argv(lines, f"--unit={unit}"), "--follow"]
    try:
        async with process.open_lines(argv, max_line_bytes=MAX_ENTRY_BYTES, env=machinectl.PLAIN) as entries:
            while batch := await entries.receive():
                found: list[str] = []
                for entry in batch:
                    found += to_lines(entry)
                    await trio.lowlevel.checkpoint()
                if found:
                    yield found
            raise process.CommandError(f"{' '.join(argv)}: {await entries.end()}")
    except OSError as error:
        raise process.CommandError(f"{' '.join(argv)}: {error.strerror}") from None


def to_lines(entry: bytes) -> list[str]:
    """Give the lines of the message in one entry of `journalctl -o json`."""
    if not entry:
        return []
    try:
        message = _ENTRY.decode(entry).message
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ["(an entry that cannot be read)"]
    if message is None:
        return [_TOO_LONG]
    if isinstance(message, list):
        # What is not UTF-8, or has control characters, comes as numbers; what was said twice as a list.
        if all(isinstance(byte, int) and 0 <= byte < 256 for byte in message):
            message = bytes(message).decode(errors="replace")
        else:
            message = "\n".join(part for part in message if isinstance(part, str))
    if not isinstance(message, str):
        return ["(an entry that cannot be read)"]
    safe = [make_safe(line)[:MAX_LINE_CHARS] for line in message.split("\n")]
    return [line for line in safe if not line.startswith(_NOISE)]


def read_identifier(entry: bytes) -> str:
    """Give the name of the program that wrote *entry*, as journald knows it."""
    try:
        return str(_ENTRY.decode(entry).identifier)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ""


def make_safe(line: str) -> str:
    """Take out of *line* what a terminal would obey."""
    return _CONTROLS.sub("", _ESCAPES.sub("", line)).replace("\t", "    ")


def _open(argv: list[str]) -> AbstractAsyncContextManager[process.Lines]:
    return process.open_lines(argv, max_line_bytes=MAX_ENTRY_BYTES, env=machinectl.PLAIN)


def _argv(lines: int, match: str) -> list[str]:
    return [
        *(
            "journalctl",
            "--no-pager",
            "--quiet",
            "--output=json",
            "--output-fields=MESSAGE,SYSLOG_IDENTIFIER",
        ),
        *(f"--lines={lines}", match),
    ]

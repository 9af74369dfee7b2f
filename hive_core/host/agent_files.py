"""Touches files that an agent owns, in a short-lived child.

Whatever an agent may have planted there, a link, a FIFO, a forged journal, a file that never ends,
costs that one child its deadline and the agent its own history.  The daemon opens none of it.

*uid* is the user that the files belong to, where that is not the daemon's own: the child then shuts itself
into the directory and becomes that user before it opens anything.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from hive_core.domain.event import Event
from hive_core.host import process
from hive_core.wire.limits import MAX_EVENT_BYTES

TIMEOUT_S: Final = 10.0
REMOVE_S: Final = 60.0
"""An agent may have made millions of files."""
MAX_ANSWER_BYTES: Final = 8 * 2**20
"""What one page of events may hold; the worker stops before it."""
MAX_STATS_BYTES: Final = 256 * 2**10


class _Row(msgspec.Struct, frozen=True):
    id: int
    ts: float
    kind: str
    payload: msgspec.Raw


Figure = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
Name = Annotated[str, Meta(max_length=64)]


class TurnSums(msgspec.Struct, frozen=True, kw_only=True):
    """What the turns of some time took.  Counts are sorted, the most frequent first."""

    turns: Figure = 0
    ok_turns: Figure = 0
    compactions: Figure = 0
    p50_seconds: Amount | None = None
    p95_seconds: Amount | None = None
    input_tokens: Figure = 0
    output_tokens: Figure = 0
    cache_read_tokens: Figure = 0
    cache_creation_tokens: Figure = 0
    cost_usd: Amount = 0.0
    ctx_max: Figure = 0
    tool_calls: Figure = 0
    tools: list[tuple[Name, Figure]] = []
    wake_from: list[tuple[Name, Figure]] = []
    results: list[tuple[Name, Figure]] = []
    models: list[tuple[Name, Figure]] = []


_SUMS: Final = msgspec.json.Decoder(TurnSums)
_ROW: Final = msgspec.json.Decoder(_Row)


async def read_events(
    state_dir: Path,
    *,
    after: int | None,
    limit: int,
    kinds: Sequence[str] | None,
    uid: int | None = None,
) -> tuple[list[Event], bool]:
    """Give events with ids above *after*, else the newest; oldest first; and whether there may be more.

    Raises:
        process.CommandError: the file cannot be read.
        trio.TooSlowError: it could not be read in 10 s.
    """
    answer = await process.run(
        [
            *_worker("events", state_dir, uid),
            *("--limit", str(limit)),
            *(("--after", str(after)) if after is not None else ()),
            *(f"--kind={kind}" for kind in kinds or ()),
        ],
        timeout_s=TIMEOUT_S,
        max_output_bytes=MAX_ANSWER_BYTES + 2 * MAX_EVENT_BYTES,
    )
    *lines, last = answer.splitlines() or [b"end"]
    events = [_event(line) for line in lines]
    return [event for event in events if event is not None], last == b"more"


async def read_stats(state_dir: Path, *, since: float, uid: int | None = None) -> TurnSums:
    """Sum up the turns that began at *since*, in unix seconds, or later; nothing when there is no file.

    Raises:
        process.CommandError: the file cannot be read, or its figures make no sense.
        trio.TooSlowError: it could not be read in 10 s.
    """
    argv = [*_worker("stats", state_dir, uid), "--since", str(since)]
    answer = await process.run(argv, timeout_s=TIMEOUT_S, max_output_bytes=MAX_STATS_BYTES)
    try:
        return _SUMS.decode(answer)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise process.CommandError(f"{' '.join(argv)}: {error}") from None


async def remove(base_dir: Path) -> None:
    """Delete the directory of an agent, following no link.  What is not there is deleted.

    Raises:
        process.CommandError: something in it could not be deleted; the text says what, and why.
        trio.TooSlowError: not in REMOVE_S; what was deleted is, and the next time goes on from there.
    """
    await process.run(_worker("remove", base_dir), timeout_s=REMOVE_S, max_output_bytes=4096)


async def size(base_dir: Path) -> int:
    """Give the bytes on disk of all that is kept of an agent, whoever of its users it belongs to.

    Raises:
        process.CommandError: not all of it could be looked at.
        trio.TooSlowError: not in 10 s.
    """
    argv = _worker("size", base_dir)
    said = (await process.run(argv, timeout_s=TIMEOUT_S, max_output_bytes=8192)).partition(b"\t")[0]
    try:
        return int(said)
    except ValueError:
        raise process.CommandError(f"{' '.join(argv)}: it gave no number") from None


async def has_login(claude_dir: Path, *, uid: int | None = None) -> bool:
    """Say whether the claude of an agent has kept its login.

    Raises:
        process.CommandError, trio.TooSlowError: it could not be looked at.
    """
    argv = _worker("login", claude_dir, uid)
    return (await process.run(argv, timeout_s=TIMEOUT_S, max_output_bytes=64)).strip() == b"yes"


def _worker(verb: str, directory: Path, uid: int | None = None) -> list[str]:
    become = [] if uid is None else ["--uid", str(uid)]
    return [sys.executable, "-I", "-m", "hive_core.host.agent_files_worker", verb, str(directory), *become]


def _event(line: bytes) -> Event | None:
    try:
        row = _ROW.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Event(row.id, row.ts, row.kind[:64], row.payload)

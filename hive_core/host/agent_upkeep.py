"""What the host writes, prunes and packs in an agent's own directory, in a short-lived child as that agent.

The daemon opens none of it: see agent_files.
"""

import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final

import msgspec
import trio
from msgspec import Meta

from hive_core.domain.retention import EVENTS, TURN_STATS, AgentFile, Count, Cutoffs
from hive_core.host import process
from hive_core.host.agent_prune import EVENTS_FILE
from hive_core.host.process import User
from hive_core.host.turn_sums import STATS_FILE

TIMEOUT_S: Final = 10.0
FILES: Final = {EVENTS_FILE: EVENTS, STATS_FILE: TURN_STATS}
SWEEP_S: Final = 20.0
"""Two files, each of which may hang for 6 s."""
PACK_S: Final = 1800.0


class _Said(msgspec.Struct, frozen=True):
    """What the child says of a file.  It works as the agent, so each figure may be a lie."""

    file: Annotated[str, Meta(max_length=64)]
    goes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    looked_at: Annotated[int, Meta(ge=0, le=2**53)] = 0
    more: bool = False
    missing: bool = False
    freed_bytes: Annotated[int, Meta(ge=0, le=2**53)] = 0
    error: Annotated[str, Meta(max_length=300)] | None = None


_SAID: Final = msgspec.json.Decoder(_Said)


@dataclass(frozen=True)
class Pruned:
    """What became of one file: *goes* rows went, or would go; *error* says why it was left alone."""

    file: str
    goes: int = 0
    looked_at: int = 0
    more: bool = False
    freed_bytes: int = 0
    error: str | None = None


async def write_file(state_dir: Path, path: str, text: str, *, uid: int | None = None) -> None:
    """Put *text* into the file *path* below *state_dir*, in place of what is there; following no link.

    Raises:
        process.CommandError: it cannot be written.
        trio.TooSlowError: not in 10 s.
    """
    said_to = text.encode("utf-8", "replace")
    argv = [*_worker("write", state_dir, uid), "--path", path, "--size", str(len(said_to))]
    await process.run(argv, timeout_s=TIMEOUT_S, max_output_bytes=4096, said_to=said_to)


async def prune(
    state_dir: Path, cutoffs: Cutoffs, *, dry_run: bool = False, uid: int | None = None
) -> list[Pruned]:
    """Delete what is old from the databases in *state_dir*, or only count it; give a result for each.

    Whatever is wrong with a file costs that file alone and is in its result.

    Raises:
        process.CommandError, OSError: the directory cannot be entered.
        trio.TooSlowError: not in 20 s.
    """
    argv = _worker("sweep", state_dir, uid)
    for option, cutoff in (
        ("--events-before", cutoffs.events),
        ("--streams-before", cutoffs.streams),
        ("--stats-before", cutoffs.turn_stats),
    ):
        if cutoff is not None:
            argv += [option, repr(cutoff)]
    if dry_run:
        argv.append("--dry-run")
    answer = await process.run(argv, timeout_s=SWEEP_S, max_output_bytes=16 * 1024)
    try:
        said = [_SAID.decode(line) for line in answer.splitlines()]
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise process.CommandError(f"{' '.join(argv)}: {error}") from None
    return [
        Pruned(one.file, one.goes, one.looked_at, one.more, one.freed_bytes, one.error)
        for one in said
        if not one.missing
    ]


async def prune_or_say_why(
    agent: str, state_dir: Path, cutoffs: Cutoffs, *, dry_run: bool = False, uid: int | None = None
) -> list[tuple[AgentFile, int]]:
    """Prune the files of *agent*; give each with what went, or why it was left alone, and the bytes saved."""
    try:
        found = await prune(state_dir, cutoffs, dry_run=dry_run, uid=uid)
    except trio.TooSlowError:
        return [(AgentFile(agent, EVENTS, trouble="it takes too long"), 0)]
    except (process.CommandError, OSError) as error:
        return [(AgentFile(agent, EVENTS, trouble=str(error).rpartition(": ")[2]), 0)]
    return [
        (
            AgentFile(agent, FILES.get(one.file, EVENTS), Count(one.goes, one.more), trouble=one.error),
            one.freed_bytes,
        )
        for one in found
    ]


async def pack(
    state_dir: Path,
    into: IO[bytes],
    *,
    without: Collection[str] = (),
    plain: bool = False,
    user: User | None = None,
) -> None:
    """Write a tar stream of what is below *state_dir* to the open file *into*, following no link.

    Names *without* are left out at the top.  *plain*: no database is looked into, which somebody else may
    have put there.

    Raises:
        process.CommandError: it cannot be read.
        OSError: the child cannot be started.
        trio.TooSlowError: not in half an hour.
    """
    argv = [*_worker("pack", state_dir, *_ids(user)), *(f"--without={name}" for name in without)]
    argv += ["--plain"] if plain else []
    # Not through us: it may be gigabytes.
    child = process.start_session(argv, cwd=Path("/"), log=into, env=process.built_environment())
    status = await _end_of(child)
    if status:
        raise process.CommandError(f"{' '.join(argv)}: {process.describe_exit(status)}")


async def unpack(state_dir: Path, source: Path, *, ours: bool = False, user: User | None = None) -> None:
    """Make below *state_dir*, which is empty, what the tar stream of pack() in the file *source* holds.

    In a directory of *ours* files get the owners that they had, where we may give them away.

    Raises:
        process.CommandError: it is no such stream, or cannot be written.
        trio.TooSlowError: not in half an hour.
    """
    argv = [*_worker("unpack", state_dir, *_ids(user)), "--source", str(source)]
    argv += ["--ours"] if ours else []
    await process.run(argv, timeout_s=PACK_S, max_output_bytes=4096)


async def _end_of(child: subprocess.Popen[bytes]) -> int:
    try:
        with trio.fail_after(PACK_S):
            while child.poll() is None:
                await trio.sleep(0.05)
    finally:
        if child.poll() is None:
            child.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(child.wait)
    return child.returncode


def _ids(user: User | None) -> tuple[int | None, int | None]:
    return (None, None) if user is None else (user.uid, user.gid)


def _worker(verb: str, directory: Path, uid: int | None, gid: int | None = None) -> list[str]:
    become = [] if uid is None else ["--uid", str(uid)]
    become += [] if gid is None else ["--gid", str(gid)]
    return [sys.executable, "-I", "-m", "hive_core.host.agent_upkeep_worker", verb, str(directory), *become]

"""What an agent.toml binds into a machine, as the host has it when the machine starts.

A path that was approved may be a link today, or lead through one: what counts is where it leads.
"""

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hive_core.declarable import Bind
from hive_core.domain.cage import UID_RANGE, CannotStart
from hive_core.domain.manifest import in_or_above, why_not_bound


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host, and where a machine sees it."""

    source: Path
    """Without links in it."""
    path: str
    writable: bool
    options: str
    """What nspawn is told of its users."""


def resolve(
    agent: str,
    binds: Iterable[Bind],
    *,
    uid_base: int,
    machine_uids: range,
    hive: Sequence[Path],
    programs: Path,
) -> tuple[Mount, ...]:
    """Give what the machine of *agent*, whose root is *uid_base*, is to see.

    *machine_uids* are those of all machines; *hive* are directories and files that are the hive's own, and
    *programs* is where its programs lie, which machines run too and none may write.

    Raises:
        CannotStart: one is missing, or may not be seen.
    """
    own = [os.path.realpath(path) for path in hive]
    written = [*own, os.path.realpath(programs)]
    return tuple(
        _mount(agent, bind, uid_base, machine_uids, written if bind.writable else own) for bind in binds
    )


_TRUSTED: Final = frozenset({0, os.geteuid()})
_MAX_LINKS: Final = 40
"""As the kernel has it."""


def _follow(path: str) -> tuple[Path, list[tuple[str, os.stat_result]]]:
    """Give where *path*, absolute, leads, and each directory in which something is looked up on the way.

    A name in a directory that anybody can write, such as /tmp, counts too: its owner can replace it.

    Raises:
        OSError: it leads nowhere.
    """
    waiting = [name for name in reversed(path.split("/")) if name]
    here, way, links = "/", [("/", os.stat("/"))], 0  # noqa: PTH116
    while waiting:
        name = waiting.pop()
        if name in {".", ".."}:
            here = os.path.dirname(here) if name == ".." else here  # noqa: PTH120 - of a text
            continue
        directory, there = here, os.path.join(here, name)  # noqa: PTH118
        found = os.lstat(there)
        if way[-1][0] != directory:
            way.append((directory, os.lstat(directory)))
        if way[-1][1].st_mode & stat.S_IWOTH:
            way.append((there, found))
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            target = os.readlink(there)  # noqa: PTH115
            here = "/" if target.startswith("/") else here
            waiting += [part for part in reversed(target.split("/")) if part]
        else:
            here = there
    return Path(here), way


def _mount(agent: str, bind: Bind, uid_base: int, machine_uids: range, own: Sequence[str]) -> Mount:
    who, how = f"cannot start {agent}", "write to" if bind.writable else "see"
    try:
        source, way = _follow(bind.source)
        seen = source.lstat()
    except OSError as error:
        why = error.strerror or "its links lead nowhere"
        raise CannotStart(f"{who}: it is to {how} {bind.source}: {why}") from None
    why_not = why_not_bound(str(source), writable=bind.writable)
    if why_not is not None:
        raise CannotStart(f"{who}: {why_not}")
    place = in_or_above(str(source), own)
    if place is not None:
        raise CannotStart(f"{who}: it is to {how} {bind.source}, and {place} is the hive's own")
    if not stat.S_ISDIR(seen.st_mode) and not stat.S_ISREG(seen.st_mode):
        raise CannotStart(f"{who}: it is to {how} {bind.source}, which is neither directory nor file")
    # Whoever can write on the way could have it lead anywhere, also between this look and the mount: an agent
    # that something there was made writable for, too.
    for directory, found in way:
        if found.st_uid in machine_uids:
            raise CannotStart(
                f"{who}: it is to {how} {bind.source}, which lies in a directory of another agent's"
            )
        if found.st_uid not in _TRUSTED or (
            found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
        ):
            raise CannotStart(
                f"{who}: it is to {how} {bind.source}, and others than root write in {directory}: they could"
                " let it lead elsewhere; bind what lies in directories of root's"
            )
    if not bind.writable:
        # As the machine's root sees files of the host's: what was approved to be seen may belong to root.
        return Mount(source, bind.path or bind.source, bind.writable, "idmap,norbind")
    if seen.st_uid in range(uid_base, uid_base + UID_RANGE):
        return Mount(source, bind.path or bind.source, bind.writable, "norbind")
    if seen.st_uid == 0:
        # What its root wrote would be the host's root's, setuid programs included.
        raise CannotStart(
            f"{who}: it is to write to {bind.source}, which belongs to root; give it to a user: chown"
        )
    return Mount(source, bind.path or bind.source, bind.writable, "rootidmap,norbind")

"""Takes over the repositories of an installation of the original, once, at a start.

The original had applied/NAME with a work tree, the proposal in agents/NAME/config, and meta.  Each phase
looks at what is there and does what is missing, so a kill between any two steps is made good by the next
start; the last leaves a mark, and nothing is looked for again.  An agent with which something is wrong is
logged and left as it is; the mark waits for it.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw
import trio

from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import MANIFEST_NAME, NOTHING, BadManifest, Manifest
from hive_core.host import agent_dirs
from hive_core.host.process import CommandError
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.store import agents
from hive_core.store.database import Store
from hive_core.wire.errors import Refused
from hive_core.wire.ids import MANAGER, why_no_agent_name

SKIP: Final = "HIVE_SKIP_META_MIGRATION"
"""A variable; `1`: nothing is taken over at this start."""
THEIR_MARK: Final = ".meta-migration-done"

_MARK: Final = "done"
_MAX_MARK_BYTES: Final = 4096
_TROUBLES: Final = (
    *(BadProposal, BadManifest, CommandError, OSError, RecursionError, Refused, ValueError),
    trio.TooSlowError,
)

log = logging.getLogger(__name__)


class Adoption:
    """*allocate* gives an agent its uids on this host, or None where it has none of its own; *manifest_at*
    reads what a commit of an agent declares.
    """

    def __init__(
        self,
        store: Store[Any],
        layout: Layout,
        repositories: Repositories,
        *,
        allocate: Callable[[str, Sequence[AgentRow]], int | None],
        manifest_at: Callable[[str, str], Awaitable[Manifest]],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._store = store
        self._layout = layout
        self._repositories = repositories
        self._allocate = allocate
        self._manifest_at = manifest_at
        self._environ = environ

    async def run(self) -> None:
        """Take over what is there.  Whatever goes wrong is logged; the next start tries again."""
        mark = self._layout.adopted / _MARK
        if mark.exists():
            return
        if not (names := _found(self._layout)) and not _has_meta(self._layout):
            return
        if self._environ.get(SKIP) == "1":
            log.warning("Repositories of the original are not taken over: %s=1", SKIP)
            return
        log.info("Repositories of the original are taken over agents=%s", ",".join(names))
        self._layout.adopted.mkdir(exist_ok=True)
        self._layout.adopted.chmod(0o700)
        (self._layout.adopted / "applied").mkdir(exist_ok=True)
        all_well = True
        for name in names:
            for phase in (self._take_applied, self._take_proposed, self._take_row, self._take_files):
                if not await _logged(name, partial(phase, name)):
                    all_well = False
                    break
        if await _logged("meta", self._take_meta) and all_well:
            mark.touch(mode=0o600)
            log.info("Repositories of the original were taken over; as they were they are in %s", mark.parent)

    async def _take_applied(self, name: str) -> None:
        applied, aside = self._layout.applied_of(name), self._layout.adopted / "applied" / name
        if _is_directory(applied / ".git"):
            if aside.exists():
                raise FileExistsError(f"both {applied} and {aside} are there; move one of them away")
            await self._repositories.adopt(name, applied, aside)
        elif _is_directory(aside / ".git") and not applied.exists():
            await self._repositories.adopt(name, aside, aside)

    async def _take_proposed(self, name: str) -> None:
        old, new = self._layout.agents / name / "config", self._layout.config_of(name)
        if not _is_directory(old):
            return
        if new.parent.is_symlink():
            raise NotADirectoryError(f"{new.parent} is a link")
        new.parent.mkdir(parents=True, exist_ok=True)
        new.parent.chmod(0o755)
        if _is_directory(new):
            # Only an empty one goes; a daemon may have made it already.
            new.rmdir()
        old.rename(new)
        new.chmod(0o755)

    async def _take_row(self, name: str) -> None:
        rows = await self._store.read(agents.all_agents)
        if any(row.name == name for row in rows):
            return
        uid_base = self._allocate(name, rows)
        sha = await self._repositories.main(name)
        tag = None if sha is None else await self._tag_of(name, sha)
        manifest = NOTHING
        if sha is not None:
            try:
                manifest = await self._manifest_at(name, sha)
            except (BadManifest, BadProposal, Refused) as error:
                log.warning("Configuration of %s says nothing that can be used: %s", name, error)
        if manifest != NOTHING:
            # The original had none.  Whoever made it, nobody here has seen what it asks of the host.
            log.warning("What %s declares of %s holds once it is approved", MANIFEST_NAME, name)
            sha, tag, manifest = None, None, NOTHING
        await self._store.write(_insert, name, time.time(), uid_base, sha, tag, manifest)

    async def _tag_of(self, name: str, sha: str) -> str | None:
        tags = [one.tag for one in await self._repositories.history(name, 1_000_000) if one.sha == sha]
        deployed = [tag for tag in tags if tag.startswith("deployed/")]
        return max(deployed, key=lambda tag: int(tag.partition("/")[2]), default=None)

    async def _take_files(self, name: str) -> None:
        """The original's machines had the host's own users; ours have their own."""
        rows = await self._store.read(agents.all_agents)
        uid_base = next((row.uid_base for row in rows if row.name == name), None)
        if uid_base is None:
            return
        dirs = self._layout.agent(name)
        for path in (dirs.state, dirs.claude):
            if path.exists():
                await trio.to_thread.run_sync(agent_dirs.shift_owners, path, uid_base)

    async def _take_meta(self) -> None:
        meta, aside = self._layout.meta, self._layout.adopted / "meta"
        if not aside.exists() and _is_directory(meta / ".git"):
            await self._repositories.adopt_meta(meta, aside)
        elif _is_directory(aside / ".git") and not (meta / ".git").exists():
            await self._repositories.adopt_meta(aside, aside)
        theirs, ours = aside / THEIR_MARK, meta / THEIR_MARK
        if theirs.is_file() and not theirs.is_symlink() and not ours.exists():
            if theirs.stat().st_size > _MAX_MARK_BYTES:
                raise ValueError(f"{theirs} has more than {_MAX_MARK_BYTES} bytes")
            text = theirs.read_bytes()
            # Git's user owns the directory: nothing that it has put there is followed.
            fd = os.open(ours, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "wb") as file:
                file.write(text)


async def _logged(what: str, phase: Callable[[], Awaitable[None]]) -> bool:
    try:
        await phase()
    except _TROUBLES as error:
        log.error("Of %s something cannot be taken over, the next start tries again: %s", what, error)
        return False
    return True


def _insert(
    db: apsw.Connection,
    name: str,
    now: float,
    uid_base: int | None,
    sha: str | None,
    tag: str | None,
    manifest: Manifest,
) -> None:
    agents.create(db, name, now, uid_base, AgentRow(name, Wanted.STOPPED, False, now).shape)
    agents.want(db, name, Wanted.STOPPED, now)
    agents.note_deployed(db, name, sha, tag, manifest)


def _found(layout: Layout) -> list[str]:
    """Name the agents of whom something lies where the original had it, or half of it did before a kill."""
    found = [*layout.agents.glob("*/config"), *layout.applied.glob("*/.git")]
    names = {path.parent.name for path in found if _is_directory(path) and _is_directory(path.parent)}
    for path in found:
        if path.parent.is_symlink():
            log.error("Agent of the original is left alone: %s is a link", path.parent)
    names |= {path.name for path in (layout.adopted / "applied").glob("*") if _is_directory(path)}
    usable = [name for name in sorted(names) if name == MANAGER or why_no_agent_name(name) is None]
    for name in sorted(names - set(usable)):
        log.error("Agent of the original is left alone: %s", why_no_agent_name(name))
    return usable


def _has_meta(layout: Layout) -> bool:
    """Say whether there is one of theirs, or was before a kill."""
    marks = (layout.meta / THEIR_MARK, layout.state / THEIR_MARK, layout.adopted / "meta")
    return any(path.exists() for path in marks)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()

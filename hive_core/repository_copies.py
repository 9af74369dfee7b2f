"""Puts repositories into archives, and makes repositories of what archives hold.

A copy is a tar stream, packed by a child as whoever the directory belongs to.  Of a whole hive they come back
as they were: who can write that archive can write the database as well.  Of one agent they come from
anybody, so that nothing of them is used but what git finds sound.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hive_core.host import agent_upkeep
from hive_core.host.archive import BadArchive
from hive_core.host.process import User
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.wire.ids import MANAGER, why_no_agent_name

META: Final = "meta.tar"

_APPLIED: Final = "applied"
_CONFIGS: Final = "configs"


class RepositoryCopies:
    """*work*, of each call, is a directory of ours that goes away afterwards."""

    def __init__(self, layout: Layout, repositories: Repositories) -> None:
        self._layout = layout
        self._repositories = repositories

    # ── putting aside ───────────────────────────────────────────────────────────────────────────

    async def pack_all(self, work: Path) -> tuple[dict[str, Path], dict[str, int]]:
        """Pack what there is; give the parts by their names, and whose the proposed ones are, by agent.

        Raises:
            CommandError, OSError, trio.TooSlowError: not all of it can be.
        """
        layout = self._layout
        parts: dict[str, Path] = {}
        owners: dict[str, int] = {}
        for agent in sorted({*_names_in(layout.applied), *_names_in(layout.configs)}):
            made, owner = await self.pack(agent, work)
            parts |= made
            if owner is not None:
                owners[agent] = owner
        if (layout.meta / ".git").is_dir():
            async with self._repositories.held(None) as user:
                parts[META] = await _pack(layout.meta, work / META, user)
        return parts, owners

    async def pack(self, agent: str, work: Path) -> tuple[dict[str, Path], int | None]:
        """Pack those of one agent; give the parts, and whose the proposed one is: None: ours.

        Raises as pack_all does.
        """
        applied, config = self._layout.applied_of(agent), self._layout.config_of(agent)
        parts: dict[str, Path] = {}
        if (applied / "objects").is_dir():
            async with self._repositories.held(agent) as user:
                parts[_part(_APPLIED, agent)] = await _pack(applied, work / f"{agent}.applied.tar", user)
        try:
            found = config.lstat()
        except FileNotFoundError:
            return parts, None
        owner = User(found.st_uid, found.st_gid) if self._repositories.isolated else None
        parts[_part(_CONFIGS, agent)] = await _pack(config, work / f"{agent}.config.tar", owner)
        return parts, owner.uid if owner is not None else None

    # ── a whole hive ────────────────────────────────────────────────────────────────────────────

    async def unpack_all(self, work: Path, owners: Mapping[str, int]) -> None:
        """Make all that pack_all packed, as it was, where there is nothing.

        Raises:
            BadArchive: it names something that is no agent.
            CommandError, OSError, trio.TooSlowError: it cannot be made.
        """
        layout = self._layout
        for part in _parts_in(work / _APPLIED):
            user = await self._repositories.owner()
            _make(layout.applied, None)
            await agent_upkeep.unpack(_make(layout.applied_of(part.stem), user), part, user=user)
        if (work / META).exists():
            user = await self._repositories.owner()
            await agent_upkeep.unpack(_make(layout.meta, user), work / META, user=user)
        for part in _parts_in(work / _CONFIGS):
            config, owner = layout.config_of(part.stem), owners.get(part.stem)
            _make(layout.configs, None)
            _make(config.parent, None)
            as_user = User(owner, owner) if owner is not None and self._repositories.isolated else None
            await agent_upkeep.unpack(_make(config, as_user), part, user=as_user)

    # ── one agent ───────────────────────────────────────────────────────────────────────────────

    def are_there(self, agent: str) -> bool:
        """Say whether anything is there of *agent* that a take_in would have to replace."""
        config = self._layout.config_of(agent)
        return os.path.lexists(self._layout.applied_of(agent)) or os.path.lexists(config / ".git")

    async def take_in(self, work: Path, was: str, agent: str, writer_uid: int | None) -> None:
        """Make repositories of *agent* of what came for *was*; what is proposed belongs to *writer_uid*.

        Of the proposed one that is its `main`, with its history, and nothing that was not committed.

        Raises:
            BadArchive: git finds something unsound.
            CommandError, OSError, trio.TooSlowError: it cannot be made.
        """
        repositories, user = self._repositories, None
        for kind in (_APPLIED, _CONFIGS):
            part = work / _part(kind, was)
            if not part.exists():
                continue
            user = user or await repositories.owner()
            source = _make(work / f"from-{kind}", user)
            target = _make(source / ".git", user) if kind == _APPLIED else source
            await agent_upkeep.unpack(target, part, user=user)
            if kind == _CONFIGS and ((source / ".git").is_symlink() or not (source / ".git").is_dir()):
                continue  # nobody ever proposed anything
            try:
                if kind == _APPLIED:
                    await repositories.take_over_applied(agent, source)
                else:
                    await repositories.take_over_proposed(agent, source, writer_uid, work / "config.tar")
            except BadProposal as error:
                raise BadArchive(f"its repository in {kind}: {error}") from None

    async def remove(self, agent: str) -> None:
        """Delete what take_in made.  Raises as agent_files.remove does."""
        await self._repositories.remove(agent)


def _part(kind: str, agent: str) -> str:
    return f"{kind}/{agent}.tar"


def _is_name(name: str) -> bool:
    return name == MANAGER or why_no_agent_name(name) is None


def _names_in(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir() if _is_name(path.name)]
    except FileNotFoundError:
        return []


def _parts_in(directory: Path) -> list[Path]:
    parts = sorted(directory.glob("*")) if directory.is_dir() else []
    for part in parts:
        if part.suffix != ".tar" or not _is_name(part.stem):
            raise BadArchive(f"{directory.name}/{part.name} is of no agent")
    return parts


def _make(path: Path, user: User | None) -> Path:
    """Make *path*, if it is missing, as *user*'s."""
    path.mkdir(exist_ok=True)
    path.chmod(0o755)
    if user is not None:
        os.chown(path, user.uid, user.gid)
    return path


async def _pack(directory: Path, target: Path, user: User | None) -> Path:
    with target.open("xb") as file:
        await agent_upkeep.pack(directory, file, plain=True, user=user)
    return target

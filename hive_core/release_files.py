"""Lays out what is deployed as plain files, for machines to look at (`host/releases.py` says how)."""

import logging
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart
from hive_core.domain.manifest import Manifest
from hive_core.host.quarantine import BadProposal
from hive_core.host.releases import CONFIG, EXTRA_MCP, SHOWN
from hive_core.layout import Layout
from hive_core.machines import TROUBLE, describe
from hive_core.repositories import Repositories

log = logging.getLogger(__name__)


class ReleaseFiles:
    """The releases of every agent, one directory per commit.  Each call may be made twice."""

    def __init__(self, layout: Layout, repositories: Repositories) -> None:
        self._layout = layout
        self._repositories = repositories

    async def lay_out(self, agent: str, sha: str, manifest: Manifest) -> None:
        """Make the release of commit *sha*, whose agent.toml is *manifest*, if it is not there.

        Raises:
            BadProposal: it has too many files, or too large ones.
            TROUBLE: the disk does not take them.
        """
        release = self._layout.release_of(agent, sha)
        if not await trio.to_thread.run_sync((release / CONFIG).is_dir):
            await self._repositories.export(agent, sha, release / CONFIG)
        if manifest.mcp_servers:
            # The bytes are those of last time if it was done before.
            text = msgspec.json.encode(manifest.mcp_servers)
            await trio.to_thread.run_sync(_put, release / EXTRA_MCP, text)

    async def lay_out_again(self, row: AgentRow) -> None:
        """Make the release that *row* runs with if it is not there: a backup has none.

        `main` is at its commit then, too: a backup's repositories may be younger than its database.

        Raises:
            CannotStart: it cannot be made, and its machine needs it.
        """
        sha, manifest = row.deployed_sha, row.manifest
        if sha is None or await trio.to_thread.run_sync(self._is_whole, row.name, sha, manifest):
            return
        try:
            if not await self._repositories.exists(row.name):
                return  # whoever needs it says so
            await self.lay_out(row.name, sha, manifest)
            await self._repositories.move_main(row.name, sha)
            log.info("Release laid out again agent=%s sha=%s", row.name, sha[:12])
        except (BadProposal, *TROUBLE) as error:
            why = describe(error)
            log.error("Release cannot be laid out agent=%s sha=%s: %s", row.name, sha[:12], why)
            if manifest.prompt is not None or manifest.mcp_servers:
                text = f"cannot start {row.name}: what was deployed of it cannot be laid out: {why}"
                raise CannotStart(text) from None

    def _is_whole(self, agent: str, sha: str, manifest: Manifest) -> bool:
        release = self._layout.release_of(agent, sha)
        return (release / CONFIG).is_dir() and (not manifest.mcp_servers or (release / EXTRA_MCP).is_file())

    async def prune(self, agent: str, keep: Collection[str | None]) -> None:
        """Delete the releases of *agent* but those of the commits *keep*.

        Raises:
            OSError: they are not all gone.
        """
        await trio.to_thread.run_sync(_prune, self._layout.releases / agent, frozenset(keep))

    async def remove(self, agent: str, sha: str) -> None:
        """Delete one.  Raises as prune does."""
        await trio.to_thread.run_sync(_remove, self._layout.release_of(agent, sha))


def _put(path: Path, text: bytes) -> None:
    with suppress(FileNotFoundError):
        if path.read_bytes() == text:
            return
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.write_bytes(text)
    fresh.chmod(0o644)
    fresh.replace(path)


def _prune(directory: Path, keep: frozenset[str | None]) -> None:
    with suppress(FileNotFoundError):
        for entry in list(directory.iterdir()):
            if entry.name not in keep and entry.name not in SHOWN:
                _remove(entry)


def _remove(release: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(release)

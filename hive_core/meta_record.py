"""agents.json of the meta repository: what is deployed where, one commit per deploy, return and end."""

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from hive_core.builders import Builder, BuildFailed, Running
from hive_core.domain.agent import AgentRow
from hive_core.machines import TROUBLE, describe
from hive_core.repositories import Repositories
from hive_core.wire.errors import Refused

META_NAME: Final = "agents.json"
SETTLE_AGAIN_S: Final = 30.0
"""When the meta repository could not be written."""

log = logging.getLogger(__name__)


class MetaRecord:
    """*directory* is that repository's; *rows* are those of the agents that are there.

    *busy* names the agents that are being deployed: what is written of them is the deploy's to write.
    """

    def __init__(
        self,
        repositories: Repositories,
        builder: Builder,
        directory: Path,
        *,
        rows: Callable[[], Mapping[str, AgentRow]],
        busy: Callable[[], Awaitable[Collection[str]]],
    ) -> None:
        self._repositories = repositories
        self._builder = builder
        self._directory = directory
        self._rows = rows
        self._busy = busy
        self._unsettled: set[str] = set()
        self._sooner = trio.Event()
        self.lock = trio.Lock()
        """Whoever writes agents.json has read it before."""

    def settle(self, agent: str) -> None:
        """What is deployed of *agent* was changed by no deploy: let agents.json say so, soon."""
        self._unsettled.add(agent)
        self._sooner.set()

    async def run(self) -> None:
        """Let agents.json say what runs, also of agents that came and went without a deploy."""
        everything = True
        while True:
            self._sooner = trio.Event()
            agents, self._unsettled = self._unsettled, set()
            if everything or agents:
                everything = not await self._try_to_settle(None if everything else agents)
            with trio.move_on_after(SETTLE_AGAIN_S if everything else float("inf")):
                await self._sooner.wait()

    async def _try_to_settle(self, agents: Collection[str] | None) -> bool:
        try:
            if await trio.to_thread.run_sync(self._directory.is_dir) or any(
                row.deployed_sha for row in self._rows().values()
            ):
                async with self.lock:
                    await self._settle(await self._busy(), agents)
        except (BuildFailed, *TROUBLE) as error:
            log.error("Meta repository is behind, it is tried again: %s", describe(error))
            return False
        except Refused as error:
            log.error("Meta repository is behind, it is tried again: %s", error.text)
            return False
        return True

    async def write(self, message: str, agents: Sequence[str], files: Mapping[str, bytes | None]) -> None:
        """Let agents.json say what runs of *agents*, and commit it with *files* if that is anything new.

        For whoever holds *lock*.
        """
        entries = await self._read()
        rows = self._rows()
        for agent in agents:
            row = rows.get(agent)
            entry = None if row is None else self._entry(row)
            if entry is None:
                entries.pop(agent, None)
            else:
                entries[agent] = entry
        text = json.dumps({"agents": dict(sorted(entries.items()))}, indent=2) + "\n"
        await self._repositories.write_meta({**files, META_NAME: text.encode()}, message)

    async def _settle(self, busy: Collection[str], agents: Collection[str] | None) -> None:
        """Let meta say what runs of *agents*, None: of all, but of none that is *busy*."""
        rows = {name: row for name, row in self._rows().items() if row.deployed_sha is not None}
        entries = await self._read()
        about = {*rows, *entries} if agents is None else set(agents)
        for gone in sorted(about & entries.keys() - rows.keys() - set(busy)):
            log.info("Agent struck from the meta repository agent=%s", gone)
            files = await self._builder.forget(gone)
            await self.write(f"destroy {gone}", [gone], files)
        behind = [
            name
            for name in sorted(about & rows.keys() - set(busy))
            if not _says(entries.get(name), self._entry(rows[name]))
        ]
        if behind:
            await self.write(f"settle {' '.join(behind)}", behind, await self.restored(behind))

    async def restored(self, agents: Collection[str]) -> Mapping[str, bytes | None]:
        """Tell the builder what runs of *agents* without a deploy, and give its files as they are then."""
        rows, running = self._rows(), dict[str, Running | None]()
        for agent in agents:
            row = rows.get(agent)
            image = None if row is None else row.shape.image
            is_its_own = self._builder.has_built(agent, image)
            sha = row.deployed_sha if row is not None and is_its_own else None
            running[agent] = Running(sha, image) if sha is not None and image is not None else None
        return await self._builder.restore(running)

    async def _read(self) -> dict[str, Any]:
        text = await self._repositories.read_meta(META_NAME)
        try:
            entries = json.loads(text or b"{}")["agents"]
            return {str(name): dict(entry) for name, entry in entries.items()}
        except KeyError:
            return {}
        except (ValueError, TypeError, AttributeError):
            log.error("%s of the meta repository cannot be read; it is written anew", META_NAME)
            return {}

    def _entry(self, row: AgentRow) -> dict[str, str | None] | None:
        if row.deployed_sha is None:
            return None
        return {
            "sha": row.deployed_sha,
            "tag": row.deployed_tag,
            "builder": "nix" if self._builder.has_built(row.name, row.shape.image) else "tree",
            "output": row.shape.image,
        }


def _says(entry: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> bool:
    keys = ("sha", "tag", "output")
    return entry is not None and wanted is not None and all(entry.get(key) == wanted[key] for key in keys)

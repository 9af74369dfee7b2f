"""What agents keep on disk, those of destroyed ones too: touched by a child for each, as that agent."""

from collections.abc import Callable
from functools import partial
from typing import Any

import trio

from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.domain.reminder import CannotWrite
from hive_core.domain.retention import GENERATIONS, AgentFile, Count, Cutoffs
from hive_core.host import agent_upkeep, nix_roots
from hive_core.host.process import CommandError
from hive_core.layout import Layout
from hive_core.store import agents
from hive_core.store.database import Store


class Homes:
    """The state directories of one hive; *shown* gives that of an agent as the agent itself sees it."""

    def __init__(self, store: Store[Any], layout: Layout, shown: Callable[[str], str]) -> None:
        self._store = store
        self._layout = layout
        self._shown = shown

    async def names(self) -> list[str]:
        """Whose state is there."""
        rows = await self._store.read(agents.all_agents)
        return [row.name for row in rows if row.wanted is not Wanted.PURGED]

    async def uid_of(self, agent: str) -> int | None:
        """Give the user that the files of *agent* belong to; None: the daemon's own.

        Raises:
            LookupError: there is no such agent any more.
        """
        row = await self._row_of(agent)
        if row is None:
            raise LookupError(agent)
        return row.uid_base

    async def write_file(self, agent: str, path: str, text: str) -> str:
        """Put *text* into the file *path* below the state of *agent*, and give its path as the agent sees it.

        Raises:
            CannotWrite: the text says why.
        """
        state, row = self._layout.agent(agent).state, await self._row_of(agent)
        if row is None:
            # As the daemon's own user, who may be root, least of all.
            raise CannotWrite(f"cannot write {path}: {agent} is gone")
        try:
            await agent_upkeep.write_file(state, path, text, uid=row.uid_base)
        except trio.TooSlowError:
            raise CannotWrite(f"cannot write {path}: it takes too long") from None
        except (CommandError, OSError) as error:
            raise CannotWrite(f"cannot write {path}: {str(error).rpartition(': ')[2]}") from None
        return f"{self._shown(agent)}/{path}"

    async def prune(self, agent: str, cutoffs: Cutoffs, dry_run: bool) -> list[tuple[AgentFile, int]]:
        """Prune the files of *agent*; give each with what went, or why nothing did, and the bytes saved."""
        state, row = self._layout.agent(agent).state, await self._row_of(agent)
        if row is None:
            return []
        found = await agent_upkeep.prune_or_say_why(agent, state, cutoffs, dry_run=dry_run, uid=row.uid_base)
        if cutoffs.generations is not None:
            sweep = partial(nix_roots.sweep_generations, agent, cutoffs.generations, dry_run=dry_run)
            found += await trio.to_thread.run_sync(_swept_generations, agent, sweep)
        return found

    async def _row_of(self, agent: str) -> AgentRow | None:
        rows = await self._store.read(agents.all_agents)
        return next((row for row in rows if row.name == agent), None)


def _swept_generations(
    agent: str, sweep: Callable[[], tuple[int, int] | None]
) -> list[tuple[AgentFile, int]]:
    try:
        found = sweep()
    except OSError as error:
        return [(AgentFile(agent, GENERATIONS, trouble=error.strerror or str(error)), 0)]
    if found is None:
        return []
    went, stay = found
    return [(AgentFile(agent, GENERATIONS, Count(went), Count(stay)), 0)]

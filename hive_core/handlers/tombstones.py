"""What is kept of destroyed agents, and its end."""

from typing import Final

import trio
from msgspec import UNSET, UnsetType

from hive_core.domain.agent import AgentRow
from hive_core.domain.clock import rfc3339
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.host import agent_files
from hive_core.machines import TROUBLE
from hive_core.store import agents
from hive_core.wire import approval as wire
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.verb import Reply

LOOKS_AT_ONCE: Final = 4
"""Each is a process, which may read a whole disk."""
LOOK_S: Final = 20.0
"""For all of them; those that were not looked at by then have no size."""
MAX_TOMBSTONES: Final = 1000


async def tombstones(deps: Deps, _peer: Peer, _request: wire.Tombstones) -> wire.TombstonesReply:
    """Show the destroyed agents, the newest MAX_TOMBSTONES of them by name."""
    kept = await _kept(deps)
    kept.sort(key=lambda row: row.destroyed_at or 0.0)
    found: dict[str, tuple[int | UnsetType, bool]] = {}
    looks = trio.CapacityLimiter(LOOKS_AT_ONCE)

    async def look(row: AgentRow) -> None:
        async with looks:
            found[row.name] = await _look(deps, row)

    kept = sorted(kept[-MAX_TOMBSTONES:], key=lambda row: row.name)
    with trio.move_on_after(LOOK_S):
        async with trio.open_nursery() as nursery:
            for row in kept:
                nursery.start_soon(look, row)
    rows = []
    for row in kept:
        size, has_credentials = found.get(row.name, (UNSET, False))
        rows.append(
            wire.TombstoneRow(
                name=row.name,
                destroyed_at=rfc3339(row.destroyed_at or row.created_at),
                bytes=size,
                has_credentials=has_credentials,
            )
        )
    return wire.TombstonesReply(tombstones=within_line(rows))


async def purge(deps: Deps, _peer: Peer, request: wire.Purge) -> Reply:
    """Want all that is kept of a destroyed agent deleted.

    Raises:
        Refused: INVALID_ARGUMENT: *confirm* is not its name; CONFLICT: an agent of that name is there, or
            is the manager; NOT_FOUND: nothing is kept of it.
    """
    name = request.name
    if request.confirm != name:
        text = f"cannot purge {name}: confirm it with its name, {name}; there is no way back"
        raise Refused(ErrorCode.INVALID_ARGUMENT, text)
    if name in deps.supervisor.names:
        text = f"cannot purge {name}: it is there; destroy it first"
        raise Refused(ErrorCode.CONFLICT, text, "exists")
    await deps.supervisor.destroy(name, purge=True)
    return Reply()


async def _kept(deps: Deps) -> list[AgentRow]:
    rows = await deps.store.read(agents.all_agents)
    there = set(deps.supervisor.names)
    return [row for row in rows if row.destroyed_at is not None and row.name not in there]


async def _look(deps: Deps, row: AgentRow) -> tuple[int | UnsetType, bool]:
    """Give what is kept of an agent in bytes, if that can be said, and whether a login is."""
    dirs = deps.layout.agent(row.name)
    size: int | UnsetType = UNSET
    has_login = False
    try:
        has_login = await agent_files.has_login(dirs.claude, uid=row.uid_base)
        size = await agent_files.size(dirs.base)
    except TROUBLE:
        pass  # whoever looks at the list sees that it has no size
    return size, has_login

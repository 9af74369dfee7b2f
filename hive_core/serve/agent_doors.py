"""The doors of agents: a socket for each, opened and closed as agents come and go."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import trio

from hive_core.domain.agent import AgentRow
from hive_core.handlers.deps import Deps
from hive_core.host.sockets import bind_unix
from hive_core.layout import Layout
from hive_core.serve import agent_socket
from hive_core.serve.calls import Shares
from hive_core.serve.doors import Door
from hive_core.serve.identity import Admit


class Identity(Protocol):
    def of(self, row: AgentRow) -> Admit:
        """Give what lets in the processes of an agent and nobody else."""
        ...


class AgentDoors:
    """Opens a socket per agent.  `run` has to have been started.

    *make_dirs* makes what is missing of an agent's directories.
    """

    def __init__(self, layout: Layout, identity: Identity, make_dirs: Callable[[AgentRow], None]) -> None:
        self._layout = layout
        self._identity = identity
        self._make_dirs = make_dirs
        self._doors: dict[str, tuple[Door, trio.Event]] = {}
        self._nursery: trio.Nursery | None = None
        self._deps: Deps | None = None
        self._drain_s = 0.0
        self._stop = trio.Event()

    @property
    def connections(self) -> int:
        return sum(door.connections for door, _ in self._doors.values())

    async def run(
        self,
        deps: Deps,
        stop: trio.Event,
        drain_s: float,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the doors until *stop* is set; then let nobody in and let what is open end."""
        self._deps, self._drain_s, self._stop = deps, drain_s, stop
        self._remove_stale()
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await stop.wait()
            for _, stop_one in self._doors.values():
                stop_one.set()

    async def open(self, row: AgentRow) -> None:
        """Listen for an agent, in place of whatever was there.

        Raises:
            OSError: the socket cannot be made, or everything stops and nobody would close it.
        """
        if self._stop.is_set():
            raise OSError("the daemon is stopping")
        assert self._nursery is not None
        assert self._deps is not None
        name = row.name
        await self.close(name)
        self._make_dirs(row)
        path = self._layout.agent(name).socket
        listener = bind_unix(path, mode=0o600, uid=row.uid_base, gid=row.uid_base)
        stop = trio.Event()
        serve = partial(agent_socket.answer, self._deps, name, self._identity.of(row), Shares(), stop)
        door = Door(f"the socket of {name}", listener, serve, agent_socket.TOO_MANY)
        self._doors[name] = door, stop
        await self._nursery.start(door.run, stop, self._drain_s)

    async def close(self, name: str) -> None:
        """Stop listening for *name* and cut its connections."""
        door_and_stop = self._doors.pop(name, None)
        if door_and_stop is not None:
            door, stop = door_and_stop
            stop.set()
            door.close()
            path = self._layout.agent(name).socket
            path.unlink(missing_ok=True)
            with suppress(OSError):  # a local harness keeps its lock there
                path.parent.rmdir()

    def _remove_stale(self) -> None:
        for pattern in ("agents/*/*mcp.sock*", "manager/*mcp.sock*"):
            for path in self._layout.run.glob(pattern):
                path.unlink(missing_ok=True)

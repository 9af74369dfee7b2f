"""The doors of agents: a socket for each, opened and closed as agents come and go."""

import os
from functools import partial
from pathlib import Path

import trio

from hive_core.handlers.deps import Deps
from hive_core.host.sockets import bind_unix
from hive_core.layout import Layout
from hive_core.serve import agent_socket
from hive_core.serve.calls import Shares
from hive_core.serve.doors import Door


class AgentDoors:
    """Opens a socket per agent.  `run` has to have been started."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
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

    async def open(self, name: str) -> None:
        """Listen for agent *name*, in place of whatever was there.

        Raises:
            OSError: the socket cannot be made, or everything stops and nobody would close it.
        """
        if self._stop.is_set():
            raise OSError("the daemon is stopping")
        assert self._nursery is not None
        assert self._deps is not None
        await self.close(name)
        dirs = self._layout.agent(name)
        dirs.make()
        listener = bind_unix(dirs.socket, mode=0o600)
        stop = trio.Event()
        serve = partial(agent_socket.answer, self._deps, name, os.geteuid(), Shares(), stop)
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
            self._layout.agent(name).socket.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        for path in Path(self._layout.run / "agents").glob("*/*mcp.sock*"):
            path.unlink(missing_ok=True)

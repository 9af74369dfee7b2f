"""Keeps the machines as they are wanted.

The wish is a row.  One task per agent brings the world to it: it asks domain.machine what to do, does
that, and looks again.  Nothing here stops a machine because the daemon ends.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import trio

from hive_core.config import Config
from hive_core.domain.machine import NO_EXITS, Action, Exits, Wanted, has_failed, plan
from hive_core.store import agents
from hive_core.store.agents import AgentRow
from hive_core.store.database import Store
from hive_core.store.mailbox import MailboxOp
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import why_no_agent_name

RECONCILE_S: Final = 10.0
"""How often the log is trimmed and the world is looked at again, when nothing happens."""

log = logging.getLogger(__name__)


class Machine(Protocol):
    """Something that runs an agent's harness."""

    @property
    def pid(self) -> int: ...
    async def wait(self) -> str: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Machines(Protocol):
    """What can start and find machines."""

    @property
    def isolation(self) -> str: ...
    def is_running(self, agent: str) -> bool: ...
    def find(self, agent: str) -> Machine | None: ...
    def start(self, agent: str) -> Machine: ...
    def trim_log(self, agent: str) -> None: ...


@dataclass
class Agent:
    """One agent: its row, and what is seen of its machine."""

    row: AgentRow
    machine: Machine | None = None
    has_door: bool = False
    exits: Exits = NO_EXITS
    restart: bool = False
    graceful: bool = False
    stopping: bool = False
    quiescing: trio.CancelScope | None = None
    woken: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class Hooks:
    """What else happens to an agent, done by parts that the supervisor does not know."""

    enlist: Callable[[str, bool], Awaitable[None]]
    """Give it a mailbox: name, paused."""
    open_door: Callable[[str], Awaitable[None]]
    """Give it a socket."""
    vanish: Callable[[str], Awaitable[None]]
    """Take them away."""
    purge: Callable[[str], Awaitable[bool]]
    """Delete its state; say whether that went well."""
    quiesce: Callable[[str], Awaitable[None]]
    """Let its running turn end and begin no other; returns when that is so, or it cannot be asked."""
    pause: Callable[[str, bool], None]
    changed: Callable[[str], None]


class Supervisor:
    """The agents that are not destroyed, and those that are being destroyed.

    *config* is asked each time it matters, so a reload takes effect.
    """

    def __init__(
        self,
        store: Store[MailboxOp],
        machines: Machines,
        hooks: Hooks,
        config: Callable[[], Config],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._machines = machines
        self._hooks = hooks
        self._config = config
        self._wall_clock = wall_clock
        self._agents: dict[str, Agent] = {}
        self._nursery: trio.Nursery | None = None
        # One wish after the other, so that what is in memory is what was written last.
        self._wishing = trio.Lock()

    @property
    def isolation(self) -> str:
        return self._machines.isolation

    @property
    def names(self) -> list[str]:
        """The agents there are, those that are being destroyed included until they are gone."""
        return sorted(self._agents)

    def agent(self, name: str) -> Agent:
        """Give the agent *name*, to look at.

        Raises:
            Refused: NOT_FOUND.
        """
        try:
            return self._agents[name]
        except KeyError:
            text = f"cannot find agent {name!r}: it is not managed by this hive"
            raise Refused(ErrorCode.NOT_FOUND, text) from None

    def _movable(self, name: str) -> Agent:
        """Give the agent *name*, to be changed.

        Raises:
            Refused: NOT_FOUND; CONFLICT, when it is being destroyed.
        """
        agent = self.agent(name)
        if _is_going(agent.row.wanted):
            raise Refused(ErrorCode.CONFLICT, f"cannot change {name}: it is being destroyed", "going")
        return agent

    def has_failed(self, agent: Agent) -> bool:
        return agent.machine is None and has_failed(agent.exits, self._config().machines)

    # ── wishes ──────────────────────────────────────────────────────────────────────────────────

    async def spawn(self, name: str) -> None:
        """Create *name*, or take up the kept state of a destroyed one, and want it to run.

        Raises:
            Refused: INVALID_ARGUMENT for the name, CONFLICT if it exists or is being destroyed.
        """
        why = why_no_agent_name(name)
        if why is not None:
            raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot spawn: {why}")
        async with self._wishing:
            if name in self._agents:
                state = "is being destroyed" if _is_going(self._agents[name].row.wanted) else "exists already"
                raise Refused(ErrorCode.CONFLICT, f"cannot spawn {name}: it {state}", "exists")
            now = self._wall_clock()
            await self._store.write(agents.create, name, now)
            await self._hooks.enlist(name, False)
            try:
                await self._take_up(AgentRow(name, Wanted.RUNNING, False, now, None, None, None))
            except OSError as error:
                del self._agents[name]
                await self._hooks.vanish(name)
                await self._store.write(agents.want, name, Wanted.GONE, now)
                raise Refused(ErrorCode.UNAVAILABLE, f"cannot spawn {name}: {error}") from None
            log.info("Agent spawned agent=%s", name)

    async def start(self, name: str) -> None:
        """Want *name* to run; one that has failed is tried again."""
        agent = self._movable(name)
        agent.exits = NO_EXITS
        await self._want(agent, Wanted.RUNNING)

    async def stop(self, name: str, *, graceful: bool) -> None:
        """Want *name* stopped; *graceful* lets its running turn end first."""
        agent = self._movable(name)
        agent.graceful = graceful
        agent.exits = NO_EXITS
        if agent.quiescing is not None and not graceful:
            agent.quiescing.cancel()
        await self._want(agent, Wanted.STOPPED)

    async def restart(self, name: str) -> None:
        """Want *name* to run, after one stop if it runs."""
        agent = self._movable(name)
        agent.exits = NO_EXITS
        agent.restart = agent.machine is not None
        await self._want(agent, Wanted.RUNNING)

    async def destroy(self, name: str, *, purge: bool) -> None:
        """Want *name* gone, and with *purge* its state too."""
        await self._want(self._movable(name), Wanted.PURGED if purge else Wanted.GONE)
        log.info("Agent is being destroyed agent=%s purge=%s", name, purge)

    async def set_paused(self, name: str, paused: bool) -> None:
        """Let *name* get no messages, or let it get them again."""
        async with self._wishing:
            agent = self._movable(name)
            await self._store.write(agents.set_paused, name, paused)
            agent.row = replace(agent.row, paused=paused)
            self._hooks.pause(name, paused)
        self._hooks.changed(name)

    async def set_status(self, name: str, text: str) -> None:
        """Show *text* on the row of *name*; an empty one removes it."""
        agent = self._movable(name)
        now = self._wall_clock() if text else None
        await self._store.write(agents.set_status, name, text or None, now)
        agent.row = replace(agent.row, status_text=text or None, status_set_at=now)
        self._hooks.changed(name)

    async def _want(self, agent: Agent, wanted: Wanted) -> None:
        async with self._wishing:
            self._movable(agent.row.name)  # another wish may have been to destroy it
            await self._store.write(agents.want, agent.row.name, wanted, self._wall_clock())
            agent.row = replace(agent.row, wanted=wanted)
        agent.woken.set()
        self._hooks.changed(agent.row.name)

    # ── the world ───────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up every agent that has a row, and keep the machines as they are wanted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            rows = [row for row in await self._store.read(agents.all_agents) if self._is_left(row)]
            # All the mailboxes before the first socket: who connects may write to any of them at once.
            # Together, so that their reads share the writer's batches.
            async with trio.open_nursery() as enlisting:
                for row in rows:
                    enlisting.start_soon(self._hooks.enlist, row.name, row.paused)
            for row in rows:
                try:
                    await self._take_up(row)
                except OSError as error:
                    # The other agents are not to suffer; a start tries again.
                    log.error("Agent has no socket agent=%s: %s", row.name, error)
                    nursery.start_soon(self._keep, self._agents[row.name])
            task_status.started()
            await trio.sleep_forever()

    async def stop_all_machines(self) -> None:
        """End every machine without changing a wish: they run again with the next daemon."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            for agent in self._agents.values():
                machine = agent.machine or self._machines.find(agent.row.name)
                if machine is not None:
                    nursery.start_soon(self._end, machine)

    def _is_left(self, row: AgentRow) -> bool:
        """Whether there is anything of an agent.  Of one that was destroyed half it may be a harness."""
        return row.destroyed_at is None or row.wanted is Wanted.PURGED or self._machines.is_running(row.name)

    async def _take_up(self, row: AgentRow) -> None:
        # Known before its socket is: a harness that is adopted connects as soon as there is one.
        agent = self._agents[row.name] = Agent(row, self._machines.find(row.name))
        await self._hooks.open_door(row.name)
        agent.has_door = True
        if agent.machine is not None:
            log.info("Agent adopted agent=%s pid=%d", row.name, agent.machine.pid)
        assert self._nursery is not None
        self._nursery.start_soon(self._keep, agent)
        self._hooks.changed(row.name)

    async def _keep(self, agent: Agent) -> None:
        """Bring one agent to what is wanted of it, until it is gone."""
        name = agent.row.name
        async with trio.open_nursery() as nursery:
            if agent.machine is not None:
                nursery.start_soon(self._watch, agent, agent.machine)
            while True:
                agent.woken = trio.Event()
                if agent.machine is None:
                    self._adopt(agent, nursery)
                next_step = plan(
                    agent.row.wanted,
                    alive=agent.machine is not None,
                    restart=agent.restart,
                    exits=agent.exits,
                    now=trio.current_time(),
                    config=self._config().machines,
                )
                match next_step.action:
                    case Action.START:
                        await self._start(agent, nursery)
                    case Action.STOP:
                        await self._stop(agent)
                    case Action.REMOVE:
                        await self._remove(agent)
                        nursery.cancel_scope.cancel()
                        return
                    case Action.WAIT:
                        self._hooks.changed(name)
                        with trio.move_on_after(min(next_step.after_s or RECONCILE_S, RECONCILE_S)):
                            await agent.woken.wait()
                        self._machines.trim_log(name)

    def _adopt(self, agent: Agent, nursery: trio.Nursery) -> None:
        """Look for a harness that a killed daemon started and that has taken its lock only now."""
        machine = self._machines.find(agent.row.name)
        if machine is not None:
            log.info("Agent adopted agent=%s pid=%d", agent.row.name, machine.pid)
            agent.machine = machine
            nursery.start_soon(self._watch, agent, machine)

    async def _start(self, agent: Agent, nursery: trio.Nursery) -> None:
        name = agent.row.name
        agent.restart = False
        try:
            if not agent.has_door:
                await self._hooks.open_door(name)
                agent.has_door = True
            machine = self._machines.start(name)
        except OSError as error:
            log.error("Machine cannot be started agent=%s: %s", name, error)
            self._note_exit(agent, f"cannot be started: {error}")
            return
        log.info("Machine started agent=%s pid=%d", name, machine.pid)
        agent.machine = machine
        nursery.start_soon(self._watch, agent, machine)

    async def _watch(self, agent: Agent, machine: Machine) -> None:
        story = await machine.wait()
        expected = agent.stopping
        agent.machine = None
        if expected:
            log.info("Machine stopped agent=%s", agent.row.name)
        elif agent.row.wanted is Wanted.RUNNING:
            log.warning("Machine ended by itself agent=%s: %s", agent.row.name, story)
            self._note_exit(agent, story)
        agent.woken.set()
        self._hooks.changed(agent.row.name)

    def _note_exit(self, agent: Agent, story: str) -> None:
        config = self._config().machines
        agent.exits = agent.exits.and_one(trio.current_time(), story, config.restart_window_s)
        if has_failed(agent.exits, config):
            log.error(
                "Machine failed agent=%s: %d exits, the last: %s",
                agent.row.name,
                len(agent.exits.times),
                story,
            )

    async def _stop(self, agent: Agent) -> None:
        machine = agent.machine
        if machine is None:
            return
        agent.stopping = True
        try:
            if agent.graceful and agent.row.wanted is Wanted.STOPPED:
                with trio.move_on_after(self._config().machines.quiesce_s) as agent.quiescing:
                    await self._hooks.quiesce(agent.row.name)
            agent.graceful = False
            machine.terminate()
            with trio.move_on_after(self._config().machines.stop_grace_s):
                await self._wait_gone(agent)
            while agent.machine is machine:
                log.warning("Machine does not stop, killing it agent=%s pid=%d", agent.row.name, machine.pid)
                machine.kill()
                with trio.move_on_after(5):
                    await self._wait_gone(agent)
        finally:
            agent.stopping, agent.quiescing = False, None

    async def _wait_gone(self, agent: Agent) -> None:
        while agent.machine is not None:
            agent.woken = trio.Event()
            await agent.woken.wait()

    async def _remove(self, agent: Agent) -> None:
        # Nobody else touches it meanwhile: until it is gone it can neither be moved nor spawned again.
        name = agent.row.name
        await self._hooks.vanish(name)
        if agent.row.wanted is Wanted.PURGED and await self._hooks.purge(name):
            try:
                await self._store.write(agents.forget, name)
            except Refused as error:
                log.error("Agent not forgotten, the next start tries again agent=%s: %s", name, error.text)
        del self._agents[name]
        log.info("Agent destroyed agent=%s", name)
        self._hooks.changed(name)

    async def _end(self, machine: Machine) -> None:
        machine.terminate()
        with trio.move_on_after(self._config().machines.stop_grace_s) as grace:
            await machine.wait()
        if grace.cancelled_caught:
            machine.kill()
            with trio.move_on_after(5):
                await machine.wait()


def _is_going(wanted: Wanted) -> bool:
    return wanted in {Wanted.GONE, Wanted.PURGED}

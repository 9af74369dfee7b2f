"""Brings one agent to what is wanted of it, and keeps it there.

It asks domain.machine what to do, does that, and looks again.  Nothing here changes a wish.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from hive_core.config import Config
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import CannotStart
from hive_core.domain.declared import effective
from hive_core.domain.helper_event import (
    Condition,
    ContainerCrash,
    Destroyed,
    HelperEvent,
    Killed,
    Rebuilt,
    Spawned,
)
from hive_core.domain.machine import (
    GOING,
    NO_EXITS,
    Action,
    Exits,
    Fresh,
    Transient,
    Wanted,
    has_failed,
    plan,
    transient,
)
from hive_core.machines import TROUBLE, Machine, Machines, describe

RECONCILE_S: Final = 10.0
"""How often the log is trimmed and the world is looked at again, when nothing happens."""

LOOK_AGAIN_S: Final = 1.0
"""When nobody could say whether there is a machine."""

KILL_AGAIN_S: Final = 5.0

SETTLE_S: Final = 10.0
"""How long a machine that was started for a deploy is watched, if its harness does not connect sooner."""

log = logging.getLogger(__name__)


@dataclass
class Activation:
    """A new declaration of an agent, for which somebody waits."""

    before: Declared
    """What its machine ran with."""
    is_new: bool
    """That was something else."""
    say: Callable[[str], None]
    of_host: bool = False
    """It is the host's configuration that says something else."""
    restarts: bool = False
    settling: bool = False
    """Its machine was started for it, and is being watched."""
    story: str | None = None
    """Why it did not come to be."""
    over: trio.Event = field(default_factory=trio.Event)

    def end(self, story: str | None = None) -> None:
        self.story = story
        self.over.set()


@dataclass
class Agent:
    """One agent: its row, and what is seen of its machine."""

    row: AgentRow
    machine: Machine | None = None
    needs_update: bool = False
    exits: Exits = NO_EXITS
    fresh: Fresh | None = None
    """It is to be stopped once and started again."""
    graceful: bool = False
    activation: Activation | None = None
    activating: trio.Lock = field(default_factory=trio.Lock)
    """One activation after the other."""
    runs_still: Declared | None = None
    """What its machine was left with, when it could not be brought to what its row says."""
    kick: bool = False
    """Whether it is told that it was started."""
    report: type[Spawned | Rebuilt] | None = None
    """What the manager is told when the next start went well or did not."""
    after: trio.Event | None = None
    """Its first start waits for that, for as long as a start may take."""
    tried: trio.Event = field(default_factory=trio.Event)
    """Its first start has gone well, or has not."""
    has_door: bool = False
    stopping: bool = False
    quiescing: trio.CancelScope | None = None
    starting: trio.CancelScope | None = None
    woken: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    _transient: Transient | None = None

    @property
    def transient(self) -> Transient | None:
        """What is being done to it."""
        return Transient.DESTROYING if self.row.wanted in GOING else self._transient

    @contextmanager
    def during(self, doing: Transient | None) -> Iterator[None]:
        """Show *doing* inside the block, however that is left."""
        before, self._transient = self._transient, doing
        try:
            yield
        finally:
            self._transient = before


@dataclass(frozen=True)
class Hooks:
    """What else happens to an agent, done by parts that the supervisor does not know."""

    enlist: Callable[[str, bool], Awaitable[None]]
    """Give it a mailbox: name, paused."""
    open_door: Callable[[AgentRow], Awaitable[None]]
    """Give it its directories and a socket."""
    vanish: Callable[[str], Awaitable[None]]
    """Take them away."""
    purge: Callable[[str], Awaitable[bool]]
    """Delete its state; say whether that went well."""
    lay_out: Callable[[AgentRow], Awaitable[None]]
    """Let what was deployed of it be there, for a start; raises CannotStart."""
    quiesce: Callable[[str], Awaitable[None]]
    """Let its running turn end and begin no other; returns when that is so, or it cannot be asked."""
    pause: Callable[[str, bool], None]
    hold: Callable[[str, bool], None]
    """Hand it no message while its machine comes up: the cage is whole only when it is up."""
    pin: Callable[[str, Collection[str] | None], None]
    """Let it write to these only, as the host's configuration says; None: that says nothing."""
    changed: Callable[[str], None]
    kick: Callable[[str], None]
    """Tell it that it was started again."""
    say: Callable[[str, str], None]
    """Leave it a message from `system`."""
    connected: Callable[[str], Awaitable[None]]
    """Returns when its harness is connected."""
    tell: Callable[[HelperEvent], None]
    notice: Callable[[str, Condition], None]
    """What is seen of it now."""


class Keeper:
    """Keeps one agent.

    *starts* limits how many machines start at once.  *forget_row* deletes the row of a purged agent;
    *gone* is called when nothing of the agent is left.
    """

    def __init__(
        self,
        agent: Agent,
        machines: Machines,
        hooks: Hooks,
        config: Callable[[], Config],
        starts: trio.CapacityLimiter,
        forget_row: Callable[[str], Awaitable[None]],
        gone: Callable[[str], None],
    ) -> None:
        self._agent = agent
        self._name = agent.row.name
        self._machines = machines
        self._hooks = hooks
        self._config = config
        self._starts = starts
        self._forget_row = forget_row
        self._gone = gone

    async def run(self) -> None:
        """Keep it until it is gone."""
        agent = self._agent
        async with trio.open_nursery() as nursery:
            if agent.machine is not None:
                self._attach(agent.machine, nursery)
            while True:
                agent.woken = trio.Event()
                if agent.machine is None and not await self._look(nursery):
                    with trio.move_on_after(LOOK_AGAIN_S):
                        await agent.woken.wait()
                    continue
                await self._see_to_activation(nursery)
                step = plan(
                    agent.row.wanted,
                    alive=agent.machine is not None,
                    restart=agent.fresh is not None,
                    exits=agent.exits,
                    now=trio.current_time(),
                    config=self._config().machines,
                )
                with agent.during(transient(agent.row.wanted, step.action, agent.fresh)):
                    match step.action:
                        case Action.START:
                            await self._start(nursery)
                        case Action.STOP:
                            await self._stop()
                            # In one go, so that nobody sees a machine that is neither.
                            if agent.row.wanted is Wanted.RUNNING and agent.fresh is not None:
                                await self._start(nursery)
                        case Action.REMOVE:
                            await self._remove()
                            nursery.cancel_scope.cancel()
                            return
                if step.action is Action.WAIT:
                    if agent.activation is None:  # which sees to the difference
                        self._compare()
                    self._hooks.changed(self._name)
                    with trio.move_on_after(min(step.after_s or RECONCILE_S, RECONCILE_S)):
                        await agent.woken.wait()
                    await self._tidy()

    # ── activating ──────────────────────────────────────────────────────────────────────────────

    async def _see_to_activation(self, nursery: trio.Nursery) -> None:
        """Bring a running machine to what was declared while it runs, or have it started anew for it."""
        agent, activation = self._agent, self._agent.activation
        if activation is None or activation.over.is_set():
            return
        if agent.row.wanted in GOING:
            activation.end(f"{self._name} was destroyed meanwhile")
        elif agent.row.wanted is not Wanted.RUNNING:
            activation.end()
        elif agent.machine is not None and agent.fresh is None and not activation.settling:
            row, is_done = agent.row, None
            try:
                with trio.CancelScope() as agent.starting:  # a wish to stop it cuts this short
                    is_done = await self._machines.switch(row)
            except CannotStart as error:
                # Before what runs is stopped for it.
                agent.runs_still = activation.before
                activation.end(str(error))
                return
            except TROUBLE as error:
                agent.runs_still = activation.before
                activation.end(f"cannot change the machine of {self._name}: {describe(error)}")
                return
            finally:
                agent.starting = None
            if is_done is None:
                return
            if not is_done:
                activation.say("The machine has to be started anew: its running turn may end first")
                activation.restarts, agent.fresh = True, Fresh.REBUILD
            elif effective(agent.row) == effective(row) and agent.machine is not None:
                self._announce(activation)
                if activation.is_new:
                    activation.end()
                else:
                    # It was started so before anybody waited: whether it lives, nobody has seen.
                    activation.settling = True
                    nursery.start_soon(self._settle, activation, agent.ended)

    def _waiting_for(self, row: AgentRow) -> Activation | None:
        """Give the activation that waits for a machine started as *row*, if one does."""
        activation = self._agent.activation
        if activation is None or activation.over.is_set() or activation.settling:
            return None
        return activation if effective(row) == effective(self._agent.row) else None

    def _announce(self, activation: Activation) -> None:
        """Tell the agent what it runs with, if that is news."""
        # What the host's configuration changes while it runs, it need not be woken for.
        if not activation.restarts and (activation.of_host or not activation.is_new):
            return
        tag = self._agent.row.deployed_tag
        what = "Your former configuration" if tag is None else f"Your configuration {tag}"
        if activation.of_host:
            what = "What the host's configuration says of you"
        how = (
            "you were started again for it. Look at your notes, your session is intact."
            if activation.restarts
            else "nothing had to be started again for it."
        )
        self._hooks.say(self._name, f"{what} runs now: {how}")

    async def _settle(self, activation: Activation, ended: trio.Event) -> None:
        """Wait for a sign of life from what was started for *activation*, or for its end."""
        agent = self._agent

        async def first(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            either.cancel_scope.cancel()

        with trio.move_on_after(SETTLE_S) as patience:
            async with trio.open_nursery() as either:
                either.start_soon(first, ended.wait)
                either.start_soon(first, lambda: self._hooks.connected(self._name))
        if patience.cancelled_caught:
            activation.say("The machine is up; its harness has not connected yet")
        if not ended.is_set():
            activation.end()
        elif agent.exits.times:
            activation.end(f"it ended again at once: {agent.exits.last}")
        else:  # somebody wanted it to end, and what he wanted decides
            activation.settling = False
            agent.woken.set()

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    async def _look(self, nursery: trio.Nursery) -> bool:
        """Adopt a machine that a killed daemon started, if there is one; say whether that is known.

        Who starts another one without knowing has two of them.
        """
        try:
            machine = await self._machines.find(self._name)
        except TROUBLE as error:
            log.error("Machine cannot be looked for agent=%s: %s", self._name, describe(error))
            return False
        if machine is not None:
            log.info("Agent adopted agent=%s pid=%d", self._name, machine.pid)
            self._attach(machine, nursery)
        return True

    def _attach(self, machine: Machine, nursery: trio.Nursery) -> None:
        self._agent.machine = machine
        self._agent.ended = trio.Event()
        nursery.start_soon(self._watch, machine)

    async def _watch(self, machine: Machine) -> None:
        agent, name = self._agent, self._name
        try:
            story = await machine.wait()
        except TROUBLE as error:
            # It may live on: the next look says so, and waits for it again.
            log.error("Machine cannot be watched agent=%s: %s", name, describe(error))
            await trio.sleep(LOOK_AGAIN_S)
            story = None
        expected = agent.stopping
        agent.machine = None
        agent.needs_update = False
        if expected:
            log.info("Machine stopped agent=%s", name)
        elif story is not None and agent.row.wanted is Wanted.RUNNING:
            log.warning("Machine ended by itself agent=%s: %s", name, story)
            stays_down = self._note_exit(story)
            note = f"{story}; it stays down until it is started" if stays_down else story
            self._hooks.tell(ContainerCrash(agent=name, note=note))
        agent.ended.set()
        agent.woken.set()
        self._hooks.changed(name)

    def _compare(self) -> None:
        """See whether what runs is what is declared now."""
        agent = self._agent
        applied = self._machines.applied(self._name) if agent.machine is not None else None
        declared = self._machines.declared(agent.row) if applied is not None else None
        is_refused = agent.row.refused_declaration is not None
        agent.needs_update = declared is not None and (is_refused or applied != declared)
        if declared is not None:
            self._hooks.notice(self._name, Condition(needs_update=agent.needs_update))

    async def _tidy(self) -> None:
        agent = self._agent
        try:
            await self._machines.tidy(self._name)
        except TROUBLE as error:
            log.warning("Agent cannot be tidied agent=%s: %s", self._name, describe(error))
        if agent.machine is not None and not agent.has_door:
            try:
                await self._open_door()
            except OSError as error:
                log.error("Agent has no socket agent=%s: %s", self._name, error)

    async def _open_door(self) -> None:
        await self._hooks.open_door(self._agent.row)
        self._agent.has_door = True

    # ── doing ───────────────────────────────────────────────────────────────────────────────────

    async def _start(self, nursery: trio.Nursery) -> None:
        agent, name, row = self._agent, self._name, self._agent.row
        config = self._config().machines
        machine: Machine | None = None
        agent.fresh = None
        self._hooks.changed(name)
        try:
            with trio.CancelScope() as agent.starting:  # a wish to stop it cuts the start short
                if agent.after is not None:
                    with trio.move_on_after(config.start_timeout_s):
                        await agent.after.wait()
                    agent.after = None
                self._starts.total_tokens = config.start_parallel
                async with self._starts:
                    if not agent.has_door:
                        await self._open_door()
                    row = agent.row
                    await self._hooks.lay_out(row)
                    self._hooks.hold(name, True)
                    machine = await self._machines.start(row)
        except (CannotStart, *TROUBLE) as error:
            story = str(error) if isinstance(error, CannotStart) else f"cannot be started: {describe(error)}"
            why = describe(error).removeprefix(f"cannot start {name}: ")
            log.error("Machine cannot be started agent=%s: %s", name, why)
            self._has_not_started(story, row)
            return
        finally:
            self._hooks.hold(name, False)
            agent.starting = None
            agent.tried.set()
        if machine is None:
            return
        log.info("Machine started agent=%s pid=%d", name, machine.pid)
        self._attach(machine, nursery)
        activation = self._waiting_for(row)
        if activation is not None:
            # What another one left stopped, it starts again.
            activation.restarts, agent.kick = activation.restarts or activation.is_new or agent.kick, False
            self._announce(activation)
            activation.settling = True
            nursery.start_soon(self._settle, activation, agent.ended)
        if agent.kick:
            agent.kick = False
            self._hooks.kick(name)
        if agent.report is not None:
            report, agent.report = agent.report, None
            self._hooks.tell(report(agent=name, ok=True))
        if effective(agent.row).shape != effective(row).shape:  # somebody changed them meanwhile
            await self._update_limits()

    async def _update_limits(self) -> None:
        try:
            await self._machines.update_limits(self._agent.row)
        except (CannotStart, *TROUBLE) as error:
            log.error("Machine cannot be limited agent=%s: %s", self._name, describe(error))

    def _has_not_started(self, story: str, row: AgentRow) -> None:
        agent = self._agent
        stays_down = self._note_exit(story)
        activation = self._waiting_for(row)
        if activation is not None:
            activation.end(story)
        if agent.report is not None:
            report, agent.report = agent.report, None
            self._hooks.tell(report(agent=self._name, ok=False, note=story))
        elif stays_down:
            self._hooks.tell(ContainerCrash(agent=self._name, note=story))

    def _note_exit(self, story: str) -> bool:
        """Count an end that nobody wanted, and say whether it was one too many."""
        agent, config = self._agent, self._config().machines
        agent.exits = agent.exits.and_one(trio.current_time(), story, config.restart_window_s)
        if not has_failed(agent.exits, config):
            return False
        times = len(agent.exits.times)
        log.error("Machine failed agent=%s: %d exits, the last: %s", self._name, times, story)
        return True

    async def _stop(self) -> None:
        agent, name = self._agent, self._name
        machine = agent.machine
        if machine is None:
            return
        agent.stopping = True
        self._hooks.changed(name)
        try:
            is_announced = agent.activation is not None and agent.activation.restarts
            is_polite = is_announced if agent.row.wanted is Wanted.RUNNING else agent.graceful
            if is_polite and agent.row.wanted not in GOING:
                with trio.move_on_after(self._config().machines.quiesce_s) as agent.quiescing:
                    await self._hooks.quiesce(name)
            agent.graceful = False
            await self._ask_to_end(machine)
            with trio.move_on_after(self._config().machines.stop_grace_s):
                await agent.ended.wait()
            while agent.machine is machine:
                log.warning("Machine does not stop, killing it agent=%s pid=%d", name, machine.pid)
                await self._end_hard(machine)
                with trio.move_on_after(KILL_AGAIN_S):
                    await agent.ended.wait()
        finally:
            agent.stopping, agent.quiescing = False, None
        if agent.row.wanted is Wanted.STOPPED:
            self._hooks.tell(Killed(agent=name))

    async def _ask_to_end(self, machine: Machine) -> None:
        try:
            await machine.terminate()
        except TROUBLE as error:
            log.warning("Machine cannot be asked to end agent=%s: %s", self._name, describe(error))

    async def _end_hard(self, machine: Machine) -> None:
        try:
            await machine.kill()
        except TROUBLE as error:
            log.error("Machine cannot be killed agent=%s: %s", self._name, describe(error))

    async def _remove(self) -> None:
        # Nobody else touches it meanwhile: until it is gone it can neither be moved nor spawned again.
        name, purge = self._name, self._agent.row.wanted is Wanted.PURGED
        try:
            await self._machines.forget(name)
        except TROUBLE as error:
            log.error("Files of the machine cannot be removed agent=%s: %s", name, describe(error))
            if purge:
                # With its row its uids become free for others; something of it may still run with them.
                log.error("State of %s is not deleted, the next start of the daemon tries again", name)
            purge = False
        await self._hooks.vanish(name)
        purged = purge and await self._hooks.purge(name)
        if purged:
            await self._forget_row(name)
        self._gone(name)
        log.info("Agent destroyed agent=%s purged=%s", name, purged)
        self._hooks.tell(Destroyed(agent=name, purged=purged))
        self._hooks.changed(name)

"""The roster, and the operator's wishes.

A wish is a row, written before it is answered.  A Keeper per agent brings the world to it.  Nothing here
stops a machine because the daemon ends.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import apsw
import trio

from hive_core.config import Config, DeclaredAgent
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import CannotStart, Shape
from hive_core.domain.declared import effective
from hive_core.domain.helper_event import AS_SPAWNED, Rebuilt, Spawned
from hive_core.domain.machine import GOING, NO_EXITS, Fresh, Wanted, has_failed
from hive_core.domain.machine_names import MAX_MACHINE_NAME
from hive_core.domain.manifest import Manifest, shape_over
from hive_core.domain.uid_range import NoRangeLeft
from hive_core.keeper import Activation, Agent, Hooks, Keeper
from hive_core.machines import TROUBLE, ActivationFailed, Machine, Machines, describe
from hive_core.store import agents
from hive_core.store.database import Store
from hive_core.store.mailbox import MailboxOp
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import MANAGER, why_no_agent_name

LOOKS_AT_ONCE: Final = 8
"""Looks for machines, when the daemon starts; each may be a process."""

ACTIVATION_SLACK_S: Final = 420.0
"""Above all deadlines of one start: it may be changed from inside first, and other machines be starting."""

AS_DECLARED: Final = Shape()

log = logging.getLogger(__name__)


class Supervisor:
    """The agents that are not destroyed, and those that are being destroyed.

    *config* is asked each time it matters, so a reload takes effect.  *allocate* gives an agent
    the first uid of a range that none of the rows has, or None where machines have no users of their own;
    it raises NoRangeLeft, or OSError when the host's accounts cannot be read.
    """

    def __init__(
        self,
        store: Store[MailboxOp],
        machines: Machines,
        hooks: Hooks,
        config: Callable[[], Config],
        allocate: Callable[[str, Sequence[AgentRow]], int | None] = lambda _name, _rows: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._machines = machines
        self._hooks = hooks
        self._config = config
        self._allocate = allocate
        self._wall_clock = wall_clock
        self._agents: dict[str, Agent] = {}
        self._nursery: trio.Nursery | None = None
        self._starts = trio.CapacityLimiter(config().machines.start_parallel)
        # One wish after the other, so that what is in memory is what was written last.
        self._wishing = trio.Lock()

    @property
    def isolation(self) -> str:
        return self._machines.isolation

    @property
    def names(self) -> list[str]:
        """The agents there are, those that are being destroyed included until they are gone."""
        return sorted(self._agents)

    def rows(self) -> dict[str, AgentRow]:
        """Give the rows of those that are not being destroyed, by name."""
        return {name: one.row for name, one in self._agents.items() if one.row.wanted not in GOING}

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
        if agent.row.wanted in GOING:
            raise Refused(ErrorCode.CONFLICT, f"cannot change {name}: it is being destroyed", "going")
        return agent

    def wake(self, name: str) -> None:
        """Have *name* looked at at once: something about its machine is different."""
        if name in self._agents:
            self._agents[name].woken.set()

    def has_failed(self, agent: Agent) -> bool:
        return agent.machine is None and has_failed(agent.exits, self._config().machines)

    # ── wishes ──────────────────────────────────────────────────────────────────────────────────

    async def spawn(
        self,
        name: str,
        shape: Shape = AS_DECLARED,
        declared: Declared | None = None,
        declaration: DeclaredAgent | None = None,
        wanted: Wanted = Wanted.RUNNING,
    ) -> None:
        """Create *name*, or take up the kept state of a destroyed one, and want it to run, or as *wanted*.

        It is as *declared*.  Without that it has *shape*; where this says nothing, what was deployed of it
        before it was destroyed still holds.  Who declares tells the manager, too.  *declaration* is what the
        host's configuration says of it.

        Raises:
            Refused: INVALID_ARGUMENT for the name, CONFLICT if it exists or is being destroyed,
                UNAVAILABLE if its directories or its uids cannot be had.
        """
        why = self.why_no_name(name)
        if why is not None:
            raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot spawn: {why}")
        async with self._wishing:
            if name in self._agents:
                state = "is being destroyed" if self._agents[name].row.wanted in GOING else "exists already"
                raise Refused(ErrorCode.CONFLICT, f"cannot spawn {name}: it {state}", "exists")
            now = self._wall_clock()
            uid_base = await self.uids_for(name)
            report = Spawned if declared is None else None
            if declared is None:
                declared = await self.as_kept(name, shape)
            await self._store.write(
                agents.create_declared, name, now, uid_base, declared, declaration, wanted
            )
            await self._hooks.enlist(name, False)
            self._hooks.notice(name, AS_SPAWNED)
            row = AgentRow(name, wanted, False, now, uid_base=uid_base, declaration=declaration)
            row = row.declared_as(declared)
            self._pin(row)
            try:
                await self._take_up(Agent(row, report=report))
            except OSError as error:
                del self._agents[name]
                await self._hooks.vanish(name)
                await self._store.write(agents.want, name, Wanted.GONE, now)
                raise Refused(ErrorCode.UNAVAILABLE, f"cannot spawn {name}: {error}") from None
            log.info("Agent spawned agent=%s", name)

    async def as_kept(self, name: str, shape: Shape) -> Declared:
        """Give what a spawn of *name* with *shape* declares: with what was deployed of a destroyed one."""
        rows = await self._store.read(agents.all_agents)
        kept = next((row.declared for row in rows if row.name == name), Declared(AS_DECLARED))
        if shape.image is None and kept.sha is not None:
            # Of what was built of it the manifest says nothing.
            shape = replace(shape, image=kept.shape.image)
        return replace(kept, shape=shape_over(shape, kept.manifest))

    async def start(self, name: str) -> None:
        """Want *name* to run; one that has failed is tried again."""
        agent = self._movable(name)
        _try_again(agent)
        await self._want(agent, Wanted.RUNNING)

    async def stop(self, name: str, *, graceful: bool) -> None:
        """Want *name* stopped; *graceful* lets its running turn end first."""
        agent = self._movable(name)
        agent.graceful = graceful
        agent.exits = NO_EXITS
        agent.kick = False
        if agent.quiescing is not None and not graceful:
            agent.quiescing.cancel()
        await self._want(agent, Wanted.STOPPED)

    async def restart(self, name: str) -> None:
        """Want *name* to run, after one stop if it runs."""
        agent = self._movable(name)
        agent.exits = NO_EXITS
        agent.fresh = Fresh.RESTART if agent.machine is not None else agent.fresh
        agent.kick = True
        await self._want(agent, Wanted.RUNNING)

    async def rebuild(self, name: str) -> None:
        """Want *name* to run with everything as it is declared now, after one stop if it runs."""
        agent = self._movable(name)
        agent.exits = NO_EXITS
        agent.fresh = Fresh.REBUILD
        agent.kick, agent.report = True, Rebuilt
        await self._want(agent, Wanted.RUNNING)

    async def destroy(self, name: str, *, purge: bool) -> None:
        """Want *name* gone, and with *purge* its state too, also of one that was destroyed before.

        Raises:
            Refused: NOT_FOUND; CONFLICT, when it is going already, or is the manager.
        """
        if name == MANAGER:
            verb = "purge" if purge else "destroy"
            text = f"cannot {verb} {name}: a hive keeps its manager; stop it, if it is not to run"
            raise Refused(ErrorCode.CONFLICT, text, "manager")
        if purge and name not in self._agents:
            await self._purge_kept(name)
            return
        await self._want(self._movable(name), Wanted.PURGED if purge else Wanted.GONE)
        log.info("Agent is being destroyed agent=%s purge=%s", name, purge)

    async def _purge_kept(self, name: str) -> None:
        async with self._wishing:
            rows = await self._store.read(agents.all_agents)
            row = next((row for row in rows if row.name == name), None)
            if row is None or name in self._agents:
                self._movable(name)  # there is none, or it was spawned or is being purged since
                raise Refused(ErrorCode.CONFLICT, f"cannot purge {name}: it exists again", "exists")
            await self._store.write(agents.want, name, Wanted.PURGED, self._wall_clock())
            await self._hooks.enlist(name, row.paused)
            agent = self._agents[name] = Agent(replace(row, wanted=Wanted.PURGED))
            assert self._nursery is not None
            self._nursery.start_soon(self._keeper(agent).run)
        log.info("Agent is being destroyed agent=%s purge=True", name)
        self._hooks.changed(name)

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

    async def reshape(self, name: str, change: Callable[[Shape], Shape]) -> None:
        """Let the limits of *name* be what *change* makes of its shape, at once and from now on.

        Raises:
            Refused: NOT_FOUND, CONFLICT; UNAVAILABLE: its machine runs and cannot be limited so.
        """
        async with self._wishing:
            agent = self._movable(name)
            row = replace(agent.row, shape=change(agent.row.shape))
            if agent.machine is not None:
                try:
                    await self._machines.update_limits(row)
                except CannotStart as error:
                    raise Refused(ErrorCode.UNAVAILABLE, str(error)) from None
                except TROUBLE as error:
                    text = f"cannot limit {name}: {describe(error)}"
                    raise Refused(ErrorCode.UNAVAILABLE, text) from None
            await self._store.write(agents.set_shape, name, row.shape)
            agent.row = replace(agent.row, shape=row.shape)
        agent.woken.set()
        self._hooks.changed(name)

    async def refuse_declaration(self, name: str, fingerprint: str | None) -> None:
        """Keep that what the host's configuration says of *name* cannot be had; None: it may be tried again.

        Raises:
            Refused: NOT_FOUND, CONFLICT.
        """
        async with self._wishing:
            agent = self._movable(name)
            await self._store.write(agents.refuse_declaration, name, fingerprint)
            agent.row = replace(agent.row, refused_declaration=fingerprint)
        agent.woken.set()

    async def note_deployed(self, name: str, sha: str | None, tag: str | None, manifest: Manifest) -> None:
        """Keep that this is what *name* runs with; nothing is done about it.

        Raises:
            Refused: NOT_FOUND, CONFLICT.
        """
        async with self._wishing:
            agent = self._movable(name)
            await self._store.write(agents.note_deployed, name, sha, tag, manifest)
            agent.row = replace(agent.row, deployed_sha=sha, deployed_tag=tag, manifest=manifest)
        self._hooks.changed(name)

    async def activate(self, name: str, declared: Declared, *, say: Callable[[str], None]) -> None:
        """Let *name* be as *declared* from now on, and its machine, if it is wanted to run.

        What can be had in a running machine is done in it; for the rest its turn may end, it is started
        anew, and the agent is told.  Returns when it is up so, or is not wanted to run.  The same again
        finds all of it done.  *say* takes lines for a person.

        Raises:
            ActivationFailed: its machine did not come up so, or it was destroyed; the text is the story.
                Except for a destroyed one, the row stays as declared: whoever asked goes back by asking
                for what was before.
        """

        async def keep() -> None:
            await self._store.write(agents.declare, name, declared)

        await self._activate(name, lambda row: row.declared_as(declared), say, keep=keep)

    async def declare(
        self,
        name: str,
        declaration: DeclaredAgent | None,
        *,
        say: Callable[[str], None],
        starts: bool = False,
    ) -> None:
        """The same, for what the host's configuration says of *name*; None: it says nothing any more.

        That is kept when it is so: a daemon that is killed meanwhile leaves it to be done again.  *starts*
        wants it to run from then on.

        Raises:
            ActivationFailed: as activate.
            Refused: UNAVAILABLE: it is so, and cannot be kept.
        """

        now = self._wall_clock()

        def keep(db: apsw.Connection) -> None:
            agents.set_declaration(db, name, declaration)
            if starts:
                agents.want(db, name, Wanted.RUNNING, now)

        await self._activate(name, lambda row: replace(row, declaration=declaration), say, of_host=True)
        async with self._wishing:
            agent = self._movable(name)
            await self._store.write(keep)
            agent.row = replace(agent.row, refused_declaration=None)
            if starts:
                _try_again(agent)
                agent.row = replace(agent.row, wanted=Wanted.RUNNING)
                agent.woken.set()
        self._hooks.changed(name)

    def _pin(self, row: AgentRow) -> None:
        self._hooks.pin(row.name, row.declaration.recipients if row.declaration is not None else None)

    async def _activate(
        self,
        name: str,
        change: Callable[[AgentRow], AgentRow],
        say: Callable[[str], None],
        *,
        keep: Callable[[], Awaitable[None]] | None = None,
        of_host: bool = False,
    ) -> None:
        try:
            agent = self._movable(name)
            async with agent.activating:
                async with self._wishing:
                    if self._movable(name) is not agent:
                        raise ActivationFailed(f"{name} was destroyed meanwhile")
                    if keep is not None:
                        await keep()
                    before, agent.runs_still = agent.runs_still or effective(agent.row), None
                    agent.row = change(agent.row)
                    self._pin(agent.row)
                    agent.exits = NO_EXITS
                    is_new = before != effective(agent.row)
                    agent.activation = activation = Activation(before, is_new, say, of_host)
                await self._bring_about(agent, activation)
        except Refused as error:
            raise ActivationFailed(error.text) from None

    async def _bring_about(self, agent: Agent, activation: Activation) -> None:
        name = agent.row.name
        agent.woken.set()
        self._hooks.changed(name)
        config = self._config().machines
        longest_s = (
            config.quiesce_s + 2 * config.stop_grace_s + 3 * config.start_timeout_s + ACTIVATION_SLACK_S
        )
        try:
            with trio.fail_after(longest_s):
                await activation.over.wait()
        except trio.TooSlowError:
            raise ActivationFailed(f"its machine was not up within {longest_s:g} s") from None
        finally:
            agent.activation = None
        if activation.story is not None:
            raise ActivationFailed(activation.story)

    async def _want(self, agent: Agent, wanted: Wanted) -> None:
        async with self._wishing:
            self._movable(agent.row.name)  # another wish may have been to destroy it
            await self._store.write(agents.want, agent.row.name, wanted, self._wall_clock())
            agent.row = replace(agent.row, wanted=wanted)
        if wanted is not Wanted.RUNNING and agent.starting is not None:
            agent.starting.cancel()
        if wanted in GOING and agent.quiescing is not None:
            agent.quiescing.cancel()
        agent.woken.set()
        self._hooks.changed(agent.row.name)

    def why_no_name(self, name: str) -> str | None:
        """Say why no agent can be called *name*, or None if one can."""
        why = None if name == MANAGER else why_no_agent_name(name)
        return self._why_no_machine_name(name) if why is None and self.isolation != "none" else why

    def _why_no_machine_name(self, name: str) -> str | None:
        longest = MAX_MACHINE_NAME - len(self._config().machines.prefix)
        if len(name) <= longest:
            return None
        return f"{name!r} is too long for the name of a machine: use {longest} characters at most"

    async def uids_for(self, name: str, verb: str = "spawn") -> int | None:
        """Give the first of the uids that the files of *name* belong to, or of free ones; None: of our own.

        Raises:
            Refused: UNAVAILABLE, when all are taken.
        """
        rows = await self._store.read(agents.all_agents)
        known = next((row.uid_base for row in rows if row.name == name), None)
        try:
            # Not looked for when it is known: nobody else gets it, whatever the host's accounts say today.
            return known if known is not None else self._allocate(name, rows)
        except (NoRangeLeft, OSError) as error:
            raise Refused(ErrorCode.UNAVAILABLE, f"cannot {verb} {name}: {error}") from None

    # ── the world ───────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up every agent that has a row, and keep the machines as they are wanted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._make_manager()
            rows = [await self._with_uids(row) for row in await self._store.read(agents.all_agents)]
            found = await self._find_all([row.name for row in rows])
            # Of one that was destroyed half there may be a machine.
            left = [
                Agent(row, found.get(row.name))
                for row in rows
                if row.destroyed_at is None or row.wanted is Wanted.PURGED or row.name in found
            ]
            self._put_manager_first(left)
            # All the mailboxes before the first socket: who connects may write to any of them at once.
            # Together, so that their reads share the writer's batches.
            async with trio.open_nursery() as enlisting:
                for agent in left:
                    enlisting.start_soon(self._hooks.enlist, agent.row.name, agent.row.paused)
            for agent in left:
                self._pin(agent.row)
            for agent in left:
                try:
                    await self._take_up(agent)
                except OSError as error:
                    # The other agents are not to suffer; a start tries again.
                    log.error("Agent has no socket agent=%s: %s", agent.row.name, error)
                    nursery.start_soon(self._keeper(agent).run)
            nursery.start_soon(self._end_leftovers)
            task_status.started()
            await trio.sleep_forever()

    async def stop_all_machines(self) -> None:
        """End every machine without changing a wish: they run again with the next daemon."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            for agent in self._agents.values():
                nursery.start_soon(self._end, agent)

    async def _make_manager(self) -> None:
        """Write the row of the manager, if the hive is to have one and there is none."""
        if not self._config().approvals.manager:
            return
        rows = await self._store.read(agents.all_agents)
        if any(row.name == MANAGER and row.wanted not in GOING for row in rows):
            return
        try:
            uid_base = await self.uids_for(MANAGER)
        except Refused as error:
            log.error("Manager is not created: %s", error.text)
            return
        await self._store.write(agents.create, MANAGER, self._wall_clock(), uid_base, AS_DECLARED)
        log.info("Agent spawned agent=%s", MANAGER)

    async def _with_uids(self, row: AgentRow) -> AgentRow:
        """Give *row* the uids that it lacks, if it was written where machines have none."""
        if row.uid_base is not None or self.isolation == "none":
            return row
        try:
            uid_base = self._allocate(row.name, await self._store.read(agents.all_agents))
        except (NoRangeLeft, OSError) as error:
            log.error("Agent gets no uids agent=%s: %s", row.name, error)
            return row
        if uid_base is not None:
            await self._store.write(agents.set_uid_base, row.name, uid_base)
        return replace(row, uid_base=uid_base)

    async def _find_all(self, names: Sequence[str]) -> dict[str, Machine]:
        """Find the machines that run already.  Where nobody can say, the keeper asks again."""
        found: dict[str, Machine] = {}
        looks = trio.CapacityLimiter(LOOKS_AT_ONCE)

        async def look(name: str) -> None:
            async with looks:
                try:
                    machine = await self._machines.find(name)
                except TROUBLE as error:
                    log.error("Machine cannot be looked for agent=%s: %s", name, describe(error))
                    return
            if machine is not None:
                found[name] = machine

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(look, name)
        return found

    @staticmethod
    def _put_manager_first(left: list[Agent]) -> None:
        """Let the manager be up before the others, if it is to be: it can calm them."""
        left.sort(key=lambda agent: agent.row.name != MANAGER)
        first = left[0] if left else None
        if first is None or first.row.name != MANAGER:
            return
        if first.row.wanted is Wanted.RUNNING and first.machine is None:
            for agent in left[1:]:
                agent.after = first.tried

    async def _take_up(self, agent: Agent) -> None:
        # Known before its socket is: a harness that is adopted connects as soon as there is one.
        name = agent.row.name
        self._agents[name] = agent
        await self._hooks.open_door(agent.row)
        agent.has_door = True
        if agent.machine is not None:
            log.info("Agent adopted agent=%s pid=%d", name, agent.machine.pid)
        assert self._nursery is not None
        self._nursery.start_soon(self._keeper(agent).run)
        self._hooks.changed(name)

    def _keeper(self, agent: Agent) -> Keeper:
        return Keeper(
            agent, self._machines, self._hooks, self._config, self._starts, self._forget_row, self._forget
        )

    async def _forget_row(self, name: str) -> None:
        try:
            await self._store.write(agents.forget, name)
        except Refused as error:
            log.error("Agent not forgotten, the next start tries again agent=%s: %s", name, error.text)

    def _forget(self, name: str) -> None:
        del self._agents[name]

    async def _end_leftovers(self) -> None:
        try:
            await self._machines.leftovers(self._agents)
        except TROUBLE as error:
            log.error("Machines that nobody knows cannot be ended: %s", describe(error))

    async def _end(self, agent: Agent) -> None:
        name = agent.row.name
        try:
            machine = agent.machine or await self._machines.find(name)
            if machine is None:
                return
            await machine.terminate()
            with trio.move_on_after(self._config().machines.stop_grace_s) as grace:
                await machine.wait()
            if grace.cancelled_caught:
                await machine.kill()
                with trio.move_on_after(5):
                    await machine.wait()
        except TROUBLE as error:
            log.error("Machine cannot be ended agent=%s: %s", name, describe(error))


def _try_again(agent: Agent) -> None:
    """Let *agent* be started whatever its starts came to, and be told."""
    agent.exits = NO_EXITS
    agent.kick = agent.kick or (agent.machine is None and agent.report is not Spawned)

"""The machines of a host: each agent in a systemd-nspawn of its own, kept by systemd.

A machine outlives its daemon, and the next daemon finds it by its unit and by the settings that we signed.
What is not signed by us is never touched, whatever it is called.
"""

import logging
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing, suppress
from typing import Final

import trio

from hive_core.config import Config
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import Cage, CannotStart, MachineFacts, Network, Usage
from hive_core.host import cgroup, journal, machine_files, machinectl, netlink, nix_roots, nspawn, usage
from hive_core.host.blueprint import Blueprints
from hive_core.host.images import Images
from hive_core.host.machine_watch import MachineWatch
from hive_core.host.machinectl import unit_of
from hive_core.host.netlink import Link, Links, NoLink
from hive_core.host.nspawn_machine import NspawnMachine, open_process
from hive_core.host.process import CommandError
from hive_core.layout import Layout

CLEAN_UP_S: Final = 20.0
"""For ending what a failed start has left."""
REASON_LINES: Final = 3
MAX_REASON_CHARS: Final = 600

SwitchLive = Callable[[str, str], Awaitable[bool]]

log = logging.getLogger(__name__)


class NspawnMachines:
    """Starts and finds the machines of agents.

    *config* is asked at each start.  Their names hold until the daemon ends.  *appeared* is
    called with an agent whose machine runs and was not started here.  *switch_live* brings a running
    machine, by its name, to another closure from inside, and says whether it could; it raises
    CommandError when nobody can say.
    """

    isolation: Final = "nspawn"

    def __init__(
        self,
        layout: Layout,
        config: Callable[[], Config],
        images: Images,
        appeared: Callable[[str], None] = lambda _agent: None,
        switch_live: SwitchLive | None = None,
    ) -> None:
        self._switch_live = switch_live
        self._layout = layout
        self._config = config
        self._images = images
        self._blueprints = Blueprints(layout, config, images)
        self._tell_appeared = appeared
        self._names = self._blueprints.names
        self._watch = MachineWatch(self._names, self._appeared)
        self._links = Links()
        self._running: dict[str, NspawnMachine] = {}
        self._starting: set[str] = set()
        self._littered = trio.Event()
        self._reloads = 0
        self._reloaded = 0
        self._reloading = trio.Lock()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep looking which machines there are, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_sweeping)
            await self._watch.run(task_status=task_status)

    async def _keep_sweeping(self) -> None:
        """Delete the roots of machines that have ended, which takes a while."""
        while True:
            self._littered = trio.Event()
            try:
                await self._images.sweep()
            except (OSError, CommandError, trio.TooSlowError) as error:
                log.warning("Roots of ended machines cannot be deleted: %s", error)
            await self._littered.wait()

    # ── finding ─────────────────────────────────────────────────────────────────────────────────

    async def find(self, agent: str) -> NspawnMachine | None:
        """Give the running machine of *agent*, whoever started it.

        Raises:
            CommandError: nobody can say now whether there is one.
        """
        if agent in self._running:
            return self._running[agent]
        if await self._watch.active_state(self._blueprints.machine(agent)) in {"inactive", "failed"}:
            return None
        return await self._adopt(agent)

    async def _adopt(self, agent: str) -> NspawnMachine | None:
        """Give the machine of *agent* if its unit has come up, as systemd says now."""
        machine = self._blueprints.machine(agent)
        unit = await machinectl.unit_state(unit_of(machine))
        self._watch.note(machine, unit.active_state)
        # One that is activating is the start of a daemon that was killed: `start` ends it and starts anew.
        if unit.active_state not in {"active", "reloading", "deactivating"}:
            return None
        known = self._running.get(agent)
        if known is not None and known.main_pid == unit.main_pid:
            return known
        digest = machine_files.applied_digest(machine, agent)
        if digest is None:
            return None
        leader = await machinectl.leader(machine, unit) or unit.main_pid
        pidfd = open_process(unit.main_pid, unit_of(machine))
        if known is not None:
            self._forget_running(known)
        found = NspawnMachine(machine, unit, leader, pidfd, digest, self._ended)
        self._running[agent] = found
        return found

    def _ended(self, machine: NspawnMachine) -> None:
        agent = self._names.agent(machine.machine)
        if agent is not None and self._running.get(agent) is machine:
            self._blueprints.put_away(agent)
        self._forget_running(machine)

    def _forget_running(self, machine: NspawnMachine) -> None:
        agent = self._names.agent(machine.machine)
        if agent is not None and self._running.get(agent) is machine:
            del self._running[agent]
            self._watch.note(machine.machine, "inactive")
        machine.close()

    def _appeared(self, machine: str) -> None:
        agent = self._names.agent(machine)
        if agent is not None and agent not in self._starting and agent not in self._running:
            self._tell_appeared(agent)

    def is_member(self, agent: str, pid: int) -> bool:
        """Whether process *pid* belongs to the machine of *agent*."""
        return cgroup.unit_of(pid) == unit_of(self._blueprints.machine(agent))

    # ── starting ────────────────────────────────────────────────────────────────────────────────

    async def start(self, row: AgentRow) -> NspawnMachine:
        """Start a machine as declared, and give it when it is up.  Failed or cancelled, it leaves none.

        Raises:
            CannotStart: the host cannot provide what is declared, or it did not come up.
            OSError, CommandError: systemd cannot be told.
        """
        agent = row.name
        self._starting.add(agent)
        try:
            return await self._start(row)
        except BaseException:
            if agent not in self._running:
                self._blueprints.put_away(agent)
            raise
        finally:
            self._starting.discard(agent)

    async def _start(self, row: AgentRow) -> NspawnMachine:
        agent = row.name
        cage = self._blueprints.cage(row)
        machine = cage.machine
        unit = await machinectl.unit_state(unit_of(machine))
        if not unit.is_down:
            if machine_files.applied_digest(machine, agent) is None:
                raise CannotStart(
                    f"cannot start {agent}: a machine {machine} runs that is not of this hive; stop it, or"
                    " set another machines.prefix"
                )
            adopted = await self._adopt(agent)
            if adopted is not None:
                return adopted
            await self._end(machine)
        changed = await trio.to_thread.run_sync(self._blueprints.build, row)
        self._littered.set()
        if changed or unit.need_daemon_reload or str(nspawn.drop_in_path(machine)) not in unit.drop_ins:
            await self._reload()
        await machinectl.drop_stale(machine)
        await machinectl.reset_failed(machine)
        await machinectl.set_limits(machine, cage.limits)
        try:
            return await self._bring_up(cage)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end_and_log(machine)
            raise

    async def _bring_up(self, cage: Cage) -> NspawnMachine:
        timeout_s, began_at = self._config().machines.start_timeout_s, time.time()
        try:
            await machinectl.start(cage.machine, timeout_s=timeout_s)
        except CommandError as error:
            raise CannotStart(
                f"cannot start {cage.agent}: {await self._why_not_up(cage, began_at, error)}"
            ) from None
        started = await self._adopt(cage.agent)
        if started is None:
            raise CannotStart(f"cannot start {cage.agent}: its machine came up and ended at once")
        if cage.network is Network.VETH:
            try:
                await self._connect(cage.agent, cage.uid_base, started)
            except (NoLink, CommandError) as error:
                raise CannotStart(f"cannot start {cage.agent}: {error}") from None
        return started

    async def _connect(self, agent: str, uid_base: int, machine: NspawnMachine) -> None:
        known = await machinectl.registered(machine.machine)
        if known is None or len(known.interfaces) != 1:
            raise NoLink("machined does not know its network link")
        subnet, pair = self._blueprints.addresses(agent, uid_base)
        link = Link(known.leader, machine.control_group, known.interfaces[0], pair)
        machine.interface = await self._links.connect(link, subnet)

    async def _reload(self) -> None:
        """daemon-reload; those who wait for one that has not begun share it."""
        self._reloads += 1
        mine = self._reloads
        async with self._reloading:
            if self._reloaded < mine:
                covered = self._reloads
                await machinectl.daemon_reload()
                self._reloaded = covered

    async def _why_not_up(self, cage: Cage, began_at: float, error: CommandError) -> str:
        unit = unit_of(cage.machine)
        with suppress(CommandError):
            lines = await journal.read_reason(unit, began_at, REASON_LINES)
            said = "; ".join(line.strip() for line in lines if line.strip())[-MAX_REASON_CHARS:]
            state = await machinectl.unit_state(unit)
            if not state.is_down:
                timeout_s = self._config().machines.start_timeout_s
                return f"its machine was not up within {timeout_s:g} s" + (f": {said}" if said else "")
            # An init that ends without a word leaves nothing but how it ended.
            return f"its machine did not come up: {said or machinectl.describe_end(state)}"
        return str(error)

    # ── ending ──────────────────────────────────────────────────────────────────────────────────

    async def _end_and_log(self, machine: str) -> None:
        try:
            await self._end(machine)
        except CommandError as error:
            log.error("Machine of a failed start cannot be ended machine=%s: %s", machine, error)

    async def _end(self, machine: str) -> None:
        """End whatever runs or is starting as *machine*, and wait until it is down."""
        unit = unit_of(machine)
        with suppress(CommandError):  # nothing of it runs
            await machinectl.terminate(machine)
        await machinectl.stop(machine, timeout_s=CLEAN_UP_S)
        self._watch.note(machine, (await machinectl.unit_state(unit)).active_state)
        known = self._running.get(self._names.agent(machine) or "")
        if known is not None:
            self._ended(known)

    async def forget(self, agent: str) -> None:
        """Remove what is left on the host of a destroyed agent's machine.

        Raises:
            OSError, CommandError: something could not be removed.
        """
        machine = self._blueprints.machine(agent)
        is_signed = machine_files.applied_digest(machine, agent) is not None
        if is_signed:
            await self._end(machine)
            # One that had to be killed would stay listed as failed for ever.
            await machinectl.reset_failed(machine)
            await machinectl.revert(machine)
        elif not (await machinectl.unit_state(unit_of(machine))).is_down:
            return  # somebody else's
        else:
            nspawn.drop_in_path(machine).unlink(missing_ok=True)  # of a start that did not come to sign
        # What is on the disk outlives a boot of the host, and our signature does not.
        await trio.to_thread.run_sync(self._images.remove_root, machine)
        self._littered.set()
        await trio.to_thread.run_sync(nix_roots.unpin_booted, agent)
        if is_signed:
            # What nspawn leaves of each machine.
            (self._images.machines_dir / f".#{machine}.lck").unlink(missing_ok=True)
            with suppress(OSError):
                (nspawn.SETTINGS_DIR / "propagate" / machine).rmdir()
            # Last: it says that the rest is ours.
            machine_files.remove(machine, self._layout.agent(agent).run)

    async def leftovers(self, known: Collection[str]) -> None:
        """End and remove the machines of this hive whose agent is not *known*.

        Raises:
            OSError, CommandError: one could not be removed.
        """
        for agent in await trio.to_thread.run_sync(self._all_of_ours):
            if agent not in known:
                log.warning("Machine of nobody removed machine=%s", self._blueprints.machine(agent))
                await self.forget(agent)

    def _all_of_ours(self) -> list[str]:
        """Give the agents whose machines have settings or roots of ours."""
        agents = {self._names.agent(path.stem) for path in nspawn.SETTINGS_DIR.glob("*.nspawn")}
        signed = {
            agent
            for agent in filter(None, agents)
            if machine_files.applied_digest(self._blueprints.machine(agent), agent) is not None
        }
        return sorted(signed | set(filter(None, map(self._names.agent, self._images.rooted()))))

    # ── what a running one has ──────────────────────────────────────────────────────────────────

    async def switch(self, row: AgentRow) -> bool:
        """Bring its running machine to *row* without an end; False: it needs a start.

        Limits and what was deployed can be changed in it, and a closure that all else fits to.

        Raises:
            CannotStart: the host cannot provide what is declared.
            OSError, CommandError: it cannot be changed.
        """
        running = self._running.get(row.name)
        if running is None:
            return False
        cage = self._blueprints.cage(row)
        _, rendered = await trio.to_thread.run_sync(self._blueprints.render, row)
        if rendered.digest != running.digest and not await self._switch_closure(row, running):
            return False
        await trio.to_thread.run_sync(self._blueprints.show, row)
        await machinectl.set_limits(cage.machine, cage.limits)
        return True

    async def _switch_closure(self, row: AgentRow, running: NspawnMachine) -> bool:
        """Bring a machine to another closure, if it differs from *row* in that alone."""
        if self._switch_live is None:
            return False
        closure = await trio.to_thread.run_sync(self._blueprints.only_closure_differs, row, running.digest)
        if closure is None:
            return False
        # Whatever comes of it, by then it is not what it was started with.
        await trio.to_thread.run_sync(machine_files.forget_digest, running.machine)
        running.digest = nspawn.NO_DIGEST
        if not await self._switch_live(running.machine, str(closure)):
            return False
        running.digest = await trio.to_thread.run_sync(self._blueprints.note_switched, row)
        return True

    async def update_limits(self, row: AgentRow) -> None:
        """Apply the limits of *row* to its running machine.

        Raises:
            CannotStart: they cannot be applied.
            CommandError: systemd refuses them.
        """
        cage = self._blueprints.cage(row)
        await machinectl.set_limits(cage.machine, cage.limits)

    async def tidy(self, agent: str) -> None:
        """See that the packet filter still stands before the machine's link, if it has one.

        Nothing of a machine grows on the host that journald does not bound.

        Raises:
            CommandError: it does not, and cannot be set.
        """
        machine = self._running.get(agent)
        uid_base = machine_files.linked_uid_base(machine.machine) if machine is not None else None
        if machine is None or uid_base is None:
            return
        if machine.interface is None:  # an earlier daemon started it
            known = await machinectl.registered(machine.machine)
            if known is None or len(known.interfaces) != 1:
                return
            try:
                interface = socket.if_indextoname(known.interfaces[0])
                if netlink.is_up(interface):
                    machine.interface = interface
                else:
                    log.warning("Link was never set up, doing it now machine=%s", machine.machine)
                    await self._connect(agent, uid_base, machine)
            except OSError:
                return  # the machine has just ended
            except (NoLink, CannotStart) as error:
                raise CommandError(str(error)) from None
        with suppress(CannotStart):
            subnet, pair = self._blueprints.addresses(agent, uid_base)
            if machine.interface is not None and await self._links.keep(machine.interface, pair, subnet):
                log.warning("Packet filter was gone, set again machine=%s", machine.machine)

    async def facts(self, row: AgentRow) -> MachineFacts:
        """Give what the machine of *row* has, or would have."""
        machine = self._blueprints.machine(row.name)
        try:
            cage = self._blueprints.cage(row)
        except CannotStart:
            return MachineFacts(machine=machine, uid_base=row.uid_base)
        image = cage.image
        with suppress(CannotStart, OSError):
            image = (await trio.to_thread.run_sync(self._images.resolve, cage.image, cage.agent)).name
        addresses: tuple[str, ...] = ()
        if cage.network is Network.VETH:
            with suppress(CannotStart):
                addresses = (str(self._blueprints.addresses(cage.agent, cage.uid_base)[1].guest),)
        return MachineFacts(
            machine=machine,
            image=image or None,
            network=cage.network.value,
            uid_base=cage.uid_base,
            limits=cage.limits,
            addresses=addresses,
        )

    async def usage(self, agents: Sequence[str]) -> dict[str, Usage]:
        """Give what the machines of *agents* take, of those that run."""
        seen = {
            agent: usage.read_usage(self._running[agent].control_group)
            for agent in agents
            if agent in self._running
        }
        return {agent: taken for agent, taken in seen.items() if taken is not None}

    def applied(self, agent: str) -> str | None:
        """The digest of what the running machine was started with."""
        return self._running[agent].digest if agent in self._running else None

    def declared(self, row: AgentRow) -> str | None:
        """The digest of what a start would give it now; None when it would give nothing."""
        return self._blueprints.digest(row)

    # ── logs ────────────────────────────────────────────────────────────────────────────────────

    async def read_log(self, agent: str, lines: int) -> list[str]:
        """Give the last *lines* lines of what the machine of *agent* wrote.

        Raises:
            CommandError: the journal cannot be read.
        """
        return await journal.read(unit_of(self._blueprints.machine(agent)), lines)

    async def follow_log(self, agent: str, lines: int) -> AsyncGenerator[list[str], None]:
        """The same, and then what comes, in batches.  The caller closes it.

        Raises:
            CommandError: the journal cannot be read, or no longer.
        """
        async with aclosing(journal.follow(unit_of(self._blueprints.machine(agent)), lines)) as batches:
            async for batch in batches:
                yield batch

"""The two ways to run agents: what stands behind the daemon's interfaces in each."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hive_core.config import Config
from hive_core.domain import uid_range
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import UID_RANGE
from hive_core.handlers.deps import Cages, Logs
from hive_core.host import accounts, agent_dirs, agent_files, cgroup
from hive_core.host.local import LocalMachines
from hive_core.layout import Layout
from hive_core.machines import Machines
from hive_core.serve.agent_doors import Identity
from hive_core.serve.identity import LocalIdentity, MachineIdentity
from hive_core.wire.ids import MANAGER


class Mode(StrEnum):
    LOCAL = "local"
    """Agents are child processes, for trying it: nothing isolates them."""
    NSPAWN = "nspawn"
    """Agents have machines of systemd-nspawn."""


@dataclass(frozen=True)
class Surroundings:
    """What a backend asks of the rest of the daemon."""

    layout: Layout
    config: Callable[[], Config]
    manager_uid: Callable[[], int | None]
    """The first uid of the manager's machine, if there is a manager."""
    appeared: Callable[[str], None]
    """An agent has a machine that was not started by us."""
    refuse_peer: Callable[[str, int, str | None], bool]
    """Somebody (uid, unit) was refused at an agent's socket; says whether that is worth a line of the log."""


@dataclass(frozen=True)
class Backend:
    machines: Machines
    logs: Logs
    identity: Identity
    make_dirs: Callable[[AgentRow], None]
    allocate: Callable[[str, Sequence[AgentRow]], int | None]
    remove_files: Callable[[str], Awaitable[None]]
    """Delete all that a purged agent has; raises as agent_files.remove does."""
    shown_state: Callable[[str], str]
    """An agent's state directory, as the agent sees it."""
    cages: Cages | None = None
    run: Callable[..., Awaitable[None]] | None = None
    """Watches the machines; to be started before any is looked for."""


def open_backend(mode: Mode, around: Surroundings) -> Backend:
    """Make what *mode* needs on this host.

    Raises:
        OSError: a directory cannot be made.
    """
    return _local(around) if mode is Mode.LOCAL else _nspawn(around)


def _local(around: Surroundings) -> Backend:
    layout = around.layout
    machines = LocalMachines(layout.agent, around.config)

    def make_dirs(row: AgentRow) -> None:
        if row.uid_base is not None:
            # Our harness would open what another user may write.
            raise OSError(
                f"its files are those of a machine's users (uid {row.uid_base}); do without --local"
            )
        layout.agent(row.name).make()

    return Backend(
        machines=machines,
        logs=machines,
        identity=LocalIdentity(),
        make_dirs=make_dirs,
        allocate=lambda _name, _rows: None,
        remove_files=lambda name: agent_files.remove(layout.agent(name).base),
        shown_state=lambda name: str(layout.agent(name).state),
    )


def _nspawn(around: Surroundings) -> Backend:
    # Not at the top: a local hive does without what is imported here.
    from hive_core.host import doctor
    from hive_core.host.images import Images
    from hive_core.host.nspawn_machines import NspawnMachines

    layout, config = around.layout, around.config
    agent_dirs.make_common(layout)
    harness = Path(config().machines.harness_dir or sys.prefix)
    images = Images(harness=harness, prefix=config().machines.prefix)
    machines = NspawnMachines(layout, config, images, around.appeared)

    def make_dirs(row: AgentRow) -> None:
        if row.uid_base is None:
            raise OSError("it has no uids of its own")
        writer = row.uid_base if row.name == MANAGER else around.manager_uid()
        agent_dirs.make(layout, row.name, row.uid_base, writer)

    def allocate(name: str, rows: Sequence[AgentRow]) -> int:
        ours = {row.uid_base for row in rows if row.uid_base is not None}
        pool = config().machines
        # The configurations outlive a manager that is purged, and with them its claim on its uids.
        former = agent_dirs.owner_of_configs(layout)
        if former in range(pool.uid_first, pool.uid_first + pool.uid_ranges * UID_RANGE, UID_RANGE):
            if name == MANAGER and former not in ours:
                return former
            ours.add(former)
        taken = [*((base, UID_RANGE) for base in ours), *accounts.taken_ranges()]
        return uid_range.allocate(pool.uid_first, pool.uid_ranges, taken)

    async def remove_files(name: str) -> None:
        await agent_files.remove(layout.agent(name).base)
        await agent_files.remove(layout.config_of(name).parent)

    return Backend(
        machines=machines,
        logs=machines,
        identity=MachineIdentity(machines.is_member, cgroup.unit_of, around.refuse_peer),
        make_dirs=make_dirs,
        allocate=allocate,
        remove_files=remove_files,
        shown_state=lambda name: "/state" if name == MANAGER else f"/agents/{name}/state",
        cages=Cages(images, lambda: doctor.check(config())),
        run=machines.run,
    )

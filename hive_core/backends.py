"""The two ways to run agents: what stands behind the daemon's interfaces in each."""

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hive_core.builders import Builder
from hive_core.config import Config, ConfigError
from hive_core.domain import uid_range
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import UID_RANGE
from hive_core.handlers.deps import Cages, Logs
from hive_core.host import accounts, agent_dirs, agent_files, cgroup
from hive_core.host.local import LocalMachines
from hive_core.layout import Layout
from hive_core.machines import Machines
from hive_core.repositories import Repositories
from hive_core.serve.agent_doors import Identity
from hive_core.serve.identity import LocalIdentity, MachineIdentity
from hive_core.tree_builder import TreeBuilder
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


def check_builder(mode: Mode, config: Config) -> None:
    """See that a hive of *mode* can build as the configuration says.

    Raises:
        ConfigError: it cannot.
    """
    if mode is Mode.LOCAL and config.deploy.builder == "nix":
        raise ConfigError(
            'cannot use deploy.builder = "nix" in a local hive: its agents have no machines that could be'
            ' built; leave it out, or use "tree"'
        )


def open_builder(
    layout: Layout, config: Callable[[], Config], cages: Cages | None, repositories: Repositories
) -> Builder:
    """Make what builds the machines of this hive; *cages* is the backend's."""
    if config().deploy.builder == "nix":
        from hive_core.host.nix import USER, Nix
        from hive_core.nix_builder import NixBuilder

        nix = Nix(user=USER, in_units=True)
        return NixBuilder(nix, layout, config, repositories.read_meta)
    return TreeBuilder(None if cages is None else cages.images, config)


def _local(around: Surroundings) -> Backend:
    layout = around.layout
    # In a machine of its own the manager finds them where machine_environment says.
    repositories = {
        "HIVE_CONFIGS": str(layout.configs),
        "HIVE_APPLIED": str(layout.applied),
        "HIVE_META": str(layout.meta),
    }
    machines = LocalMachines(layout.agent, around.config, repositories, layout.releases)

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
    from hive_core.host import doctor, live_switch
    from hive_core.host.images import Images
    from hive_core.host.nspawn_machines import NspawnMachines

    layout, config = around.layout, around.config
    agent_dirs.make_common(layout)
    harness = Path(config().machines.harness_dir or sys.prefix)
    images = Images(harness=harness, prefix=config().machines.prefix)
    machines = NspawnMachines(layout, config, images, around.appeared, live_switch.switch)

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

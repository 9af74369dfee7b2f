"""What a start would give a machine, from its row, the configuration and the images; and making that."""

import sys
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import trio

from hive_core.config import Config
from hive_core.domain.address import NoPairLeft, Pair, pair_of, parse_subnet
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import Cage, CannotStart, resolve
from hive_core.domain.machine_names import MachineNames
from hive_core.host import machine_environment, machine_files, nix_roots, nspawn
from hive_core.host.images import Image, Images, Kind
from hive_core.host.machine_environment import BadEnvironment
from hive_core.host.machine_files import Rendered
from hive_core.host.nspawn import Sources
from hive_core.layout import Layout
from hive_core.wire.ids import MANAGER

DIGEST_S: Final = 30.0
"""How long a look at what a start would give is good for: images are files."""


class Blueprints:
    """*config* is asked each time; the names of machines hold until the daemon ends."""

    def __init__(self, layout: Layout, config: Callable[[], Config], images: Images) -> None:
        self._layout = layout
        self._config = config
        self._images = images
        self.names: Final = MachineNames(config().machines.prefix)
        self._digests: dict[str, tuple[object, float, str | None]] = {}

    def machine(self, agent: str) -> str:
        return self.names.machine(agent)

    def cage(self, row: AgentRow) -> Cage:
        """Decide all that the row leaves open.

        Raises:
            CannotStart: it cannot be had.
        """
        if row.uid_base is None:
            raise CannotStart(f"cannot start {row.name}: it has no uid range")
        cage = resolve(row.name, row.uid_base, row.shape, self._config().machines)
        if cage.machine != self.machine(row.name):
            raise CannotStart(
                f"cannot start {row.name}: machines.prefix has changed; restart hive-core first"
            )
        return cage

    def render(self, cage: Cage) -> tuple[Image, Rendered]:
        """Give its image, and everything that is written of it.  Blocking, for a moment.

        Raises:
            CannotStart: it cannot be had.
        """
        config = self._config()
        image = self._images.resolve(cage.image, cage.agent)
        settings = nspawn.render_settings(cage, image, self._sources(cage, config), str(self._layout.state))
        drop_in = nspawn.render_drop_in(cage, Path(sys.executable))
        guest_unit = nspawn.render_guest_unit()
        try:
            inside = machine_environment.gather(cage.agent, nspawn.state_path(cage), config.harness)
        except BadEnvironment as error:
            raise CannotStart(f"cannot start {cage.agent}: the environment of its harness: {error}") from None
        environment = machine_environment.render(inside)
        # Without the limits: those are changed in a running machine.
        digest = nspawn.digest(settings, drop_in, guest_unit, environment)
        signed = nspawn.signed(cage.agent, settings, digest)
        return image, Rendered(signed, drop_in, guest_unit, environment, digest)

    def build(self, cage: Cage) -> bool:
        """Make its root and write its files.  Says whether systemd has to read its units again.  Blocking.

        Raises:
            CannotStart: it cannot be had, or not be written.
        """
        dirs = self._layout.agent(cage.agent)
        machine_files.check_unshadowed(cage)
        machine_files.check_owner(cage, dirs.state, dirs.claude)
        image, rendered = self.render(cage)
        try:
            self._images.prepare_root(cage, image)
            if image.kind is Kind.NIX:
                nix_roots.pin_booted(cage.agent, image.path)
            else:
                nix_roots.unpin_booted(cage.agent)
            return machine_files.write(cage, rendered, dirs.run)
        except OSError as error:
            raise CannotStart(f"cannot start {cage.agent}: {error.filename}: {error.strerror}") from None

    def digest(self, row: AgentRow) -> str | None:
        """Give the digest of what a start would give it now; None when it would give nothing."""
        # Asked for each line of `hive ls`: an agent's status changes more often than its machine.
        key, now = (row.uid_base, row.shape, self._config()), trio.current_time()
        key_then, until, digest = self._digests.get(row.name, (None, 0.0, None))
        if key_then == key and now < until:
            return digest
        try:
            digest = self.render(self.cage(row))[1].digest
        except (CannotStart, OSError):
            digest = None
        self._digests[row.name] = (key, now + DIGEST_S, digest)
        return digest

    def addresses(self, agent: str, uid_base: int) -> tuple[IPv4Network, Pair]:
        """Give the subnet of all links, and the ends of this one.

        Raises:
            CannotStart: the subnet has none for it.
        """
        machines = self._config().machines
        try:
            subnet = parse_subnet(machines.subnet)
            return subnet, pair_of(subnet, machines.uid_first, uid_base)
        except (NoPairLeft, ValueError) as error:
            raise CannotStart(f"cannot start {agent}: machines.subnet: {error}") from None

    def _sources(self, cage: Cage, config: Config) -> Sources:
        dirs, layout = self._layout.agent(cage.agent), self._layout
        is_manager = cage.agent == MANAGER
        return Sources(
            run=dirs.run,
            state=dirs.state,
            claude=dirs.claude,
            harness=Path(config.machines.harness_dir or sys.prefix),
            unit=dirs.run / "hive-agent.service",
            config=None if is_manager else layout.config_of(cage.agent),
            configs=layout.configs if is_manager else None,
            applied=layout.applied if is_manager else None,
            meta=layout.meta if is_manager else None,
        )

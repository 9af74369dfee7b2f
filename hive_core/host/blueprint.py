"""What a start would give a machine, from its row, the configuration and the images; and making that."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import msgspec
import trio

from hive_core.config import Config
from hive_core.domain.address import NoPairLeft, Pair, pair_of, parse_subnet
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import UID_RANGE, Cage, CannotStart, Network, resolve
from hive_core.domain.declared import effective
from hive_core.domain.machine_names import MachineNames
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host import binds, credentials, machine_environment, machine_files, nix_roots, nspawn
from hive_core.host.images import Image, Images, Kind
from hive_core.host.machine_environment import BadEnvironment
from hive_core.host.machine_files import Rendered
from hive_core.host.nspawn import Sources
from hive_core.host.releases import EXTRA_MCP, Releases
from hive_core.layout import Layout
from hive_core.wire.ids import MANAGER

RESOLV_CONF: Final = "resolv.conf"
"""In an agent's directory of sockets."""

DIGEST_S: Final = 30.0
"""How long a look at what a start would give is good for: images are files."""


class Blueprints:
    """*config* is asked each time; the names of machines hold until the daemon ends."""

    def __init__(self, layout: Layout, config: Callable[[], Config], images: Images) -> None:
        self._layout = layout
        self._config = config
        self._images = images
        self._releases = Releases(layout.releases)
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
        cage = resolve(row.name, row.uid_base, effective(row).shape, self._config().machines)
        if cage.machine != self.machine(row.name):
            raise CannotStart(
                f"cannot start {row.name}: machines.prefix has changed; restart hive-core first"
            )
        return cage

    def render(self, row: AgentRow, closure: str | None = None) -> tuple[Image, Rendered]:
        """Give its image, and everything that is written of it.  Blocking, for a moment.

        Of what was deployed the digest has only what a running machine cannot be shown anew.  With *closure*
        that is its image, whatever the row says.

        Raises:
            CannotStart: it cannot be had.
        """
        config, cage, manifest = self._config(), self.cage(row), effective(row).manifest
        if closure is not None:
            cage = replace(cage, image=closure)
        image = self._images.resolve(cage.image, cage.agent)
        sources, hive = self._sources(cage, row, config), str(self._layout.state)
        settings = nspawn.render_settings(cage, image, sources, hive)
        without = nspawn.render_settings(cage, image, replace(sources, release=None), hive)
        drop_in = nspawn.render_drop_in(cage, Path(sys.executable))
        guest_unit = nspawn.render_guest_unit()
        try:
            inside = machine_environment.gather(
                cage.agent, nspawn.state_path(cage), config.harness, manifest, row.declaration
            )
        except BadEnvironment as error:
            raise CannotStart(f"cannot start {cage.agent}: the environment of its harness: {error}") from None
        environment = machine_environment.render(inside)
        # Without the limits: those are changed in a running machine.
        given = [self._releases.used(row), _render_servers(manifest)]
        digest = nspawn.digest(without, drop_in, guest_unit, environment, *filter(None, given))
        if sources.release is not None:
            environment += machine_environment.render({"HIVE_RELEASE": machine_environment.RELEASE})
        signed = nspawn.signed(cage.agent, settings, digest)
        return image, Rendered(signed, drop_in, guest_unit, environment, digest)

    def build(self, row: AgentRow) -> bool:
        """Make its root and write its files.  Says whether systemd has to read its units again.  Blocking.

        Raises:
            CannotStart: it cannot be had, or not be written.
        """
        cage, dirs = self.cage(row), self._layout.agent(row.name)
        machine_files.check_unshadowed(cage)
        machine_files.check_owner(cage, dirs.state, dirs.claude)
        image, rendered = self.render(row)
        try:
            self._show(cage, row)
            self._images.prepare_root(cage, image)
            if image.kind is Kind.NIX:
                nix_roots.pin_booted(cage.agent, image.path)
            else:
                nix_roots.unpin_booted(cage.agent)
            return machine_files.write(cage, rendered, dirs.run)
        except OSError as error:
            raise CannotStart(f"cannot start {cage.agent}: {error.filename}: {error.strerror}") from None

    def show(self, row: AgentRow) -> None:
        """Let a machine that runs see what was deployed of it, and what the host gives it.

        Raises:
            CannotStart: it cannot be had.
            OSError: it cannot be shown.
        """
        self._show(self.cage(row), row)

    def _show(self, cage: Cage, row: AgentRow) -> None:
        self._releases.show(row)
        run, declaration = self._layout.agent(row.name).run, row.declaration
        names = self._images.resolv_conf() if cage.network is Network.VETH else None
        # A closure's /etc/resolv.conf may lead here.
        machine_files.replace(run / RESOLV_CONF, (names or b"").decode(errors="replace"), mode=0o644)
        servers = effective(row).manifest if declaration is not None and declaration.mcp_servers else NOTHING
        machine_files.replace(
            run / EXTRA_MCP, _render_servers(servers) or "{}", mode=0o600, owner=cage.uid_base
        )
        files = declaration.credentials if declaration is not None else {}
        credentials.lay_out(row.name, files, run, cage.uid_base)

    def put_away(self, agent: str) -> None:
        """Take away what only a machine that runs is to have."""
        credentials.remove(self._layout.agent(agent).run)

    def only_closure_differs(self, row: AgentRow, applied: str) -> Path | None:
        """Give the closure of *row*, if its machine, started with the digest *applied*, has all the rest.

        Raises:
            CannotStart: it cannot be had.
        """
        closure = machine_files.closure(self.machine(row.name))
        image, _ = self.render(row)
        if closure is None or image.kind is not Kind.NIX:
            return None
        try:
            before = self.render(row, closure)[1]
        except CannotStart:  # it is gone from the store
            return None
        return image.path if before.digest == applied else None

    def note_switched(self, row: AgentRow) -> str:
        """Write down that the running machine was brought to *row*, and give its digest.

        Raises:
            CannotStart, OSError: it cannot be.
        """
        _, rendered = self.render(row)
        machine_files.write(self.cage(row), rendered, self._layout.agent(row.name).run)
        return rendered.digest

    def digest(self, row: AgentRow) -> str | None:
        """Give the digest of what a start would give it now; None when it would give nothing."""
        # Asked for each line of `hive ls`: an agent's status changes more often than its machine.
        key = (row.uid_base, row.declared, row.declaration, self._config())
        now = trio.current_time()
        key_then, until, digest = self._digests.get(row.name, (None, 0.0, None))
        if key_then == key and now < until:
            return digest
        try:
            digest = self.render(row)[1].digest
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

    def _sources(self, cage: Cage, row: AgentRow, config: Config) -> Sources:
        dirs, layout, pool = self._layout.agent(cage.agent), self._layout, config.machines
        is_manager = cage.agent == MANAGER
        harness = Path(pool.harness_dir or sys.prefix)
        secrets = [Path(file).expanduser() for file in _secrets(config)]
        mounts = binds.resolve(
            cage.agent,
            effective(row).manifest.binds,
            uid_base=cage.uid_base,
            machine_uids=range(pool.uid_first, pool.uid_first + pool.uid_ranges * UID_RANGE),
            hive=(layout.home, layout.state, layout.run, self._images.machines_dir, *secrets),
            programs=harness,
        )
        return Sources(
            run=dirs.run,
            state=dirs.state,
            claude=dirs.claude,
            harness=harness,
            unit=dirs.run / "hive-agent.service",
            config=None if is_manager else layout.config_of(cage.agent),
            configs=layout.configs if is_manager else None,
            applied=layout.applied if is_manager else None,
            meta=layout.meta if is_manager else None,
            release=self._releases.of(cage.agent) if self._releases.is_there(row) else None,
            binds=mounts,
        )


def _render_servers(manifest: Manifest) -> str:
    return msgspec.json.encode(manifest.mcp_servers).decode() if manifest.mcp_servers else ""


def _secrets(config: Config) -> Iterator[str]:
    """Give the files whose content only one agent, or only its harness, is to have."""
    if config.harness.environment_file:
        yield config.harness.environment_file
    for declaration in config.agents.values():
        if declaration.environment_file is not None:
            yield declaration.environment_file
        yield from declaration.credentials.values()

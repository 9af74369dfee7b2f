"""Whether this host has what machines need, point by point, and how to mend what is missing.

`survey.look` looks; a check is a plain function of what was seen, so that each can be tested on hosts that
nobody has.  A check that fails means that machines will not start or not be caged as declared.
"""

from collections.abc import Callable
from typing import Final

from msgspec import UNSET

from hive_core.config import Config
from hive_core.domain import uid_range
from hive_core.domain.cage import UID_RANGE
from hive_core.host import doctor_nix, git
from hive_core.host.survey import Host, look
from hive_core.wire.machine import Check
from hive_core.wire.version import VERSION

MIN_SYSTEMD: Final = 249
TESTED_SYSTEMD: Final = 252
INOTIFY_PER_MACHINE: Final = 7
"""What a booted one takes."""
ROOM_FOR_MACHINES: Final = 128
"""More agents than anybody is expected to have."""
LOW_BYTES: Final = 5 * 2**30
"""A harness and a few checkouts fit into that for a while."""
NO_BYTES: Final = 512 * 2**20
RUN_MODE: Final = 0o751
"""layout makes it so: an agent's uid must get through to its socket, and list nothing."""

_CONTAINERS: Final = "apt install systemd-container   # or your distribution's package of systemd-nspawn"


async def check(config: Config) -> list[Check]:
    """Look at this host and give every check of it, in an order in which they are best mended."""
    host = await look(config)
    return [made for point in CHECKS for made in [point(host, config)] if made is not None]


# ── systemd ─────────────────────────────────────────────────────────────────────────────────────


def systemd(host: Host, _config: Config) -> Check:
    name = "systemd"
    if host.systemd is None:
        return _fail(name, "there is none on PATH", "machines need a host that systemd runs")
    if not host.booted_by_systemd:
        return _fail(
            name, f"version {host.systemd}, but it does not run this host", "boot with systemd as PID 1"
        )
    if host.systemd < MIN_SYSTEMD:
        return _fail(name, f"version {host.systemd}; {MIN_SYSTEMD} is needed", "upgrade the distribution")
    if host.systemd < TESTED_SYSTEMD:
        return _warn(name, f"version {host.systemd}; tested from {TESTED_SYSTEMD} on", None)
    return _ok(name, f"version {host.systemd}")


def programs(host: Host, _config: Config) -> Check:
    name = "programs"
    if host.missing_programs:
        return _fail(name, f"not on PATH: {', '.join(host.missing_programs)}", _CONTAINERS)
    return _ok(name, "systemd-nspawn, machinectl and the others are on PATH")


def machined(host: Host, _config: Config) -> Check:
    name = "machined"
    if host.machined is not None:
        mend = "systemctl start dbus systemd-machined   # apt install dbus systemd-container"
        return _fail(name, f"it does not answer over D-Bus: {host.machined}", mend)
    return _ok(name, "answers over D-Bus")


# ── the kernel ──────────────────────────────────────────────────────────────────────────────────


def cgroups(host: Host, _config: Config) -> Check:
    name = "cgroups"
    if not host.cgroup2:
        mend = "add systemd.unified_cgroup_hierarchy=1 to the kernel's command line and reboot"
        return _fail(name, "not the unified hierarchy (cgroup v2)", mend)
    if lacking := sorted({"cpu", "memory", "pids"} - host.controllers):
        mend = "cat /proc/cmdline /sys/fs/cgroup/cgroup.controllers   # who withholds them?"
        return _warn(name, f"v2, but limits are not enforced without controllers: {', '.join(lacking)}", mend)
    return _ok(name, "v2, with cpu, memory and pids")


def user_namespaces(host: Host, _config: Config) -> Check:
    name = "user namespaces"
    if host.max_user_namespaces is None:
        return _fail(name, "this kernel has none", "use a kernel with CONFIG_USER_NS=y")
    if host.max_user_namespaces == 0:
        return _fail(name, "user.max_user_namespaces is 0", "sysctl -w user.max_user_namespaces=10000")
    return _ok(name, f"up to {host.max_user_namespaces}")


def inotify(host: Host, _config: Config) -> Check:
    name = "inotify"
    if host.inotify_instances is None:
        return _warn(name, "the kernel does not say how many instances there may be", None)
    room = host.inotify_instances // INOTIFY_PER_MACHINE
    if room < ROOM_FOR_MACHINES:
        mend = "sysctl -w fs.inotify.max_user_instances=1048576   # for good: in /etc/sysctl.d"
        return _warn(name, f"{host.inotify_instances} instances are enough for some {room} machines", mend)
    return _ok(name, f"{host.inotify_instances} instances: enough for {room} machines")


def idmapped_mounts(host: Host, _config: Config) -> Check:
    name = "id-mapped mounts"
    where = f"{host.images_dir} ({host.images_fs or 'an unknown file system'})"
    if host.idmap == "yes":
        return _ok(name, f"work on {where}")
    if host.idmap == "no":
        mend = f"put {host.images_dir} on ext4, xfs or btrfs, with Linux 5.15 or newer"
        return _fail(name, f"the kernel cannot do them on {where}", mend)
    why = host.idmap.partition(": ")[2] or host.idmap
    return _warn(name, f"could not be tried on {where}: {why}", "hive-core doctor, as root, tries them")


def filters(host: Host, _config: Config) -> Check:
    name = "system-call filters"
    if not host.seccomp:
        mend = "use a kernel with CONFIG_SECCOMP_FILTER=y, and a systemd that is built with +SECCOMP"
        return _fail(name, "neither can be had here: io_uring, vsock and others would be open", mend)
    return _ok(name, "keep io_uring, bpf, keyrings, vsock and raw packets from machines")


# ── what is installed ───────────────────────────────────────────────────────────────────────────


def group(host: Host, config: Config) -> Check:
    name = f"group {config.admin_group}"
    if host.group_members is None:
        mend = f"groupadd --system {config.admin_group} && usermod -aG {config.admin_group} YOU"
        return _warn(name, "does not exist: only root may use hive", mend)
    if not host.group_members:
        return _ok(
            name,
            "exists; nobody is in it, so only root may use hive",
            f"usermod -aG {config.admin_group} YOU",
        )
    return _ok(name, f"exists; in it: {', '.join(host.group_members)}")


def repositories(host: Host, config: Config) -> Check:
    """Agents run without them; what they are is then as it was spawned."""
    name = "repositories"
    if host.git is None:
        return _warn(name, "git is not on PATH: nothing can be proposed or deployed", "apt install git")
    needed = [user for user in host.missing_users if user != "hive-nix" or config.deploy.builder == "nix"]
    if needed:
        text = f"there is no user {' and no user '.join(needed)}: nothing can be proposed or deployed"
        return _warn(
            name, text, "make install   # or systemd-sysusers, with systemd/sysusers.d/hyperhive.conf"
        )
    return _ok(name, f"git {host.git} works on them, as {git.USER}")


def service(host: Host, _config: Config) -> Check:
    name = "hive-core.service"
    if host.unit_loaded is None:
        return _warn(name, "systemd cannot be asked", None)
    if not host.unit_loaded:
        return _warn(name, "is not installed", "make install")
    if not host.run_dir_preserved:
        mend = "systemctl edit hive-core   # [Service] RuntimeDirectoryPreserve=yes"
        return _fail(name, "its end would take the sockets of running machines away", mend)
    if host.unit_state == "failed":
        return _fail(name, "has failed", "journalctl -u hive-core -n 20   # says why")
    if host.unit_state == "inactive":
        mend = "systemctl enable --now hive-core.socket hive-core.service"
        return _warn(name, "is inactive: nobody keeps the machines of agents", mend)
    return _ok(name, f"is {host.unit_state}")


def run_dir(host: Host, _config: Config) -> Check:
    name = f"{host.run_dir}"
    if host.run_dir_mode is None:
        return _warn(name, "does not exist", "systemctl start hive-core   # makes it")
    if host.run_dir_owner != 0:
        return _fail(name, f"belongs to uid {host.run_dir_owner}", f"chown root: {host.run_dir}")
    if host.run_dir_mode & 0o001 == 0:
        mend = f"chmod {RUN_MODE:o} {host.run_dir}"
        return _fail(name, f"has mode {host.run_dir_mode:o}: no agent gets through to its socket", mend)
    if host.run_dir_mode & 0o022:
        mend = f"chmod {RUN_MODE:o} {host.run_dir}"
        return _fail(name, f"has mode {host.run_dir_mode:o}: others may write there", mend)
    return _ok(name, f"belongs to root, mode {host.run_dir_mode:o}")


def disk(host: Host, _config: Config) -> Check:
    name = "disk"
    if host.free_bytes is None:
        return _warn(name, f"nobody can say how full {host.state_dir} is", None)
    text = f"{host.free_bytes / 2**30:.1f} GiB are free for {host.state_dir}"
    mend = f"du -xsh {host.state_dir}/agents/*   # shows who takes it"
    if host.free_bytes < NO_BYTES:
        return _fail(name, text, mend)
    return _warn(name, text, mend) if host.free_bytes < LOW_BYTES else _ok(name, text)


def versions(host: Host, _config: Config) -> Check:
    name = "harness"
    if host.harness_version is None:
        mend = f"{host.harness_dir}/bin/python -I -m hive_agent --version"
        return _fail(name, f"there is none in {host.harness_dir}: {host.harness_problem}", mend)
    if host.harness_version != VERSION:
        return _warn(
            name,
            f"{host.harness_dir} has {host.harness_version}, this hive-core is {VERSION}",
            "make install, then: hive rebuild AGENT",
        )
    return _ok(name, f"{VERSION} in {host.harness_dir}, as hive-core")


# ── machines ────────────────────────────────────────────────────────────────────────────────────


def images(host: Host, config: Config) -> Check:
    name = "images"
    build = "hive image build debian"
    if host.images is None:
        return _warn(name, f"{host.images_dir} cannot be looked at", None)
    fit = [image.name for image in host.images if image.problem is None]
    problems = "; ".join(image.problem for image in host.images if image.problem is not None)
    default = config.machines.image
    if not host.images:
        return _fail(name, f"there is none in {host.images_dir}", build)
    if not fit or (default and default not in fit):
        return _fail(name, problems, build)
    if problems:
        return _warn(name, f"{', '.join(fit)}; but {problems}", None)
    if not default and len(fit) > 1:
        text = f"{', '.join(fit)}; none is the default, so each spawn must say --image"
        return _warn(name, text, 'machines.image = "…" in the configuration')
    return _ok(name, ", ".join(fit))


def settings_files(host: Host, _config: Config) -> Check:
    name = "settings"
    if host.shadowing:
        files = " ".join(host.shadowing)
        text = f"these would win over those the hive writes, so their machines will not start: {files}"
        return _fail(name, text, f"mv -t /root {files}")
    return _ok(name, "nothing in /etc/systemd/nspawn wins over those the hive writes")


def uid_pool(host: Host, config: Config) -> Check:
    name = "uids"
    first, count = config.machines.uid_first, config.machines.uid_ranges * UID_RANGE
    text = f"{first} to {first + count - 1} are for machines"
    others = [who for who, start, size in host.taken_uids if uid_range.overlap((first, count), (start, size))]
    if others:
        mend = "machines.uid_first in the configuration moves ours, before the first agent is spawned"
        return _fail(name, f"{text}, but also given to: {', '.join(sorted(set(others)))}", mend)
    return _ok(name, f"{text}, and for nobody else")


def network(host: Host, config: Config) -> Check:
    name = "network"
    default = config.machines.network
    text: str = default
    if default == "none":
        text = "agents have none, unless they are spawned with --network veth"
    if not host.nft:
        text += "; veth needs nft, which is not on PATH"
        make = _fail if default == "veth" else _ok
        return make(name, text, "apt install nftables")
    if host.forward_drops and (default == "veth" or host.veth_links):
        drops = " and ".join(host.forward_drops)
        text += f"; but {drops} of the packet filter may drop what agents with veth send"
        return _warn(name, text, _let_through(host, config.machines.subnet))
    if not host.ip_forward:
        text += "; the first link switches net.ipv4.ip_forward on"
    return _ok(name, text)


def _let_through(host: Host, subnet: str) -> str:
    if any("firewalld" in chain for chain in host.forward_drops):
        return f"firewall-cmd --permanent --zone=trusted --add-source={subnet} && firewall-cmd --reload"
    chain = "DOCKER-USER" if host.docker else "FORWARD"
    return (
        f"iptables -I {chain} -s {subnet} -j ACCEPT\n"
        f"iptables -I {chain} -d {subnet} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    )


CHECKS: Final[tuple[Callable[[Host, Config], Check | None], ...]] = (
    systemd,
    programs,
    machined,
    cgroups,
    user_namespaces,
    inotify,
    idmapped_mounts,
    filters,
    service,
    run_dir,
    group,
    repositories,
    disk,
    versions,
    images,
    settings_files,
    uid_pool,
    network,
    *doctor_nix.CHECKS,
)


def _ok(name: str, text: str, mend: str | None = None) -> Check:
    return Check(name=name, status="ok", text=text, mend=mend or UNSET)


def _warn(name: str, text: str, mend: str | None) -> Check:
    return Check(name=name, status="warn", text=text, mend=mend or UNSET)


def _fail(name: str, text: str, mend: str | None) -> Check:
    return Check(name=name, status="fail", text=text, mend=mend or UNSET)

"""Renders what systemd is told of a machine: its settings, the drop-in of its unit, the unit of its harness.

Pure: a cage, an image and some paths give texts, the same always.  What is not allowed here is not in the
machine, and what the host cannot provide as written makes the start fail: nspawn refuses a missing bind,
an id-map that the file system lacks, a user namespace that it cannot have.  docs/machines.md tells what
each rule closes.

The root of a tree machine, as it works with systemd 252: Volatile=overlay and an id-mapped root exclude
each other (an overlay cannot be id-mapped), Ephemeral=yes copies the tree, PrivateUsersOwnership=map of a
writable root would store the agent's files, setuid bits included, as the host's root's.  So the root is a
small directory of ours that belongs to the machine's own root (images.prepare_root), the image is bound
into it read-only and id-mapped, and every directory of the image is an overlay of that and an upper
directory that belongs to the machine as well and does not outlive it.  Any number of machines share one
image; nothing is copied, and nothing is ever written into it.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hive_core.domain.cage import UID_RANGE, Cage, CannotStart, Network
from hive_core.host.binds import Mount
from hive_core.host.images import MACHINES_DIR, NIX_STORE, Image, Kind, upper_dir
from hive_core.host.machine_environment import RELEASE
from hive_core.host.machine_root import GUEST_UNIT

HARNESS: Final = "/opt/hyperhive"
"""Where a machine finds the harness, whatever its image is."""
IMAGE_INSIDE: Final = "/.image"
"""Where the image itself is bound in; overlays can only take an id-mapped lower directory from there."""
SETTINGS_DIR: Final = Path("/run/systemd/nspawn")
ADMIN_SETTINGS_DIR: Final = Path("/etc/systemd/nspawn")
"""A file of the same name in it would win over ours."""
UNIT_DIR: Final = Path("/run/systemd/system")

KEPT: Final = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "DAC_READ_SEARCH": 2,
    "FOWNER": 3,
    "FSETID": 4,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "SETPCAP": 8,
    "NET_BIND_SERVICE": 10,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
    "SYS_ADMIN": 21,
    "SETFCAP": 31,
}
"""What a booted systemd and a package manager need, each only over the machine's own namespaces, with
the kernel's numbers.  SYS_ADMIN is for the mounts and cgroups of services."""
DROPPED: Final = (
    *("AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "IPC_LOCK"),
    *("IPC_OWNER", "LEASE", "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN"),
    *("NET_BROADCAST", "NET_RAW", "PERFMON", "SYSLOG", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT"),
    *("SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "WAKE_ALARM"),
)
"""All others that there are.  SYS_RESOURCE among them keeps the seal (host/seal.py) from being broken;
without SYS_BOOT a reboot inside is an end, and the daemon decides what comes after it."""

DENIED_CALLS: Final = (
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("bpf", "perf_event_open", "userfaultfd", "@keyring"),
    *("open_by_handle_at", "fanotify_init", "pidfd_getfd", "lookup_dcookie", "vmsplice"),
    *("quotactl", "quotactl_fd", "acct", "syslog", "move_pages", "migrate_pages"),
    *("@clock", "@cpu-emulation", "@module", "@obsolete", "@raw-io", "@reboot", "@swap"),
)
"""Beyond what nspawn itself denies.  None of them is missed by a systemd guest; each has been a way out of
a container, or would be one into the kernel's rarely used parts."""

QUIET: Final = (
    "systemd.show_status=error",
    *("systemd.mask=console-getty.service", "systemd.mask=getty.target"),
    # They would take the addresses off that the daemon gave the link, or wait for what never comes.
    *("systemd.mask=systemd-networkd.service", "systemd.mask=systemd-networkd.socket"),
    "systemd.mask=systemd-networkd-wait-online.service",
    *("systemd.mask=apt-daily.timer", "systemd.mask=apt-daily-upgrade.timer"),
)
"""Arguments of a tree's systemd: the console is the log of the machine, nobody logs in there."""

_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9/._+@=~,-]*\Z")
_CLOSURE_LINE: Final = re.compile(r"^Parameters=(/nix/store/[^/\s]+)/", re.MULTILINE)
_DIGEST_LINE: Final = re.compile(r"^# digest=([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sources:
    """The host's files that a machine sees.  Each must exist when it starts."""

    run: Path
    """The agent's directory of sockets."""
    state: Path
    claude: Path
    harness: Path
    """The installation that is bound to /opt/hyperhive."""
    unit: Path
    """The rendered unit of the harness."""
    config: Path | None = None
    """What was proposed for the agent."""
    configs: Path | None = None
    """The manager's: the proposals of all, what was applied, the flake of the hive."""
    applied: Path | None = None
    meta: Path | None = None
    release: Path | None = None
    """What was deployed of the agent."""
    binds: tuple[Mount, ...] = ()
    """What its agent.toml asks for, and an operator approved."""


def unit_name(machine: str) -> str:
    return f"systemd-nspawn@{machine}.service"


def settings_path(machine: str) -> Path:
    return SETTINGS_DIR / f"{machine}.nspawn"


def admin_settings_path(machine: str) -> Path:
    return ADMIN_SETTINGS_DIR / f"{machine}.nspawn"


def drop_in_path(machine: str) -> Path:
    return UNIT_DIR / f"{unit_name(machine)}.d" / "50-hive.conf"


def state_path(cage: Cage) -> str:
    """Where the agent finds its state, inside."""
    return "/state" if cage.is_manager else f"/agents/{cage.agent}/state"


def machine_id(cage: Cage, hive: str) -> str:
    """Give the machine's id: the same at every start, and another one in another hive of the same host.

    It has the form of a random UUID, which systemd demands of an id that comes from outside.
    """
    digits = list(hashlib.sha256(f"hyperhive machine\0{hive}\0{cage.machine}".encode()).hexdigest()[:32])
    digits[12] = "4"
    digits[16] = "89ab"[int(digits[16], 16) & 3]
    return "".join(digits)


def render_settings(cage: Cage, image: Image, sources: Sources, hive: str = "") -> str:
    """Give the machine's .nspawn file, without the lines that sign it.

    *hive* is the hive's own name, or anything else that tells two hives of one host apart.

    Raises:
        CannotStart: a path has a character that nspawn would read as syntax of its own.
    """
    sections = {
        "Exec": _exec(cage, image, hive),
        "Files": _files(cage, image, sources),
        "Network": [
            ("Private", "yes"),
            ("VirtualEthernet", "yes" if cage.network is Network.VETH else "no"),
        ],
    }
    return "\n".join(
        "".join([f"[{name}]\n", *(f"{key}={value}\n" for key, value in entries)])
        for name, entries in sections.items()
    )


def render_drop_in(cage: Cage, interpreter: Path) -> str:
    """Give the drop-in of the machine's unit.

    *interpreter* is a Python of the host that can import hive_core; it seals the machine (host/seal.py)
    before the unit counts as started.

    Raises:
        CannotStart: the interpreter's path has a character that systemd would read as syntax of its own.
    """
    python = _plain(cage, interpreter)
    return f"""\
# Written by hive-core for agent {cage.agent}.
[Unit]
# The daemon counts starts itself; five in ten seconds, systemd's limit, would only stop an operator.
StartLimitIntervalSec=0

[Service]
Slice=machine-hive.slice
# systemd would start a machine that reboots itself anew, with whatever it has written into its root.
RestartForceExitStatus=
# nspawn looks into the root for the version of systemd and finds none: the image is mounted later.
Environment=SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
ExecStartPost={python} -I -m hive_core.host.seal $MAINPID {cage.uid_base} {kept_mask():x}
TimeoutStopSec=30
OOMPolicy=continue
# When the host runs short of memory, agents go before its own services.
OOMScoreAdjust=200
# What a machine writes to its console is kept in the host's journal.
LogRateLimitIntervalSec=30s
LogRateLimitBurst=3000
SystemCallArchitectures=native
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
DevicePolicy=closed
DeviceAllow=
DeviceAllow=char-pts rw
"""


def kept_mask() -> int:
    """The kept capabilities as the kernel writes them."""
    return sum(1 << number for number in KEPT.values())


def render_guest_unit() -> str:
    """Give the unit of the harness, as a tree machine sees it: systemd/hive-agent.service.

    It is the same for all agents; /run/hive/environment says which one this is.
    """
    return f"""\
# The harness of an agent, in its machine.  hive-core renders this file and binds it in, with the programs
# at {HARNESS} and what tells this agent from others at /run/hive: the image needs nothing of ours.
[Unit]
Description=hyperhive: the harness of this machine's agent
StartLimitIntervalSec=0

[Service]
Type=exec
EnvironmentFile=/run/hive/environment
Environment=HOME=/root
Environment=PATH={HARNESS}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# -I: nothing is imported from a directory that the agent can write.
ExecStart={HARNESS}/bin/python3 -I -m hive_agent serve \\
    --provider ${{HIVE_PROVIDER}} --lock /run/hive-agent/harness.lock
WorkingDirectory=/root
RuntimeDirectory=hive-agent
RuntimeDirectoryMode=0700
# A turn's processes get as long as the harness gives them.
TimeoutStopSec=20
KillMode=mixed
Restart=always
RestartSec=1
OOMPolicy=continue
StandardOutput=journal+console
StandardError=journal+console

# What the model's tools can do, too.  Root of the machine could ask its systemd for more: the machine is
# the wall, this is the fence in front of it.
NoNewPrivileges=yes
CapabilityBoundingSet={" ".join(f"CAP_{name}" for name in sorted(KEPT.keys() - {"SYS_ADMIN"}))}
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def digest(*texts: str) -> str:
    """Give a hash of *texts*: with another one, a running machine is not as it would be started now."""
    hashed = hashlib.sha256()
    for text in texts:
        hashed.update(f"{len(text)}:{text}".encode())
    return hashed.hexdigest()


def signed(agent: str, text: str, digest: str) -> str:
    """Give the settings *text* as it is written: who wrote it, and what a machine started with it is like."""
    return f"# Written by hive-core for agent {agent}.\n# digest={digest}\n{text}"


NO_DIGEST: Final = "0" * 64
"""Of a machine that is neither as before nor as it is to be."""


def read_digest(text: str) -> str | None:
    """Give the digest that a written file was signed with."""
    match = _DIGEST_LINE.search(text)
    return match[1] if match else None


def with_digest(text: str, digest: str) -> str:
    """Give the written settings *text* with another digest."""
    return _DIGEST_LINE.sub(f"# digest={digest}", text, count=1)


def read_closure(text: str) -> str | None:
    """Give the closure that a machine of written settings starts; None: it starts none."""
    match = _CLOSURE_LINE.search(text)
    return match[1] if match else None


def _exec(cage: Cage, image: Image, hive: str) -> Iterable[tuple[str, str]]:
    if image.kind is Kind.TREE:
        yield "Boot", "yes"
        yield "Parameters", " ".join(QUIET)
    else:
        # Overrides the --boot of the unit's template.
        yield "Boot", "no"
        yield "Parameters", f"{_plain(cage, image.path)}/{image.init}"
    yield "Hostname", cage.agent
    yield "MachineID", machine_id(cage, hive)
    yield "PrivateUsers", f"{cage.uid_base}:{UID_RANGE}"
    yield "NotifyReady", "yes"
    # Without Boot=yes there is no default, and a stop would end in SIGKILL.
    yield "KillSignal", "SIGRTMIN+3"
    yield "DropCapability", " ".join(f"CAP_{name}" for name in DROPPED)
    yield "SystemCallFilter", "~" + " ".join(DENIED_CALLS)
    yield "LinkJournal", "no"
    yield "Timezone", "off"
    # machine_root.py writes it, where there is a network.
    yield "ResolvConf", "off"


def _files(cage: Cage, image: Image, sources: Sources) -> Iterable[tuple[str, str]]:
    def bind(source: Path, target: str, *, options: str = "") -> tuple[str, str]:
        return "BindReadOnly", f"{_plain(cage, source)}:{target}{options}"

    def writable(source: Path, target: str) -> tuple[str, str]:
        return "Bind", f"{_plain(cage, source)}:{target}"

    yield "ReadOnly", "no"
    yield "Volatile", "no"
    # The root was made for this uid range; neither nspawn's chown nor its id-map is wanted.
    yield "PrivateUsersOwnership", "off"
    yield "TemporaryFileSystem", "/tmp:mode=1777,nosuid,size=25%"  # noqa: S108
    if image.kind is Kind.TREE:
        yield bind(image.path, IMAGE_INSIDE, options=":idmap,norbind")
        for name in image.directories:
            upper = _plain(cage, upper_dir(MACHINES_DIR, cage.machine) / name)
            yield "Overlay", f"+{IMAGE_INSIDE}/{name}:{upper}:/{name}"
        yield bind(sources.harness, HARNESS, options=":norbind")
        yield bind(sources.unit, GUEST_UNIT)
    if image.kind is not Kind.TREE or sources.harness.is_relative_to(NIX_STORE):
        # What a harness of the store runs with is in there, too.
        yield bind(NIX_STORE, "/nix/store", options=":idmap,norbind")
    yield bind(sources.run, "/run/hive", options=":norbind")
    yield writable(sources.state, state_path(cage))
    yield writable(sources.claude, "/root/.claude")
    if cage.is_manager:
        if sources.configs is not None:
            yield writable(sources.configs, "/agents")
        if sources.applied is not None:
            yield bind(sources.applied, "/applied")
        if sources.meta is not None:
            yield bind(sources.meta, "/meta")
    elif sources.config is not None:
        yield bind(sources.config, f"/agents/{cage.agent}/config")
    if sources.release is not None:
        yield bind(sources.release, RELEASE, options=":norbind")
    for mount in sources.binds:
        key = "Bind" if mount.writable else "BindReadOnly"
        yield key, f"{_plain(cage, mount.source)}:{_plain(cage, Path(mount.path))}:{mount.options}"


def _plain(cage: Cage, path: Path) -> str:
    text = str(path)
    if _PLAIN_PATH.match(text) is None or ".." in path.parts:
        raise CannotStart(
            f"cannot start {cage.agent}: the path {text[:200]!r} has characters that systemd reads as syntax;"
            " use one of letters, digits and / . _ + @ = ~ , - only"
        )
    return text

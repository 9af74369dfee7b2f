"""Looks at what this host has, for the doctor to judge.  It changes nothing, and nothing it meets ends it."""

import grp
import json
import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from hive_core.config import Config
from hive_core.domain.cage import CannotStart
from hive_core.domain.machine_names import MachineNames
from hive_core.host import git, nix_survey, process
from hive_core.host.images import MACHINES_DIR, Images
from hive_core.host.netlink import TABLE as OWN_TABLE
from hive_core.host.nix_survey import SeenNix

DEADLINE_S: Final = 10.0
MAX_OUTPUT_BYTES: Final = 64 * 1024
PROGRAMS: Final = ("systemd-nspawn", "machinectl", "systemctl", "systemd-run", "busctl", "journalctl")
USERS: Final = (git.USER, "hive-nix")
RUN_DIR: Final = "/run/hyperhive"
STATE_DIR: Final = "/var/lib/hyperhive"
IMAGES_DIR: Final = str(MACHINES_DIR)

_VERSION_OF_HARNESS: Final = (
    "import sys, hive_agent; from hive_core.wire.version import VERSION; sys.stdout.write(VERSION)"
)


@dataclass(frozen=True, kw_only=True)
class SeenImage:
    name: str
    problem: str | None
    """Why no machine runs from it."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """What was seen; None where it could not be."""

    systemd: int | None
    """Its version."""
    booted_by_systemd: bool
    missing_programs: tuple[str, ...]
    nft: bool
    machined: str | None
    """Why it does not answer; None when it does."""
    cgroup2: bool
    controllers: frozenset[str]
    max_user_namespaces: int | None
    inotify_instances: int | None
    """Of one user, and all machines count as root."""
    images_dir: str
    images_fs: str | None
    idmap: str
    """`yes`, `no` or `unknown: WHY`."""
    seccomp: bool
    """Both the kernel and systemd can filter system calls."""
    unit_loaded: bool | None
    unit_state: str
    run_dir_preserved: bool
    """By the unit, or because the unit has no say in it."""
    run_dir: str
    run_dir_mode: int | None
    run_dir_owner: int | None
    group_members: tuple[str, ...] | None
    missing_users: tuple[str, ...]
    """Of those that the hive runs programs as."""
    git: str | None
    """Its version."""
    state_dir: str
    free_bytes: int | None
    harness_dir: str
    harness_version: str | None
    harness_problem: str
    images: tuple[SeenImage, ...] | None
    shadowing: tuple[str, ...]
    """Settings in /etc for machines of ours."""
    taken_uids: tuple[tuple[str, int, int], ...]
    """Who has uids besides us: a name, the first and how many."""
    ip_forward: bool
    forward_drops: tuple[str, ...]
    """Chains that others have for what is forwarded, and that drop what they do not know."""
    docker: bool
    """One of the chains is Docker's."""
    veth_links: bool
    """A machine of ours has one now."""
    nix: SeenNix | None = None
    """None where the hive builds without it."""


async def look(config: Config, root: Path = Path("/")) -> Host:
    """Look at this host; *root* is where its files are."""
    run_dir, state_dir = config.run_dir or RUN_DIR, config.state_dir or STATE_DIR
    harness_dir = config.machines.harness_dir or sys.prefix
    in_thread = trio.to_thread.run_sync
    harness = await _say(f"{harness_dir}/bin/python3", "-I", "-c", _VERSION_OF_HARNESS)
    unit = await _show_unit("LoadState", "ActiveState", "RuntimeDirectory", "RuntimeDirectoryPreserve")
    preserves = unit.get("RuntimeDirectoryPreserve") != "no" or not unit.get("RuntimeDirectory")
    mode, owner = _mode(root / run_dir.lstrip("/"))
    idmap = await _probe_idmap()
    systemd = (await _say("systemctl", "--version")).text
    nft = shutil.which("nft", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    chains = _chains((await _say(nft, "-j", "list", "chains")).text) if nft is not None else []
    names = MachineNames(config.machines.prefix)
    return Host(
        systemd=_version(systemd),
        booted_by_systemd=(root / "run/systemd/system").is_dir(),
        missing_programs=tuple(name for name in PROGRAMS if shutil.which(name) is None),
        nft=nft is not None,
        machined=(await _ping_machined()).problem,
        cgroup2=_is_cgroup2(root / "sys/fs/cgroup"),
        controllers=frozenset((_read(root / "sys/fs/cgroup/cgroup.controllers") or "").split()),
        max_user_namespaces=_number(root / "proc/sys/user/max_user_namespaces"),
        inotify_instances=_number(root / "proc/sys/fs/inotify/max_user_instances"),
        images_dir=IMAGES_DIR,
        images_fs=_file_system(root, IMAGES_DIR),
        idmap=idmap,
        seccomp="+SECCOMP" in systemd.split() and (root / "proc/sys/kernel/seccomp").is_dir(),
        unit_loaded=None if not unit else unit.get("LoadState") == "loaded",
        unit_state=unit.get("ActiveState", ""),
        run_dir_preserved=preserves,
        run_dir=run_dir,
        run_dir_mode=mode,
        run_dir_owner=owner,
        group_members=await in_thread(_members, config.admin_group),
        missing_users=await in_thread(_missing_users),
        git=(await _say("git", "--version")).text.strip().removeprefix("git version ") or None,
        state_dir=state_dir,
        free_bytes=_free_bytes(root / state_dir.lstrip("/")),
        harness_dir=harness_dir,
        harness_version=harness.text if harness.problem is None else None,
        harness_problem=harness.problem or "",
        images=await in_thread(_images, config, Path(harness_dir)),
        shadowing=tuple(
            str(path)
            for path in sorted((root / "etc/systemd/nspawn").glob("*.nspawn"))
            if names.covers(path.stem)
        ),
        taken_uids=await in_thread(_taken_uids, root),
        ip_forward=_number(root / "proc/sys/net/ipv4/ip_forward") == 1,
        forward_drops=tuple(_drops(chain) for chain in chains if _is_dropping(chain)),
        docker=any(chain.get("name") == "DOCKER-USER" for chain in chains),
        veth_links=any(
            names.covers(path.name.removeprefix("ve-")) for path in (root / "sys/class/net").glob("ve-*")
        ),
        nix=await nix_survey.look(config),
    )


# ── programs ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Said:
    text: str
    problem: str | None = None


async def _say(*argv: str) -> _Said:
    try:
        text = await process.run(argv, timeout_s=DEADLINE_S, max_output_bytes=MAX_OUTPUT_BYTES)
    except FileNotFoundError:
        return _Said("", f"there is no {argv[0]}")
    except trio.TooSlowError:
        return _Said("", f"{argv[0]} did not end in {DEADLINE_S:g} s")
    except (OSError, process.CommandError) as error:
        return _Said("", " ".join(str(error).split())[-300:])
    return _Said(text.decode(errors="replace"))


async def _probe_idmap() -> str:
    probe = (sys.executable, "-I", "-m", "hive_core.host.idmap_probe", IMAGES_DIR)
    said = await _say(*probe)
    if said.problem is None and said.text.startswith(("yes", "no")):
        return said.text.strip()
    # hive-core.service may not make a user namespace; a unit of its own may.
    again = await _say(
        *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--property=RuntimeMaxSec=5"),
        *("--property=ProtectSystem=strict", "--property=PrivateNetwork=yes", "--", *probe),
    )
    if again.problem is None and again.text:
        return again.text.strip()
    return said.text.strip() if said.problem is None else f"unknown: {said.problem}"


async def _ping_machined() -> _Said:
    said = await _say(
        *("busctl", "--timeout=5", "call", "org.freedesktop.machine1", "/org/freedesktop/machine1"),
        *("org.freedesktop.DBus.Peer", "Ping"),
    )
    return _Said(said.text, said.problem and said.problem.rpartition("Ping: ")[2])


async def _show_unit(*names: str) -> dict[str, str]:
    said = await _say("systemctl", "show", "hive-core.service", *(f"--property={name}" for name in names))
    return dict(line.split("=", 1) for line in said.text.splitlines() if "=" in line)


def _chains(said: str) -> list[dict[str, object]]:
    """Read what `nft -j list chains` says; nothing when it may not be asked."""
    try:
        items = json.loads(said)["nftables"]
        return [item["chain"] for item in items if isinstance(item.get("chain"), dict)]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []


def _is_dropping(chain: Mapping[str, object]) -> bool:
    """An accept elsewhere does not help against it: a packet has to get through every chain."""
    forwards = chain.get("hook") == "forward" and chain.get("table") != OWN_TABLE
    # Older ones of firewalld accept by policy, and reject in their last rule.
    return forwards and (chain.get("policy") == "drop" or chain.get("table") == "firewalld")


def _drops(chain: Mapping[str, object]) -> str:
    return f"{chain.get('family')} {chain.get('table')} {chain.get('name')}"


def _version(text: str) -> int | None:
    words = text.split()
    return int(words[1]) if len(words) > 1 and words[0] == "systemd" and words[1].isdigit() else None


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.isdigit() else None


def _is_cgroup2(path: Path) -> bool:
    return (path / "cgroup.controllers").exists()


def _file_system(root: Path, directory: str) -> str | None:
    """Give the type of the file system that *directory* is on, from the table of mounts."""
    best, kind = "", None
    for line in (_read(root / "proc/self/mounts") or "").splitlines():
        _, where, what, *_ = line.split(" ")
        if Path(directory).is_relative_to(where) and len(where) >= len(best):
            best, kind = where, what
    return kind


def _mode(path: Path) -> tuple[int | None, int | None]:
    try:
        found = path.stat()
    except OSError:
        return None, None
    return found.st_mode & 0o7777, found.st_uid


def _free_bytes(path: Path) -> int | None:
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _members(group: str) -> tuple[str, ...] | None:
    try:
        found = grp.getgrnam(group)
    except (KeyError, OSError):
        return None
    primary = [user.pw_name for user in pwd.getpwall() if user.pw_gid == found.gr_gid]
    return tuple(sorted({*found.gr_mem, *primary}))


def _missing_users() -> tuple[str, ...]:
    missing = []
    for name in USERS:
        try:
            process.find_user(name)
        except OSError:
            missing.append(name)
    return tuple(missing)


def _images(config: Config, harness: Path) -> tuple[SeenImage, ...] | None:
    known = Images(harness=harness, prefix=config.machines.prefix)
    try:
        names = {image.name for image in known.list()}
        if config.machines.image:
            names.add(config.machines.image)
        return tuple(SeenImage(name=name, problem=_problem(known, name)) for name in sorted(names))
    except OSError:
        return None


def _problem(known: Images, name: str) -> str | None:
    try:
        known.resolve(name)
    except CannotStart as error:
        return str(error).partition(": ")[2]
    return None


def _taken_uids(root: Path) -> tuple[tuple[str, int, int], ...]:
    taken = [(f"the user {user.pw_name}", user.pw_uid, 1) for user in pwd.getpwall()]
    taken += [(f"the group {group.gr_name}", group.gr_gid, 1) for group in grp.getgrall()]
    for name in ("subuid", "subgid"):
        for line in (_read(root / "etc" / name) or "").splitlines():
            owner, *numbers = line.split(":")
            with suppress(ValueError):
                first, count = map(int, numbers)
                taken.append((f"{owner} in /etc/{name}", first, count))
    return tuple(taken)

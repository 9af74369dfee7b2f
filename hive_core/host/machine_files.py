"""Writes what systemd and a machine's harness read of it, each file at once or not at all."""

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hive_core.domain.cage import Cage, CannotStart
from hive_core.host import nspawn

_USERS: Final = re.compile(r"^PrivateUsers=(\d{1,10}):", re.MULTILINE)
_LINKED: Final = re.compile(r"^VirtualEthernet=yes$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Everything that is written of one machine."""

    settings: str
    """Signed."""
    drop_in: str
    guest_unit: str
    environment: str
    digest: str


def write(cage: Cage, rendered: Rendered, run_dir: Path) -> bool:
    """Write *rendered*; *run_dir* is the agent's.  Says whether the drop-in is another one than before.

    Raises:
        OSError: a file cannot be written.
    """
    replace(run_dir / "hive-agent.service", rendered.guest_unit, mode=0o644)
    replace(run_dir / "environment", rendered.environment, mode=0o600, owner=cage.uid_base)
    drop_in = nspawn.drop_in_path(cage.machine)
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    changed = _read(drop_in) != rendered.drop_in
    if changed:
        replace(drop_in, rendered.drop_in, mode=0o644)
    # Last: it says that the machine is ours.
    settings = nspawn.settings_path(cage.machine)
    settings.parent.mkdir(parents=True, exist_ok=True)
    replace(settings, rendered.settings, mode=0o644)
    return changed


def check_unshadowed(cage: Cage) -> None:
    """Refuse a machine whose settings would not be the ones we write.

    Raises:
        CannotStart: it has others, in a place that nspawn looks into first.
    """
    other = nspawn.admin_settings_path(cage.machine)
    if os.path.lexists(other):
        raise CannotStart(
            f"cannot start {cage.agent}: {other} would win over the settings that the hive writes; remove it"
        )


def check_owner(cage: Cage, *directories: Path) -> None:
    """Refuse directories of the agent that are not its machine's.

    Raises:
        CannotStart: one is missing, or somebody else's.
    """
    for path in directories:
        try:
            seen = path.lstat()
        except OSError as error:
            raise CannotStart(f"cannot start {cage.agent}: {path}: {error.strerror}") from None
        if not stat.S_ISDIR(seen.st_mode):
            raise CannotStart(f"cannot start {cage.agent}: {path} is no directory")
        if seen.st_uid != cage.uid_base:
            raise CannotStart(
                f"cannot start {cage.agent}: {path} belongs to uid {seen.st_uid}, and its machine's root is"
                f" {cage.uid_base}: chown -hR {cage.uid_base}:{cage.uid_base} {path}"
            )


def applied_digest(machine: str, agent: str) -> str | None:
    """Give the digest that the settings of *machine* are signed with, None if they are not *agent*'s."""
    text = _read(nspawn.settings_path(machine))
    digest = nspawn.read_digest(text) if text is not None else None
    if text is None or digest is None or not text.startswith(nspawn.signed(agent, "", digest)):
        return None
    return digest


def forget_digest(machine: str) -> None:
    """Let nobody take *machine* for what it was started as: it is being changed.

    Raises:
        OSError: it cannot be noted.
    """
    path = nspawn.settings_path(machine)
    text = _read(path)
    if text is not None:
        replace(path, nspawn.with_digest(text, nspawn.NO_DIGEST), mode=0o644)


def closure(machine: str) -> str | None:
    """Give the closure that *machine* was started from, or brought to; None: from a tree."""
    return nspawn.read_closure(_read(nspawn.settings_path(machine)) or "")


def linked_uid_base(machine: str) -> int | None:
    """Give the first uid of a *machine* that was started with a link to the outside; None: with none."""
    text = _read(nspawn.settings_path(machine)) or ""
    users = _USERS.search(text)
    return int(users[1]) if users is not None and _LINKED.search(text) else None


def remove(machine: str, run_dir: Path) -> None:
    """Remove what `write` wrote, but for the drop-in, which is systemd's to remove.

    Raises:
        OSError: a file cannot be removed.
    """
    ours = ("hive-agent.service", "environment", "resolv.conf", "extra-mcp.json")
    for path in (nspawn.settings_path(machine), *(run_dir / name for name in ours)):
        path.unlink(missing_ok=True)


def replace(path: Path, text: str, *, mode: int, owner: int | None = None) -> None:
    """Let *path*, in a directory that is root's alone, be *text*: readers see the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            if owner is not None:
                os.fchown(file.fileno(), owner, owner)
            os.fchmod(file.fileno(), mode)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None

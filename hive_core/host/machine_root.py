"""Makes the root of a machine: a few directories and links, made anew before each start.

nspawn.py tells why it is as it is.  All of it belongs to the machine's uid range, since the machine's root
may change it as it likes; so it is written while nobody else can, and never again.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from hive_core.domain.cage import Cage

GUEST_UNIT: Final = "/etc/systemd/system/hive-agent.service"
"""Where a tree machine finds the unit of its harness."""


class Top(NamedTuple):
    """What is at the top of an image."""

    tree: Path
    directories: Sequence[str]
    """Those that get an overlay."""


def make(
    root: Path,
    uppers: Path,
    cage: Cage,
    top: Top | None,
    resolv_conf: bytes | None = None,
    *,
    with_store: bool = False,
) -> None:
    """Make *root* and *uppers*, which are not there; *top* is None for a machine without a tree.

    *with_store*: a machine with a tree gets the host's /nix/store, too; without one it does always.

    *resolv_conf* says who knows the names of the network, if there is one.  nspawn cannot say it: it writes
    that file before there is an /etc.

    Raises:
        OSError: the disk is full, or read-only.
    """
    _make(uppers)
    _make(root)
    # nspawn starts nothing from a root without these.
    for directory in ("usr", "usr/lib", "etc"):
        _make(root / directory)
    _write(root / "usr/lib/os-release", "")
    etc = root / "etc"
    own: tuple[str, ...] = ("state", "agents") if cage.is_manager else ("agents", f"agents/{cage.agent}")
    if top is None or with_store:
        # A closure makes the rest of its root by itself, /nix/var too.
        own += ("nix", "nix/store")
    if top is not None:
        _copy_top(top, root, uppers, besides=own)
        if with_store and "nix" in top.directories:
            _make(uppers / "nix/store")
        _make(uppers / "etc")
        etc = uppers / "etc"
        # Empty: systemd takes the id that nspawn has for it, and not the image's, which all machines share.
        _write(etc / "machine-id", "")
        _link_harness(etc)
    if resolv_conf is not None:
        (etc / "resolv.conf").write_bytes(resolv_conf)
        (etc / "resolv.conf").chmod(0o644)
    # Where binds go: nspawn would make them too, but as nobody's.
    for directory in own:
        _make(root / directory)
    _write(etc / "hostname", f"{cage.agent}\n")
    _write(etc / "hosts", f"127.0.0.1 localhost {cage.agent}\n::1 localhost ip6-localhost\n")
    if os.geteuid() == 0:  # else a test's
        _give(root, cage.uid_base)
        _give(uppers, cage.uid_base)


def _copy_top(top: Top, root: Path, uppers: Path, besides: Sequence[str]) -> None:
    """Give *root* the directories and links at the top of the image, and each of the former an upper.

    An overlay shows the mode and the owner of its upper directory.  No link gets a name of *besides*: who
    makes directories there would make them where it leads to, on the host.
    """
    for name in top.directories:
        mode = stat.S_IMODE((top.tree / name).stat().st_mode) & 0o1777
        _make(uppers / name, mode)
        _make(root / name, mode)
    for entry in top.tree.iterdir():
        if entry.is_symlink() and entry.name not in besides and not os.path.lexists(root / entry.name):
            (root / entry.name).symlink_to(entry.readlink())


def _link_harness(etc: Path) -> None:
    """Have the harness started; its unit is bound in."""
    directory = etc
    for name in ("systemd", "system", "multi-user.target.wants"):
        directory /= name
        _make(directory)
    (directory / Path(GUEST_UNIT).name).symlink_to(GUEST_UNIT)


def _make(path: Path, mode: int = 0o755) -> None:
    path.mkdir(exist_ok=True)
    path.chmod(mode)  # whatever our umask is


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def _give(top: Path, uid: int) -> None:
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            os.chown(Path(directory, name), uid, uid, follow_symlinks=False)
    os.chown(top, uid, uid)

"""Makes images: out of the packages of Debian, out of a directory, out of a tar file.

A tree is put together under a name that nobody starts from and gets its own when it is whole.  What a
builder left that was killed, the next one takes away.
"""

import fcntl
import os
import secrets
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from hive_core.domain.cage import CannotStart
from hive_core.host import process

BUILD_S: Final = 1800.0
MAX_LINE_BYTES: Final = 2000

OWN_PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
DEBIAN_OF_PYTHON: Final = {"3.11": "bookworm", "3.13": "trixie"}
PACKAGES: Final = (
    *("systemd", "systemd-sysv", "dbus"),  # what makes it a machine
    "python3",  # the harness runs with it
    *("ca-certificates", "curl", "git", "iproute2", "less", "procps"),  # what agents ask for first
)
UNNEEDED: Final = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")


class NoImage(CannotStart):
    """There is no such image, or it cannot be made or changed like that.  The text says what to do."""


async def build_debian(
    own_dir: Path,
    target: Path,
    *,
    python: str,
    include: Sequence[str],
    progress: Callable[[str], None],
) -> None:
    """Build the Debian that has *python* as *target*; *own_dir* is on the same file system.

    Raises:
        NoImage: no Debian has that Python, mmdebstrap is missing or failed.
        OSError, trio.TooSlowError: it cannot be built.
    """
    cannot = f"cannot build image {target.name}"
    suite = DEBIAN_OF_PYTHON.get(python)
    if suite is None:
        raise NoImage(
            f"{cannot}: no Debian release has Python {python}, with which hyperhive runs here;"
            " make a tree that has it and take it in with: hive image add"
        )
    if shutil.which("mmdebstrap") is None:
        raise NoImage(f"{cannot}: mmdebstrap is not installed; on Debian and Ubuntu: apt install mmdebstrap")
    for package in include:
        if not package or not package[0].isalnum() or not package.isascii() or set(package) & set(", \t\n:/"):
            raise NoImage(f"{cannot}: {package[:80]!r} is no name of a package")
    with _building(own_dir, target, cannot) as tree:
        argv = [
            *("mmdebstrap", "--mode=root", "--variant=minbase"),
            f"--include={','.join((*PACKAGES, *include))}",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in UNNEEDED),
            *(suite, str(tree)),
        ]
        await _narrated(argv, cannot, progress)
        # Each machine has a name, an id and a way to names of hosts of its own.
        for name in ("hostname", "resolv.conf", "machine-id"):
            (tree / "etc" / name).unlink(missing_ok=True)
        (tree / "etc/machine-id").touch(0o444)


async def add(own_dir: Path, target: Path, source: Path) -> None:
    """Copy the directory or tar file *source* in as *target*; *own_dir* is on the same file system.

    By cp and tar and not by importd: that one reads fewer formats, and gives the tree its name before
    anybody could look at it.

    Raises:
        NoImage: it is no tree of an operating system, or is not there.
        CommandError, OSError, trio.TooSlowError: it cannot be copied.
    """
    cannot = f"cannot add image {target.name}"
    source = source.absolute()
    if source.is_dir():
        argv = ["cp", "-a", "--reflink=auto", "--one-file-system", "--", f"{source}/."]
    elif source.is_file():
        argv = [
            "tar",
            "--extract",
            "--numeric-owner",
            "--preserve-permissions",
            "--xattrs",
            f"--file={source}",
        ]
        argv += ["--force-local", "--directory"]
    else:
        raise NoImage(f"{cannot}: {source} is neither a directory nor a tar file")
    with _building(own_dir, target, cannot) as tree:
        try:
            await process.run([*argv, str(tree)], timeout_s=BUILD_S, max_output_bytes=MAX_LINE_BYTES)
        except process.CommandError as error:
            raise NoImage(f"{cannot}: {error}") from None


@contextmanager
def _building(own_dir: Path, target: Path, cannot: str) -> Iterator[Path]:
    """Give a fresh directory; when the block went well, and what is in it is a tree, it becomes *target*."""
    own_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (own_dir / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NoImage(f"{cannot}: another image is being made; wait for it") from None
        for left in own_dir.glob(".build-*"):
            left.rename(own_dir / f".trash-{secrets.token_hex(8)}")
        tree = own_dir / f".build-{secrets.token_hex(8)}"
        tree.mkdir()
        try:
            yield tree
            usr = tree / "usr"
            if usr.is_symlink() or not usr.is_dir():
                raise NoImage(f"{cannot}: it has no /usr directory, so it is no tree of an operating system")
            tree.chmod(0o755)  # machines see it as their root directory's mode, whatever our umask is
            if os.path.lexists(target):
                raise NoImage(f"{cannot}: there is one by now")
            tree.rename(target)
        except BaseException:
            tree.rename(own_dir / f".trash-{secrets.token_hex(8)}")
            raise


async def _narrated(argv: Sequence[str], cannot: str, progress: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=3)
    with trio.fail_after(BUILD_S):
        async with process.open_lines(argv, max_line_bytes=MAX_LINE_BYTES, with_stderr=True) as lines:
            while batch := await lines.receive():
                for line in batch:
                    text = "".join(char for char in line.decode(errors="replace") if char.isprintable())
                    if text:
                        last.append(text)
                        progress(text)
            end = await lines.end()
    if end != "exit status 0":
        raise NoImage(f"{cannot}: {argv[0]}: {end}: {' / '.join(last)}")

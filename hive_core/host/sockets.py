"""Unix sockets that others connect to, and the lock that keeps two daemons off one home."""

import fcntl
import grp
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hive_core.wire.unix import short_address

BACKLOG: Final = 1024
RUN_DIR_MODE: Final = 0o751


class AlreadyServed(Exception):
    """Another daemon holds this home.  The text names it."""


def bind_unix(path: Path, *, mode: int, uid: int | None = None, gid: int | None = None) -> socket.socket:
    """Listen at *path* with *mode*, owner *uid* and group *gid*, in place of what a dead daemon left there.

    The socket appears under its name only when its mode is right: clients never see it otherwise, and
    a name that is in use goes over to the new socket at once.

    Raises:
        OSError: the directory is missing or may not be written.
    """
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with short_address(fresh) as address:
            listener.bind(address)
        if uid is not None or gid is not None:
            os.chown(fresh, -1 if uid is None else uid, -1 if gid is None else gid, follow_symlinks=False)
        fresh.chmod(mode)
        listener.listen(BACKLOG)
        fresh.replace(path)
    except BaseException:
        listener.close()
        fresh.unlink(missing_ok=True)
        raise
    return listener


def is_listening_at(listener: socket.socket, path: Path) -> bool:
    """Whether *listener*, which somebody else opened, is what clients reach at *path*."""
    return (
        listener.family is socket.AF_UNIX
        and bool(listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        and listener.getsockname() == str(path)
    )


def usable_group(name: str) -> int | None:
    """Give the gid of group *name*, or None if there is no such group or we may not give files to it."""
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        return None
    return gid if os.geteuid() == 0 or gid in {os.getegid(), *os.getgroups()} else None


@contextmanager
def only_daemon(state_dir: Path) -> Iterator[None]:
    """Hold the lock of *state_dir* inside the block.  The kernel lets go of it however the daemon ends.

    Raises:
        AlreadyServed: another daemon holds it.
        OSError: the lock file cannot be made.
    """
    path = state_dir / "hive-core.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            raise AlreadyServed(
                f"cannot serve {state_dir}: another hive-core (pid {pid}) serves it already; "
                "stop it first, or choose another --home"
            ) from None
        os.truncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)

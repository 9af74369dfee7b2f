"""One harness per agent.

The lock is a POSIX record lock, so that the daemon can see who holds it (F_GETLK) without asking, and
so that the kernel drops it however this process ends.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

# struct flock of 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid.
_FLOCK: Final = "@hhqqi"


class Held(Exception):
    """Another process holds the lock."""


class LockFailed(Exception):
    """The file cannot be locked at all."""


def take(path: Path) -> int:
    """Lock *path* for the life of this process, creating it when it is missing.

    Gives the open descriptor.  POSIX drops the lock when this process closes *any* descriptor of the
    file: nothing else may open it here.

    Raises:
        Held: another process has it.
        LockFailed: the file cannot be made.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LockFailed(f"the lock {path} cannot be opened: {error.strerror}") from None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        held = Held(f"another harness of this agent runs already{_holder(fd)}")
        os.close(fd)
        raise held from None
    return fd


def _holder(fd: int) -> str:
    """Name who holds the lock; empty when it has just let go, or lives in a pid namespace unseen here."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, wanted))
    return f" (pid {pid})" if kind != fcntl.F_UNLCK and pid > 0 else ""

"""What a child does to itself before it looks at anything of an agent's.

Import all that is needed before `enter`: afterwards there may be nothing to import from.
"""

import ctypes
import os
import resource
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38


def limit_myself(cpu_s: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_AS, 512 * 2**20),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def enter(directory: str | os.PathLike[str], uid: int | None = None, gid: int | None = None) -> str | None:
    """Go into *directory*, as user *uid* if it says one, and give its new name; None: there is none.

    Its group is *gid*, or the one with the number of *uid*: so it is in machines.

    With a uid nothing outside the directory can be named any more, whatever lies in it; SQLite could not
    even find its own file otherwise, below directories that only root may look into.

    Raises:
        OSError: it is a link or no directory, or we may not become that user.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    os.fchdir(fd)
    os.close(fd)
    if uid is None:
        return "."
    os.chroot(".")
    os.setgroups([])
    group = uid if gid is None else gid
    os.setresgid(group, group, group)
    os.setresuid(uid, uid, uid)  # and with it every capability is gone
    return "/"

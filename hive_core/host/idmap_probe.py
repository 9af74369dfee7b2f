"""Asks the kernel whether the file system of a directory can be mounted with other owners.

Run as a child, `python -I -m hive_core.host.idmap_probe PATH`, since it makes a user namespace.  Nothing
stays: the mount it makes is attached nowhere.  It prints `yes`, `no` or `unknown: WHY`.
"""

import ctypes
import errno
import os
import struct
import sys
from contextlib import suppress
from typing import Final

_CLONE_NEWUSER: Final = 0x10000000
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOUNT_ATTR_IDMAP: Final = 0x00100000
# The same on every architecture, since they are newer than the common table.
_SYS_OPEN_TREE: Final = 428
_SYS_MOUNT_SETATTR: Final = 442
_BASE: Final = 0x40000000

_libc: Final = ctypes.CDLL(None, use_errno=True)


def probe(path: str) -> str:
    """Give what main prints."""
    try:
        namespace = _user_namespace()
    except OSError as error:
        return f"unknown: no user namespace can be made: {error.strerror}"
    try:
        tree = _call(
            _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC, 0, 0
        )
    except OSError as error:
        os.close(namespace)
        return f"unknown: it cannot be opened as a mount: {error.strerror}"
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
    try:
        _call(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
    except OSError as error:
        return (
            "no"
            if error.errno in {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
            else f"unknown: {error.strerror}"
        )
    finally:
        os.close(tree)
        os.close(namespace)
    return "yes"


def _user_namespace() -> int:
    """Give a descriptor of a new user namespace whose users are 65536 from _BASE on."""
    made_read, made_write = os.pipe()
    done_read, done_write = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(OSError):
            if _libc.unshare(_CLONE_NEWUSER) == 0:
                os.write(made_write, b"1")
            os.close(made_write)
            os.close(done_write)
            os.read(done_read, 1)
        os._exit(0)
    os.close(made_write)
    os.close(done_read)
    try:
        if os.read(made_read, 1) != b"1":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        for kind in ("uid", "gid"):
            with open(f"/proc/{child}/{kind}_map", "w") as file:  # noqa: PTH123 - proc wants one write
                file.write(f"0 {_BASE} 65536")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(done_write)
        os.close(made_read)
        os.waitpid(child, 0)


def _call(number: int, *arguments: int | bytes) -> int:
    converted = [
        ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments
    ]
    result: int = _libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    sys.stdout.write(probe(sys.argv[1]) + "\n")

"""Closes a machine that has started: run by its unit, before the unit counts as started.

    python -I -m hive_core.host.seal PID-OF-NSPAWN UID-BASE CAPABILITIES

First it looks whether the machine is the cage that was declared, because a setting that this systemd does
not know is ignored by it: the user namespace and its range, a network of its own, the dropped
capabilities, the system-call filter.  Then it takes nested user namespaces away.  In one, root of the
machine would have all capabilities again, over a network and mounts of its own: that is where most ways
into the kernel begin.  No filter of nspawn can tell clone() with that flag from others, but the limit
of the machine's own user namespace holds however it is asked for, and cannot be raised from inside
without CAP_SYS_RESOURCE.

Whatever is not as it should be ends it with 1 and a sentence, and the start fails with it.  Every start
waits for it, so it imports nothing of ours and no pathlib: 20 ms instead of 30.
"""

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000
RANGE = 65536
LIMITS = {
    "/proc/sys/user/max_user_namespaces": 0,
    # The kernel charges them to the host's root too, who makes the namespaces of all machines: a program of
    # one that leaks them must not take them from the host.  A booted systemd has seven.
    "/proc/sys/user/max_inotify_instances": 256,
}
"""For each user of the machine."""


class NotAsDeclared(Exception):
    """The machine is not the cage it should be.  The text says in what."""


def main(argv: list[str]) -> int:
    try:
        nspawn, uid_base, capabilities = int(argv[0]), int(argv[1]), int(argv[2], 16)
        leader = find_leader("/proc", nspawn)
        check("/proc", leader, uid_base, capabilities)
        enter_users(leader)
        limit(LIMITS)
    except (NotAsDeclared, OSError, ValueError, IndexError) as error:
        print(f"cannot seal the machine: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def find_leader(proc: str, nspawn: int) -> int:
    """Give the init of the machine that the process *nspawn* runs."""
    children = _read(f"{proc}/{nspawn}/task/{nspawn}/children").split()
    if len(children) != 1:
        raise NotAsDeclared(f"nspawn (pid {nspawn}) has {len(children)} children where it should have one")
    return int(children[0])


def check(proc: str, leader: int, uid_base: int, capabilities: int) -> None:
    """Look at the init of the machine, process *leader*.

    Raises:
        NotAsDeclared: it can do more than it should.
        OSError: it is gone.
    """
    place = f"{proc}/{leader}"
    for kind in ("uid", "gid"):
        mapped = _read(f"{place}/{kind}_map").split()
        if mapped != ["0", str(uid_base), str(RANGE)]:
            raise NotAsDeclared(f"its {kind}s are mapped as {' '.join(mapped)}, not to {uid_base}")
    for kind in ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup"):
        if _read_link(f"{place}/ns/{kind}") == _read_link(f"{proc}/self/ns/{kind}"):
            raise NotAsDeclared(f"it shares the host's {kind} namespace")
    status = dict(line.split(":\t", 1) for line in _read(f"{place}/status").splitlines() if ":\t" in line)
    more = int(status.get("CapBnd", "-1"), 16) & ~capabilities
    if more:
        raise NotAsDeclared(f"it has capabilities that were dropped ({more:#x})")
    if status.get("Seccomp", "").strip() != "2":
        raise NotAsDeclared("no filter of system calls is in force; nspawn was built without seccomp")


def enter_users(leader: int) -> None:
    """Become root of the user namespace of the process *leader*.

    Raises:
        OSError: it could not be done.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    fd = os.open(f"/proc/{leader}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")
    finally:
        os.close(fd)


def limit(limits: dict[str, int]) -> None:
    """Set the *limits* of the user namespace that we are in: the files are those of whoever opens them.

    Raises:
        OSError, NotAsDeclared: one of them cannot be set.
    """
    for path, value in limits.items():
        with open(path, "w") as file:  # noqa: PTH123
            file.write(str(value))
        if _read(path).strip() != str(value):
            raise NotAsDeclared(f"{path} could not be set to {value}")


def _read(path: str) -> str:
    with open(path) as file:  # noqa: PTH123
        return file.read()


def _read_link(path: str) -> str:
    return os.readlink(path)  # noqa: PTH115


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Tells systemd how we are (Type=notify, WatchdogSec=), and takes the sockets that it holds for us."""

import os
import socket
from typing import Final

import sdnotify

FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START of sd-daemon.h."""


class Notifier:
    """Sends READY, STATUS, STOPPING and WATCHDOG to $NOTIFY_SOCKET; without one it does nothing."""

    def __init__(self) -> None:
        self._notifier = sdnotify.SystemdNotifier()

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to ping: twice in the time that systemd allows; None when it does not watch us."""
        usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID")
        if not usec.isdigit() or not int(usec) or (pid and pid != str(os.getpid())):
            return None
        return int(usec) / 2e6

    def ready(self, status: str) -> None:
        self._notifier.notify(f"READY=1\nSTATUS={status}")

    def reloading(self, monotonic_usec: int) -> None:
        self._notifier.notify(f"RELOADING=1\nMONOTONIC_USEC={monotonic_usec}")

    def status(self, status: str) -> None:
        self._notifier.notify(f"STATUS={status}")

    def stopping(self) -> None:
        self._notifier.notify("STOPPING=1\nSTATUS=Stopping")

    def alive(self) -> None:
        self._notifier.notify("WATCHDOG=1")


def inherited_sockets() -> dict[str, socket.socket]:
    """Take the sockets that systemd listens on for us, by their FileDescriptorName=; {} when there are none.

    To be called once and before any child is started: the sockets and what named them are not handed on.
    They do not block.

    Raises:
        ValueError: what was passed is not one socket for each name.  All of it is closed.
    """
    pid, count, names = (os.environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return {}  # said to another process, of which we are a child
    fds = range(FIRST_FD, FIRST_FD + int(count))
    labels = names.split(":") if names else ["unknown"] * len(fds)
    sockets: dict[str, socket.socket] = {}
    try:
        if len(labels) != len(fds):
            raise ValueError(f"cannot use the sockets of systemd: {len(fds)} with {len(labels)} names")
        for fd, label in zip(fds, labels, strict=True):
            if label in sockets:
                raise ValueError(f"cannot use the sockets of systemd: two are named {label!r}")
            try:
                sockets[label] = socket.socket(fileno=fd)
            except OSError as error:
                raise ValueError(f"cannot use the socket {label!r} of systemd: {error.strerror}") from None
            sockets[label].setblocking(False)
            sockets[label].set_inheritable(False)
    except BaseException:
        for taken in sockets.values():
            taken.detach()
        os.closerange(fds.start, fds.stop)
        raise
    return sockets

"""Tells systemd how we are, when it asks for it (Type=notify, WatchdogSec=)."""

import os

import sdnotify


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

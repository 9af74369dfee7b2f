"""Servers as child processes: started, watched through /proc, and stopped by their pid."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hive_core.wire.client import Client, Unreachable

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 15.0

_TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    """A server that runs."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._argv, self._log = argv, log
        environment = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)}
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=log.parent
            )
        self.pid = self._process.pid

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Wait until *ready* says so.

        Raises:
            RuntimeError: it ended, or is not ready in time; with the end of its log.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"cannot start {' '.join(self._argv)}:\n{tail}")
            time.sleep(0.002)

    def cpu_s(self) -> float:
        """Processor time that it has used, its own and the kernel's for it."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()


@contextmanager
def running(argv: Sequence[str], log: Path, ready: Callable[[], bool]) -> Iterator[Child]:
    """Run a server inside the block."""
    child = Child(argv, log)
    try:
        child.wait_for(ready)
        yield child
    finally:
        child.stop()


def python(script: str, *arguments: str | Path) -> list[str]:
    """The argv of a server that is one file of this directory and needs no package."""
    return [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / script), *map(str, arguments)]


def listens(socket: Path) -> bool:
    """Say whether a connection to *socket* is taken."""
    try:
        Client(socket, START_TIMEOUT_S).close()
    except Unreachable:
        return False
    return True


def serves(host_socket: Path) -> bool:
    """Say whether a daemon answers at *host_socket*: it listens before its agents' sockets are there."""
    try:
        with Client(host_socket, START_TIMEOUT_S) as client:
            client.ask({"cmd": "list"})
    except Unreachable:
        return False
    return True

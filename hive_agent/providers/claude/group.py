"""A process in a group of its own, none of which outlives it."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import trio

SWEEPS: Final = 20
SWEEP_PAUSE_S: Final = 0.02
UNKILLABLE_S: Final = 2.0
"""For a process that SIGKILL does not end because the kernel holds it; it is left then."""


class Group:
    """A running process, leader of its group; only `open_group` makes one."""

    def __init__(self, process: trio.Process, pidfd: int) -> None:
        self._process = process
        self._pidfd = pidfd
        self._reaped = False
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdin, self.stdout, self.stderr = process.stdin, process.stdout, process.stderr

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """Wait until the process has ended, and end what it leaves in its group.

        Gives the exit status as subprocess does.
        """
        await trio.lowlevel.wait_readable(self._pidfd)
        # Before it is reaped, its pid is nobody else's group.
        self.signal_group(signal.SIGKILL)
        self._reaped = True
        return await self._process.wait()

    def signal(self, number: int) -> None:
        """Signal the process.  Harmless when it has ended."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, number)

    def signal_group(self, number: int) -> None:
        if not self._reaped:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


@asynccontextmanager
async def open_group(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> AsyncIterator[Group]:
    """Start *argv*; at the end of the block it and its group are killed, if they still run.

    Raises:
        OSError: it cannot be started.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    pidfd = os.pidfd_open(process.pid)
    group = Group(process, pidfd)
    try:
        yield group
    finally:
        group.signal_group(signal.SIGKILL)
        with trio.move_on_after(UNKILLABLE_S, shield=True):
            await group.wait()
        with trio.CancelScope(shield=True):
            for stream in (group.stdin, group.stdout, group.stderr):
                await stream.aclose()
        os.close(pidfd)


async def sweep(mark: str) -> int:
    """Kill whatever has *mark* ("NAME=value") in its environment, however it left its parents.

    claude runs each command in a session of its own, which a killed claude leaves behind.  Gives the
    number of processes that were killed.
    """
    killed: set[int] = set()
    for _ in range(SWEEPS):
        found = _kill_marked(mark)
        if not found:
            break
        killed |= found
        await trio.sleep(SWEEP_PAUSE_S)
    return len(killed)


def _kill_marked(mark: str) -> set[int]:
    wanted = mark.encode(errors="surrogateescape")
    killed: set[int] = set()
    spared = {os.getpid(), os.getppid()}
    for name in os.listdir("/proc"):  # noqa: PTH208
        if not name.isdigit() or int(name) in spared:
            continue
        try:
            pidfd = os.pidfd_open(int(name))
        except OSError:
            continue
        try:
            # Read after the pidfd was opened: what it says is said by the process that is killed.
            if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                killed.add(int(name))
        except OSError:
            continue
        finally:
            os.close(pidfd)
    return killed

"""Run inside a bed by test_killed_starts: a daemon that is killed at one step of a machine's start."""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from hive_core.host import images, machine_files, machine_root, machinectl


def die_after(module: Any, name: str, times: int = 1) -> None:
    """Let this process be killed right after the function was called for the last of so many *times*."""
    function: Callable[..., Any] = getattr(module, name)
    left = iter(range(times - 1, -1, -1))

    def call(*args: Any, **more: Any) -> Any:
        result = function(*args, **more)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(module, name, call)


def die_after_await(module: Any, name: str, after_s: float = 30.0) -> None:
    function: Callable[..., Awaitable[Any]] = getattr(module, name)

    async def call(*args: Any, **more: Any) -> None:
        with trio.move_on_after(after_s):
            await function(*args, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(module, name, call)


STEPS: dict[str, Callable[[], None]] = {
    "uppers made": lambda: die_after(machine_root, "_make"),
    "root made": lambda: die_after(machine_root, "_make", 2),
    "root half given away": lambda: die_after(machine_root, "_give"),
    "guest unit written": lambda: die_after(machine_files, "replace"),
    "drop-in written": lambda: die_after(machine_files, "replace", 3),
    "settings written": lambda: die_after(machine_files, "replace", 4),
    "reloaded": lambda: die_after_await(machinectl, "daemon_reload"),
    "limits set": lambda: die_after_await(machinectl, "set_limits"),
    "starting": lambda: die_after_await(machinectl, "start", 0.15),
    "started": lambda: die_after_await(machinectl, "start"),
    "half put away": lambda: die_after(images.Images, "_discard"),
}

if __name__ == "__main__":
    import inside_machines  # beside us; the test has its own name for it

    STEPS[sys.argv[1]]()
    trio.run(inside_machines.main, "start", sys.argv[2])

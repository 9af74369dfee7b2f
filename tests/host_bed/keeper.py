"""Holds one bed: starts its systemd, ends it, and removes what it leaves.

A process of its own, so that a bed is cleared away even when the tests that wanted it were killed: they hold
the other end of a pipe, the lifeline.  It ends the bed on SIGTERM (politely) and when the lifeline breaks (at
once).  Were it killed itself, the kernel kills the bed's PID 1, and the next bed sweeps up the rest.

    python3 keeper.py RUN_DIR CGROUP LIFELINE     the environment is that of boot.sh; LIFELINE -1 is none;
    what the bed's console says goes to stdout
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
POWEROFF = signal.SIGRTMIN + 4  # systemd(1): starts poweroff.target
POLITE_S = 5.0
KILL_S = 10.0
BOOT_S = 20.0

ENTER = (
    'echo $$ > "$1/cgroup.procs"; '
    'exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup --propagation private sh "$2"'
)


def main() -> None:
    run, cgroup, lifeline = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # We keep the console open as well: between two of its openers nothing is then lost, and no writer ever waits.
    terminal, console = os.openpty()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    cgroup.mkdir(exist_ok=True)
    # The kernel ends it with us.
    argv = ["setpriv", "--pdeathsig", "KILL", "sh", "-euc", ENTER, "sh", str(cgroup), str(HERE / "boot.sh")]
    environment = {**os.environ, "CONSOLE": os.ttyname(console)}
    system = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL)
    try:
        _leave_alone(run, cgroup, system)
        _hold(run, system, terminal, woken, lifeline)
    finally:
        clear(run, cgroup)
        system.wait(KILL_S)


def _leave_alone(run: Path, cgroup: Path, system: subprocess.Popen[bytes]) -> None:
    """Take unshare, which waits for PID 1, out of the bed's cgroup.

    There it would be a process beside child cgroups, and no controller could be enabled for those.
    """
    until = time.monotonic() + BOOT_S
    while not (run / "pid").exists() and system.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    ours = Path("/proc/self/cgroup").read_text().splitlines()[-1].removeprefix("0::/")
    with suppress(OSError):
        (cgroup.parent / ours / "cgroup.procs").write_text(str(system.pid))


def _hold(run: Path, system: subprocess.Popen[bytes], terminal: int, woken: int, lifeline: int) -> None:
    kill_at = float("inf")
    watched = select.poll()
    for fd in (terminal, woken, lifeline):
        if fd >= 0:
            watched.register(fd, select.POLLIN)
    while system.poll() is None and time.monotonic() < kill_at:
        for fd, _ in watched.poll(None if kill_at == float("inf") else 200):
            if fd == lifeline:
                return
            got = os.read(fd, 65536)
            if fd == terminal:
                os.write(1, got)
            elif signal.SIGTERM in got:
                kill_at = time.monotonic() + POLITE_S
                with suppress(OSError, ValueError):
                    os.kill(int((run / "pid").read_text()), POWEROFF)


def clear(run: Path, cgroup: Path) -> None:
    """Kill what is left in *cgroup*, then remove it and *run*.

    Raises:
        TimeoutError: a process stayed for ten seconds after SIGKILL.
    """
    until = time.monotonic() + KILL_S
    # A sweep may be at the same: what it has removed first is removed.
    with suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
        while "populated 1" in (cgroup / "cgroup.events").read_text():
            if time.monotonic() > until:
                raise TimeoutError(f"cannot end the processes in {cgroup}")
            time.sleep(0.01)
    for directory, _, _ in os.walk(cgroup, topdown=False):
        with suppress(FileNotFoundError):
            os.rmdir(directory)
    shutil.rmtree(run, onerror=_unless_gone)


def _unless_gone(_function: object, _path: str, error: tuple[type, BaseException, object]) -> None:
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


if __name__ == "__main__":
    main()

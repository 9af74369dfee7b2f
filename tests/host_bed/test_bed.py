"""The test host itself: it is whole, it is clean, and it is gone when it is over."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hive_core.wire.version import VERSION

from . import trees
from .bed import Bed, BedError, open_bed, why_not

NAME = f"own-{os.getpid()}"


def traces(name: str) -> list[str]:
    """What of the bed called *name* is still on the test machine."""
    left = [str(path) for path in (Bed(name).run_dir, Bed(name).cgroup) if path.exists()]
    left += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text().replace("\0", " ")
            # A zombie has none: it waits for the init of the test machine, when the keeper was killed.
            if command and (name in command or f"hive-bed-{name}" in (process / "cgroup").read_text()):
                left.append(f"{process.name} {command}")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return left


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 15) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def test_who_is_not_root_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert why_not() == "a test host needs root"


def test_a_missing_tool_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")

    reason = why_not()

    assert (
        reason == "a test host needs unshare, nsenter, setpriv, mmdebstrap: apt install util-linux mmdebstrap"
    )


def test_all_units_of_it_are_up(bed: Bed) -> None:
    assert bed.run(["systemctl", "is-system-running"]).stdout == "running\n"


def test_machined_answers_over_d_bus_and_knows_no_machine(bed: Bed) -> None:
    call = "org.freedesktop.machine1 /org/freedesktop/machine1 org.freedesktop.machine1.Manager ListMachines"

    machines = bed.run(["busctl", "--json=short", "call", *call.split()]).stdout

    assert '".host"' in machines
    assert bed.run(["machinectl", "list", "-o", "json"]).stdout == "[]\n"


def test_the_product_is_installed_in_it(bed: Bed) -> None:
    assert bed.run(["hive", "--version"]).stdout == f"hive {VERSION}\n"
    assert bed.run(["hive-agent", "--version"]).stdout.strip().endswith(VERSION)


def test_the_checkout_is_in_it_and_cannot_be_written(bed: Bed) -> None:
    bed.run(["test", "-f", "/src/hyperhive/pyproject.toml"])

    with pytest.raises(BedError, match="Read-only file system"):
        bed.run(["touch", "/src/hyperhive/pyproject.toml"])


def test_its_files_are_reachable_from_outside(bed: Bed) -> None:
    bed.path("/run/from-outside").write_text("hello")

    assert bed.run(["cat", "/run/from-outside"]).stdout == "hello"
    assert not Path("/run/from-outside").exists()


def test_a_command_starts_in_the_root_of_the_bed(bed: Bed) -> None:
    assert bed.run(["sh", "-c", "pwd; cat /proc/self/cwd/etc/hostname"]).stdout == "/\nbed\n"


def test_a_command_that_takes_too_long_is_gone_with_all_it_started(bed: Bed) -> None:
    script = "setsid sleep 4321 & setsid sleep 4321"

    with pytest.raises(TimeoutError, match="sleep 4321"):
        bed.run(["sh", "-c", script], timeout_s=0.3)

    assert bed.run(["pgrep", "-f", "^sleep 4321"], check=False).stdout == ""


def test_a_signal_reaches_the_command_itself(bed: Bed) -> None:
    script = "trap 'echo stopped; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with bed.popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()

        process.terminate()

        assert process.stdout.read() == "stopped\n"
        assert process.wait() == 3


def test_the_journal_of_a_unit_can_be_read(bed: Bed) -> None:
    bed.run(["systemd-run", "--wait", "-q", "--unit=says-hello", "echo", "hello from a unit"])

    assert "hello from a unit" in bed.journal("says-hello")


def test_going_down_leaves_nothing_even_with_a_machine_running() -> None:
    with open_bed(NAME) as bed:
        bed.clone_guest("plain")
        bed.run(["machinectl", "start", "plain"])
        bed.run(["systemd-run", "--unit=stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"])
        assert traces(NAME)

    assert traces(NAME) == []


def test_one_that_cannot_come_up_says_why_and_leaves_nothing() -> None:
    with pytest.raises(BedError, match=r"cannot bring up .*/nonexistent does not exist"):
        Bed.up(NAME, checkout=Path("/nonexistent"))

    assert traces(NAME) == []


def test_two_have_nothing_to_do_with_each_other() -> None:
    with open_bed(f"{NAME}-a") as a, open_bed(f"{NAME}-b") as b:
        a.path("/etc/only-in-a").write_text("")

        assert not b.path("/etc/only-in-a").exists()
        with pytest.raises(BedError, match="there is one"):
            Bed.up(f"{NAME}-a")


def hold_a_bed_elsewhere() -> "subprocess.Popen[bytes]":
    """As a test run does, in a process that can be killed."""
    script = (
        f"import sys, time; sys.path.insert(0, {str(trees.ROOT / 'tests')!r})\n"
        f"from host_bed.bed import Bed\nbed = Bed.up({NAME!r}, tied=True)\nprint('up', flush=True)\ntime.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"up\n"
    return holder


def test_a_killed_test_run_leaves_nothing() -> None:
    with hold_a_bed_elsewhere() as holder:
        assert traces(NAME)

        holder.kill()

    wait_until(lambda: traces(NAME) == [], "the keeper has cleared the bed away")


def test_what_a_killed_keeper_leaves_is_swept_up_by_the_next_bed() -> None:
    with hold_a_bed_elsewhere() as holder:
        bed = Bed(NAME)
        system = os.pidfd_open(bed.pid)
        holder.kill()
        os.kill(int((bed.run_dir / "keeper.pid").read_text()), signal.SIGKILL)
    ended, _, _ = select.select([system], [], [], 15)
    os.close(system)
    assert ended, "PID 1 outlived its keeper"

    with open_bed(f"next-{os.getpid()}"):
        assert traces(NAME) == []

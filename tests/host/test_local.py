"""Finding a harness by the lock that it holds."""

import subprocess
import sys
from pathlib import Path

import trio

from hive_core.config import Config
from hive_core.host.local import MAX_LOG_BYTES, LocalMachines
from hive_core.layout import AgentDirs

HOLDER = """
import fcntl, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def machines_at(tmp_path: Path) -> tuple[LocalMachines, AgentDirs]:
    dirs = AgentDirs(tmp_path / "run" / "alice", tmp_path / "state" / "alice")
    dirs.make()
    return LocalMachines(lambda _name: dirs, Config), dirs


async def test_a_harness_is_found_by_its_lock_and_its_end_is_noticed(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    assert machines.find("alice") is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, dirs.lock], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        machine = machines.find("alice")
        assert machine is not None
        assert machine.pid == holder.pid
        machine.terminate()
        with trio.fail_after(10):
            assert await machine.wait() == "it ended, nobody saw how"
    assert machines.find("alice") is None


def test_a_lock_file_that_nobody_holds_is_nobody(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    dirs.lock.write_text("123\n")
    assert machines.find("alice") is None


def test_the_log_is_read_from_its_end_and_on(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    assert machines.read_log("alice", 5) == ([], 0)
    dirs.log.write_text("one\ntwo\nthree\n")
    lines, offset = machines.read_log("alice", 2)
    assert lines == ["two", "three"]
    with dirs.log.open("a") as log:
        log.write("four\nhalf a li")
    lines, offset = machines.read_log_after("alice", offset)
    assert lines == ["four"]
    with dirs.log.open("a") as log:
        log.write("ne\n")
    assert machines.read_log_after("alice", offset)[0] == ["half a line"]


def test_a_log_that_grows_is_cut_back_and_followed_all_the_same(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    dirs.log.write_bytes(b"x" * 99 + b"\n" + b"y" * MAX_LOG_BYTES)
    machines.trim_log("alice")
    assert dirs.log.stat().st_size == 0
    assert (dirs.base / "harness.log.1").stat().st_size == MAX_LOG_BYTES
    dirs.log.write_text("fresh\n")
    assert machines.read_log_after("alice", MAX_LOG_BYTES)[0] == ["fresh"]

"""Finding a harness by the lock that it holds."""

import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from hive_core.config import Config
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, MachineFacts
from hive_core.domain.machine import Wanted
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
    assert await machines.find("alice") is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, dirs.lock], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        machine = await machines.find("alice")
        assert machine is not None
        assert machine.pid == holder.pid
        await machine.terminate()
        with trio.fail_after(10):
            assert await machine.wait() == "it ended, nobody saw how"
    assert await machines.find("alice") is None


async def test_a_lock_file_that_nobody_holds_is_nobody(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    dirs.lock.write_text("123\n")
    assert await machines.find("alice") is None


async def test_the_log_is_read_from_its_end_and_on(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    assert await machines.read_log("alice", 5) == []
    dirs.log.write_text("one\ntwo\nthree\n")
    assert await machines.read_log("alice", 2) == ["two", "three"]
    async with aclosing(machines.follow_log("alice", 2)) as batches:
        assert await anext(batches) == ["two", "three"]
        with dirs.log.open("a") as log:
            log.write("four\nhalf a li")
        assert await anext(batches) == ["four"]
        with dirs.log.open("a") as log:
            log.write("ne\n")
        assert await anext(batches) == ["half a line"]


async def test_a_log_that_grows_is_cut_back_and_followed_all_the_same(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    dirs.log.write_bytes(b"x" * 99 + b"\n" + b"y" * MAX_LOG_BYTES)
    async with aclosing(machines.follow_log("alice", 1)) as batches:
        await anext(batches)
        await machines.tidy("alice")
        assert dirs.log.stat().st_size == 0
        assert (dirs.base / "harness.log.1").stat().st_size == MAX_LOG_BYTES
        dirs.log.write_text("fresh\n")
        assert await anext(batches) == ["fresh"]


async def test_the_use_of_a_harness_is_that_of_its_session(tmp_path: Path) -> None:
    machines, dirs = machines_at(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, dirs.lock], stdout=subprocess.PIPE, start_new_session=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        usage = await machines.usage(["alice"])
        machine = await machines.find("alice")
        assert machine is not None
        await machine.kill()
        await machine.wait()

    assert list(usage) == ["alice"]
    assert usage["alice"].tasks == 1
    assert usage["alice"].memory_bytes > 2**20


async def test_a_local_agent_has_no_machine_to_limit_or_to_compare(tmp_path: Path) -> None:
    machines, _ = machines_at(tmp_path)
    row = AgentRow("alice", Wanted.RUNNING, False, 0.0)

    assert await machines.facts(row) == MachineFacts()
    assert (machines.applied("alice"), machines.declared(row)) == (None, None)
    with pytest.raises(CannotStart, match="cannot limit alice"):
        await machines.update_limits(row)

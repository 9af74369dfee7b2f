"""Finding a harness by the lock that it holds."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from hive_core.config import Config
from hive_core.declarable import McpServer
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, MachineFacts
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import Manifest
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


async def test_a_local_agent_has_no_machine_to_limit(tmp_path: Path) -> None:
    machines, _ = machines_at(tmp_path)
    row = AgentRow("alice", Wanted.RUNNING, False, 0.0)

    assert await machines.facts(row) == MachineFacts()
    with pytest.raises(CannotStart, match="cannot limit alice"):
        await machines.update_limits(row)


# ── what is deployed ────────────────────────────────────────────────────────────────────────────


ALICE = AgentRow("alice", Wanted.RUNNING, False, 0.0)


def released(tmp_path: Path, number: int, manifest: Manifest, **files: str) -> AgentRow:
    """Lay out a release of alice, and give the row that has it deployed."""
    config = tmp_path / "releases/alice" / (f"{number}" * 40) / "config"
    config.mkdir(parents=True)
    for name, text in files.items():
        (config / name).write_text(text)
    return replace(ALICE, manifest=manifest, deployed_sha=f"{number}" * 40)


@asynccontextmanager
async def started(machines: LocalMachines, row: AgentRow) -> AsyncIterator[dict[str, str]]:
    """Give the environment of a harness that runs in the block."""
    machine = await machines.start(row)
    try:
        # Between fork and exec it is still ours.
        with trio.fail_after(10):
            while "HIVE_LABEL" not in (found := environment_of(machine.pid)):
                await trio.sleep(0.01)
        yield found
    finally:
        await machine.kill()
        await machine.wait()


def environment_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/environ").read_text()
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def deployed_machines(tmp_path: Path) -> LocalMachines:
    _, dirs = machines_at(tmp_path)
    return LocalMachines(lambda _name: dirs, Config, released=tmp_path / "releases")


async def test_a_harness_gets_what_was_deployed(tmp_path: Path) -> None:
    manifest = Manifest(prompt="task", environment={"A": "b"}, mcp_servers={"x": McpServer(command="y")})
    row = released(tmp_path, 1, manifest, task="do it")

    async with started(deployed_machines(tmp_path), row) as found:
        where = tmp_path / "releases/alice"
        wanted = {
            "A": "b",
            "HIVE_PASS_ON": "A",
            "HIVE_LABEL": "alice",
            "HIVE_RELEASE": str(where),
            "HIVE_PROMPT_FILE": f"{where}/config/task",
            "HIVE_EXTRA_MCP": f"{where}/extra-mcp.json",
        }
        assert found.items() >= wanted.items()
        assert Path(found["HIVE_PROMPT_FILE"]).read_text() == "do it"


async def test_a_harness_is_known_by_what_it_was_started_with_also_to_another_daemon(tmp_path: Path) -> None:
    manifest = Manifest(prompt="task", environment={"A": "b"})
    row = released(tmp_path, 1, manifest, task="do it")
    same = released(tmp_path, 2, manifest, task="do it", notes="new")
    other = released(tmp_path, 3, manifest, task="do something else")
    first = deployed_machines(tmp_path)

    async with started(first, row):
        for machines in (first, deployed_machines(tmp_path)):
            with trio.fail_after(10):
                while await machines.find("alice") is None:
                    await trio.sleep(0.01)
            assert machines.applied("alice") == machines.declared(row)
            assert await machines.switch(row)
            assert not await machines.switch(other)
            assert not await machines.switch(ALICE)
            assert await machines.switch(same)
            assert (tmp_path / "releases/alice/config/notes").read_text() == "new"


async def test_a_harness_of_before_has_nothing_deployed(tmp_path: Path) -> None:
    machines = deployed_machines(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, machines_at(tmp_path)[1].lock],
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        machine = await machines.find("alice")
        assert machine is not None

        assert machines.applied("alice") == machines.declared(ALICE)
        assert await machines.switch(replace(ALICE, manifest=Manifest(image="x", network="veth")))
        assert not await machines.switch(replace(ALICE, manifest=Manifest(model="x")))
        await machine.kill()
        await machine.wait()


async def test_a_release_that_is_missing_stops_a_start(tmp_path: Path) -> None:
    machines = deployed_machines(tmp_path)
    row = replace(ALICE, manifest=Manifest(prompt="task"), deployed_sha="f" * 40)

    with pytest.raises(CannotStart, match="what was deployed of it is missing"):
        await machines.start(row)
    assert machines.declared(row) is None

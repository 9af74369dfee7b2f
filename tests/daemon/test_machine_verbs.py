"""The verbs of machines, and the manager, as far as a local hive has them."""

import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest

from .kit import Daemon, by, clean_environment, refusal, run_core, wait_until


@pytest.mark.parametrize(
    "request_",
    [
        {"cmd": "spawn", "name": "new", "image": "debian"},
        {"cmd": "spawn", "name": "new", "memory": "1G"},
        {"cmd": "set_limits", "name": "carol", "memory": "1G"},
        {"cmd": "set_limits", "name": "carol", "tasks": None},
        {"cmd": "doctor"},
        {"cmd": "images"},
        {"cmd": "image_rm", "name": "debian"},
    ],
    ids=lambda request: " ".join(map(str, request.values())),
)
def test_what_needs_machines_is_refused_with_a_sentence(shared: Daemon, request_: dict[str, Any]) -> None:
    with shared.client() as client:
        failed = refusal(lambda: client.ask(request_))

    assert failed.code == "precondition_failed"
    assert str(failed).endswith("this hive is a local one, whose agents have no machines of their own")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"cmd": "spawn", "name": "new", "memory": "lots"}, "a size such as 512M or 4G"),
        ({"cmd": "spawn", "name": "new", "memory": "1M"}, "64M is the least"),
        ({"cmd": "spawn", "name": "new", "cpu": "0%"}, "is no share of processors"),
        ({"cmd": "spawn", "name": "new", "cpu": "some"}, "a share of processors such as 200%"),
        ({"cmd": "spawn", "name": "new", "tasks": 1}, "tasks"),
        ({"cmd": "spawn", "name": "new", "network": "lan"}, "Invalid enum value 'lan'"),
        ({"cmd": "spawn", "name": "new", "image": "a b"}, "the name of an image, without blanks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_shape_is_refused_with_what_is_right(
    shared: Daemon, request_: dict[str, Any], says: str
) -> None:
    with shared.client() as client:
        failed = refusal(lambda: client.ask(request_))

    assert failed.code == "invalid_argument"
    assert says in str(failed)
    assert "regex" not in str(failed)


def test_a_local_agent_has_no_machine_and_takes_what_its_session_takes(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann")

    facts = daemon.ask("machine", name="ann")
    (usage,) = daemon.ask("top")["usage"]

    assert (facts["name"], facts["isolation"]) == ("ann", "none")
    assert not facts.keys() & {"machine", "uid_base", "memory_max_bytes"}
    assert usage["name"] == "ann"
    assert usage["memory_bytes"] > 2**20
    assert usage["tasks"] >= 1
    assert daemon.ask("status")["mode"] == "local"
    assert "machine" not in daemon.row("ann")
    assert daemon.row("ann")["needs_update"] is False


def test_a_rebuild_is_another_harness_and_a_word_about_it(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann")
    pid = daemon.row("ann")["pid"]

    daemon.ask("rebuild", name="ann")

    wait_until(lambda: daemon.row("ann").get("pid", pid) != pid, "another harness runs")
    wait_until(lambda: by("sender", daemon.messages()) == ["system"], "ann is told")
    (kick,) = daemon.messages()
    assert kick["recipient"] == "ann"
    assert "started again" in kick["body"]
    wait_until(lambda: "acked_at" in daemon.message(kick["id"]), "ann reads it")
    assert "transient" not in daemon.row("ann")


def test_neither_a_spawn_nor_a_daemon_that_starts_again_kicks_anybody(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann")
    daemon.kill()
    daemon.start()
    daemon.wait_row("ann", connected=True)
    assert daemon.stop(signal.SIGINT) == 0
    daemon.start()
    daemon.wait_row("ann", connected=True)

    assert daemon.messages() == []


def events_of(daemon: Daemon, name: str) -> list[dict[str, Any]]:
    return [json.loads(row["body"]) for row in daemon.messages() if row["recipient"] == name]


def test_the_manager_hears_what_happens_to_the_others(daemon: Daemon) -> None:
    daemon.config_path.write_text("[machines]\nrestart_delay_s = 0.05\n")
    daemon.start()
    daemon.spawn("manager")
    daemon.spawn("ann")
    pid = daemon.row("ann")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: daemon.row("ann").get("pid", pid) != pid, "another harness runs")
    daemon.wait_row("ann", connected=True)
    daemon.send("ann", "logout")
    daemon.wait_row("ann", needs_login=True)
    daemon.ask("stop", scope={"agent_names": ["ann"]})
    daemon.wait_row("ann", running=False)
    daemon.ask("destroy", name="ann")
    wait_until(lambda: daemon.ask("list")["agents"] == ["manager"], "ann is gone")

    expected = ["spawned", "container_crash", "needs_login", "killed", "destroyed"]
    wait_until(lambda: len(events_of(daemon, "manager")) >= 5, "the manager is told")
    assert by("event", events_of(daemon, "manager")) == expected
    told = events_of(daemon, "manager")
    assert set(by("agent", told)) == {"ann"}
    assert told[1]["note"] == "killed by SIGKILL"
    assert not (daemon.home / "run" / "agents" / "manager").exists()
    assert (daemon.home / "run" / "manager" / "mcp.sock").exists()


def test_without_a_manager_the_operator_hears_of_a_crash(daemon: Daemon) -> None:
    daemon.config_path.write_text("[machines]\nrestart_delay_s = 0.05\n")
    daemon.start()
    daemon.spawn("ann")
    os.kill(daemon.row("ann")["pid"], signal.SIGKILL)

    wait_until(lambda: events_of(daemon, "operator"), "the operator is told")

    assert by("event", events_of(daemon, "operator")) == ["container_crash"]


def test_machines_need_root(tmp_path: Any) -> None:
    done = run_core("serve", "--home", str(tmp_path))
    assert done.returncode == 1
    assert "cannot serve with --home: only a local hive has one; add --local" in done.stderr


@pytest.mark.parametrize("where", ["host.sock", "elsewhere.sock"])
def test_the_socket_that_systemd_holds_is_used_if_it_is_the_right_one(daemon: Daemon, where: str) -> None:
    run = daemon.home / "run"
    run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener, daemon.log_path.open("ab") as log:
        listener.bind(str(run / where))
        listener.listen()
        inode = (run / where).stat().st_ino
        argv = [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(daemon.home)]
        as_systemd = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3);"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='host.sock');"
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        daemon.process = subprocess.Popen(
            [sys.executable, "-c", as_systemd, str(listener.fileno()), *argv],
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            env=clean_environment(),
        )
        daemon.wait_ready()

    assert (daemon.host_socket.stat().st_ino == inode) is (where == "host.sock")
    assert ("it is not used" in daemon.log) is (where != "host.sock")
    assert daemon.stop() == 0
    assert daemon.host_socket.exists()

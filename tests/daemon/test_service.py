"""The daemon as a service: its configuration, its signals, and what it tells systemd."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kit import Daemon, clean_environment, run_core, wait_until


def test_config_prints_every_value_and_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "hive.toml"
    path.write_text('log_level = "warning"\n[machines]\nstop_grace_s = 3\n')

    done = run_core("config", "--config", str(path), "--home", str(tmp_path / "h"))

    assert done.returncode == 0, done.stderr
    lines = {line.partition(" = ")[0]: line for line in done.stdout.splitlines()}
    assert re.fullmatch(rf'home = "{tmp_path}/h" +# command line', lines["home"])
    assert re.fullmatch(rf'log_level = "warning" +# {path}', lines["log_level"])
    assert re.fullmatch(rf"machines.stop_grace_s = 3\.0 +# {path}", lines["machines.stop_grace_s"])
    assert re.fullmatch(r'harness.provider = "scripted" +# default', lines["harness.provider"])
    assert len(lines) >= 16


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('log_levl = "info"', "unknown key 'log_levl'; did you mean 'log_level'?"),
        (
            "[machines]\nstop_grace = 3",
            "unknown key 'machines.stop_grace'; did you mean 'machines.stop_grace_s'?",
        ),
        ("stop_grace_s = 3", "unknown key 'stop_grace_s'; did you mean 'machines.stop_grace_s'?"),
        ("[zzz]\nqqq = 1", "unknown key 'zzz'"),
        ('log_level = "loud"', "log_level"),
        ("[machines]\nrestart_limit = 0", "restart_limit"),
        ("harness = 3", "harness"),
        ("[machines", "cannot read"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_with_the_key_and_the_nearest_one(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "hive.toml"
    path.write_text(text)

    for verb in (["config"], ["serve", "--local"]):
        done = run_core(*verb, "--config", str(path), "--home", str(tmp_path / "h"))

        assert done.returncode == 78
        assert done.stderr.startswith("hive-core: cannot ")
        assert complaint in done.stderr
        assert str(path) in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "h").exists()


def test_without_local_it_says_what_to_add(tmp_path: Path) -> None:
    done = run_core("serve", "--home", str(tmp_path / "h"))

    assert done.returncode == 1
    assert "--local" in done.stderr


def test_a_home_that_cannot_be_made_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    done = run_core("serve", "--local", "--home", str(tmp_path / "file" / "h"))

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_it_says_at_every_start_that_it_does_not_isolate(daemon: Daemon) -> None:
    daemon.start()

    assert "nothing isolates them" in daemon.log


def test_hup_takes_the_new_config_and_keeps_the_old_one_when_it_is_wrong(daemon: Daemon) -> None:
    daemon.config_path.write_text('domain = "one.example"\n')
    daemon.start()
    assert daemon.process is not None

    daemon.config_path.write_text('domain = "two.example"\nlog_level = "debug"\nadmin_group = "others"\n')
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "Config reloaded" in daemon.log, "it is read again")
    assert daemon.ask("urls")["urls"]["domain"] == "two.example"
    assert "admin_group needs a restart" in daemon.log

    daemon.config_path.write_text('domian = "three.example"\n')
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "Config not reloaded" in daemon.log, "it is refused")
    assert "did you mean 'domain'" in daemon.log
    daemon.config_path.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: daemon.log.count("Config not reloaded") == 2, "a missing file is refused too")
    assert daemon.ask("urls")["urls"]["domain"] == "two.example"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_though_clients_stay(daemon: Daemon, number: signal.Signals) -> None:
    daemon.add_stopped("a").start()
    with daemon.client() as idle, daemon.client() as watching, daemon.agent("a") as agent:
        idle.ask({"cmd": "list"})
        watching.ask({"cmd": "watch"})
        agent.begin("recv", wait_seconds=100)
        agent.begin("subscribe_control")

        began = time.monotonic()
        assert daemon.stop(number) == 0
        assert time.monotonic() - began < 5


def test_signals_in_a_row_end_it_once(daemon: Daemon) -> None:
    daemon.start()
    assert daemon.process is not None
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
        daemon.process.send_signal(number)

    assert daemon.wait_end() == 0


# ── systemd ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def manager(daemon: Daemon) -> Iterator[socket.socket]:
    """What systemd listens on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(daemon.base / "notify"))
        sock.settimeout(15)
        yield sock


def _hear(manager: socket.socket, what: str) -> str:
    """Wait for a notification with *what* in it."""
    heard: list[str] = []
    while not heard or what not in heard[-1]:
        assert len(heard) < 100, heard
        heard.append(manager.recv(4096).decode())
    return heard[-1]


def test_systemd_is_told_of_readiness_reloads_and_the_end(daemon: Daemon, manager: socket.socket) -> None:
    daemon.config_path.write_text("")
    daemon.launch({"NOTIFY_SOCKET": str(daemon.base / "notify")})

    assert "STATUS=" in _hear(manager, "READY=1")
    # Ready means that it answers, not that it will.
    assert daemon.ask("list")["agents"] == []
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert re.search(r"MONOTONIC_USEC=\d+", _hear(manager, "RELOADING=1"))
    _hear(manager, "READY=1")
    daemon.process.send_signal(signal.SIGTERM)
    _hear(manager, "STOPPING=1")
    assert daemon.wait_end() == 0


def test_systemd_gets_its_watchdog_pings_as_long_as_the_store_answers(
    daemon: Daemon, manager: socket.socket
) -> None:
    daemon.launch({"NOTIFY_SOCKET": str(daemon.base / "notify"), "WATCHDOG_USEC": "200000"})
    _hear(manager, "READY=1")

    _hear(manager, "WATCHDOG=1")
    began = time.monotonic()
    for _ in range(5):
        _hear(manager, "WATCHDOG=1")
    assert time.monotonic() - began < 3

    os.kill(daemon.pid, signal.SIGSTOP)
    manager.settimeout(0.5)
    with pytest.raises(TimeoutError):
        while True:
            manager.recv(4096)
    os.kill(daemon.pid, signal.SIGCONT)
    manager.settimeout(15)
    _hear(manager, "WATCHDOG=1")


def test_a_watchdog_of_another_process_is_not_ours(daemon: Daemon, manager: socket.socket) -> None:
    environment = {
        "NOTIFY_SOCKET": str(daemon.base / "notify"),
        "WATCHDOG_USEC": "100000",
        "WATCHDOG_PID": "1",
    }
    daemon.launch(environment)
    _hear(manager, "READY=1")

    manager.settimeout(0.4)
    with pytest.raises(TimeoutError):
        manager.recv(4096)


def test_harnesses_do_not_inherit_what_systemd_said(daemon: Daemon, manager: socket.socket) -> None:
    daemon.start({"NOTIFY_SOCKET": str(daemon.base / "notify"), "SECRET_OF_THE_OPERATOR": "x"})
    daemon.spawn("a")

    (pid,) = daemon.harnesses("a")
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environment
    assert b"SECRET_OF_THE_OPERATOR" not in environment
    descriptors = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert not [path for path in descriptors if "broker.sqlite" in path or "hive-core.lock" in path]


def test_the_journal_gets_priorities(daemon: Daemon) -> None:
    daemon.start({"JOURNAL_STREAM": "8:12345"})

    assert re.search(r"^<6>Hive is ready", daemon.log, re.MULTILINE)


def test_it_serves_by_its_installed_command(daemon: Daemon) -> None:
    command = Path(sys.executable).parent / "hive-core"
    if not command.exists():
        pytest.skip("hyperhive is not installed here")
    done = subprocess.run(
        [command, "--version"], capture_output=True, text=True, timeout=20, env=clean_environment()
    )
    assert "hive-core" in done.stdout

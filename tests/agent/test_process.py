"""The real program, in real processes and real time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hive_agent.__main__ import main
from hive_agent.config import Config
from hive_agent.lock import Held, LockFailed, take
from hive_core.wire.version import VERSION

from .fake_daemon import FakeDaemon

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> "subprocess.Popen[str]":
        argv = [
            *(sys.executable, "-m", "hive_agent", "serve"),
            *("--socket", str(tmp_path / "mcp.sock"), "--state", str(tmp_path)),
            *("--lock", str(tmp_path / "lock"), *arguments),
        ]
        started.append(subprocess.Popen(argv, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def wait_for_log(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}")


async def test_sigterm_in_the_middle_of_a_turn_ends_it_quickly_and_well(
    daemon: FakeDaemon, start: Start, tmp_path: Path
) -> None:
    daemon.deliver("sleep 60")
    process = start()
    await daemon.wait_until(lambda daemon: daemon.events_of("stream"))

    asked_at = time.monotonic()
    process.send_signal(signal.SIGTERM)
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_end"))
    status = process.wait(10)

    assert status == 0
    assert time.monotonic() - asked_at < 2
    assert daemon.acked == []
    assert (tmp_path / "hyperhive-events.sqlite").exists()


def test_sigint_without_a_daemon_ends_it_too(start: Start) -> None:
    process = start()
    wait_for_log(process, "Link failed")

    process.send_signal(signal.SIGINT)

    assert process.wait(10) == 0


def test_it_lingers_no_longer_than_it_was_told(start: Start) -> None:
    process = start("--linger", "0.2")

    assert process.wait(10) == 0
    assert "Link given up" in process.communicate()[1]


def test_a_second_harness_is_refused_with_the_first_ones_pid(start: Start) -> None:
    first = start()
    wait_for_log(first, "Harness started")

    second = start()

    assert second.wait(10) == 75
    expected = f"cannot serve: another harness of this agent runs already (pid {first.pid})\n"
    assert second.communicate()[1] == expected


def test_a_killed_harness_leaves_no_lock(start: Start, tmp_path: Path) -> None:
    first = start()
    wait_for_log(first, "Harness started")
    with pytest.raises(Held, match=f"pid {first.pid}"):
        take(tmp_path / "lock")

    first.kill()
    first.wait(10)

    os.close(take(tmp_path / "lock"))


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(LockFailed, match="missing/lock cannot be opened: No such file"):
        take(tmp_path / "missing" / "lock")


def test_what_cannot_be_used_ends_with_one_line(start: Start) -> None:
    process = start("--provider", "oracle")

    assert process.wait(10) == 1
    assert (
        process.communicate()[1]
        == "cannot serve: there is no provider 'oracle'; there are: claude, scripted\n"
    )


def test_the_program_is_light_until_it_serves() -> None:
    probe = "import sys, hive_agent.__main__; print([m for m in ('trio', 'msgspec') if m in sys.modules])"

    assert subprocess.check_output([sys.executable, "-c", probe], text=True) == "[]\n"


def test_help_has_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])

    assert ended.value.code == 0
    assert "hive-agent serve --socket" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"hive-agent {VERSION}\n"


@pytest.mark.parametrize("argv", [[], ["serve", "--linger", "soon"], ["serve", "--linger", "-1"], ["dance"]])
def test_wrong_usage_is_status_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2


def config_of(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Config:
    seen: list[Config] = []
    monkeypatch.setattr("hive_agent.commands.serve", lambda config: seen.append(config) or 0)
    main(["serve", *argv])
    return seen[0]


def test_arguments_come_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HIVE_AGENT_SOCKET", "HIVE_AGENT_STATE", "HIVE_DEFAULT_MODEL", "HIVE_SCRIPT"):
        monkeypatch.setenv(name, f"/env/{name}")

    told = config_of(monkeypatch, "--socket", "/s", "--state", "/d", "--model", "m", "--script", "/p")
    untold = config_of(monkeypatch)

    assert (told.socket, told.state, told.model, told.script) == (Path("/s"), Path("/d"), "m", Path("/p"))
    assert untold.socket == Path("/env/HIVE_AGENT_SOCKET")
    assert untold.model == "/env/HIVE_DEFAULT_MODEL"


def test_the_files_lie_in_the_state_directory_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERHIVE_MODEL_FILE", "/elsewhere/model")

    config = config_of(monkeypatch, "--state", "/d")

    assert config.events_db == Path("/d/hyperhive-events.sqlite")
    assert config.model_file == Path("/elsewhere/model")
    assert config_of(monkeypatch).socket == Path("/run/hive/mcp.sock")

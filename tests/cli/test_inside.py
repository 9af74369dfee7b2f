"""hive shell and hive exec: what is started, and whose bytes and exit code come back."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hive_core.cli import programs
from hive_core.cli.commands import inside

from .conftest import RunHive
from .fake_host import FakeHost
from .programs_on_path import ProgramsOnPath

HIVE = [sys.executable, "-m", "hive_core.cli"]

RUN_THE_COMMAND = """
import subprocess
argv = sys.argv[1:]
words = [word.replace("$$", "$") for word in argv[argv.index("--") + 1 :]]
sys.exit(subprocess.call(words))
"""
"""What systemd-run does, but here."""


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProgramsOnPath:
    found = ProgramsOnPath(tmp_path / "bin", monkeypatch)
    for name in ("machinectl", "systemctl"):
        found.add(name)
    return found


@pytest.fixture
def alice(host: FakeHost) -> FakeHost:
    host.add("alice", isolation="nspawn", machine="h-alice")
    return host


@pytest.fixture
def local_agent(host: FakeHost, tmp_path: Path) -> Iterator[Path]:
    """A process that stands for a local harness; gives its directory."""
    state = tmp_path / "state"
    state.mkdir()
    command = ["sleep", "1000"]
    with subprocess.Popen(
        command, cwd=state, env={"HIVE_LABEL": "alice", "PATH": os.environ["PATH"]}
    ) as agent:
        host.add("alice", pid=agent.pid)
        yield state
        agent.kill()


def run(*argv: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*HIVE, *argv], input=stdin, capture_output=True, timeout=20, check=False, env=os.environ | env
    )


def on_a_terminal(*argv: str, **env: str) -> tuple[int, str]:
    """Give its exit code and what it shows."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*HIVE, *argv], stdin=follower, stdout=follower, stderr=follower, env=os.environ | env
    )
    os.close(follower)
    shown = b""
    with os.fdopen(leader, "rb", buffering=0) as screen, suppress(OSError):  # the other end is closed
        while part := screen.read(4096):
            shown += part
    return process.wait(10), shown.decode()


# ── shell ───────────────────────────────────────────────────────────────────────────────────────


def test_a_shell_is_machinectls(alice: FakeHost, on_path: ProgramsOnPath) -> None:
    on_path.add("machinectl", "sys.exit(9)")

    assert on_a_terminal("shell", "alice") == (9, "")
    assert on_path.calls == [["machinectl", "--quiet", "shell", "root@h-alice"]]


def test_a_shell_beside_a_local_agent_is_ones_own(local_agent: Path) -> None:
    done = run("shell", "alice", stdin=b"pwd -P; echo $HIVE_LABEL $KEPT", SHELL="/bin/sh", KEPT="ours")

    assert done.stdout.decode().splitlines() == [str(local_agent), "alice ours"]
    assert done.stderr == b""


def test_a_host_without_machinectl_is_told_what_to_install(alice: FakeHost) -> None:
    assert on_a_terminal("shell", "alice", PATH="/nowhere") == (
        1,
        "hive: cannot run machinectl: it is not on PATH\r\nhint: apt install systemd-container\r\n",
    )


def test_a_shell_in_a_machine_wants_a_terminal(alice: FakeHost, on_path: ProgramsOnPath) -> None:
    done = run("shell", "alice", stdin=b"rm -rf /\n")

    assert (done.returncode, on_path.calls) == (4, [])
    assert done.stderr.decode() == (
        "hive: cannot open a shell in alice: the standard input is no terminal\n"
        "hint: run a command with: hive exec alice -- COMMAND\n"
    )


@pytest.mark.parametrize(
    ("flags", "said", "hint"),
    [
        ({"wanted": "stopped"}, "it is stopped", "start it with: hive start alice"),
        (
            {"failed": True, "failure": "exit status 3"},
            "it is failed: exit status 3",
            "start it with: hive start alice",
        ),
        ({"transient": "rebuilding"}, "it is rebuilding", "hive show alice"),
    ],
)
@pytest.mark.parametrize(
    ("typed", "what"),
    [(["shell", "alice"], "open a shell in"), (["exec", "alice", "--", "ls"], "run a command in")],
)
def test_what_does_not_run_cannot_be_entered(
    flags: dict[str, object], said: str, hint: str, typed: list[str], what: str, host: FakeHost, hive: RunHive
) -> None:
    host.add("alice", isolation="nspawn", machine="h-alice", running=False, connected=False, **flags)

    assert hive(*typed) == (4, "", f"hive: cannot {what} alice: {said}\nhint: {hint}\n")


# ── exec in a machine ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
def as_root(alice: FakeHost, on_path: ProgramsOnPath) -> ProgramsOnPath:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    on_path.add("systemd-run", RUN_THE_COMMAND)
    return on_path


@pytest.mark.root
def test_a_command_goes_to_the_machine_word_for_word(as_root: ProgramsOnPath) -> None:
    words = ["printf", "%s|", "a b", "", "$HOME", "$$", "it's", "ä", "new\nline", "--", "-x"]

    done = run("exec", "alice", "-e", "A=b $c", "--", *words)

    assert done.stdout.decode() == "".join(f"{word}|" for word in words[2:])
    (call,) = as_root.calls
    options = call[: call.index("--")]
    assert options[:5] == ["systemd-run", "--machine=h-alice", "--quiet", "--wait", "--collect"]
    assert "--pipe" in options
    assert "--property=EnvironmentFile=-/run/hive/environment" in options
    assert "$$HOME" in call


@pytest.mark.root
@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("exec nope-nope", 127)]
)
def test_its_exit_code_is_ours(script: str, code: int, as_root: ProgramsOnPath) -> None:
    assert run("exec", "alice", "--", "sh", "-c", script).returncode == code


@pytest.mark.root
def test_a_command_that_is_not_there_is_told_by_the_machine(as_root: ProgramsOnPath) -> None:
    done = run("exec", "alice", "--", "nope-nope")

    assert done.returncode == 127
    assert b"nope-nope: not found" in done.stderr


@pytest.mark.root
def test_the_three_streams_pass_through(as_root: ProgramsOnPath) -> None:
    sent = os.urandom(300_000)

    done = run("exec", "alice", "--", "sh", "-c", "cat; echo over >&2", stdin=sent)

    assert done.stdout == sent
    assert done.stderr == b"over\n"


@pytest.mark.root
def test_a_command_that_reads_nothing_does_not_wait_for_input(as_root: ProgramsOnPath) -> None:
    with subprocess.Popen([*HIVE, "exec", "alice", "--", "true"], stdin=subprocess.PIPE) as process:
        assert process.wait(10) == 0


@pytest.mark.root
def test_who_keeps_the_streams_open_does_not_keep_us(as_root: ProgramsOnPath) -> None:
    done = run("exec", "alice", "--", "sh", "-c", "sleep 20 & echo started")

    assert (done.returncode, done.stdout) == (0, b"started\n")


@pytest.mark.root
def test_where_it_runs_and_what_it_finds_there(as_root: ProgramsOnPath) -> None:
    done = run("exec", "alice", "-w", "/usr", "-e", "A=b $c", "--", "sh", "-c", 'pwd; echo "$A"')

    assert done.stdout.decode().splitlines() == ["/usr", "b $c"]
    assert run("exec", "alice", "-w", "/nowhere", "--", "pwd").returncode != 0


@pytest.mark.root
@pytest.mark.parametrize(("agent", "place"), [("alice", "/agents/alice/state/"), ("manager", "/state/")])
def test_it_runs_in_the_state_directory(
    agent: str, place: str, host: FakeHost, as_root: ProgramsOnPath
) -> None:
    host.add("manager", isolation="nspawn", machine="hm1nd")

    run("exec", agent, "--", "true")

    assert as_root.calls[0][-2:] == [place, "true"]


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_command_in_the_machine_too(number: int, as_root: ProgramsOnPath) -> None:
    command = [*HIVE, "exec", "alice", "--", "sh", "-c", "echo up; exec sleep 100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=10)

    assert (process.returncode, err) == (128 + number, b"")
    start, stop = as_root.calls
    unit = next(word for word in start if word.startswith("--unit=")).removeprefix("--unit=")
    assert stop == ["systemctl", "--machine=h-alice", "--quiet", "--no-block", "stop", unit]


@pytest.mark.root
def test_on_a_terminal_the_command_has_one_that_is_not_ours(as_root: ProgramsOnPath) -> None:
    as_root.add("systemd-run", "import os\nprint(*(os.ttyname(fd) for fd in range(3)))\nsys.exit(5)")
    leader, follower = pty.openpty()
    ours = os.ttyname(follower)
    process = subprocess.Popen(
        [*HIVE, "exec", "alice", "--", "sh"], stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    with os.fdopen(leader, "rb", buffering=0) as screen:
        shown = screen.readline().decode().split()
        assert process.wait(10) == 5

    assert len(shown) == 3
    assert len(set(shown)) == 1
    assert ours not in shown
    assert any(word.startswith("--setenv=TERM=") for word in as_root.calls[0])


def test_without_root_it_says_how(alice: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert hive("exec", "alice", "-w", "/a b", "--", "sh", "-c", "exit 3") == (
        4,
        "",
        (
            "hive: cannot run a command in alice: only root may run one in a machine\n"
            "hint: sudo hive exec alice -w '/a b' -- sh -c 'exit 3'\n"
        ),
    )


# ── exec beside a local agent ───────────────────────────────────────────────────────────────────


def test_a_local_command_runs_in_the_state_directory(local_agent: Path) -> None:
    script = 'pwd -P; echo "$HIVE_LABEL $A"; cat; exit 3'
    done = run("exec", "alice", "-e", "A=b", "--", "sh", "-c", script, stdin=b"sent")

    assert done.returncode == 3
    assert done.stdout.decode() == f"{local_agent}\nalice b\nsent"


def test_a_local_command_may_run_elsewhere(local_agent: Path) -> None:
    (local_agent / "sub").mkdir()

    assert run("exec", "alice", "-w", "sub", "--", "pwd", "-P").stdout.decode() == f"{local_agent}/sub\n"
    missing = run("exec", "alice", "-w", "nowhere", "--", "pwd")
    assert missing.returncode == 1
    assert b"No such file or directory" in missing.stderr


def test_a_local_command_that_is_not_there(local_agent: Path) -> None:
    done = run("exec", "alice", "--", "nope-nope")

    assert (done.returncode, done.stdout) == (127, b"")
    assert done.stderr == b"hive: cannot run nope-nope: it is not on PATH\n"


def test_the_process_of_somebody_else_is_left_alone(
    host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.add("alice", pid=2**22 + 1)

    result = hive("exec", "alice", "--", "ls")

    assert result.code == 4
    assert "cannot look at the process of alice" in result.err


# ── the command line ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "typed", [["exec", "alice", "ls"], ["exec", "alice", "grep", "-e", "x"], ["exec", "--"]]
)
def test_the_command_stands_after_two_hyphens(typed: list[str], alice: FakeHost, hive: RunHive) -> None:
    result = hive(*typed)

    assert result.code == 2
    assert alice.requests == []


@pytest.mark.parametrize("given", ["X", "=x", "a b=c", "1=2"])
def test_a_variable_has_a_name_and_a_value(given: str, alice: FakeHost, hive: RunHive) -> None:
    result = hive("exec", "alice", "-e", given, "--", "ls")

    assert (result.code, alice.requests) == (2, [])
    assert "is not NAME=VALUE" in result.err


def test_what_is_started_of_ours_is_this_installations() -> None:
    done = subprocess.run(
        [*programs.own("hive-core"), "--version"], capture_output=True, check=True, timeout=20
    )

    assert done.stdout.startswith(b"hive-core ")


def test_the_words_of_the_machines_shell_are_a_program_it_reads() -> None:
    for otherwise in ("|| exit", "2>/dev/null"):
        script = inside._ENTER.format(otherwise=otherwise)
        subprocess.run(["sh", "-n", "-c", script], check=True, timeout=10)

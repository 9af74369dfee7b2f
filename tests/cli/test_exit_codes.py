"""A script sees how it went, a person reads why and what to do."""

import io
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hive_core.cli import problems
from hive_core.cli.hive import Hive
from hive_core.cli.problems import EXIT_OF_CODE, MEANING, Problem
from hive_core.wire.client import Unreachable
from hive_core.wire.errors import ErrorCode

from .conftest import RunHive
from .fake_host import FakeHost, message

HIVE = [sys.executable, "-m", "hive_core.cli"]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("invalid_argument", 2),
        ("not_found", 3),
        ("forbidden", 4),
        ("precondition_failed", 4),
        ("conflict", 7),
        ("unavailable", 1),
        ("internal", 1),
        ("cancelled", 1),
        ("a_code_of_tomorrow", 1),
    ],
)
@pytest.mark.parametrize("typed", ["status", "send bob hi", "cancel bob", "spawn bob"])
def test_each_code_of_the_daemon_has_its_exit_code(
    code: str, exit_code: int, typed: str, host: FakeHost, hive: RunHive
) -> None:
    for cmd in ("status", "send", "cancel_turn", "spawn"):
        host.refuse(cmd, code, "cannot do it: \x1b[31mreasons")

    result = hive(*typed.split())

    assert result.code == exit_code
    assert result.out == ""
    assert result.err.splitlines()[0] == "hive: cannot do it: \\x1b[31mreasons"


def test_every_code_has_an_exit_code_and_every_exit_code_a_meaning() -> None:
    assert set(EXIT_OF_CODE) == {code.value for code in ErrorCode}
    assert set(EXIT_OF_CODE.values()) <= set(MEANING)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("lss", "did you mean: hive ls"),
        ("Status", "did you mean: hive status"),
        ("newsession", "did you mean: hive new-session"),
        ("reject", "did you mean: hive deny"),
        ("deploy-log", "did you mean: hive deploys log ID"),
        ("launch", "did you mean: hive spawn"),
        ("xyzzy", "hive --help lists them"),
    ],
)
def test_an_unknown_command_is_told_the_nearest(typed: str, hint: str, hive: RunHive) -> None:
    result = hive(typed)

    assert result == (2, "", f"hive: cannot run '{typed}': there is no such command\nhint: {hint}\n")


@pytest.mark.parametrize(
    "typed",
    ["ls --jsn", "show", "send bob", "why x", "messages -n 0", "start", "stop alice --all", "completion tcsh",
     "ls --timeout 0", "--nope", "stats a --window 1h", "login a --code x --cancel",
     "top -n 0", "limits a --tasks x", "spawn a --network bridge", "image build arch", "exec a ls"],
)  # fmt: skip
def test_a_wrong_command_line_says_where_help_is(typed: str, host: FakeHost, hive: RunHive) -> None:
    result = hive(*typed.split())

    assert result.code == 2
    said, hint = result.err.splitlines()
    assert said.startswith("hive: cannot run hive")
    assert hint.endswith("--help shows how")
    assert host.requests == []


@pytest.mark.parametrize(
    "typed", ["send alcie hi", "cancel alcie", "events alcie", "logs alcie -f", "stop alcie", "pause alcie",
              "destroy alcie", "watch alcie", "inbox alcie", "model alcie m", "show alcie", "model alcie",
              "effort alcie high", "effort alcie", "compact alcie", "stats alcie", "login alcie",
              "limits alcie", "rebuild alcie", "shell alcie", "exec alcie -- ls"]
)  # fmt: skip
def test_an_unknown_agent_is_told_the_nearest(typed: str, host: FakeHost, hive: RunHive) -> None:
    host.add("alice")
    for cmd in ("send", "cancel_turn", "events", "logs", "stop", "set_paused", "destroy", "watch", "inbox",
                "set_model", "set_effort", "compact", "stats", "login_start", "machine", "rebuild"):  # fmt: skip
        host.refuse(cmd, "not_found", "cannot find alcie")

    result = hive(*typed.split())

    assert result.code == 3
    assert result.err.splitlines()[1] == "hint: did you mean alice?"


def test_without_a_near_name_the_list_is_pointed_to(host: FakeHost, hive: RunHive) -> None:
    host.refuse("cancel_turn", "not_found", "cannot find x")
    assert "hive spawn alice" in hive("cancel", "x").err

    host.add("alice")
    assert "hive ls" in hive("cancel", "x").err


def test_an_unknown_message_gets_no_hint_about_agents(host: FakeHost, hive: RunHive) -> None:
    host.refuse("why", "not_found", "cannot explain message 9: there is no such message")

    assert hive("why", "9") == (3, "", "hive: cannot explain message 9: there is no such message\n")


# ── the daemon is not there ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("typed", ["ls", "send bob hi", "watch", "spawn x", "logs x -f"])
def test_no_socket(typed: str, tmp_path: Path, hive: RunHive) -> None:
    result = hive("--home", str(tmp_path), *typed.split())

    assert result == (
        5,
        "",
        (
            f"hive: cannot reach the daemon at {tmp_path}/run/host.sock: there is no socket\n"
            f"hint: start it with: hive-core serve --local --home {tmp_path}\n"
        ),
    )


def test_a_socket_that_nobody_listens_on(tmp_path: Path, hive: RunHive) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))

    result = hive("ls", "--socket", str(tmp_path / "s"))

    assert result.code == 5
    assert "a socket is there but nobody listens" in result.err


@pytest.mark.parametrize("typed", ["ls", "send bob hi", "watch"])
def test_a_daemon_that_hangs_up(typed: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = dict.fromkeys(["agent_status", "send", "watch"], b"")
    with socket.socket(socket.AF_UNIX) as listener:
        path = host.path.with_name("rude.sock")
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        command = [*HIVE, "--socket", str(path), *typed.split()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()
            out, err = process.communicate(timeout=10)

    assert (process.returncode, out) == (5, b"")
    assert b"closed the connection without an answer" in err


@pytest.mark.parametrize("typed", ["ls", "status", "watch", "spawn alice", "stop alice", "events alice -f"])
def test_a_daemon_that_does_not_answer(typed: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = dict.fromkeys(["agent_status", "status", "watch", "spawn", "stop", "events"])

    result = hive(*typed.split(), "--timeout", "0.05")

    assert (result.code, result.out) == (6, "")
    assert "in time" in result.err


@pytest.mark.parametrize(
    "garbage", [b"not json\n", b"[]\n", b'"x"\n', b"\xff\n", b"{\n", b"[" * 100000 + b"\n"]
)
@pytest.mark.parametrize("typed", ["ls", "send bob hi", "watch"])
def test_an_answer_that_is_no_answer(garbage: bytes, typed: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = dict.fromkeys(["agent_status", "send", "watch"], garbage)

    result = hive(*typed.split())

    assert (result.code, result.out) == (5, "")
    assert "what answers there is no hyperhive daemon" in result.err


@pytest.mark.parametrize(
    "typed", ["ls", "show alice", "send bob hi", "status", "inbox", "events a", "logs a"]
)
def test_an_answer_that_lacks_everything(typed: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = {cmd: {} for cmd in ("agent_status", "send", "inbox", "events", "logs")}

    result = hive(*typed.split())

    assert result.code in {0, 1}
    assert "Traceback" not in result.err


def test_a_reader_that_was_cut_off_learns_where_it_was(host: FakeHost, hive: RunHive) -> None:
    host.answers["events"] = [
        {"events": [{"id": 7, "ts": "t", "kind": "note", "payload": {}}]},
        {"ok": False, "code": "unavailable", "error": "cannot follow: too slow", "last_id": 7},
    ]

    result = hive("events", "alice", "-f")

    assert result == (
        1,
        "7\tt\tnote\t{}\n",
        "hive: cannot follow: too slow\nhint: the last id that came was 7\n",
    )


def test_a_stream_that_ends_with_its_daemon_says_to_run_it_again(host: FakeHost, hive: RunHive) -> None:
    host.answers["events"] = [{"events": [{"id": 7, "ts": "t", "kind": "note", "payload": {}}]}]

    result = hive("events", "alice", "-f")

    assert result.code == 5
    assert "cannot follow any longer" in result.err
    assert result.err.endswith("hint: it was restarted or has ended: run this again\n")


@pytest.mark.parametrize("why", ["permission denied", "there is no socket"])
def test_who_may_not_speak_with_the_daemon_learns_how(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, _timeout_s: float) -> None:
        raise Unreachable(path, why)

    monkeypatch.setattr("hive_core.cli.hive.Client", refuse)

    with pytest.raises(Problem) as raised:
        Hive("/x/host.sock").ask({"cmd": "list"})

    assert raised.value.exit_code == 5
    assert ("usermod -aG hive-admin" in str(raised.value.hint)) is (why == "permission denied")


# ── a real process ──────────────────────────────────────────────────────────────────────────────


def test_ctrl_c_is_quiet(host: FakeHost) -> None:
    host.answers["watch"] = [{"message": message(1, "a", "b", "hi")}]
    host.hold_open = True
    command = [*HIVE, "--socket", str(host.path), "watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"hi" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)

    assert (process.returncode, out, err) == (130, b"", b"")


def test_a_closed_pipe_is_quiet(host: FakeHost) -> None:
    for number in range(3000):
        host.add(f"agent-{number}")
    command = [*HIVE, "--socket", str(host.path), "ls"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
        process.wait(10)

    assert (process.returncode, err) == (141, b"")


def test_a_full_disk_is_said(host: FakeHost) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*HIVE, "version"], stdout=full, stderr=subprocess.PIPE, timeout=10, check=False
        )

    assert done.returncode == 1
    assert done.stderr.startswith(b"hive: cannot go on: [Errno 28]")


def test_a_terminal_that_knows_only_ascii_gets_ascii(host: FakeHost) -> None:
    host.answers["watch"] = [{"message": message(1, "a", "b", "größe")}]
    command = [*HIVE, "--socket", str(host.path), "watch"]
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, timeout=10, check=False, env=env)

    assert b"\\u2192 b        gr\\xf6\\xdfe" in done.stdout


def test_hive_debug_shows_where_a_bug_is(host: FakeHost) -> None:
    host.answers["agent_status"] = {"agent_statuses": [{}]}
    command = [*HIVE, "--socket", str(host.path), "ls"]

    plain = subprocess.run(command, capture_output=True, timeout=10, check=False)
    debug = subprocess.run(
        command, capture_output=True, timeout=10, check=False, env=os.environ | {"HIVE_DEBUG": "1"}
    )

    assert (plain.returncode, debug.returncode) == (1, 1)
    assert b"Traceback" not in plain.stderr
    assert b"HIVE_DEBUG=1" in plain.stderr
    assert b"Traceback" in debug.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_after_ctrl_c_the_shell_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr, written in ((Terminal(), "\n"), (io.StringIO(), "")):
        monkeypatch.setattr(sys, "stderr", stderr)

        assert problems.interrupted() == 130
        assert stderr.getvalue() == written

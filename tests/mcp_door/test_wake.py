"""`hive-agent wake`: a message from beside the agent into its inbox."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Daemon


def wake(path: Path, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "hive_agent", "wake", "--socket", str(path), *argv],
        input=stdin,
        capture_output=True,
        timeout=20,
    )


def test_it_prints_the_id_of_a_message_under_its_label(shared: Daemon) -> None:
    done = wake(shared.path(), "--from", "bash-task-3", "--body", "done: é")

    assert (done.returncode, done.stderr) == (0, b"")
    (row,) = shared.inbox("alice")
    assert int(done.stdout) == row["id"]
    assert (row["sender"], row["body"]) == ("bash-task-3", "done: é")


def test_a_hyphen_reads_the_body_from_standard_input(shared: Daemon) -> None:
    done = wake(shared.path(), "--from", "ci", "--body", "-", stdin=b"two\nlines\xff\n")

    assert done.returncode == 0, done.stderr
    assert [row["body"] for row in shared.inbox("alice")] == ["two\nlines\ufffd\n"]


@pytest.mark.parametrize(
    ("label", "body", "words"),
    [
        ("bob", "x", b"cannot wake: 'bob' is the name of somebody else"),
        ("operator", "x", b"cannot wake"),
        ("self", "x", b"cannot wake"),
        ("a\nb", "x", b"cannot read the request: wake"),
        ("ci", "", b"the body is empty"),
        ("ci", "-", b"the limit is 65536"),
    ],
)
def test_what_is_refused_is_said_and_counts_as_failed(
    shared: Daemon, label: str, body: str, words: bytes
) -> None:
    done = wake(shared.path(), "--from", label, "--body", body, stdin=b"x" * (1 << 20))

    assert done.returncode == 1
    assert words in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


@pytest.mark.parametrize(
    "argv", [[], ["--from", "ci"], ["--body", "x"], ["--from", "ci", "--body", "x", "y"]]
)
def test_usage_is_explained(tmp_path: Path, argv: list[str]) -> None:
    done = wake(tmp_path / "s", *argv)

    assert done.returncode == 2
    assert done.stderr.startswith(b"usage: hive-agent")


def test_without_a_daemon_it_is_unreachable(tmp_path: Path) -> None:
    done = wake(tmp_path / "s", "--from", "ci", "--body", "x")

    assert done.returncode == 5
    assert done.stderr.startswith(f"cannot reach the daemon at {tmp_path}/s: ".encode())


def test_a_daemon_that_leaves_is_unreachable(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.settimeout(20)
        with subprocess.Popen(
            [sys.executable, "-m", "hive_agent", "wake", "--socket", str(tmp_path / "s"), "--from", "ci", "--body", "x"],
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            listener.accept()[0].close()
            _, err = process.communicate(timeout=20)

    assert process.returncode == 5
    assert err.startswith(b"cannot reach the daemon")

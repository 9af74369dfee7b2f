import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import RunHive
from .fake_host import FakeHost


def complete(line: str, **env: str) -> list[str]:
    """What bash would offer for *line*, whose last word is not finished."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-m", "hive_core.cli"],
        env=os.environ
        | {"_HIVE_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        | env,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stderr == ""
    return [offered.partition(",")[2] for offered in done.stdout.splitlines() if offered]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_there_is_a_script_for_each_shell(shell: str, hive: RunHive) -> None:
    result = hive("completion", shell)

    assert result.code == 0
    assert f"_HIVE_COMPLETE={shell}_complete" in result.out


def test_bash_reads_its_script(hive: RunHive) -> None:
    script = hive("completion", "bash").out

    subprocess.run(["bash", "-n"], input=script.encode(), check=True, timeout=10)


def test_commands_are_offered() -> None:
    assert complete("hive st") == ["status", "start", "stop", "stats"]


def test_options_are_offered() -> None:
    assert "--reply-to" in complete("hive send --")


@pytest.mark.parametrize(
    "line", ["hive stop al", "hive send al", "hive stop bob al", "hive model al", "hive exec al"]
)
def test_agents_are_offered(line: str, host: FakeHost) -> None:
    for name in ("alice", "alan", "bob"):
        host.add(name)

    assert complete(line) == ["alice", "alan"]


@pytest.mark.parametrize("line", ["hive image rm de", "hive spawn x --image de"])
def test_images_are_offered(line: str, host: FakeHost) -> None:
    host.answers["images"] = {"images": [{"name": "debian"}, {"name": "dev"}, {"name": "nix"}]}

    assert complete(line) == ["debian", "dev"]


def test_the_socket_that_was_typed_is_asked(host: FakeHost) -> None:
    host.add("alice")

    assert complete(f"hive --socket {host.path} stop ", HIVE_SOCKET="/nowhere") == ["alice"]


def test_without_a_daemon_completion_is_silent(tmp_path: Path) -> None:
    assert complete("hive stop al", HIVE_SOCKET=str(tmp_path / "none")) == []


@pytest.mark.parametrize("answer", [None, b"garbage\n", {"agents": 7}])
def test_a_strange_daemon_keeps_completion_silent(
    answer: bytes | dict[str, int] | None, host: FakeHost
) -> None:
    host.answers["list"] = answer

    assert complete("hive stop al") == []

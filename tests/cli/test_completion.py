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


@pytest.mark.parametrize("line", ["hive approve 1", "hive deny 7 1", "hive approvals show 1"])
def test_approvals_that_wait_are_offered(line: str, host: FakeHost) -> None:
    rows = [{"id": number, "kind": "spawn", "agent": "x", "status": "pending"} for number in (1, 12, 2)]
    host.answers["pending"] = {"approvals": [*rows, rows[0] | {"id": 13, "status": "denied"}]}

    assert complete(line) == ["1", "12"]


def test_deploys_are_offered_the_newest_first(host: FakeHost) -> None:
    rows = [{"id": number, "kind": "apply", "agent": "x", "step": "done"} for number in (1, 2, 12)]
    host.answers["deploys"] = {"deploys": rows}

    assert complete("hive deploys log 1") == ["12", "1"]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hive deploys l", ["lisa", "log"]),
        ("hive approvals ", ["alice", "lisa", "show"]),
        ("hive deploys a b", []),
    ],
)
def test_an_agent_or_one_of_them_is_offered(line: str, offered: list[str], host: FakeHost) -> None:
    host.add("alice")
    host.add("lisa")

    assert complete(line) == offered


def test_tags_to_go_back_to_are_offered_the_newest_first(host: FakeHost) -> None:
    tags = ["deployed/0", "failed/3", "deployed/4"]
    host.answers["history"] = {"history": [{"tag": tag} for tag in tags]}

    assert complete("hive rollback alice ") == ["deployed/4", "deployed/0"]
    assert host.asked == [{"cmd": "history", "agent": "alice"}]


@pytest.mark.parametrize("line", ["hive revive al", "hive purge al"])
def test_destroyed_agents_are_offered(line: str, host: FakeHost) -> None:
    host.answers["tombstones"] = {"tombstones": [{"name": "alice"}, {"name": "bob"}]}

    assert complete(line) == ["alice"]


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

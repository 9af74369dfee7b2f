"""A change from the edit to what runs, as docs/approvals.md tells it: real daemon, real `hive`, real git."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kit import Daemon, wait_until

AUTHOR = {f"GIT_{who}_{what}": "ada@example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def hive(daemon: Daemon, *argv: str, code: int = 0) -> str:
    """Run `hive` and give what it prints, to stderr too when it is to fail."""
    done = subprocess.run(
        [sys.executable, "-m", "hive_core.cli", "--socket", str(daemon.host_socket), *argv],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stdout + done.stderr


def commit(config: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (config / name).write_text(text)
    plain = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
    for words in (["add", "--all"], ["commit", "--quiet", "--message", message]):
        subprocess.run(["git", *words], cwd=config, env=os.environ | AUTHOR | plain, check=True, timeout=20)


def tags(daemon: Daemon, agent: str) -> list[str]:
    return [line.split("\t")[0] for line in hive(daemon, "history", agent).splitlines()]


def running(daemon: Daemon, agent: str) -> str:
    [line] = [
        line for line in hive(daemon, "history", agent).splitlines() if line.split("\t")[3] == "running"
    ]
    return line.split("\t")[0]


@pytest.fixture
def config(daemon: Daemon) -> Path:
    """The configuration of alice, who runs."""
    daemon.start()
    daemon.spawn("alice")
    return Path(hive(daemon, "config", "alice").strip())


def test_a_commit_is_proposed_shown_approved_deployed_and_rolled_back(daemon: Daemon, config: Path) -> None:
    commit(
        config, {"agent.toml": '[environment]\nHTTPS_PROXY = "http://x"\n', "task.md": "a\u202eb\n"}, "proxy"
    )

    approval_id = hive(daemon, "propose", "alice", "-m", "for Berlin").strip()

    assert hive(daemon, "pending").split("\t")[:5] == [
        approval_id,
        "alice",
        "apply_commit",
        "pending",
        "operator",
    ]
    card = hive(daemon, "approvals", "show", approval_id, "--diff")
    assert 'consequence\tdanger\tenvironment\tHTTPS_PROXY="http://x": programs are steered by it\n' in card
    assert "restart\trestart\n" in card
    assert "\n+a\\u{202e}b\n" in card
    before = daemon.row("alice")["pid"]
    done = hive(daemon, "approve", approval_id, "--yes", "--wait")
    assert done == f"{approval_id}\t1\talice\tdone\t-\n"
    after = wait_until(lambda: daemon.row("alice").get("pid"), "alice runs again")
    assert after != before
    assert b"HTTPS_PROXY=http://x" in Path(f"/proc/{after}/environ").read_bytes().split(b"\0")
    assert running(daemon, "alice") == f"deployed/{approval_id}"

    hive(daemon, "rollback", "alice", "--wait")

    assert running(daemon, "alice") == "deployed/0"
    assert [line.split("\t")[2:4] for line in hive(daemon, "deploys", "alice").splitlines()] == [
        ["apply", "done"],
        ["rollback", "done"],
    ]
    assert "It runs." in hive(daemon, "deploys", "log", "2")


def test_what_cannot_be_built_fails_and_what_ran_runs_on(daemon: Daemon, config: Path) -> None:
    commit(config, {"agent.toml": 'packages = ["jq"]\n'}, "jq")
    approval_id = hive(daemon, "propose", "alice").strip()
    pid = daemon.row("alice")["pid"]

    said = hive(daemon, "approve", approval_id, "--yes", "--wait", code=1)

    assert "this hive has no program that adds them to an image" in said
    assert tags(daemon, "alice")[-1] == f"failed/{approval_id}"
    assert running(daemon, "alice") == "deployed/0"
    assert daemon.row("alice")["pid"] == pid


def test_what_was_shown_is_what_is_approved(daemon: Daemon, config: Path) -> None:
    commit(config, {"note.md": "first\n"}, "first")
    first, second = (hive(daemon, "propose", "alice").strip() for _ in range(2))
    seen = daemon.ask("approval", id=int(second))["approval"]["digest"]
    hive(daemon, "approve", first, "--yes", "--wait")

    late = daemon.client()
    with late, pytest.raises(Exception, match=f"cannot approve {second}") as refused:
        late.ask({"cmd": "approve", "id": int(second), "digest": seen})

    assert getattr(refused.value, "reply", {}).get("reason") == "changed"
    hive(daemon, "approve", second, "--yes")
    assert "decided" not in hive(daemon, "approve", second, "--yes", code=7)


def test_one_is_reviewed_before_it_runs_destroyed_revived_and_purged(daemon: Daemon) -> None:
    daemon.start()
    hive(daemon, "approve", hive(daemon, "init-config", "dave").strip(), "--yes", "--wait")
    config = Path(hive(daemon, "config", "dave").strip())
    commit(config, {"agent.toml": 'description = "reads logs"\n'}, "logs")

    hive(daemon, "approve", hive(daemon, "request-spawn", "dave").strip(), "--yes", "--wait")

    daemon.wait_row("dave", running=True, connected=True)
    waiting = hive(daemon, "propose", "dave").strip()
    hive(daemon, "destroy", "dave")
    assert hive(daemon, "approvals", "dave").splitlines()[-1].split("\t")[3] == "failed", waiting
    assert hive(daemon, "tombstones").split("\t")[0] == "dave"
    hive(daemon, "approve", hive(daemon, "revive", "dave").strip(), "--yes", "--wait")
    daemon.wait_row("dave", running=True, connected=True)
    hive(daemon, "destroy", "dave")
    hive(daemon, "purge", "dave", "--confirm", "dave")
    assert hive(daemon, "tombstones") == ""
    assert not config.exists()


def test_who_is_revived_runs_as_before_whatever_was_proposed_since(daemon: Daemon, config: Path) -> None:
    before = running(daemon, "alice")
    commit(config, {"agent.toml": "no TOML\n"}, "broken")
    hive(daemon, "destroy", "alice")

    approval_id = hive(daemon, "revive", "alice").strip()

    assert "what it ran with before" in hive(daemon, "approvals", "show", approval_id)
    hive(daemon, "approve", approval_id, "--yes", "--wait")
    daemon.wait_row("alice", running=True, connected=True)
    assert running(daemon, "alice") == before


def test_who_asks_is_told_why_not(daemon: Daemon, config: Path) -> None:
    commit(config, {"note.md": "x\n"}, "note")
    approval_id = hive(daemon, "propose", "alice").strip()

    hive(daemon, "deny", approval_id, "-m", "not now")

    assert tags(daemon, "alice")[-1] == f"denied/{approval_id}"
    assert hive(daemon, "history", "alice").splitlines()[-1].endswith("\tnote\tnot now")
    assert "by=operator" in daemon.log
    assert "uid=" in daemon.log

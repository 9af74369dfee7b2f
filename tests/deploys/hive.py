"""A real local hive for these tests: proposals are made as a manager makes them, with git and a text editor."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from daemon.kit import Daemon, tail, wait_until

GIT_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "manager",
    "GIT_AUTHOR_EMAIL": "manager@hive",
    "GIT_COMMITTER_NAME": "manager",
    "GIT_COMMITTER_EMAIL": "manager@hive",
}


def git(directory: Path, *argv: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *argv], capture_output=True, text=True, env=GIT_ENVIRONMENT, timeout=20
    )
    assert done.returncode == 0, f"git {argv}: {done.stderr}"
    return done.stdout.strip()


class Hive:
    """What a test asks of a daemon about deploys, and what it sees of them on disk."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.state = daemon.home / "state"

    # ── proposing and deciding ──────────────────────────────────────────────────────────────────

    def commit(self, name: str, **files: str) -> str:
        """Write files (`agent_toml`: agent.toml) into what is proposed for *name*, and commit them."""
        config = Path(self.daemon.ask("config", name=name)["path"])
        for file, text in files.items():
            (config / file.replace("_", ".")).write_text(text)
        git(config, "add", "--all")
        git(config, "commit", "--quiet", "--allow-empty", "--message", "a change")
        return git(config, "rev-parse", "HEAD")

    def propose(self, name: str, **files: str) -> int:
        sha = self.commit(name, **files)
        return int(self.daemon.ask("request_apply_commit", agent=name, commit_ref=sha)["id"])

    def approve(self, approval_id: int) -> None:
        self.daemon.ask("approve", id=approval_id)

    def deploy(self, name: str, **files: str) -> dict[str, Any]:
        """Propose, approve, and wait for the end; give the deploy's row."""
        number = self.propose(name, **files)
        self.approve(number)
        return self.wait_deploy(approval_id=number)

    def wait_deploy(self, limit_s: float = 30.0, **wanted: Any) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            rows = self.daemon.ask("deploys", limit=1000)["deploys"]
            for row in rows:
                if all(row.get(key) == value for key, value in wanted.items()) and "finished_at" in row:
                    return dict(row)
            return None

        try:
            found = wait_until(ended, f"deploy {wanted} ends", limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{tail(self.daemon.log, 40)}") from None
        assert found is not None
        return found

    def rollback(self, name: str, tag: str | None = None) -> dict[str, Any]:
        fields = {} if tag is None else {"tag": tag}
        return self.wait_deploy(id=self.daemon.ask("rollback", agent=name, **fields)["id"])

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    def tags(self, name: str) -> dict[str, str]:
        lines = git(
            self.state / "applied" / name,
            "for-each-ref",
            "--format",
            "%(refname:short) %(objectname) %(*objectname)",
            "refs/tags",
        )
        return {words[0]: words[-1] for words in (line.split() for line in lines.splitlines())}

    def main(self, name: str) -> str:
        return git(self.state / "applied" / name, "rev-parse", "main")

    @property
    def agents_json(self) -> dict[str, Any]:
        text = git(self.state / "meta", "show", "HEAD:agents.json")
        found: dict[str, Any] = json.loads(text)["agents"]
        return found

    @property
    def meta_log(self) -> list[str]:
        return git(self.state / "meta", "log", "--format=%s").splitlines()

    def environment(self, name: str) -> dict[str, str]:
        """What the running harness of *name* was given."""
        (pid,) = self.daemon.harnesses(name)
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(word.partition("=")[::2] for word in words if word)

    def deployed(self, name: str) -> tuple[str, str]:
        """What the row of *name* says runs."""
        ((sha, tag),) = self.daemon.rows_of(
            f"select deployed_sha, deployed_tag from agents where name = '{name}'"
        )
        return sha, tag

    def approval(self, number: int) -> dict[str, Any]:
        rows = self.daemon.ask("approvals", limit=1000)["approvals"]
        return next(row for row in rows if row["id"] == number)

    def check(self) -> None:
        """Repositories, rows, agents.json and what runs say the same."""
        rows = self.daemon.rows_of(
            "select name, deployed_sha, deployed_tag, manifest from agents"
            " where destroyed_at is null and deployed_sha is not null"
        )
        wait_until(
            lambda: (self.agents_json if rows else {}).keys() == {row[0] for row in rows},
            "agents.json is right",
        )
        for name, sha, tag, manifest in rows:
            entry = self.agents_json[name]
            assert (entry["sha"], entry["tag"]) == (sha, tag)
            assert self.main(name) == sha
            assert self.tags(name)[tag] == sha
            row = self.daemon.wait_row(name, connected=True)
            assert row["deployed_sha"] == sha[:12]
            declared = json.loads(manifest or "{}").get("environment", {})
            seen = self.environment(name)
            assert {key: seen.get(key) for key in declared} == declared
        for number, status, finished in self.daemon.rows_of("select id, status, finished from approvals"):
            if status == "pending":
                continue
            assert finished, number
            told = self.daemon.rows_of(
                f"select count(*) from messages where body like '%approval_resolved%\"id\":{number},%'"
            )
            assert told[0][0] <= 1
        for kind, step, agent, sha, tag, number in self.daemon.rows_of(
            "select kind, step, agent, sha, tag, approval_id from deploys"
        ):
            assert step in {"done", "failed"}
            if kind != "init_config" and sha is not None:
                tags = self.tags(agent)
                assert (step == "done" and tags[tag] == sha) or (
                    step == "failed" and (number is None or tags[f"failed/{number}"] == sha)
                )

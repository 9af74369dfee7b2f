"""Run inside a bed by test_killed_deploys: all that is said anywhere of what is deployed, as JSON.

With a query: the rows of that.
"""

import json
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

STATE = Path("/var/lib/hyperhive")
CGROUPS = Path("/sys/fs/cgroup")
ROWS = """
select name, deployed_sha, deployed_tag from agents where destroyed_at is null and deployed_sha is not null
"""
ENDED = """
select a.id, a.kind, a.status, a.agent, d.step, d.sha, d.tag from approvals a
join deploys d on d.approval_id = a.id
"""
TOLD = """
select body from messages where sender = 'system' and body like '{"event":"approval_resolved"%'
"""


def git(repository: str, *words: str) -> str:
    return run("git", "-c", "safe.directory=*", "-C", str(STATE / repository), *words)


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def tags(agent: str) -> dict[str, str]:
    if not (STATE / "applied" / agent).exists():
        return {}
    shown = "%(refname:short) %(objectname) %(*objectname)"
    lines = git(f"applied/{agent}", "for-each-ref", "--format", shown, "refs/tags").splitlines()
    return {words[0]: words[-1] for words in map(str.split, lines)}


def machine(agent: str) -> dict[str, Any]:
    """What its harness was started with, and what its machine has."""
    cgroup = CGROUPS / f"machine.slice/machine-hive.slice/systemd-nspawn@h-{agent}.service"
    process = harness(cgroup)
    words = (process / "environ").read_text().split("\0")
    return {
        "stage": dict(word.split("=", 1) for word in words if "=" in word).get("STAGE"),
        "tasks": run("systemctl", "show", cgroup.name, "-p", "TasksMax", "--value"),
        "toml": (process / "root/etc/hyperhive/release/config/agent.toml").read_text(),
    }


def harness(cgroup: Path) -> Path:
    (file,) = cgroup.rglob("hive-agent.service/cgroup.procs")
    for pid in file.read_text().split():
        with suppress(FileNotFoundError):
            if b"hive_agent\0serve" in Path("/proc", pid, "cmdline").read_bytes():
                return Path("/proc", pid)
    raise LookupError(f"no harness in {cgroup}")


def agent(name: str, sha: str, tag: str) -> dict[str, Any]:
    return {
        "sha": sha,
        "tag": tag,
        "main": git(f"applied/{name}", "rev-parse", "main"),
        "tags": tags(name),
        "toml": git(f"applied/{name}", "show", f"{sha}:agent.toml"),
        "release": str((STATE / "releases" / name / "current").readlink()),
        "machine": machine(name),
    }


def main() -> None:
    with sqlite3.connect(f"file:{STATE}/broker.sqlite?mode=ro", uri=True, timeout=5) as db:
        if len(sys.argv) > 1:
            print(json.dumps({"rows": db.execute(sys.argv[1]).fetchall()}))
            return
        rows, ended = db.execute(ROWS).fetchall(), db.execute(ENDED).fetchall()
        told = [json.loads(body)["id"] for (body,) in db.execute(TOLD)]
    entries = json.loads(git("meta", "show", "HEAD:agents.json"))["agents"]
    seen = {
        "agents": {name: agent(name, sha, tag) for name, sha, tag in rows},
        "entries": entries,
        "meta_differs": git("meta", "status", "--porcelain"),
        "staged": [str(path) for path in (STATE / "staging").rglob("*") if path.is_file()],
        "ended": ended,
        "tags": {name: tags(name) for name in {row[3] for row in ended}},
        "told": told,
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()

"""kill -9 in the midst of deploys of machines: afterwards rows, repositories and what runs say the same."""

import json
import os
import random
import signal
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from daemon.kit import SOAK_S, seeded

from .bed import open_bed
from .hive_kit import CONFIG, TROUBLE, HiveHost, wait_until

ROUNDS = 5
"""Where nobody asked for a soak."""
RECOVERED_S = 60.0
"""After a kill: systemd starts the daemon, which ends the deploy, and perhaps starts a machine twice."""
AT_ONCE = "[Service]\nRestartSec=50ms\n[Unit]\nStartLimitIntervalSec=0\n"
"""It is killed more often than systemd would have patience with."""

pytestmark = pytest.mark.timeout(SOAK_S + 300)

Seen = dict[str, Any]


@pytest.fixture
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-killed") as bed:
        drop_in = bed.path("/etc/systemd/system/hive-core.service.d")
        drop_in.mkdir(parents=True)
        (drop_in / "at-once.conf").write_text(AT_ONCE)
        host = HiveHost(bed).set_up(f"{CONFIG}\n[approvals]\nmanager = true\n")
        host.wait_as_wanted("manager")
        host.hive("spawn", "alice")
        yield host


class Chaos:
    """Deploys of every kind, one after the other, each cut off by the death of the daemon."""

    def __init__(self, hive: HiveHost, source: random.Random) -> None:
        self.hive, self.source = hive, source
        self.count = self.kills = 0
        self.spawned: list[str] = []
        self.what: Counter[str] = Counter()
        self.killed_in: Counter[str] = Counter()
        self.longest_s = 0.0
        self.kinds: dict[str, Callable[[], object]] = {
            "apply": self._apply,
            "limits": self._limits,
            "broken": self._broken,
            "rollback": self._rollback,
            "spawn": self._spawn,
            "destroy": self._destroy,
        }

    # ── what is asked for ───────────────────────────────────────────────────────────────────────

    def approve(self, asked: dict[str, Any]) -> None:
        self.hive.ask(cmd="approve", id=asked["id"])

    def propose(self, toml: str) -> None:
        """Commit as the manager does, propose and approve it."""
        config = self.hive.ask(cmd="config", name="alice")["path"]
        self.hive.bed.path(f"{config}/agent.toml").write_text(toml)
        owner = str(self.hive.bed.path(config).stat().st_uid)
        git = f"git -c safe.directory=* -c user.name=m -c user.email=m@x -C {config}"
        script = f"{git} commit -aqm {self.count} && {git} rev-parse HEAD"
        become = ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups"]
        sha = self.hive.run([*become, "sh", "-c", script]).stdout.strip()
        self.approve(self.hive.ask(cmd="request_apply_commit", agent="alice", commit_ref=sha))

    def _apply(self) -> None:
        self.propose(f'[environment]\nSTAGE = "{self.count}"\n')

    def _limits(self) -> None:
        self.propose(f"limits.tasks = {1000 + self.count}\n")

    def _broken(self) -> None:
        broken = ['image = "none-such"\n', '[[binds]]\nsource = "/srv/none-such"\n']
        self.propose(f'environment = {{ STAGE = "{self.count}" }}\n{self.source.choice(broken)}')

    def _rollback(self) -> None:
        history = self.hive.ask(cmd="history", agent="alice", limit=1000)["history"]
        tags = {
            row["tag"] for row in history if row["tag"].startswith("deployed/") and not row.get("running")
        }
        self.hive.ask(cmd="rollback", agent="alice", tag=self.source.choice(sorted(tags)))

    def _spawn(self) -> None:
        self.spawned.append(f"new{self.count}")
        self.approve(self.hive.ask(cmd="request_spawn", name=self.spawned[-1]))

    def _destroy(self) -> None:
        if not self.spawned:
            self._spawn()
        else:
            self.hive.ask(cmd="destroy", name=self.spawned.pop(0))

    # ── a round ─────────────────────────────────────────────────────────────────────────────────

    def round(self) -> None:
        self.count += 1
        what = self.source.choice(sorted(self.kinds))
        self.what[what] += 1
        self.kinds[what]()
        # Most steps are short, and come soon.
        time.sleep(self.source.choice([0.1, 0.5, 1.5]) * self.source.random())
        self.kill()
        self.kills += 1
        step = self.look("select step from deploys order by id desc limit 1")["rows"]
        self.killed_in[step[0][0]] += 1
        if self.source.random() < 0.3:
            time.sleep(self.source.uniform(0, 1))
            self.kill()
            self.kills += 1
        began = time.monotonic()
        wait_until(self.is_over, f"all is over after {what}", RECOVERED_S)
        self.longest_s = max(self.longest_s, time.monotonic() - began)
        self.check()

    def kill(self) -> None:
        """As fast as it goes: a process that asked systemd to do it would take longer than most steps."""
        unit = self.hive.bed.cgroup / "system.slice/hive-core.service/cgroup.procs"
        with suppress(FileNotFoundError, ProcessLookupError):  # it is dead already
            for pid in unit.read_text().split():
                if b"\0serve\0" in Path("/proc", pid, "cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    def is_over(self) -> bool:
        try:
            deploys = self.hive.ask(cmd="deploys", limit=20)["deploys"]
            return all("finished_at" in row for row in deploys) and self.hive.is_as_wanted()
        except TROUBLE:
            return False

    # ── what is there ───────────────────────────────────────────────────────────────────────────

    def look(self, *query: str) -> Seen:
        script = "/src/hyperhive/tests/host_bed/inside_deploys.py"
        seen: Seen = json.loads(self.hive.run(["/opt/hyperhive/bin/python3", script, *query]).stdout)
        return seen

    def check(self) -> None:
        """Rows, tags, branches, agents.json, releases and machines say the same."""
        seen = self.look()
        for _ in range(20):
            # What is destroyed is taken from there soon, by nobody's deploy.
            if seen["entries"].keys() == seen["agents"].keys() and not seen["meta_differs"]:
                break
            time.sleep(0.5)
            seen = self.look()
        assert seen["entries"].keys() == seen["agents"].keys()
        assert seen["meta_differs"] == ""
        assert seen["staged"] == []
        rows = self.hive.rows()
        for name, agent in seen["agents"].items():
            entry, sha = seen["entries"][name], agent["sha"]
            assert (entry["sha"], entry["tag"]) == (sha, agent["tag"])
            assert agent["main"] == agent["tags"][agent["tag"]] == agent["release"] == sha
            assert rows[name]["deployed_sha"] == sha[:12]
            assert not rows[name]["needs_update"]
            declared, machine = tomllib.loads(agent["toml"]), agent["machine"]
            assert tomllib.loads(machine["toml"]) == declared
            assert machine["stage"] == declared.get("environment", {}).get("STAGE")
            assert machine["tasks"] == str(declared.get("limits", {}).get("tasks", 2048))
        self.check_ended(seen)

    def check_ended(self, seen: Seen) -> None:
        """Every deploy has one end, in its tags, in its approval and in what the manager was told."""
        told: Counter[int] = Counter(seen["told"])
        for number, kind, status, agent, step, sha, tag in seen["ended"]:
            assert status == ("approved" if step == "done" else "failed")
            assert told[number] == 1
            tags = seen["tags"][agent]
            if sha is None:  # it failed before there was any
                continue
            assert (f"failed/{number}" in tags) == (step == "failed")
            assert step == "failed" or tags[tag] == sha
            if kind == "apply_commit":
                assert (f"deployed/{number}" in tags) == (step == "done")
                assert tags[f"approved/{number}"] == tags[f"building/{number}"] == sha


def test_what_is_killed_at_any_time_agrees_afterwards(hive: HiveHost) -> None:
    chaos = Chaos(hive, seeded("killed deploys"))
    chaos.propose('[environment]\nSTAGE = "first"\n')
    wait_until(chaos.is_over, "the first is deployed", RECOVERED_S)
    chaos.check()
    deadline = time.monotonic() + SOAK_S
    try:
        while chaos.count < ROUNDS or time.monotonic() < deadline:
            chaos.round()
    finally:
        print(f"{chaos.kills} kills; asked for: {dict(chaos.what)}; killed in: {dict(chaos.killed_in)}")
        print(f"over after {chaos.longest_s:.1f} s at most")

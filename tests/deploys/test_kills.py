"""kill -9 in the midst of deploys of a real hive: the next daemon brings each to its end, and all agree."""

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from daemon.kit import SOAK_S, Daemon, home_of, seeded, wait_until

from .hive import Hive

STEPS = ("preparing", "building", "activating", "finalizing", "aborting")
HITS = 3
"""Kills in each step."""
LONGEST_S = 0.05
"""From the moment that a step is seen to the kill."""


pytestmark = pytest.mark.timeout(SOAK_S + 180)


@pytest.fixture
def hive() -> Iterator[Hive]:
    daemon = Daemon()
    # A harness that does not come up is soon known.
    daemon.config_path.write_text("[machines]\nstart_timeout_s = 5\n")
    with home_of(daemon):
        yield Hive(daemon.start())


class Chaos:
    """Deploys of every kind, one after the other, each cut off by the death of the daemon."""

    def __init__(self, hive: Hive, source: random.Random) -> None:
        self.hive, self.source = hive, source
        self.count = 0
        self.killed: dict[str, int] = {}

    def begin(self, what: str) -> None:
        """Have something queued, and return at once."""
        self.count += 1
        daemon = self.hive.daemon
        toml = f'[environment]\nSTAGE = "{self.count}"\n'
        match what:
            case "apply":
                self.hive.approve(self.hive.propose("alice", agent_toml=toml))
            case "broken":
                self.hive.approve(self.hive.propose("alice", agent_toml=f'provider = "nobody"\n{toml}'))
            case "rollback":
                running = self.hive.deployed("alice")[1]
                tags = [
                    tag for tag in self.hive.tags("alice") if tag.startswith("deployed/") and tag != running
                ]
                daemon.ask("rollback", agent="alice", tag=self.source.choice(sorted(tags)))
            case "spawn":
                self.hive.approve(daemon.ask("request_spawn", name=f"new{self.count}")["id"])

    def kill_in(self, step: str | None) -> str:
        """Kill the daemon soon after *step* was recorded, or at any time; give the step that it died in."""
        if step is None:
            time.sleep(self.source.uniform(0, 1.0))
        else:
            self._wait_step(step)
            time.sleep(self.source.choice([0, self.source.uniform(0, LONGEST_S)]))
        self.hive.daemon.kill()
        ((died_in,),) = self.hive.daemon.rows_of("select step from deploys order by id desc limit 1")
        self.killed[died_in] = self.killed.get(died_in, 0) + 1
        return str(died_in)

    def _wait_step(self, step: str) -> None:
        db = sqlite3.connect(f"file:{self.hive.daemon.database}?mode=ro", uri=True, timeout=5)
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                with suppress(sqlite3.OperationalError):
                    ((now,),) = db.execute("select step from deploys order by id desc limit 1").fetchall()
                    if now in {step, "done", "failed"}:
                        return
                time.sleep(0.001)
        finally:
            db.close()
        raise AssertionError(f"it never came to {step}")

    def recover(self) -> None:
        """Start the next daemon, sometimes kill that too, and see that everything agrees."""
        if self.source.random() < 0.3:
            self.hive.daemon.launch()
            time.sleep(self.source.uniform(0.3, 1.5))
            self.hive.daemon.kill()
        self.hive.daemon.start()
        open_ones = "select count(*) from deploys where finished_at is null"
        wait_until(lambda: self.hive.daemon.rows_of(open_ones)[0][0] == 0, "every deploy ends", 30)
        self.hive.check()


def prepared(hive: Hive) -> None:
    hive.daemon.spawn("alice")
    for word in ("one", "two"):
        assert hive.deploy("alice", agent_toml=f'[environment]\nSTAGE = "{word}"\n')["step"] == "done"


@pytest.mark.parametrize("step", STEPS)
def test_killed_in_each_step(hive: Hive, step: str) -> None:
    prepared(hive)
    source = seeded(f"step {step}")
    chaos = Chaos(hive, source)
    deadline = time.monotonic() + max(45.0, SOAK_S)
    hits = 0
    while hits < HITS or time.monotonic() < deadline - 45.0:
        chaos.begin("broken" if step == "aborting" else source.choice(["apply", "rollback", "spawn"]))
        hits += chaos.kill_in(step) == step
        chaos.recover()
        assert time.monotonic() < deadline, f"only {hits} kills in {step}: {chaos.killed}"
    print(f"killed: {chaos.killed}")


def test_killed_at_any_time(hive: Hive) -> None:
    prepared(hive)
    source = seeded("any time")
    chaos = Chaos(hive, source)
    rounds = 8 if SOAK_S == 0 else 10_000
    deadline = time.monotonic() + max(45.0, SOAK_S)
    for _ in range(rounds):
        chaos.begin(source.choice(["apply", "apply", "broken", "rollback", "spawn"]))
        chaos.kill_in(None)
        chaos.recover()
        if time.monotonic() > deadline:
            break
    print(f"killed: {chaos.killed}")

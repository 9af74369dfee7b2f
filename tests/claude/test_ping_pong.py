"""Two claudes play ping-pong while their harnesses and the daemon are killed."""

import json
import os
import random
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, suppress
from typing import Any

import pytest
from daemon.kit import Daemon, Follower, wait_until
from fake_api.server import Asked, FakeApi, Step

TURNS = int(os.environ.get("HIVE_PING_PONG_TURNS", "5"))
SEED = int(os.environ.get("HIVE_PING_PONG_SEED", "3"))
NAMES = ("alice", "bob")
LIMIT_S = 60.0


def play(asked: Asked) -> Step:
    """Answer ping N with ping N+1, until that is accepted."""
    # None in the answer of a tool.  What repairs a call that was cut off stands beside the next prompt.
    number = max(map(int, re.findall(r"ping (\d+)", asked.last_user)), default=TURNS)
    if number >= TURNS or f"ping {number + 1}" in accepted(asked):
        return {"text": "done"}
    peer = "bob" if asked.agent == "alice" else "alice"
    arguments = {"to": peer, "body": f"ping {number + 1}"}
    return {"tools": [{"name": "mcp__hyperhive__send", "input": arguments}], "delay": 0.2}


def accepted(asked: Asked) -> set[str]:
    """What the agent has sent before, by the answers in its conversation: a call may have been cut off."""
    blocks = [
        block
        for message in asked.body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
    ]
    answers = {b["tool_use_id"]: json.dumps(b) for b in blocks if b["type"] == "tool_result"}
    calls = [block for block in blocks if block["type"] == "tool_use"]
    return {call["input"]["body"] for call in calls if "Accepted as" in answers.get(call["id"], "")}


class Watch:
    """Follows an agent's events through every daemon, each time from where it was cut off."""

    def __init__(self, hive: Daemon, name: str) -> None:
        self._hive, self._name = hive, name
        self._seen: list[int] = []
        self._follower: Follower | None = None
        self.go_on()

    def go_on(self) -> None:
        after = self._seen[-1] if self._seen else 0
        self._follower = Follower(self._hive, "events", agent=self._name, follow=True, after=after)

    def stop(self) -> None:
        """After the daemon's end."""
        assert self._follower is not None
        self._follower.ended.wait(10)
        self._follower.close()
        self._seen += [row["id"] for row in self._follower.events]

    def finish(self, last_id: int) -> list[int]:
        """Give all that it saw, when that goes as far as *last_id*."""
        follower = self._follower
        assert follower is not None
        if not self._seen or self._seen[-1] < last_id:
            follower.wait(lambda _: any(row["id"] >= last_id for row in follower.events), f"event {last_id}")
        follower.close()
        return [*self._seen, *(row["id"] for row in follower.events)]


@pytest.mark.timeout(60 + 15 * TURNS)
def test_no_ping_is_lost_while_everything_is_killed(hive: Daemon, api: FakeApi) -> None:
    api.respond = play
    dice = random.Random(SEED)
    kills: Counter[str] = Counter()
    hive.spawn(*NAMES)
    watches = {name: Watch(hive, name) for name in NAMES}
    hive.send("alice", "ping 0")
    for number in range(1, TURNS + 1):
        wait_until(lambda number=number: f"ping {number}" in bodies(hive), f"ping {number}", LIMIT_S)
        time.sleep(dice.uniform(0, 0.5))  # any moment of the turn that it begins, and of the one it ends
        victim = dice.choice([*NAMES, "daemon", "nobody"])
        if victim == "daemon":
            hive.kill()
            for watch in watches.values():
                watch.stop()
            hive.start()
            for watch in watches.values():
                watch.go_on()
        elif victim != "nobody":
            with suppress(KeyError, ProcessLookupError):
                os.kill(hive.row(victim)["pid"], signal.SIGKILL)
        kills[victim] += 1

    wait_until(lambda: all("acked_at" in row for row in to_agents(hive)), "all is done", LIMIT_S)
    for name in NAMES:
        hive.wait_row(name, turn_state="idle", connected=True)
    print(f"killed: {dict(kills)}")

    assert bodies(hive) >= {f"ping {number}" for number in range(TURNS + 1)}
    for row in to_agents(hive):
        assert any(asked.agent == row["recipient"] and row["body"] in asked.words for asked in api.asked)
    for name in NAMES:
        events = hive.events(name)
        ids = [row["id"] for row in events]
        assert ids == list(range(1, len(ids) + 1))
        assert watches[name].finish(ids[-1])[: len(ids)] == ids
        check_stats(hive, name, events, kills[name])


def check_stats(hive: Daemon, name: str, events: list[dict[str, Any]], kills: int) -> None:
    """Every turn is in the stats, also those that a kill of their harness cut off."""
    with closing(sqlite3.connect(hive.state(name) / "hyperhive-turn-stats.sqlite")) as db:
        rows: list[tuple[int, str]] = db.execute("select message_id, result_kind from turn_stats").fetchall()
    written = Counter(message_id for message_id, _ in rows)
    begun, ended = (
        Counter(row["payload"]["message_id"] for row in events if row["kind"] == kind)
        for kind in ("turn_start", "turn_end")
    )
    print(
        f"{name}: {begun.total()} turns begun, {ended.total()} ended, {len(rows)} in the stats, {kills} kills"
    )

    assert begun <= written  # a kill between the row and the event leaves the row
    assert written.total() - begun.total() <= kills
    assert sum(kind == "killed" for _, kind in rows) == written.total() - ended.total() <= kills
    done = {row["id"] for row in hive.messages() if row["recipient"] == name}
    assert done == {message_id for message_id, kind in rows if kind == "ok"}


def to_agents(hive: Daemon) -> list[dict[str, Any]]:
    """The others tell the operator of each kill."""
    return [row for row in hive.messages() if row["recipient"] in NAMES]


def bodies(hive: Daemon) -> set[str]:
    return {row["body"] for row in hive.messages()}

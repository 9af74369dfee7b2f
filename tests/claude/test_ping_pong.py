"""Two claudes play ping-pong while their harnesses and the daemon are killed."""

import json
import os
import random
import re
import signal
from contextlib import suppress

import pytest
from fake_api.server import Asked, FakeApi, Step

from .conftest import Hive, wait_until

TURNS = int(os.environ.get("HIVE_PING_PONG_TURNS", "5"))
SEED = int(os.environ.get("HIVE_PING_PONG_SEED", "3"))


def play(asked: Asked) -> Step:
    """Answer ping N with ping N+1, once; the conversation says what was sent before."""
    number = max(map(int, re.findall(r"ping (\d+)", asked.last_user)), default=0)
    if (
        asked.is_answer_of_tool
        or number >= TURNS
        or f'"ping {number + 1}"' in json.dumps(asked.body["messages"])
    ):
        return {"text": "done"}
    peer = "bob" if asked.agent == "alice" else "alice"
    arguments = {"to": peer, "body": f"ping {number + 1}"}
    return {"tools": [{"name": "mcp__hyperhive__send", "input": arguments}], "delay": 0.2}


@pytest.mark.timeout(60 + 15 * TURNS)
def test_no_ping_is_lost_while_everything_is_killed(hive: Hive, api: FakeApi) -> None:
    api.respond = play
    dice = random.Random(SEED)
    hive.spawn("alice", "bob")
    hive.send("alice", "ping 0")
    for number in range(1, TURNS + 1):
        wait_until(lambda number=number: f"ping {number}" in bodies(hive), f"ping {number}", 60)
        victim = dice.choice(["alice", "bob", "daemon", "nobody"])
        if victim == "daemon":
            hive.kill()
            hive.start()
        elif victim != "nobody":
            with suppress(KeyError, ProcessLookupError):
                os.kill(hive.row(victim)["pid"], signal.SIGKILL)

    wait_until(lambda: all("acked_at" in row for row in hive.messages()), "all is done", 60)

    assert bodies(hive) >= {f"ping {number}" for number in range(TURNS + 1)}
    for name in ("alice", "bob"):
        rows = [row["id"] for row in hive.ask("events", agent=name, after=0, limit=1000)["events"]]
        assert rows == list(range(rows[0], rows[0] + len(rows)))


def bodies(hive: Hive) -> set[str]:
    return {row["body"] for row in hive.messages()}

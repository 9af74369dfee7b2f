"""Agents driven by the real claude in a real hive: daemon, harnesses, MCP door."""

import os
import signal
import time

from fake_api.server import FakeApi

from .conftest import Hive, wait_until


def send(to: str, body: str) -> dict[str, object]:
    return {"tools": [{"name": "mcp__hyperhive__send", "input": {"to": to, "body": body}}]}


LONG = {"text": "word " * 3000, "words": 1, "chunk_delay": 0.02}


def test_a_message_of_one_claude_begins_a_turn_of_another(hive: Hive, api: FakeApi) -> None:
    api.load(
        {
            "alice": [send("bob", "count to three"), {"text": "asked bob"}],
            "bob": [send("operator", "one two three"), {"text": "counted"}],
        }
    )
    hive.spawn("alice", "bob")

    first = hive.send("alice", "please let bob count")
    hive.wait_done(first)
    wait_until(lambda: any(row["recipient"] == "operator" for row in hive.messages()), "bob answers")
    (of_bob,) = hive.wait_ends("bob", 1)

    (to_bob,) = [row for row in hive.messages() if row["recipient"] == "bob"]
    assert (to_bob["sender"], to_bob["body"]) == ("alice", "count to three")
    assert of_bob["ok"]
    asked = next(asked for asked in api.asked if asked.agent == "bob")
    assert "count to three" in asked.words


def test_a_cancelled_turn_is_gone_in_two_seconds_and_the_next_message_works(hive: Hive, api: FakeApi) -> None:
    api.load([LONG])
    hive.spawn("alice")
    hive.send("alice", "talk")
    wait_until(lambda: api.asked, "claude talks")

    asked_at = time.monotonic()
    hive.ask("cancel_turn", agent="alice")
    (end,) = hive.wait_ends("alice", 1)
    took_s = time.monotonic() - asked_at
    hive.wait_done(hive.send("alice", "and now?"))

    assert took_s < 2
    assert not end["ok"]
    assert hive.wait_ends("alice", 2)[1]["ok"]


def test_a_tool_call_waits_while_the_daemon_restarts(hive: Hive, api: FakeApi) -> None:
    slow = {**send("operator", "still here"), "delay": 2.0}
    api.load([slow, {"text": "done"}])
    hive.spawn("alice")
    first = hive.send("alice", "say something")
    wait_until(lambda: api.asked, "claude is asked")

    hive.kill()
    time.sleep(2.5)  # claude calls its tool meanwhile
    hive.start()
    hive.wait_done(first)

    said = [row["body"] for row in hive.messages() if row["recipient"] == "operator"]
    assert said == ["still here"]


def test_a_killed_harness_comes_back_and_the_message_with_it(hive: Hive, api: FakeApi) -> None:
    api.load([LONG, send("operator", "second try"), {"text": "done"}])
    hive.spawn("alice")
    first = hive.send("alice", "talk")
    wait_until(lambda: api.asked, "claude talks")

    os.kill(hive.row("alice")["pid"], signal.SIGKILL)
    hive.wait_done(first)

    said = [row["body"] for row in hive.messages() if row["recipient"] == "operator"]
    assert said == ["second try"]
    assert "handed out before" in api.asked[-1].words

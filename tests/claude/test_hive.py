"""Agents driven by the real claude in a real hive: daemon, harnesses, MCP door."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from daemon.kit import Daemon, processes_of, wait_until
from fake_api.install_claude import find_claude
from fake_api.server import FakeApi

LIMIT_S = 30.0


def send(to: str, body: str) -> dict[str, object]:
    return {"tools": [{"name": "mcp__hyperhive__send", "input": {"to": to, "body": body}}]}


def wait_ends(hive: Daemon, name: str, count: int) -> list[dict[str, Any]]:
    def ends() -> list[dict[str, Any]] | None:
        found = [row["payload"] for row in hive.events(name, "turn_end")]
        return found if len(found) >= count else None

    return list(wait_until(ends, f"{count} turns of {name}", LIMIT_S) or [])


def wait_asked(api: FakeApi) -> None:
    wait_until(lambda: api.asked, "claude asks", LIMIT_S)


STUCK = {
    "tools": [{"name": "Bash", "input": {"command": "python3 -c 'import time; time.sleep(8877)'; echo"}}]
}
LONG = {"text": "word " * 3000, "words": 1, "chunk_delay": 0.02}


def test_a_message_of_one_claude_begins_a_turn_of_another(hive: Daemon, api: FakeApi) -> None:
    api.load(
        {
            "alice": [send("bob", "count to three"), {"text": "asked bob"}],
            "bob": [send("operator", "one two three"), {"text": "counted"}],
        }
    )
    hive.spawn("alice", "bob")

    first = hive.send("alice", "please let bob count")
    hive.wait_acked(first)
    wait_until(lambda: any(row["recipient"] == "operator" for row in hive.messages()), "bob answers", LIMIT_S)
    (of_bob,) = wait_ends(hive, "bob", 1)

    (to_bob,) = [row for row in hive.messages() if row["recipient"] == "bob"]
    assert (to_bob["sender"], to_bob["body"]) == ("alice", "count to three")
    assert of_bob["ok"]
    asked = next(asked for asked in api.asked if asked.agent == "bob")
    assert "count to three" in asked.words


@pytest.mark.parametrize("doing", [LONG, STUCK], ids=["talk", "tool"])
def test_a_cancelled_turn_is_gone_in_two_seconds_and_the_next_message_works(
    hive: Daemon, api: FakeApi, doing: dict[str, object]
) -> None:
    api.load([doing])
    hive.spawn("alice")
    hive.send("alice", "talk")
    wait_asked(api)
    (claude,) = claudes(hive)
    if doing is STUCK:
        wait_until(lambda: len(processes_of(hive.state("alice"))) > 3, "the command runs", LIMIT_S)
    before = processes_of(hive.state("alice"))

    asked_at = time.monotonic()
    hive.ask("cancel_turn", agent="alice")
    wait_until(lambda: not group_of(claude) and not claudes(hive), "claude is gone", 5.0, every_s=0.005)
    took_s = time.monotonic() - asked_at
    (end,) = wait_ends(hive, "alice", 1)
    print(f"from cancel to the end of {len(before)} processes: {took_s:.2f} s")

    assert took_s < 2
    assert not end["ok"]
    assert processes_of(hive.state("alice")) == [hive.row("alice")["pid"]]
    hive.wait_acked(hive.send("alice", "and now?"))
    assert wait_ends(hive, "alice", 2)[1]["ok"]


def claudes(hive: Daemon) -> list[int]:
    """Pids of the claudes of this hive."""
    return [pid for pid in processes_of(hive.home) if exe_of(pid) == find_claude()]


def exe_of(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/exe").readlink()
    except OSError:
        return None


def group_of(leader: int) -> list[int]:
    """Pids of the living processes in the group of that process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
            if int(group) == leader and state != "Z":
                found.append(int(path.parent.name))
    return found


def test_a_tool_call_waits_while_the_daemon_restarts(hive: Daemon, api: FakeApi) -> None:
    slow = {**send("operator", "still here"), "delay": 2.0}
    api.load([slow, {"text": "done"}])
    hive.spawn("alice")
    first = hive.send("alice", "say something")
    wait_asked(api)

    hive.kill()
    time.sleep(2.5)  # claude calls its tool meanwhile
    hive.start()
    hive.wait_acked(first)

    said = [row["body"] for row in hive.messages() if row["sender"] == "alice"]
    assert said == ["still here"]


def test_a_killed_harness_comes_back_and_the_message_with_it(hive: Daemon, api: FakeApi) -> None:
    api.load([LONG, send("operator", "second try"), {"text": "done"}])
    hive.spawn("alice")
    first = hive.send("alice", "talk")
    wait_asked(api)

    os.kill(hive.row("alice")["pid"], signal.SIGKILL)
    hive.wait_acked(first)

    said = [row["body"] for row in hive.messages() if row["sender"] == "alice"]
    assert said == ["second try"]
    assert "handed out before" in api.asked[-1].words

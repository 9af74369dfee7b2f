"""Dead letters and lists of recipients in a real hive, with real harnesses."""

import json
import os
import signal
from typing import Any

from .kit import Daemon, Fault, wait_until


def dead(daemon: Daemon) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = daemon.ask("dead")["messages"]
    return rows


def news(daemon: Daemon) -> list[int]:
    bodies = [json.loads(row["body"]) for row in daemon.inbox("operator") if row["sender"] == "system"]
    return [body["id"] for body in bodies if body["event"] == "message_dead"]


def test_what_a_harness_fails_over_three_times_is_dead_until_it_is_retried(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    poison = daemon.send("alice", "fail: cannot be done")
    wait_until(lambda: dead(daemon), "it is dead", 30)

    (row,) = dead(daemon)
    assert (row["id"], row["attempts"]) == (poison, 3)
    assert "3 turns over it failed, the last one: cannot be done" in row["dead_reason"]
    assert "acked_at" not in row
    assert daemon.row("alice")["dead"] == 1
    assert daemon.ask("status")["dead"] == 1
    assert news(daemon) == [poison]
    daemon.wait_acked(daemon.send("alice", "hello"))

    daemon.kill()
    daemon.start()
    daemon.wait_row("alice", connected=True)
    assert [row["id"] for row in dead(daemon)] == [poison]
    assert daemon.ask("dead_retry", id=poison)["retried"] == 1
    wait_until(lambda: dead(daemon), "it is dead again", 30)
    daemon.ask("dead_drop", id=poison)
    assert "dead" not in daemon.row("alice")
    assert news(daemon) == [poison, poison]


def test_what_kills_its_harness_is_dead_in_the_end_and_a_clean_stop_is_no_failure(daemon: Daemon) -> None:
    daemon.config_path.write_text("[broker]\nmax_deliveries = 2\n")
    daemon.start()
    daemon.spawn("alice")
    poison = daemon.send("alice", "sleep 200")

    def works_on_it() -> bool:
        return bool(daemon.row("alice").get("turn_state") == "thinking" and daemon.row("alice")["connected"])

    for _ in range(3):
        wait_until(works_on_it, "it works on it")
        daemon.ask("stop", scope={"agent_names": ["alice"]})
        daemon.wait_row("alice", running=False)
        assert "attempts" not in daemon.message(poison)
        daemon.ask("start", scope={"agent_names": ["alice"]})
    for _ in range(2):
        assert dead(daemon) == []
        wait_until(works_on_it, "it works on it")
        pid = daemon.row("alice")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=pid: daemon.row("alice").get("pid") not in (None, old), "it runs again")
    wait_until(lambda: dead(daemon), "it is dead")

    (row,) = dead(daemon)
    assert (row["id"], row["attempts"]) == (poison, 2)
    assert row["dead_reason"] == "handed out 2 times, and its agent failed over it each time"
    daemon.wait_acked(daemon.send("alice", "hello"))


def test_a_list_of_recipients_binds_frames_and_mcp_alike_and_at_once(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob", "carol")
    daemon.start()
    with daemon.agent("alice") as alice, daemon.mcp("alice") as model:
        alice.call("send", to="carol", body="hi")
        daemon.ask("allow", name="alice", recipients=["bob"])

        refusal = "cannot send: alice may write to bob, manager only"
        try:
            alice.call("send", to="carol", body="hi")
        except Fault as fault:
            assert (fault.code, fault.text.startswith(refusal)) == ("forbidden", True)
        else:
            raise AssertionError("it was taken")
        said = model.tool("send", to="carol", body="hi")
        assert (said["isError"], refusal in said["content"][0]["text"]) == (True, True)
        asked = model.tool("ask", question="why?")
        assert "cannot ask: alice may write to bob, manager only" in asked["content"][0]["text"]
        alice.call("send", to="*", body="to all")

    assert [row["body"] for row in daemon.inbox("bob")] == ["to all"]
    assert [row["body"] for row in daemon.inbox("carol")] == ["hi"]
    assert daemon.row("alice")["allowed_recipients"] == ["bob"]

    daemon.kill()
    daemon.start()
    assert daemon.row("alice")["allowed_recipients"] == ["bob"]
    daemon.ask("allow", name="alice", recipients=None)
    assert "allowed_recipients" not in daemon.row("alice")

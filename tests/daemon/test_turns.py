"""Turns in a real hive: limits, long conversations, logins, what was spent, and events without a gap."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hive_core.wire.client import RequestFailed

from .kit import Daemon, Follower, by, wait_until

STUB_LOGIN = Path(__file__).parents[1] / "agent/stub_login.py"


def ends(message_id: int) -> Callable[[list[dict[str, Any]]], bool]:
    """Whether the turn of that message has ended, by the items of a follower."""

    def has_end(items: list[dict[str, Any]]) -> bool:
        rows = [row for item in items for row in item["events"]]
        return any(
            row["kind"] == "turn_end" and row["payload"].get("message_id") == message_id for row in rows
        )

    return has_end


def payloads(daemon: Daemon, name: str, kind: str, key: str) -> list[Any]:
    return [row["payload"][key] for row in daemon.events(name, kind)]


# ── events ──────────────────────────────────────────────────────────────────────────────────────


def test_events_are_one_sequence_across_restarts_of_harness_and_daemon(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    seen: list[int] = []
    for number in range(3):
        after = seen[-1] if seen else 0
        with Follower(daemon, "events", agent="alice", follow=True, after=after) as follower:
            first = daemon.send("alice", f"before the crash {number}")
            follower.wait(ends(first), "a turn")
            pid = daemon.row("alice")["pid"]
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda old=pid: daemon.row("alice").get("pid") not in (None, old), "it runs again")
            second = daemon.send("alice", f"after the crash {number}")
            follower.wait(ends(second), "a turn of the new harness")
            daemon.kill()
            assert follower.ended.wait(10)
            seen += by("id", follower.events)
        daemon.start()
        daemon.wait_row("alice", connected=True)
    last = daemon.send("alice", "the end")
    with Follower(daemon, "events", agent="alice", follow=True, after=seen[-1]) as follower:
        follower.wait(ends(last), "the last turn")
    seen += by("id", follower.events)

    stored = by("id", daemon.events("alice"))
    assert seen == stored[: len(seen)]
    assert stored == list(range(stored[0], stored[0] + len(stored)))


def test_a_filtered_follower_misses_nothing_that_happened_while_the_daemon_was_away(daemon: Daemon) -> None:
    wanted = {"agent": "alice", "follow": True, "kinds": ["turn_end"]}
    daemon.start()
    daemon.spawn("alice")
    first = daemon.send("alice", "one")
    with Follower(daemon, "events", after=0, **wanted) as follower:
        follower.wait(ends(first), "a turn")
        slow = daemon.send("alice", "sleep 1")
        wait_until(lambda: daemon.row("alice")["turn_state"] == "thinking", "the slow turn runs")
        daemon.kill()
        assert follower.ended.wait(10)
    daemon.start()
    with Follower(daemon, "events", after=follower.events[-1]["id"], **wanted) as again:
        again.wait(ends(slow), "the slow turn's end")

    assert by("id", follower.events + again.events) == by("id", daemon.events("alice", "turn_end"))


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_limit_is_shown_ends_by_itself_and_loses_nothing(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    message_id = daemon.send("alice", "limit 2\nsay operator: done")

    daemon.wait_row("alice", status="rate_limited")
    assert (daemon.state("alice") / "hyperhive-rate-limited").exists()
    daemon.wait_acked(message_id)

    row = daemon.wait_row("alice", status="online")
    assert row["unread"] == 0
    assert not (daemon.state("alice") / "hyperhive-rate-limited").exists()
    stats = daemon.ask("stats", agent="alice")
    assert stats["turns"] == 2
    assert {pair["name"]: pair["count"] for pair in stats["results"]} == {"ok": 1, "rate_limited": 1}


def test_a_conversation_that_is_too_long_is_compacted_and_the_turn_done(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")

    daemon.wait_acked(daemon.send("alice", "toolong\nsay operator: done"))

    states = payloads(daemon, "alice", "turn_state_changed", "state")
    assert states == ["thinking", "compacting", "thinking", "idle"]
    stats = daemon.ask("stats", agent="alice")
    assert (stats["turns"], stats["ok_turns"], stats["compactions"]) == (2, 1, 1)


def test_a_conversation_that_grows_long_is_compacted_before_it_is_too_long(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    daemon.send("alice", "context 160000")

    row = daemon.wait_row("alice", ctx_tokens=1000)

    assert row["window_tokens"] == 200_000
    stats = daemon.ask("stats", agent="alice")
    assert (stats["ctx_max"], stats["compactions"]) == (160_000, 1)
    assert [pair["name"] for pair in stats["wake_from"]] == ["operator", "self"]


def test_a_login_over_the_hosts_socket_brings_an_agent_online_by_itself(daemon: Daemon) -> None:
    credentials = daemon.base / "credentials"
    login = f"{sys.executable} {STUB_LOGIN} {credentials}"
    daemon.start({"HYPERHIVE_LOGIN_CMD": login})
    daemon.spawn("alice")
    message_id = daemon.send("alice", "logout\nsay operator: done")
    row = daemon.wait_row("alice", status="needs_login_idle")
    assert row["needs_login"] is True

    url = daemon.ask("login_start", agent="alice")["url"]
    assert url == "https://login.example/oauth?code=true&state=abc_-%2F~123"
    daemon.wait_row("alice", status="needs_login_in_progress")
    assert daemon.ask("login_cancel", agent="alice")["text"] == "login cancelled"
    daemon.wait_row("alice", status="needs_login_idle")
    with pytest.raises(RequestFailed, match="cannot take the code: no login is open"):
        daemon.ask("login_code", agent="alice", code="4f2a")

    # What a login program does in the end: the harness sees it without being told.
    (daemon.state("alice") / "scripted-logged-out").unlink()
    daemon.wait_acked(message_id)

    row = daemon.wait_row("alice", status="online")
    assert row["needs_login"] is False
    assert "needs_login_in_progress" in payloads(daemon, "alice", "status_changed", "status")


# ── what was spent ──────────────────────────────────────────────────────────────────────────────


def test_stats_of_who_has_none_are_nought_and_of_nobody_are_refused(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")

    assert daemon.ask("stats", agent="alice", window="30d")["turns"] == 0
    with pytest.raises(RequestFailed) as refused:
        daemon.ask("stats", agent="bob")
    assert refused.value.code == "not_found"
    with pytest.raises(RequestFailed) as refused:
        daemon.ask("stats", agent="alice", window="1h")
    assert refused.value.code == "invalid_argument"


def test_stats_that_an_agent_has_broken_are_its_own_loss(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    file = daemon.state("alice") / "hyperhive-turn-stats.sqlite"
    for path in daemon.state("alice").glob("hyperhive-turn-stats*"):
        path.unlink()
    os.mkfifo(file)

    with pytest.raises(RequestFailed, match="cannot read the turn stats of alice: it is not a regular") as no:
        daemon.ask("stats", agent="alice")

    assert no.value.code == "unavailable"
    daemon.wait_acked(daemon.send("alice", "hello"))


# ── what turns run with ─────────────────────────────────────────────────────────────────────────


def test_an_effort_and_a_compaction_on_command(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")

    assert (
        daemon.ask("set_effort", agent="alice", effort="high")["text"] == "effort high from the next turn on"
    )
    assert daemon.wait_row("alice", effort="high")
    assert daemon.ask("compact", agent="alice")["text"] == "compacting"
    wait_until(lambda: daemon.ask("stats", agent="alice")["compactions"] == 1, "it is compacted")
    with pytest.raises(RequestFailed, match="there are low, medium, high, default"):
        daemon.ask("set_effort", agent="alice", effort="huge")
    assert Path(daemon.state("alice") / "hyperhive-effort").read_text() == "high\n"

"""Turns in a real hive: limits, long conversations, logins, what was spent, and events without a gap."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from hive_core.wire.client import RequestFailed

from .conftest import STUB_LOGIN, Follower, Hive, wait_until


def ends(message_id: int) -> Any:
    return lambda row: row["kind"] == "turn_end" and row["payload"].get("message_id") == message_id


def statuses(hive: Hive, name: str) -> list[str]:
    return [row["payload"]["status"] for row in hive.stored(name) if row["kind"] == "status_changed"]


# ── events ──────────────────────────────────────────────────────────────────────────────────────


def test_events_are_one_sequence_across_restarts_of_harness_and_daemon(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")
    seen: list[int] = []
    for number in range(3):
        follower = Follower(hive, "alice", seen[-1] if seen else 0)
        first = hive.send("alice", f"before the crash {number}")
        follower.wait(ends(first), "a turn")
        pid = hive.row("alice")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda old=pid: hive.row("alice").get("pid") not in (None, old), "it runs again")
        second = hive.send("alice", f"after the crash {number}")
        follower.wait(ends(second), "a turn of the new harness")
        hive.kill()
        follower.join()
        seen += follower.ids
        hive.restart()
        hive.wait_row("alice", connected=True)
    last = hive.send("alice", "the end")
    follower = Follower(hive, "alice", seen[-1])
    follower.wait(ends(last), "the last turn")
    follower.close()
    seen += follower.ids

    stored = [row["id"] for row in hive.stored("alice")]
    assert seen == stored[: len(seen)]
    assert stored == list(range(stored[0], stored[0] + len(stored)))


def test_a_filtered_follower_misses_nothing_that_happened_while_the_daemon_was_away(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")
    first = hive.send("alice", "one")
    follower = Follower(hive, "alice", 0, kinds=["turn_end"])
    follower.wait(ends(first), "a turn")
    slow = hive.send("alice", "sleep 1")
    wait_until(lambda: hive.row("alice")["turn_state"] == "thinking", "the slow turn runs")
    hive.kill()
    follower.join()
    hive.restart()
    again = Follower(hive, "alice", follower.ids[-1], kinds=["turn_end"])
    again.wait(ends(slow), "the slow turn's end")
    again.close()

    wanted = [row["id"] for row in hive.stored("alice") if row["kind"] == "turn_end"]
    assert follower.ids + again.ids == wanted


# ── trouble ─────────────────────────────────────────────────────────────────────────────────────


def test_a_rate_limit_is_shown_ends_by_itself_and_loses_nothing(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")
    message_id = hive.send("alice", "limit 2\nsay operator: done")

    hive.wait_row("alice", status="rate_limited")
    assert (hive.state("alice") / "hyperhive-rate-limited").exists()
    hive.wait_acked(message_id)

    row = hive.wait_row("alice", status="online")
    assert row["unread"] == 0
    assert not (hive.state("alice") / "hyperhive-rate-limited").exists()
    stats = hive.ask("stats", agent="alice")
    assert stats["turns"] == 2
    assert {pair["name"]: pair["count"] for pair in stats["results"]} == {"ok": 1, "rate_limited": 1}


def test_a_conversation_that_is_too_long_is_compacted_and_the_turn_done(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")

    hive.wait_acked(hive.send("alice", "toolong\nsay operator: done"))

    states = [row["payload"]["state"] for row in hive.stored("alice") if row["kind"] == "turn_state_changed"]
    assert states == ["thinking", "compacting", "thinking", "idle"]
    stats = hive.ask("stats", agent="alice")
    assert (stats["turns"], stats["ok_turns"], stats["compactions"]) == (2, 1, 1)


def test_a_conversation_that_grows_long_is_compacted_before_it_is_too_long(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")
    hive.send("alice", "context 160000")

    row = hive.wait_row("alice", ctx_tokens=1000)

    assert row["window_tokens"] == 200_000
    stats = hive.ask("stats", agent="alice")
    assert (stats["ctx_max"], stats["compactions"]) == (160_000, 1)
    assert [pair["name"] for pair in stats["wake_from"]] == ["operator", "self"]


def test_a_login_over_the_hosts_socket_brings_an_agent_online_by_itself(hive: Hive) -> None:
    credentials = hive.base / "credentials"
    login = f"{sys.executable} {STUB_LOGIN} {credentials}"
    hive.start({"HYPERHIVE_LOGIN_CMD": login})
    hive.spawn("alice")
    message_id = hive.send("alice", "logout\nsay operator: done")
    row = hive.wait_row("alice", status="needs_login_idle")
    assert row["needs_login"] is True

    url = hive.ask("login_start", agent="alice")["url"]
    assert url == "https://login.example/oauth?code=true&state=abc_-%2F~123"
    hive.wait_row("alice", status="needs_login_in_progress")
    assert hive.ask("login_cancel", agent="alice")["text"] == "login cancelled"
    hive.wait_row("alice", status="needs_login_idle")
    with pytest.raises(RequestFailed, match="cannot take the code: no login is open"):
        hive.ask("login_code", agent="alice", code="4f2a")

    # What a login program does in the end: the harness sees it without being told.
    (hive.state("alice") / "scripted-logged-out").unlink()
    hive.wait_acked(message_id)

    row = hive.wait_row("alice", status="online")
    assert row["needs_login"] is False
    assert "needs_login_in_progress" in statuses(hive, "alice")


# ── what was spent ──────────────────────────────────────────────────────────────────────────────


def test_stats_of_who_has_none_are_nought_and_of_nobody_are_refused(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")

    assert hive.ask("stats", agent="alice", window="30d")["turns"] == 0
    with pytest.raises(RequestFailed) as refused:
        hive.ask("stats", agent="bob")
    assert refused.value.code == "not_found"
    with pytest.raises(RequestFailed) as refused:
        hive.ask("stats", agent="alice", window="1h")
    assert refused.value.code == "invalid_argument"


def test_stats_that_an_agent_has_broken_are_its_own_loss(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")
    file = hive.state("alice") / "hyperhive-turn-stats.sqlite"
    for path in hive.state("alice").glob("hyperhive-turn-stats*"):
        path.unlink()
    os.mkfifo(file)

    with pytest.raises(RequestFailed, match="cannot read the turn stats of alice: it is not a regular") as no:
        hive.ask("stats", agent="alice")

    assert no.value.code == "unavailable"
    hive.wait_acked(hive.send("alice", "hello"))


# ── what turns run with ─────────────────────────────────────────────────────────────────────────


def test_an_effort_and_a_compaction_on_command(hive: Hive) -> None:
    hive.start()
    hive.spawn("alice")

    assert hive.ask("set_effort", agent="alice", effort="high")["text"] == "effort high from the next turn on"
    assert hive.wait_row("alice", effort="high")
    assert hive.ask("compact", agent="alice")["text"] == "compacting"
    wait_until(lambda: hive.ask("stats", agent="alice")["compactions"] == 1, "it is compacted")
    with pytest.raises(RequestFailed, match="there are low, medium, high, default"):
        hive.ask("set_effort", agent="alice", effort="huge")
    assert Path(hive.state("alice") / "hyperhive-effort").read_text() == "high\n"

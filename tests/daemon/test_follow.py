"""Following an agent's events: history and what happens, as one sequence."""

import os
import sqlite3
import time
from typing import Any

import msgspec
import pytest

from hive_core.wire.client import RequestFailed

from .kit import SOAK_S, Daemon, Follower, by, connect, wait_until

TRAPS = ["fifo", "link", "directory", "garbage", "huge-row"]
SHARED_AGENTS = ["alice", "bob", "carol", "loud", "big", *TRAPS]


def _ids(items: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for item in items for row in item["events"]]


def _event(event_id: int, kind: str = "note", **payload: Any) -> dict[str, Any]:
    return {"id": event_id, "ts": 1.7e9 + event_id, "kind": kind, "payload": payload}


def _stored(daemon: Daemon, name: str) -> list[int]:
    """Every id in the agent's own file, page by page."""
    found: list[int] = []
    with daemon.client() as client:
        while page := client.ask(
            {"cmd": "events", "agent": name, "after": found[-1] if found else 0, "limit": 50}
        )["events"]:
            found += by("id", page)
    return found


def test_history_and_live_events_are_one_sequence_across_restarts_of_the_daemon(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    for number in range(8):
        daemon.send("a", f"before {number}")
    wait_until(lambda: daemon.row("a")["unread"] == 0, "they are taken")

    seen: list[int] = []
    for round_ in range(3):
        fields = {"after": seen[-1]} if seen else {"after": 0, "limit": 5}
        with Follower(daemon, "events", agent="a", follow=True, **fields) as follower:
            daemon.send("a", f"sleep 0.1\nround {round_}")
            daemon.kill()
            follower.ended.wait(10)
            seen += _ids(follower.items)
        daemon.start()
        daemon.wait_row("a", connected=True)

    last = daemon.send("a", "the last one")
    with Follower(daemon, "events", agent="a", follow=True, after=seen[-1]) as follower:

        def is_done(items: list[dict[str, Any]]) -> bool:
            rows = [row for item in items for row in item["events"]]
            return any(row["kind"] == "turn_end" and row["payload"]["message_id"] == last for row in rows)

        follower.wait(is_done, "the last turn ends")
        seen += _ids(follower.items)

    stored = _stored(daemon, "a")
    assert seen == stored[: len(seen)]
    assert len(stored) - len(seen) <= 2
    assert len(seen) > 30


def test_followers_who_come_at_any_moment_see_the_same(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    followers: list[Follower] = []
    for number in range(6):
        daemon.send("a", f"number {number}")
        followers.append(Follower(daemon, "events", agent="a", follow=True, after=0, limit=3))
    last = daemon.send("a", "the last one")

    def is_done(items: list[dict[str, Any]]) -> bool:
        rows = [row for item in items for row in item["events"]]
        return any(row["kind"] == "turn_end" and row["payload"]["message_id"] == last for row in rows)

    for follower in followers:
        follower.wait(is_done, "the last turn ends")
    length = min(len(follower.items) for follower in followers)
    stored = _stored(daemon, "a")
    for follower in followers:
        assert _ids(follower.items)[:length] == stored[:length]
        follower.close()


def test_kinds_are_filtered_in_history_and_live(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    daemon.send("a", "one")
    wait_until(lambda: len(daemon.ask("events", agent="a", kinds=["turn_end"])["events"]) == 1, "a turn")
    with Follower(
        daemon, "events", agent="a", follow=True, after=0, kinds=["turn_start", "turn_end"]
    ) as all_:
        daemon.send("a", "two")
        all_.wait(lambda items: len(items) >= 4, "two turns")

        kinds = [item["events"][0]["kind"] for item in all_.items]
    assert kinds == ["turn_start", "turn_end"] * 2


def test_events_of_a_harness_without_a_file_are_followed_too(shared: Daemon) -> None:
    with shared.agent("alice") as alice, Follower(shared, "events", agent="alice", follow=True) as follower:
        alice.call("publish", events=[_event(1), _event(2)])
        alice.call("publish", events=[_event(2), _event(3)])
        follower.wait(lambda items: len(items) >= 3, "three events")
        alice.call("publish", events=[_event(4)])
        follower.wait(lambda items: len(items) >= 4, "four events")

        assert _ids(follower.items) == [1, 2, 3, 4]
    assert by("id", shared.ask("events", agent="alice", after=2)["events"]) == [3, 4]
    assert by("id", shared.ask("events", agent="alice", limit=2)["events"]) == [3, 4]


def test_a_follower_that_falls_behind_is_cut_off_and_told_where_to_go_on(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, sock.makefile("rb") as lines, shared.agent("bob") as bob:
        sock.sendall(b'{"cmd":"events","agent":"bob","follow":true,"after":0}\n')
        assert lines.readline() == b'{"version":1,"ok":true}\n'
        bob.call("publish", events=[_event(1)])
        got = [msgspec.json.decode(lines.readline())["events"][0]["id"]]
        for number in range(2, 42):  # 8 MB, where the daemon keeps 2
            bob.call("publish", events=[_event(number, text="x" * 200_000)])

        last: dict[str, Any] = {}
        while line := lines.readline():
            last = msgspec.json.decode(line)
            if last["ok"]:
                got += by("id", last["events"])

    assert got == list(range(1, len(got) + 1))
    assert last["ok"] is False
    assert last["code"] == "unavailable"
    assert last["last_id"] == got[-1]
    assert str(got[-1]) in last["error"]


@pytest.mark.skipif(SOAK_S < 30, reason="takes as long as a follower's patience: set HIVE_SOAK_SECONDS=30")
@pytest.mark.timeout(120)
def test_a_follower_that_never_reads_is_cut_off_with_the_last_id(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, shared.agent("carol") as carol:
        sock.sendall(b'{"cmd":"events","agent":"carol","follow":true,"after":0}\n')
        time.sleep(0.5)
        for number in range(1, 5):
            carol.call("publish", events=[_event(number, text="x" * 200_000)])
        time.sleep(32)
        sock.settimeout(15)
        with sock.makefile("rb") as lines:
            said = [msgspec.json.decode(line) for line in lines]

    ids = [row["id"] for item in said for row in item.get("events", [])]
    assert said[-1]["ok"] is False
    assert said[-1]["last_id"] == ids[-1]


def test_a_follower_that_does_not_read_holds_up_nobody(shared: Daemon) -> None:
    deaf = [connect(shared.host_socket) for _ in range(10)]
    try:
        for sock in deaf[:5]:
            sock.sendall(b'{"cmd":"watch"}\n')
        for sock in deaf[5:]:
            sock.sendall(b'{"cmd":"events","agent":"carol","follow":true}\n')
        with shared.agent("carol") as carol, shared.client() as client:
            slowest = 0.0
            for number in range(1, 60):
                began = time.monotonic()
                carol.call("publish", events=[_event(number, text="y" * 100_000)])
                client.ask({"cmd": "list"})
                slowest = max(slowest, time.monotonic() - began)
    finally:
        for sock in deaf:
            sock.close()
    assert slowest < 2


def test_log_lines_are_followed(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    with Follower(daemon, "logs", agent="a", follow=True, lines=1) as follower:
        follower.wait(len, "the last line so far")
        message_id = daemon.send("a", "hello")

        def has_turn(items: list[dict[str, Any]]) -> bool:
            return any(f"Turn ended message={message_id}" in line for item in items for line in item["lines"])

        follower.wait(has_turn, "the turn is in the log")


def test_logs_of_any_content_fit_a_line(shared: Daemon) -> None:
    log = shared.home / "state" / "agents" / "loud" / "harness.log"
    log.write_bytes(b"\x00\xff\x1b[31m" * 100_000 + b"\n" + b"\x01" * 900 * 1000 + b"\nthe last line\n")

    reply = shared.ask("logs", agent="loud", lines=1000)

    assert reply["lines"][-1] == "the last line"
    with Follower(shared, "logs", agent="loud", follow=True, lines=2) as follower:
        follower.wait(len, "something")
        with log.open("ab") as file:
            file.write(b"\x02" * 400_000 + b"\nand more\n")
        follower.wait(lambda items: any("and more" in item["lines"] for item in items), "the new line")


def test_events_of_any_size_fit_a_line(shared: Daemon) -> None:
    with shared.agent("big") as agent:
        for number in range(1, 9):
            agent.call("publish", events=[_event(number, text="z" * 250_000)])

    newest = by("id", shared.ask("events", agent="big", limit=1000)["events"])
    assert newest[-1] == 8
    assert newest == list(range(newest[0], 9))


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_an_agent_s_directory_costs_that_agent_its_history(shared: Daemon, trap: str) -> None:
    path = shared.home / "state" / "agents" / trap / "state" / "hyperhive-events.sqlite"
    match trap:
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to(shared.database)
        case "directory":
            path.mkdir()
        case "garbage":
            path.write_bytes(b"SQLite format 3\x00" + b"\x07" * 5000)
        case "huge-row":
            with sqlite3.connect(path) as db:
                db.execute("create table events (id, ts, kind, payload_json)")
                db.execute("insert into events values (1, 1, 'k', zeroblob(50000000))")
                db.execute("insert into events values ('x', 'y', null, 7)")
            db.close()

    began = time.monotonic()
    assert shared.ask("events", agent=trap, limit=10)["events"] is not None
    with Follower(shared, "events", agent=trap, follow=True) as follower, shared.agent(trap) as agent:
        agent.call("publish", events=[_event(99)])
        follower.wait(lambda items: 99 in _ids(items), "live events come all the same")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "request_",
    [
        {"cmd": "events", "agent": "nobody", "follow": True},
        {"cmd": "logs", "agent": "nobody", "follow": True},
        {"cmd": "watch", "agents": ["nobody"]},
    ],
)
def test_following_nobody_is_refused_at_once_and_the_connection_lives_on(
    shared: Daemon, request_: dict[str, Any]
) -> None:
    with shared.client() as client:
        with pytest.raises(RequestFailed) as failed:
            client.follow(request_)
        assert failed.value.code == "not_found"
        assert "alice" in client.ask({"cmd": "list"})["agents"]

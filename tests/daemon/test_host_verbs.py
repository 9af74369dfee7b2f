"""host.sock, verb by verb, as clients of the original and ours speak it."""

import json
import re
from typing import Any

import pytest

from .kit import Daemon, Fault, Follower, by, connect, raw_line, refusal, wait_until

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

GOOD = [
    {"cmd": "list"},
    {"cmd": "agent_status"},
    {"cmd": "urls"},
    {"cmd": "pending"},
    {"cmd": "status"},
    {"cmd": "set_paused", "name": "carol", "paused": False},
    {"cmd": "stop", "scope": {"agent_names": ["carol"]}},
    {"cmd": "kill", "name": "carol"},
    {"cmd": "send", "to": "carol", "body": "hi"},
    {"cmd": "send", "to": "*", "body": "hi all"},
    {"cmd": "inbox", "agent": "carol"},
    {"cmd": "inbox", "agent": "operator", "limit": 1000},
    {"cmd": "messages"},
    {"cmd": "messages", "since": -(2**63), "limit": 1},
    {"cmd": "why", "id": 1},
    {"cmd": "events", "agent": "carol"},
    {"cmd": "events", "agent": "carol", "after": 0, "limit": 1, "kinds": ["turn_start", "--help"]},
    {"cmd": "logs", "agent": "carol"},
    {"cmd": "list", "unknown_key": {"of": ["a", "newer", "client"]}},
]

UNKNOWN_AGENT = [
    {"cmd": "set_paused", "name": "nobody", "paused": True},
    {"cmd": "start", "scope": {"agent_names": ["nobody"]}},
    {"cmd": "stop", "scope": {"agent_names": ["nobody"]}, "graceful": True},
    {"cmd": "restart", "name": "nobody"},
    {"cmd": "kill", "name": "nobody"},
    {"cmd": "destroy", "name": "nobody"},
    {"cmd": "send", "to": "nobody", "body": "hi"},
    {"cmd": "send", "to": "../alice", "body": "hi"},
    {"cmd": "send", "to": "carol", "body": "hi", "in_reply_to": 999999},
    {"cmd": "inbox", "agent": "nobody"},
    {"cmd": "why", "id": 999999},
    {"cmd": "why", "id": -(2**63)},
    {"cmd": "events", "agent": "nobody"},
    {"cmd": "logs", "agent": "nobody"},
    {"cmd": "cancel_turn", "agent": "nobody"},
    {"cmd": "new_session", "agent": "nobody"},
    {"cmd": "set_model", "agent": "nobody", "model": "m"},
]

BAD_NAMES = ["", ".", "..", "a/b", "/etc", "-a", "a-", "A", "a_b", "a b", "ä", "a\x00", "a\n", "a" * 64]

INVALID = [
    {"cmd": "nonsense"},
    {"cmd": 7},
    {"cmd": None},
    {"name": "alice"},
    {"cmd": "set_paused", "name": "carol"},
    {"cmd": "set_paused", "name": "carol", "paused": "yes"},
    {"cmd": "start"},
    {"cmd": "start", "scope": {}},
    {"cmd": "start", "scope": {"agent_names": []}},
    {"cmd": "stop", "scope": {"ci": True}},
    {"cmd": "stop", "scope": {"agent_names": "carol"}},
    {"cmd": "send", "to": "carol"},
    {"cmd": "send", "to": "carol", "body": ""},
    {"cmd": "send", "to": "carol", "body": ["hi"]},
    {"cmd": "send", "to": "carol", "body": "x" * (64 * 1024 + 1)},
    {"cmd": "send", "to": "carol", "body": "ä" * (32 * 1024 + 1)},
    {"cmd": "send", "to": "operator", "body": "to myself"},
    {"cmd": "send", "to": "carol", "body": "hi", "in_reply_to": 2**63},
    {"cmd": "send", "to": "carol", "body": "hi", "idempotency_key": ""},
    {"cmd": "send", "to": "carol", "body": "hi", "idempotency_key": "k" * 201},
    {"cmd": "messages", "limit": 0},
    {"cmd": "messages", "limit": 1001},
    {"cmd": "messages", "since": 1.5},
    {"cmd": "inbox", "agent": "carol", "limit": -1},
    {"cmd": "events", "agent": "carol", "after": 10**30},
    {"cmd": "events", "agent": "carol", "kinds": [""]},
    {"cmd": "logs", "agent": "carol", "lines": 1001},
    {"cmd": "set_model", "agent": "carol", "model": ""},
    {"cmd": "set_model", "agent": "carol", "model": "two\nlines"},
    {"cmd": "spawn", "name": "operator"},
    {"cmd": "spawn", "name": "reminder"},
    *({"cmd": "spawn", "name": name} for name in BAD_NAMES),
    *({"cmd": "destroy", "name": name, "purge": True} for name in BAD_NAMES),
    *({"cmd": "start", "scope": {"agent_names": ["carol", name]}} for name in BAD_NAMES),
]

UNREADABLE = [
    b"{",
    b"nonsense",
    b"[]",
    b"null",
    b"42",
    b'"list"',
    b"\xff\xfe{}",
    b'{"cmd":"list"} trailing',
    b'{"cmd":"send","to":"carol","body":"\\ud800"}',
    b'{"cmd":"send","to":"carol","body":"\xed\xa0\x80"}',
    b"[" * 100_000,
    b'{"cmd":' * 50_000,
    b'{"cmd":"why","id":' + b"9" * 5000 + b"}",
    b'{"cmd":"' + b"x" * 100_000 + b'"}',
    b"x" * (2**20 + 1),
]


def test_every_good_request_is_answered_on_one_connection(shared: Daemon) -> None:
    shared.send("carol", "the first one")

    with shared.client() as client:
        for request in GOOD:
            reply = client.ask(request)

            assert reply["version"] == 1
            assert reply["ok"] is True
            assert "error" not in reply
            assert _nulls(reply) == []


@pytest.mark.parametrize(
    ("requests", "code"),
    [(UNKNOWN_AGENT, "not_found"), (INVALID, "invalid_argument")],
    ids=["unknown", "invalid"],
)
def test_every_bad_request_is_refused_and_the_connection_lives_on(
    shared: Daemon, requests: list[dict[str, Any]], code: str
) -> None:
    before = _rows(shared), len(shared.messages())

    with shared.client() as client:
        for request in requests:
            failed = refusal(lambda request=request: client.ask(request))

            assert failed.code == code, (request, failed.reply)
            assert failed.reply["version"] == 1
            assert failed.reply["ok"] is False
            assert str(failed).startswith("cannot "), request
            assert len(str(failed)) < 1000
            assert _nulls(failed.reply) == []
        assert client.ask({"cmd": "list"})["agents"] == ["alice", "bob", "carol"]
    assert (_rows(shared), len(shared.messages())) == before


@pytest.mark.parametrize(
    "request_",
    [
        {"cmd": "events", "agent": "nobody", "follow": True},
        {"cmd": "logs", "agent": "nobody", "follow": True},
        {"cmd": "watch", "agents": ["alice", "nobody"]},
    ],
    ids=lambda request: request["cmd"],
)
def test_following_nobody_ends_with_a_refusal(shared: Daemon, request_: dict[str, Any]) -> None:
    with shared.client() as client:
        failed = refusal(lambda: list(client.follow(request_)))

    assert failed.code == "not_found"


def test_an_unreadable_line_is_answered_and_the_connection_lives_on(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, sock.makefile("rb") as lines:
        for line in UNREADABLE:
            sock.sendall(line + b"\n")
            reply = lines.readline()

            assert reply.startswith(b"{"), reply
            assert b'"code":"invalid_argument"' in reply, (line[:50], reply)
            assert len(reply) < 1000
        sock.sendall(b'\n  \n{"cmd":"list"}\r\n')
        assert b'"agents"' in lines.readline()


def test_requests_that_come_at_once_are_answered_in_order(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"cmd":"list"}\n{"cmd":"urls"}\n{"cmd":"nonsense"}\n{"cmd":"pending"}\n' * 50)

        for _ in range(50):
            assert b'"agents"' in lines.readline()
            assert b'"urls"' in lines.readline()
            assert b'"error"' in lines.readline()
            assert b'"approvals":[]' in lines.readline()


def test_a_client_may_close_its_side_after_the_request(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"cmd":"send","to":"carol","body":"and gone"}\n')
        sock.shutdown(1)

        assert b'"id"' in lines.readline()
        assert lines.readline() == b""


def test_a_client_that_leaves_early_does_no_harm(shared: Daemon) -> None:
    for line in (b'{"cmd":"messages"}\n', b'{"cmd":"watch"}\n', b'{"cmd":"li', b""):
        for _ in range(20):
            with connect(shared.host_socket) as sock:
                sock.sendall(line)

    assert shared.ask("list")["agents"] == ["alice", "bob", "carol"]


# ── the bytes of the original's clients ─────────────────────────────────────────────────────────


def test_the_original_s_lines_are_answered_with_the_original_s_fields(daemon: Daemon) -> None:
    daemon.config_path.write_text('domain = "hive.local"\n')
    daemon.start()
    daemon.spawn("a")
    daemon.wait_row("a", connected=True)

    def ask(line: bytes) -> dict[str, Any]:
        return raw_line(daemon.host_socket, line)

    assert ask(b'{"cmd":"list"}') == {"version": 1, "ok": True, "agents": ["a"]}
    roster = ask(b'{"cmd":"agent_status"}')
    (row,) = roster["agent_statuses"]
    original = {
        "name": "a",
        "running": True,
        "failed": False,
        "needs_update": False,
        "needs_login": False,
        "pending_reminders": 0,
        "paused": False,
        "active_model": "scripted",
        "url": "https://hive.local/agent/a/",
    }
    assert {key: row[key] for key in original} == original
    # The keys of the original come first and in its order.
    assert list(row)[: len(original)] == list(original)
    assert ask(b'{"cmd":"set_paused","name":"a","paused":true}') == {"version": 1, "ok": True}
    assert daemon.row("a")["paused"] is True
    assert ask(b'{"cmd":"set_paused","name":"a","paused":true}') == {"version": 1, "ok": True}
    assert ask(b'{"cmd":"set_paused","name":"a","paused":false}') == {"version": 1, "ok": True}
    assert ask(b'{"cmd":"urls"}')["urls"] == {"domain": "hive.local", "home": "https://hive.local/"}
    assert ask(b'{"cmd":"pending"}') == {"version": 1, "ok": True, "approvals": []}
    pid = row["pid"]
    assert ask(b'{"cmd":"restart","name":"a"}') == {"version": 1, "ok": True}
    wait_until(lambda: daemon.row("a").get("pid", pid) != pid, "another harness runs")
    stop = b'{"cmd":"stop","scope":{"agent_names":["a"]},"graceful":true}'
    assert ask(stop) == {"version": 1, "ok": True}
    stopped = daemon.wait_row("a", running=False)
    assert stopped["failed"] is False
    assert "active_model" not in stopped
    assert ask(b'{"cmd":"start","scope":{"agent_names":["a"]}}') == {"version": 1, "ok": True}
    daemon.wait_row("a", running=True)
    for line in (b'{"cmd":"approve","id":42}', b'{"cmd":"deny","id":-42}'):
        reply = ask(line)
        assert reply["version"] == 1
        assert reply["ok"] is False
        assert "error" in reply
    assert "not managed by this hive" in ask(b'{"cmd":"restart","name":"zed"}')["error"]


def test_a_subscriber_gets_a_bare_success_and_then_one_row_per_change(shared: Daemon) -> None:
    with connect(shared.host_socket) as sock, sock.makefile("rb") as lines:
        sock.sendall(b'{"cmd":"subscribe_agent_status"}\n')
        assert lines.readline() == b'{"version":1,"ok":true}\n'

        shared.ask("set_paused", name="bob", paused=True)
        paused = lines.readline()
        shared.ask("set_paused", name="bob", paused=True)
        shared.ask("set_paused", name="bob", paused=False)
        resumed = lines.readline()

    assert paused.count(b'"name"') == 1
    assert b'"name":"bob"' in paused
    assert b'"paused":true' in paused
    assert b'"paused":false' in resumed


def test_an_unknown_name_in_a_scope_changes_nothing(daemon: Daemon) -> None:
    daemon.add_stopped("a", "b").start()

    failed = refusal(lambda: daemon.ask("start", scope={"agent_names": ["a", "nobody", "b"]}))

    assert failed.code == "not_found"
    assert "nobody" in str(failed)
    assert by("wanted", daemon.ask("agent_status")["agent_statuses"]) == ["stopped", "stopped"]


def test_all_means_all(daemon: Daemon) -> None:
    daemon.add_stopped("a", "b").start()

    daemon.ask("start", scope={"all": True})
    daemon.wait_row("a", running=True)
    daemon.wait_row("b", running=True)
    daemon.ask("stop", scope={"agents": True})

    daemon.wait_row("a", running=False)
    daemon.wait_row("b", running=False)


# ── messages ────────────────────────────────────────────────────────────────────────────────────


def test_a_message_row_says_where_its_message_is(shared: Daemon) -> None:
    with shared.agent("alice") as alice:
        while alice.recv(max=32):
            alice.call("ack_turn")
        message_id = shared.send("alice", "where am I")
        waiting = shared.message(message_id)
        (got,) = alice.recv()
        _wait_key(shared, message_id, "delivered_at")
        assert by("id", shared.ask("inbox", agent="alice")["messages"]) == [message_id]
        assert alice.call("ack_turn") == {"acked": 1}
        done = _wait_key(shared, message_id, "acked_at")

    assert set(waiting) == {"id", "sender", "recipient", "body", "sent_at", "thread_id", "sender_uid"}
    assert (got["id"], got["sender"], got["body"]) == (message_id, "operator", "where am I")
    assert "redelivered" not in got
    assert all(RFC3339.fullmatch(done[key]) for key in ("sent_at", "delivered_at", "acked_at"))
    assert shared.ask("inbox", agent="alice")["messages"] == []


def test_looking_into_an_inbox_leases_nothing(shared: Daemon) -> None:
    message_id = shared.send("bob", "look at me")

    for _ in range(3):
        assert shared.ask("inbox", agent="bob")["messages"][-1]["id"] == message_id

    assert "delivered_at" not in shared.message(message_id)


def test_a_repeated_key_gives_the_first_id_and_another_body_conflicts(shared: Daemon) -> None:
    first = shared.send("bob", "once", idempotency_key="k1")

    assert shared.send("bob", "once", idempotency_key="k1") == first
    for other in (
        {"to": "bob", "body": "twice"},
        {"to": "carol", "body": "once"},
        {"to": "*", "body": "once"},
    ):
        failed = refusal(lambda other=other: shared.ask("send", **other, idempotency_key="k1"))
        assert failed.code == "conflict"
        assert failed.reply["reason"] == "idempotency_key"
    with shared.agent("alice") as alice:
        assert alice.call("send", to="bob", body="mine", idempotency_key="k1")["id"] != first
    assert len(shared.rows_of("select id from messages where idempotency_key = 'k1'")) == 2


def test_a_broadcast_goes_to_everyone_but_its_sender(shared: Daemon) -> None:
    with shared.agent("alice") as alice:
        first = alice.call("send", to="*", body="all of you", idempotency_key="b1")["id"]
        assert alice.call("send", to="*", body="all of you", idempotency_key="b1")["id"] == first

    rows = [row for row in shared.messages() if row["body"] == "all of you"]
    assert sorted(by("recipient", rows)) == ["bob", "carol"]
    assert by("broadcast", rows) == [True, True]


def test_a_body_at_the_limit_passes_and_the_refusal_names_the_limit(shared: Daemon) -> None:
    assert shared.send("carol", "x" * 64 * 1024)

    assert "65536" in str(refusal(lambda: shared.send("carol", "x" * (64 * 1024 + 1))))
    with shared.agent("alice") as alice, pytest.raises(Fault, match="65536") as failed:
        alice.call("send", to="carol", body="ä" * 33_000)
    assert failed.value.code == "invalid_argument"


def test_pages_of_large_messages_fit_a_line_and_lead_on(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    with daemon.client() as client:
        ids = [
            client.ask({"cmd": "send", "to": "a", "body": body})["id"]
            for body in (*["x" * 65_000] * 30, *["\x01" * 60_000] * 4, *["ä" * 32_000] * 20)
        ]

    for request in (
        {"cmd": "messages", "limit": 1000},
        {"cmd": "messages", "since": 0, "limit": 1000},
        {"cmd": "inbox", "agent": "a", "limit": 1000},
    ):
        with connect(daemon.host_socket) as sock, sock.makefile("rb") as lines:
            sock.sendall(json.dumps(request).encode() + b"\n")
            line = lines.readline()
        assert line.endswith(b"\n")
        assert len(line) <= 2**20 + 1
        assert json.loads(line)["messages"]
    assert by("id", daemon.messages()) == ids
    assert by("id", daemon.ask("messages", limit=1000)["messages"])[-1] == ids[-1]
    assert by("id", daemon.ask("inbox", agent="a", limit=1000)["messages"])[0] == ids[0]
    with daemon.agent("a") as agent:
        assert agent.call("recent", limit=1000)["messages"][-1]["id"] == ids[-1]


def test_why_gives_the_chain_of_causes(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice", "bob")

    first = daemon.send("alice", "say bob: hello")
    answer = _wait_message(daemon, sender="bob", recipient="alice")

    chain = daemon.ask("why", id=answer["id"])["messages"]
    assert [(row["sender"], row["recipient"]) for row in chain] == [
        ("operator", "alice"),
        ("alice", "bob"),
        ("bob", "alice"),
    ]
    assert chain[0]["id"] == first
    assert by("sender_uid", chain) == [chain[0]["sender_uid"]] * 3


def test_a_paused_agent_gets_nothing_until_it_is_resumed(shared: Daemon) -> None:
    with shared.agent("carol") as carol:
        while carol.recv(max=32):
            carol.call("ack_turn")
        shared.ask("set_paused", name="carol", paused=True)
        message_id = shared.send("carol", "later")
        assert carol.recv(wait_seconds=0.2) == []
        parked = carol.begin("recv", wait_seconds=30)
        shared.ask("set_paused", name="carol", paused=False)

        assert by("id", carol.finish(parked)["messages"]) == [message_id]
        carol.call("ack_turn")


# ── what the harness answers ────────────────────────────────────────────────────────────────────


def test_commands_are_unavailable_where_no_harness_is_connected(shared: Daemon) -> None:
    for request in (
        {"cmd": "set_model", "agent": "bob", "model": "m"},
        {"cmd": "new_session", "agent": "bob"},
        {"cmd": "cancel_turn", "agent": "bob"},
    ):
        with shared.client() as client:
            failed = refusal(lambda request=request: client.ask(request))
        assert failed.code == "unavailable"
        assert "bob" in str(failed)


def test_a_running_harness_carries_commands_out(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")

    assert "fast" in daemon.ask("set_model", agent="alice", model="fast")["text"]
    daemon.wait_row("alice", active_model="fast")
    assert daemon.ask("new_session", agent="alice")["ok"] is True
    failed = refusal(lambda: daemon.ask("cancel_turn", agent="alice"))
    assert failed.code == "precondition_failed"

    message_id = daemon.send("alice", "sleep 60")
    daemon.wait_row("alice", turn_state="thinking")
    assert str(message_id) in daemon.ask("cancel_turn", agent="alice")["text"]
    daemon.wait_row("alice", turn_state="idle")
    _wait_key(daemon, message_id, "acked_at")


# ── what follows ────────────────────────────────────────────────────────────────────────────────


def test_watch_shows_messages_events_and_rows(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice", "bob")
    with Follower(daemon, "watch") as watcher:
        first = daemon.send("alice", "say bob: hello")

        def bob_is_done(items: list[dict[str, Any]]) -> bool:
            events = [item["event"]["kind"] for item in items if item.get("agent") == "bob"]
            return "turn_end" in events

        watcher.wait(bob_is_done, "bob's turn ends")
        items = list(watcher.items)

    messages = [item["message"] for item in items if "message" in item]
    assert messages[0]["id"] == first
    assert ("alice", "bob") in [(row["sender"], row["recipient"]) for row in messages]
    assert [item for item in items if len(item.get("agent_statuses", [])) == 1]
    assert all(item["version"] == 1 and item["ok"] for item in items)


def test_watch_of_some_agents_shows_no_others(shared: Daemon) -> None:
    with Follower(shared, "watch", agents=["bob"]) as watcher:
        shared.send("carol", "not for the watcher")
        shown = shared.send("bob", "for the watcher")
        watcher.wait(lambda items: [item for item in items if "message" in item], "a message")

        assert [item["message"]["id"] for item in watcher.items if "message" in item] == [shown]


@pytest.mark.parametrize("cmd", ["events", "logs"])
def test_followers_of_a_destroyed_agent_are_told(daemon: Daemon, cmd: str) -> None:
    daemon.add_stopped("a").start()
    with Follower(daemon, cmd, agent="a", follow=True) as follower:
        with daemon.agent("a") as agent:
            agent.call("publish", events=[{"id": 1, "ts": 1.0, "kind": "note"}])
        if cmd == "events":
            follower.wait(len, "the event")

        daemon.ask("destroy", name="a")

        assert follower.wait_failure().code == "not_found"


def _rows(daemon: Daemon) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = daemon.ask("agent_status")["agent_statuses"]
    return rows


def _nulls(value: object, path: str = "") -> list[str]:
    """Where in *value* there is a null."""
    if isinstance(value, dict):
        return [found for key, child in value.items() for found in _nulls(child, f"{path}.{key}")]
    if isinstance(value, list):
        return [found for child in value for found in _nulls(child, f"{path}[]")]
    return [path] if value is None else []


def _wait_key(daemon: Daemon, message_id: int, key: str) -> dict[str, Any]:
    wait_until(lambda: key in daemon.message(message_id), f"message {message_id} has {key}")
    return daemon.message(message_id)


def _wait_message(daemon: Daemon, **wanted: Any) -> dict[str, Any]:
    def find() -> list[dict[str, Any]]:
        return [row for row in daemon.messages() if all(row.get(key) == wanted[key] for key in wanted)]

    return wait_until(find, f"a message {wanted}")[0]

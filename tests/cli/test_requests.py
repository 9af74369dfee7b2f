"""What goes over the wire for what was typed.  Every request must also be one that the daemon reads."""

import json
from typing import Any

import pytest

from hive_core.wire.host import decode_request

from .conftest import RunHive
from .fake_host import NO_STATS, FakeHost, message

SENT = {"cmd": "send", "to": "alice", "body": "hello you"}

CASES: list[tuple[str, list[dict[str, Any]]]] = [
    ("send alice hello you", [SENT]),
    ("send alice hello you --reply-to 7", [SENT | {"in_reply_to": 7}]),
    ("send alice hello you --key k1", [SENT | {"idempotency_key": "k1"}]),
    ("send * hello you", [SENT | {"to": "*"}]),
    ("inbox", [{"cmd": "inbox", "agent": "operator", "limit": 100}]),
    ("inbox alice -n 3", [{"cmd": "inbox", "agent": "alice", "limit": 3}]),
    ("messages", [{"cmd": "messages", "limit": 50}]),
    ("messages --since 0 -n 1000", [{"cmd": "messages", "limit": 1000, "since": 0}]),
    ("why 42", [{"cmd": "why", "id": 42}]),
    ("events alice", [{"cmd": "events", "agent": "alice", "limit": 50}]),
    (
        "events alice --after 3 --kind note --kind stream -n 9",
        [{"cmd": "events", "agent": "alice", "limit": 9, "after": 3, "kinds": ["note", "stream"]}],
    ),
    ("events alice -f", [{"cmd": "events", "agent": "alice", "limit": 50, "follow": True}]),
    ("logs alice", [{"cmd": "logs", "agent": "alice", "lines": 100}]),
    ("logs alice -f -n 2", [{"cmd": "logs", "agent": "alice", "lines": 2, "follow": True}]),
    ("watch", [{"cmd": "watch"}]),
    ("watch alice bob", [{"cmd": "watch", "agents": ["alice", "bob"]}]),
    ("model alice opus", [{"cmd": "set_model", "agent": "alice", "model": "opus"}]),
    ("model alice", []),
    ("effort alice high", [{"cmd": "set_effort", "agent": "alice", "effort": "high"}]),
    ("effort alice", []),
    ("compact alice", [{"cmd": "compact", "agent": "alice"}]),
    ("login alice --code 4f2a", [{"cmd": "login_code", "agent": "alice", "code": "4f2a"}]),
    ("login alice --cancel", [{"cmd": "login_cancel", "agent": "alice"}]),
    ("login alice --json", [{"cmd": "login_start", "agent": "alice"}]),
    ("stats alice", [{"cmd": "stats", "agent": "alice", "window": "24h"}]),
    ("stats alice --window 7d", [{"cmd": "stats", "agent": "alice", "window": "7d"}]),
    ("new-session alice", [{"cmd": "new_session", "agent": "alice"}]),
    ("cancel alice", [{"cmd": "cancel_turn", "agent": "alice"}]),
    ("status", [{"cmd": "status"}]),
    ("ls", []),
    ("show alice", [{"cmd": "machine", "name": "alice"}]),
    ("limits alice", [{"cmd": "machine", "name": "alice"}]),
    (
        "limits alice --memory 8G --cpu default --tasks 100",
        [
            {"cmd": "set_limits", "name": "alice", "memory": "8G", "cpu": None, "tasks": 100},
            {"cmd": "machine", "name": "alice"},
        ],
    ),
    ("image ls", [{"cmd": "images"}]),
    ("image rm old", [{"cmd": "image_rm", "name": "old"}]),
    ("doctor", [{"cmd": "doctor"}, {"cmd": "status"}]),
    ("top --interval 0.1", [{"cmd": "top"}, {"cmd": "top"}, {"cmd": "machine", "name": "alice"}]),
    ("spawn alice bob", [{"cmd": "spawn", "name": "alice"}, {"cmd": "spawn", "name": "bob"}]),
    (
        "spawn alice --image debian --network veth --memory 8G --cpu 400% --tasks 512 --no-wait",
        [
            {
                "cmd": "spawn",
                "name": "alice",
                "image": "debian",
                "network": "veth",
                "memory": "8G",
                "cpu": "400%",
                "tasks": 512,
            }
        ],
    ),
    ("pending", [{"cmd": "pending"}]),
    ("approvals alice -n 3", [{"cmd": "approvals", "limit": 3, "agent": "alice"}]),
    ("approvals show 7", [{"cmd": "approval", "id": 7, "base": "running", "diff": False}]),
    (
        "approvals show 7 --diff --base approved",
        [{"cmd": "approval", "id": 7, "base": "approved", "diff": True}],
    ),
    (
        "approve 7 --yes",
        [{"cmd": "approval", "id": 7}, {"cmd": "approve", "id": 7, "digest": "d" * 64}],
    ),
    ("deny 7 -m no", [{"cmd": "deny", "id": 7, "note": "no"}]),
    ("withdraw 7", [{"cmd": "cancel_approval", "id": 7}]),
    ("config alice", [{"cmd": "config", "name": "alice"}]),
    (
        "propose alice 0123abc -m why --json",
        [{"cmd": "request_apply_commit", "agent": "alice", "commit_ref": "0123abc", "description": "why"}],
    ),
    ("request-spawn dave", [{"cmd": "request_spawn", "name": "dave"}]),
    ("init-config dave", [{"cmd": "request_init_config", "name": "dave"}]),
    ("update-inputs nixpkgs", [{"cmd": "request_update_meta_inputs", "inputs": ["nixpkgs"]}]),
    ("deploys alice", [{"cmd": "deploys", "limit": 20, "agent": "alice"}]),
    ("deploys -f", [{"cmd": "deploys", "limit": 5, "follow": True}]),
    ("deploys log 9", [{"cmd": "deploy_log", "id": 9, "lines": 200}]),
    ("history alice", [{"cmd": "history", "agent": "alice", "limit": 50}]),
    ("rollback alice deployed/4", [{"cmd": "rollback", "agent": "alice", "tag": "deployed/4"}]),
    ("tombstones", [{"cmd": "tombstones"}]),
    ("revive eve", [{"cmd": "tombstones"}, {"cmd": "request_spawn", "name": "eve"}]),
    (
        "purge eve --confirm eve",
        [{"cmd": "tombstones"}, {"cmd": "purge", "name": "eve", "confirm": "eve"}],
    ),
    ("start alice bob", [{"cmd": "start", "scope": {"agent_names": ["alice", "bob"]}}]),
    ("start --all", [{"cmd": "start", "scope": {"all": True}}]),
    (
        "stop alice --no-wait",
        [{"cmd": "stop", "scope": {"agent_names": ["alice"]}, "graceful": True}],
    ),
    ("stop --all --now --no-wait", [{"cmd": "stop", "scope": {"all": True}, "graceful": False}]),
    ("restart alice --no-wait", [{"cmd": "restart", "name": "alice"}]),
    ("rebuild alice --no-wait", [{"cmd": "rebuild", "name": "alice"}]),
    ("pause alice bob", [{"cmd": "set_paused", "name": n, "paused": True} for n in ("alice", "bob")]),
    ("resume alice", [{"cmd": "set_paused", "name": "alice", "paused": False}]),
    ("destroy alice --no-wait", [{"cmd": "destroy", "name": "alice", "purge": False}]),
    ("destroy alice --purge --yes --no-wait", [{"cmd": "destroy", "name": "alice", "purge": True}]),
]


@pytest.fixture
def friendly_host(host: FakeHost) -> FakeHost:
    host.add("alice")
    host.add("bob")
    one_message = {"messages": [message(1, "alice", "operator", "hi")]}
    host.answers = {
        "send": {"id": 1},
        "inbox": one_message,
        "messages": one_message,
        "why": one_message,
        "events": lambda request: [] if request.get("follow") else {"events": []},
        "logs": lambda request: [] if request.get("follow") else {"lines": []},
        "watch": [],
        "login_start": {"url": "https://login.example/"},
        "stats": NO_STATS,
        "pending": {"approvals": []},
        "approvals": {"approvals": []},
        "approval": {
            "approval": {"id": 7, "agent": "alice", "kind": "spawn", "status": "pending", "digest": "d" * 64},
        },
        "config": {"path": "/x"},
        "request_apply_commit": {"id": 7},
        "request_spawn": {"id": 7},
        "request_init_config": {"id": 7},
        "request_update_meta_inputs": {"id": 7},
        "deploys": lambda request: [] if request.get("follow") else {"deploys": []},
        "deploy_log": {"lines": []},
        "history": {"history": []},
        "rollback": {"id": 9, "tag": "deployed/4"},
        "tombstones": {"tombstones": [{"name": "eve", "destroyed_at": "2026-01-31T12:00:00Z"}]},
        "images": {"images": [{"name": "debian", "kind": "tree", "path": "/i/debian"}]},
        "doctor": {"checks": []},
        "top": {
            "monotonic_usec": 1,
            "usage": [{"name": "alice", "cpu_usec": 1, "memory_bytes": 2, "tasks": 3}],
        },
    }
    return host


@pytest.mark.parametrize(("typed", "expected"), CASES, ids=[typed for typed, _ in CASES])
def test_what_is_typed_becomes_this_request(
    typed: str, expected: list[dict[str, Any]], friendly_host: FakeHost, hive: RunHive
) -> None:
    result = hive(*typed.split())

    assert friendly_host.asked == expected
    # A stream that ends says so with 5; everything else went well.
    assert result.code == (5 if friendly_host.requests[-1].get("follow") or "watch" in typed else 0)


@pytest.mark.parametrize("typed", [typed for typed, _ in CASES])
def test_the_daemon_reads_every_request(typed: str, friendly_host: FakeHost, hive: RunHive) -> None:
    hive(*typed.split())

    assert friendly_host.lines
    for line in friendly_host.lines:
        decode_request(line.rstrip(b"\n"))


@pytest.mark.parametrize("typed", [typed for typed, _ in CASES])
def test_json_is_one_document(typed: str, friendly_host: FakeHost, hive: RunHive) -> None:
    friendly_host.answers |= {"watch": [{"agent": "a"}], "logs": [{"lines": ["x"]}]}
    friendly_host.answers["events"] = [{"events": [{"id": 1}]}]
    if typed == "deploys -f":
        friendly_host.answers["deploys"] = [{"id": 9, "lines": ["x"]}]
    if "follow" not in str(dict(CASES)[typed]) and typed.split()[0] in {"logs", "events"}:
        friendly_host.answers |= {"logs": {"lines": []}, "events": {"events": []}}

    result = hive(*typed.split(), "--json")

    assert result.out.endswith("\n")
    assert len(result.out.splitlines()) == 1
    json.loads(result.out)


@pytest.mark.parametrize(
    "argv",
    [
        ["--socket", "{path}", "status", "--json"],
        ["--json", "status", "--socket={path}"],
        ["status", "--socket", "{path}", "--json"],
        ["--socket", "/nowhere", "status", "--socket", "{path}", "--json"],
    ],
)
def test_common_options_stand_before_or_after_the_command(
    argv: list[str], host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HIVE_SOCKET")

    result = hive(*(word.replace("{path}", str(host.path)) for word in argv))

    assert result == (0, "{}\n", "")

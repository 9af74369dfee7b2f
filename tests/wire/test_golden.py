"""The bytes of every message, pinned.

A change here is a change of the protocol: other people's clients depend on these bytes.  When it is
wanted, write the files again and read the difference before it is committed:

    HIVE_WRITE_GOLDEN=1 python -m pytest tests/wire/test_golden.py

`golden/envelope` and `golden/agent` hold hex (lines with a # are for the reader), `golden/host` holds
the lines as they are.
"""

import importlib
import os
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import msgspec
import pytest
from wire import approval_examples, examples

import hive_core.wire
from hive_core.wire import agent, envelope, frame, host, machine, verb
from hive_core.wire.errors import ErrorCode

GOLDEN = Path(__file__).parent / "golden"
WRITE = "HIVE_WRITE_GOLDEN" in os.environ

MESSAGE = agent.Message(
    id=42,
    sender="operator",
    recipient="alice",
    body="say “hi”\n",
    sent_at=1795132800.25,
    delivered_at=1795132801.0,
    acked_at=1795132802.5,
    in_reply_to=41,
    thread_id=40,
    redelivered=True,
    broadcast=True,
)
SHORT_MESSAGE = agent.Message(id=1, sender="bob", recipient="alice", body="", sent_at=0.0)

AGENT: Mapping[str, msgspec.Struct] = examples.AGENT | {
    "send": agent.Send(to="bob", body="hi", in_reply_to=41, idempotency_key="k1"),
    "send-short": agent.Send(to="bob", body="hi"),
    "sent": agent.Sent(id=42),
    "recv": agent.Recv(wait_seconds=180.0, max=32),
    "recv-short": agent.Recv(),
    "messages": agent.Messages(messages=[MESSAGE, SHORT_MESSAGE]),
    "messages-none": agent.Messages(messages=[]),
    "ack_turn": agent.AckTurn(ids=[1, -1, 2**63 - 1]),
    "ack_turn-short": agent.AckTurn(),
    "acked": agent.Acked(acked=3),
    "requeue_inflight": agent.RequeueInflight(),
    "requeued": agent.Requeued(requeued=2),
    "inbox_status": agent.InboxStatus(),
    "unread": agent.Unread(unread=7),
    "recent": agent.Recent(limit=1000),
    "wake": agent.Wake(from_="ci", body="build 7 failed"),
    "request_next_turn": agent.RequestNextTurn(),
    "next_turn": agent.NextTurn(id=43),
    "next_turn-none": agent.NextTurn(),
    "operator_msg": agent.OperatorMsg(body="stop that"),
    "whoami": agent.Whoami(),
    "identity": agent.Identity(name="alice", role="agent", version="0.1.0"),
    "set_status": agent.SetStatus(text="reading"),
    "logs": agent.Logs(lines=5),
    "log_lines": agent.LogLines(lines=["one", "two"]),
    "done": agent.Done(),
    "publish": agent.Publish(
        events=[
            agent.Event(id=9, ts=1795132800.5, kind="turn_start", payload={"ids": [42], "n": None}),
            agent.Event(id=10, ts=1795132801.0, kind="note"),
        ],
        now=agent.Snapshot(
            turn_state="thinking",
            turn_state_since=1795132800.5,
            status="rate_limited",
            provider="scripted",
            model="sonnet",
            effort="high",
            ctx_tokens=150_000,
            window_tokens=200_000,
        ),
    ),
    "subscribe_control": agent.SubscribeControl(),
    "control_done": agent.ControlDone(id=3, ok=True, text="there was no turn"),
    "command-cancel_turn": agent.CancelTurn(id=3),
    "command-new_session": agent.NewSession(id=4),
    "command-set_model": agent.SetModel(id=5, model="sonnet"),
    "command-set_effort": agent.SetEffort(id=7, effort="high"),
    "command-compact": agent.Compact(id=8),
    "command-login_start": agent.LoginStart(id=9),
    "command-login_code": agent.LoginCode(id=10, code="4f2a-99c1"),
    "command-login_cancel": agent.LoginCancel(id=11),
    "command-set_paused": agent.SetPaused(id=1, paused=True),
    "command-quiesce": agent.Quiesce(id=6),
}

RAW_REQUEST = msgspec.Raw(msgspec.msgpack.encode(AGENT["send-short"]))
RAW_RESULT = msgspec.Raw(msgspec.msgpack.encode(AGENT["sent"]))

ENVELOPES: Mapping[str, tuple[msgspec.Struct, bytes]] = {
    "hello": (
        envelope.Hello(1, "agent", "hive-agent 0.1"),
        envelope.encode_hello("agent", "hive-agent 0.1"),
    ),
    "call": (envelope.Call(7, RAW_REQUEST), envelope.encode_call(7, AGENT["send-short"])),
    "cancel": (envelope.Cancel(7), envelope.encode_cancel(7)),
    "reply": (envelope.Reply(7, RAW_RESULT), envelope.encode_reply(7, AGENT["sent"])),
    "fault": (
        envelope.Fault(7, "not_found", "cannot send: no agent is named carol"),
        envelope.encode_fault(7, ErrorCode.NOT_FOUND, "cannot send: no agent is named carol"),
    ),
    "fault-reason": (
        envelope.Fault(7, "conflict", "cannot recv: two at once", "busy"),
        envelope.encode_fault(7, ErrorCode.CONFLICT, "cannot recv: two at once", "busy"),
    ),
    "item": (
        envelope.Item(9, msgspec.Raw(msgspec.msgpack.encode(AGENT["command-quiesce"]))),
        envelope.encode_item(9, AGENT["command-quiesce"]),
    ),
    "end": (envelope.End(9), envelope.encode_end(9)),
}

ROW = host.AgentStatusRow(
    name="alice",
    running=True,
    failed=False,
    needs_update=False,
    needs_login=False,
    deployed_sha="0123456789ab",
    pending_reminders=2,
    paused=True,
    parent="lead",
    active_model="sonnet",
    status_text="reading",
    status_set_at="2026-09-07T12:34:56Z",
    url="https://hive.local/agent/alice/",
    wanted="stopped",
    connected=True,
    isolation="nspawn",
    turn_state="idle",
    turn_state_since="2026-09-07T12:34:56.250Z",
    unread=3,
    pid=4711,
    provider="scripted",
    failure="exit status 1",
    status="rate_limited",
    effort="high",
    ctx_tokens=150_000,
    window_tokens=200_000,
    machine="h-alice",
    transient="restarting",
)
SHORT_ROW = host.AgentStatusRow(name="bob", running=False, failed=False)
HOST_MESSAGE = host.MessageRow(
    id=42,
    sender="operator",
    recipient="alice",
    body="say “hi”\n",
    sent_at="2026-09-07T12:34:56Z",
    delivered_at="2026-09-07T12:34:57Z",
    acked_at="2026-09-07T12:34:58Z",
    in_reply_to=41,
    redelivered=True,
    thread_id=40,
    cause_id=39,
    sender_uid=1000,
    broadcast=True,
)
SHORT_HOST_MESSAGE = host.MessageRow(
    id=1, sender="bob", recipient="alice", body="", sent_at="2026-09-07T12:34:56Z"
)
EVENT = host.EventRow(id=9, ts="2026-09-07T12:34:56Z", kind="turn_start", payload={"ids": [42], "n": None})

HOST: Mapping[str, msgspec.Struct] = (
    examples.HOST
    | approval_examples.HOST
    | {
        "list": host.List(),
        "list.reply": host.Agents(agents=["alice", "bob"]),
        "agent_status": host.AgentStatus(),
        "agent_status.reply": host.AgentStatuses(agent_statuses=[ROW, SHORT_ROW]),
        "subscribe_agent_status": host.SubscribeAgentStatus(),
        "set_paused": host.SetPaused(name="alice", paused=True),
        "start": host.Start(scope=host.LifecycleScope(agent_names=["alice"])),
        "start-all": host.Start(
            scope=host.LifecycleScope(agents=True, ci=True, forge=True, gateway=True, matrix=True, all=True)
        ),
        "stop": host.Stop(scope=host.LifecycleScope(agent_names=["alice"]), graceful=True),
        "restart": host.Restart(name="alice"),
        "urls": host.UrlsRequest(),
        "urls.reply": host.UrlsReply(
            urls=host.Urls(
                domain="hive.local",
                home="https://hive.local/",
                forge="https://forge.hive.local/",
                matrix="https://matrix.hive.local/",
            )
        ),
        "urls.reply-none": host.UrlsReply(urls=host.Urls()),
        "spawn": host.Spawn(name="alice"),
        "spawn-shape": host.Spawn(
            name="alice", image="debian", network="veth", memory="4G", cpu="200%", tasks=2048
        ),
        "kill": host.Kill(name="alice"),
        "destroy": host.Destroy(name="alice", purge=True),
        "success": host.Reply(),
        "failure": host.Failure(
            error="cannot send: no agent is named carol", code="conflict", reason="busy", last_id=41
        ),
        "failure-short": host.Failure(error="cannot read the request: it is empty", code="invalid_argument"),
        "send": host.Send(to="alice", body="hi", in_reply_to=41, idempotency_key="k1"),
        "send.reply": host.Sent(id=42),
        "inbox": host.Inbox(agent="alice", limit=5),
        "messages": host.MessagesRequest(since=41, limit=1000),
        "messages.reply": host.Messages(messages=[HOST_MESSAGE, SHORT_HOST_MESSAGE]),
        "why": host.Why(id=42),
        "events": host.Events(agent="alice", after=8, limit=5, kinds=["turn_start"], follow=True),
        "events.reply": host.EventsReply(events=[EVENT]),
        "logs": host.Logs(agent="alice", lines=5, follow=True),
        "logs.reply": host.LogsReply(lines=["one", "two"]),
        "watch": host.Watch(agents=["alice"]),
        "watch.reply": host.WatchItem(message=HOST_MESSAGE, agent="alice", event=EVENT, agent_statuses=[ROW]),
        "watch.reply-event": host.WatchItem(agent="alice", event=EVENT),
        "cancel_turn": host.CancelTurn(agent="alice"),
        "new_session": host.NewSession(agent="alice"),
        "set_model": host.SetModel(agent="alice", model="sonnet"),
        "set_effort": host.SetEffort(agent="alice", effort="high"),
        "compact": host.Compact(agent="alice"),
        "login_start": host.LoginStart(agent="alice"),
        "login_start.reply": host.LoginUrl(url="https://claude.ai/oauth/authorize?code=true"),
        "login_code": host.LoginCode(agent="alice", code="4f2a-99c1"),
        "login_cancel": host.LoginCancel(agent="alice"),
        "stats": host.Stats(agent="alice", window="7d"),
        "stats.reply": host.StatsReply(
            since="2026-08-31T12:34:56Z",
            turns=9,
            ok_turns=8,
            ok_rate=0.8889,
            compactions=1,
            p50_seconds=12.5,
            p95_seconds=90.25,
            tokens=host.TokenSums(input=1, output=2, cache_read=3, cache_creation=4),
            cost_usd=0.25,
            ctx_max=150_000,
            tool_calls=5,
            tools=[host.Count(name="Bash", count=5)],
            wake_from=[host.Count(name="operator", count=9)],
            results=[host.Count(name="ok", count=8)],
            models=[host.Count(name="sonnet", count=9)],
        ),
        "stats.reply-none": host.StatsReply(
            since="2026-08-31T12:34:56Z",
            turns=0,
            ok_turns=0,
            compactions=0,
            tokens=host.TokenSums(),
            cost_usd=0.0,
            ctx_max=0,
            tool_calls=0,
            tools=[],
            wake_from=[],
            results=[],
            models=[],
        ),
        "set_model.reply": host.Carried(text="from the next turn on"),
        "rebuild": host.Rebuild(name="alice"),
        "set_limits": host.SetLimits(name="alice", memory="512M", cpu="50%", tasks=64),
        "set_limits-back": host.SetLimits(name="alice", memory=None),
        "machine": host.MachineRequest(name="alice"),
        "machine.reply": host.MachineReply(
            name="alice",
            isolation="nspawn",
            machine="h-alice",
            image="debian",
            network="veth",
            uid_base=1073741824,
            uid_count=65536,
            memory_max_bytes=4294967296,
            cpu_quota_percent=200,
            tasks_max=2048,
            addresses=["10.213.0.2"],
            declared=["cpu"],
            declared_in="/etc/hyperhive/config.toml",
        ),
        "machine.reply-local": host.MachineReply(name="alice", isolation="none"),
        "top": host.Top(),
        "top.reply": host.TopReply(
            monotonic_usec=123456789,
            usage=[machine.UsageRow(name="alice", cpu_usec=1500000, memory_bytes=41943040, tasks=12)],
        ),
        "doctor": host.Doctor(),
        "doctor.reply": host.DoctorReply(
            checks=[
                machine.Check(name="systemd", status="ok", text="version 252"),
                machine.Check(
                    name="machined", status="fail", text="it does not answer", mend="systemctl start dbus"
                ),
            ]
        ),
        "images": host.Images(),
        "images.reply": host.ImagesReply(
            images=[
                machine.ImageRow(
                    name="debian", kind="tree", path="/var/lib/machines/debian", used_by=["alice"]
                )
            ]
        ),
        "image_rm": host.ImageRm(name="debian"),
        "status": host.Status(),
        "status.reply": host.StatusReply(
            software="hyperhive 0.1.0",
            mode="local",
            home="/home/me/.local/state/hyperhive",
            pid=4711,
            started_at="2026-09-07T12:34:56Z",
            uptime_seconds=12.5,
            agents=2,
            running=1,
            failed=1,
            unread=3,
            messages=42,
            schema=1,
            database_bytes=65536,
            store="ok",
            connections=3,
            rss_bytes=41943040,
        ),
    }
)

# What clients of the original write, byte for byte (design: wire.md section 1).
ORIGINAL: Mapping[bytes, msgspec.Struct] = approval_examples.ORIGINAL | {
    b'{"cmd":"list"}': host.List(),
    b'{"cmd":"agent_status"}': host.AgentStatus(),
    b'{"cmd":"subscribe_agent_status"}': host.SubscribeAgentStatus(),
    b'{"cmd":"set_paused","name":"a","paused":true}': host.SetPaused(name="a", paused=True),
    b'{"cmd":"start","scope":{"agent_names":["a"]}}': host.Start(
        scope=host.LifecycleScope(agent_names=["a"])
    ),
    b'{"cmd":"stop","scope":{"agent_names":["a"]},"graceful":true}': host.Stop(
        scope=host.LifecycleScope(agent_names=["a"]), graceful=True
    ),
    b'{"cmd":"restart","name":"a"}': host.Restart(name="a"),
    b'{"cmd":"urls"}': host.UrlsRequest(),
    b'{"cmd":"spawn","name":"a"}': host.Spawn(name="a"),
    b'{"cmd":"kill","name":"a"}': host.Kill(name="a"),
    b'{"cmd":"destroy","name":"a","purge":false}': host.Destroy(name="a"),
    b'{"cmd":"destroy","name":"a"}': host.Destroy(name="a"),
}


def check(path: Path, fresh: bytes) -> None:
    if WRITE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(fresh)
    assert path.exists(), f"{path.name} is missing; see the top of {Path(__file__).name}"
    assert path.read_bytes() == fresh, f"the protocol changed; see the top of {Path(__file__).name}"


def to_hex(payload: bytes, readable: object) -> bytes:
    comment = msgspec.json.encode(readable).decode()
    return "\n".join([f"# {comment}", *textwrap.wrap(payload.hex(" "), 96), ""]).encode()


def from_hex(path: Path) -> bytes:
    lines = path.read_text().splitlines()
    return bytes.fromhex(" ".join(line for line in lines if not line.startswith("#")))


def unframed(data: bytes) -> bytes:
    decoder = frame.FrameDecoder()
    decoder.receive_data(data)
    payload = decoder.next_payload()
    assert payload is not None
    assert decoder.buffered_bytes == 0
    return payload


@pytest.mark.parametrize("name", ENVELOPES)
def test_an_envelope_keeps_its_bytes(name: str) -> None:
    value, data = ENVELOPES[name]
    path = GOLDEN / "envelope" / f"{name}.hex"
    check(path, to_hex(data, msgspec.msgpack.decode(unframed(data))))

    decode = envelope.decode_to_daemon if name in {"hello", "call", "cancel"} else envelope.decode_to_harness
    assert decode(unframed(from_hex(path))) == value


def test_hello_is_understood_by_both_sides() -> None:
    payload = unframed(ENVELOPES["hello"][1])

    assert envelope.decode_to_daemon(payload) == envelope.decode_to_harness(payload)


@pytest.mark.parametrize("name", AGENT)
def test_a_message_of_the_agent_socket_keeps_its_bytes(name: str) -> None:
    value = AGENT[name]
    path = GOLDEN / "agent" / f"{name}.hex"
    check(path, to_hex(msgspec.msgpack.encode(value), value))

    data = from_hex(path)
    if isinstance(value, get_args(agent.AnyRequest)):
        assert agent.decode_request(data) == value
    elif isinstance(value, get_args(agent.Command)):
        assert agent.decode_command(data) == value
    else:
        assert msgspec.msgpack.decode(data, type=type(value)) == value


@pytest.mark.parametrize("name", HOST)
def test_a_line_of_the_host_socket_keeps_its_bytes(name: str) -> None:
    value = HOST[name]
    path = GOLDEN / "host" / f"{name}.json"
    check(path, host.encode_line(value))

    line = path.read_bytes()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    if isinstance(value, get_args(host.AnyRequest)):
        assert host.decode_request(line) == value
    else:
        # A Raw payload is how the daemon passes events on; whoever reads the line gets the values.
        assert msgspec.json.decode(line) == msgspec.to_builtins(value)
        assert msgspec.json.decode(line)["version"] == 1


@pytest.mark.parametrize("line", ORIGINAL)
def test_what_clients_of_the_original_send_is_understood(line: bytes) -> None:
    assert host.decode_request(line) == ORIGINAL[line]


def test_the_roster_begins_with_the_keys_of_the_original_in_its_order() -> None:
    row = msgspec.json.decode(host.encode_line(ROW))

    assert list(row)[:13] == [
        "name", "running", "failed", "needs_update", "needs_login", "deployed_sha", "pending_reminders",
        "paused", "parent", "active_model", "status_text", "status_set_at", "url",
    ]  # fmt: skip


def test_an_approval_begins_with_the_keys_of_the_original_in_its_order() -> None:
    row = msgspec.json.decode(host.encode_line(approval_examples.ROW))

    assert list(row)[:10] == [
        "id", "agent", "kind", "commit_ref", "fetched_sha", "requested_at", "status", "resolved_at", "note",
        "description",
    ]  # fmt: skip


def test_optional_keys_of_a_reply_are_left_out_and_never_null() -> None:
    assert (
        msgspec.json.decode(host.encode_line(SHORT_ROW))
        .keys()
        .isdisjoint(
            {
                "deployed_sha",
                "parent",
                "active_model",
                "status_text",
                "status_set_at",
                "url",
                "pid",
                "failure",
            }
        )
    )
    for value in HOST.values():
        if isinstance(value, host.Reply):
            assert b":null" not in host.encode_line(value).replace(b'"n":null', b"")


# ── completeness ────────────────────────────────────────────────────────────────────────────────


def structs_of(module: ModuleType, *bases: type) -> set[type]:
    return {
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, msgspec.Struct)
        and value.__module__ == module.__name__
        and value not in bases
    }


def walk(value: object) -> Iterator[msgspec.Struct]:
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from walk(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


EXAMPLES = [*AGENT.values(), *HOST.values(), *(value for value, _ in ENVELOPES.values())]


def title(struct: type) -> str:
    return f"{struct.__module__.rpartition('.')[2]}.{struct.__name__}"


MODULES = [
    importlib.import_module(f"hive_core.wire.{module.name}")
    for module in pkgutil.iter_modules(hive_core.wire.__path__)
]
STRUCTS = {
    title(struct): struct
    for module in MODULES
    for struct in structs_of(module, agent.Request, agent.Result, verb.Request)
}


@pytest.mark.parametrize("name", sorted(STRUCTS))
def test_every_struct_has_a_golden_that_shows_each_of_its_fields(name: str) -> None:
    struct = STRUCTS[name]
    seen = [value for example in EXAMPLES for value in walk(example) if type(value) is struct]

    shown = {
        field.encode_name
        for value in seen
        for field in msgspec.structs.fields(struct)
        if getattr(value, field.name) not in (None, msgspec.UNSET)
    }
    assert shown == {field.encode_name for field in msgspec.structs.fields(struct)}


def test_no_golden_file_is_left_over() -> None:
    wanted = (
        {f"envelope/{name}.hex" for name in ENVELOPES}
        | {f"agent/{name}.hex" for name in AGENT}
        | {f"host/{name}.json" for name in HOST}
    )

    assert {str(path.relative_to(GOLDEN)) for path in GOLDEN.rglob("*") if path.is_file()} == wanted


# ── forward compatibility ───────────────────────────────────────────────────────────────────────

LATER: Mapping[str, Any] = {"new_field": {"deep": [1, None, "x"]}, "": 0}


@pytest.mark.parametrize(
    ("value", "decode"),
    [
        *((value, agent.decode_request) for value in AGENT.values() if type(value) in agent.TYPES.values()),
        *((value, agent.decode_command) for value in AGENT.values() if isinstance(value, agent.Command)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, msgspec.Struct) else "",
)
def test_fields_of_a_later_version_are_skipped_in_maps(
    value: msgspec.Struct, decode: Callable[[bytes], object]
) -> None:
    later = msgspec.msgpack.encode(msgspec.to_builtins(value) | LATER)

    assert decode(later) == value


@pytest.mark.parametrize("name", [name for name in HOST if "." not in name and name in host.COMMANDS])
def test_keys_of_a_later_version_are_skipped_in_lines(name: str) -> None:
    later = msgspec.json.encode(LATER | msgspec.to_builtins(HOST[name]) | {"later": True})

    assert host.decode_request(later) == HOST[name]


@pytest.mark.parametrize("name", ENVELOPES)
def test_items_of_a_later_version_are_skipped_in_envelopes(name: str) -> None:
    value, data = ENVELOPES[name]
    later = msgspec.msgpack.encode([*msgspec.msgpack.decode(unframed(data)), None, {"x": 1}])

    decode = envelope.decode_to_daemon if name in {"hello", "call", "cancel"} else envelope.decode_to_harness
    assert decode(later) == value

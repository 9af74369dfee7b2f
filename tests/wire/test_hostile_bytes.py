"""Whatever bytes come, a decoder gives a value or the one error that it promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hive_core.wire import agent, envelope, host
from hive_core.wire.errors import ErrorCode, ProtocolError, Refused
from hive_core.wire.limits import MAX_EVENT_BYTES, MAX_EVENT_DEPTH

GOLDEN = Path(__file__).parent / "golden"


def read_hex(path: Path) -> bytes:
    lines = path.read_text().splitlines()
    return bytes.fromhex(" ".join(line for line in lines if not line.startswith("#")))


ENVELOPES = [read_hex(path)[4:] for path in sorted(GOLDEN.glob("envelope/*.hex"))]
AGENT_MESSAGES = [read_hex(path) for path in sorted(GOLDEN.glob("agent/*.hex"))]
LINES = [path.read_bytes() for path in sorted(GOLDEN.glob("host/*.json"))]

Decode = Callable[[bytes], object]


def outcome(decode: Decode, data: bytes) -> object:
    """The value, or None if it was refused as promised."""
    try:
        return decode(data)
    except ProtocolError as error:
        assert decode in (envelope.decode_to_daemon, envelope.decode_to_harness)
        assert str(error).startswith("an unreadable frame: ")
        assert len(str(error)) < 500
    except Refused as refusal:
        assert decode in (agent.decode_request, host.decode_request)
        assert refusal.code is ErrorCode.INVALID_ARGUMENT
        assert refusal.text.startswith(("cannot read the request: ", "cannot publish event "))
        assert len(refusal.text) < 500
    return None


def refusal(decode: Decode, data: bytes) -> str:
    with pytest.raises(Refused) as caught:
        decode(data)
    assert caught.value.code is ErrorCode.INVALID_ARGUMENT
    return caught.value.text


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["replace", "insert", "delete", "repeat", "cut", "splice"])):
            case "replace":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                data[at:at] = draw(st.binary(max_size=9))
            case "delete":
                del data[at : at + draw(st.integers(1, 9))]
            case "repeat":
                data[at:at] = data[at : at + 40] * draw(st.integers(1, 9))
            case "cut":
                del data[at:]
            case "splice":
                data[at:] = draw(st.sampled_from(seeds))[at:]
    return bytes(data)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["alice", "..", "a/b", "", "*", "operator"])
)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.integers(0, 9) | st.binary(max_size=3), inner, max_size=4)
        | st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=12))
    ),
    max_leaves=12,
)


def fields_of(requests: dict[str, type[Any]]) -> list[str]:
    return sorted({field.encode_name for r in requests.values() for field in msgspec.structs.fields(r)})


@given(st.binary(max_size=300) | mutated(ENVELOPES))
def test_any_bytes_to_the_daemon_are_an_envelope_or_a_protocol_error(data: bytes) -> None:
    message = outcome(envelope.decode_to_daemon, data)

    assert message is None or isinstance(message, envelope.ToDaemon)
    if isinstance(message, envelope.Call):
        outcome(agent.decode_request, bytes(message.request))


@given(st.binary(max_size=300) | mutated(ENVELOPES))
def test_any_bytes_to_the_harness_are_an_envelope_or_a_protocol_error(data: bytes) -> None:
    message = outcome(envelope.decode_to_harness, data)

    assert message is None or isinstance(message, envelope.ToHarness)


@given(st.binary(max_size=300) | mutated(AGENT_MESSAGES))
def test_any_bytes_in_a_call_are_a_request_or_refused(data: bytes) -> None:
    request = outcome(agent.decode_request, data)

    if request is not None:
        assert outcome(agent.decode_request, msgspec.msgpack.encode(request)) is not None
        msgspec.json.encode(request)


@given(st.sampled_from(sorted(agent.TYPES)), st.data())
def test_any_values_in_a_call_are_a_request_or_refused(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.dictionaries(st.sampled_from(fields_of(agent.TYPES)), VALUES, max_size=6))

    outcome(agent.decode_request, msgspec.msgpack.encode(values | {"type": kind}))


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.floats())
def test_an_event_that_passes_can_always_be_shown_as_json(payload: dict[str, Any], ts: float) -> None:
    event = {"id": 1, "ts": ts, "kind": "note", "payload": payload}

    request = outcome(agent.decode_request, msgspec.msgpack.encode({"type": "publish", "events": [event]}))

    if isinstance(request, agent.Publish):
        line = host.encode_line(
            host.EventsReply(
                events=[
                    host.EventRow(id=row.id, ts=str(row.ts), kind=row.kind, payload=row.payload)
                    for row in request.events
                ]
            )
        )
        assert line.count(b"\n") == 1


@given(st.binary(max_size=300) | mutated(LINES))
def test_any_line_is_a_request_or_refused(line: bytes) -> None:
    request = outcome(host.decode_request, line)

    if request is not None:
        assert isinstance(request, msgspec.Struct)
        assert host.decode_request(host.encode_line(request)) == request


@given(st.sampled_from(sorted(host.COMMANDS)), st.data())
def test_any_values_in_a_line_are_a_request_or_refused(cmd: str, data: st.DataObject) -> None:
    plain = st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=12,
    )
    values = data.draw(st.dictionaries(st.sampled_from(fields_of(host.COMMANDS)), plain, max_size=6))

    outcome(host.decode_request, msgspec.json.encode(values | {"cmd": cmd}))


@given(st.text() | st.sampled_from(sorted(host.COMMANDS)))
@example("x" * 100_000)
@example("\x1b[31m\n")
def test_a_refusal_is_one_short_line_whatever_the_cmd_is(cmd: str) -> None:
    line = msgspec.json.encode({"cmd": cmd, "name": 1, "scope": 1, "agent": 1, "to": 1, "id": "x"})

    try:
        host.decode_request(line)
    except Refused as refusal:
        assert refusal.text.isprintable()
        assert len(refusal.text) < 300


# ── known traps ─────────────────────────────────────────────────────────────────────────────────

DEEP = 100_000
NAN = float("nan")


def packed(head: dict[str, object], key: str, value: bytes) -> bytes:
    """A msgpack map with one more key, whose value is given as bytes."""
    data = msgspec.msgpack.encode(head)
    return bytes([data[0] + 1]) + data[1:] + msgspec.msgpack.encode(key) + value


TRAPS: dict[str, tuple[Decode, bytes]] = {
    "nothing": (host.decode_request, b""),
    "a blank line": (host.decode_request, b" \r"),
    "a list": (host.decode_request, b"[]"),
    "a string": (host.decode_request, b'"list"'),
    "null": (host.decode_request, b"null"),
    "two values": (host.decode_request, b'{"cmd":"list"}{"cmd":"list"}'),
    "no end": (host.decode_request, b'{"cmd":"list"'),
    "a byte order mark": (host.decode_request, b'\xef\xbb\xbf{"cmd":"list"}'),
    "single quotes": (host.decode_request, b"{'cmd':'list'}"),
    "no cmd": (host.decode_request, b'{"name":"a"}'),
    "cmd null": (host.decode_request, b'{"cmd":null}'),
    "cmd number": (host.decode_request, b'{"cmd":1}'),
    "cmd list": (host.decode_request, b'{"cmd":["list"]}'),
    "cmd of another case": (host.decode_request, b'{"cmd":"LIST"}'),
    "two different cmds": (host.decode_request, b'{"cmd":"list","cmd":"status"}'),
    "NaN": (host.decode_request, b'{"cmd":"why","id":NaN}'),
    "Infinity": (host.decode_request, b'{"cmd":"why","id":Infinity}'),
    "a huge exponent": (host.decode_request, b'{"cmd":"why","id":1e999999999}'),
    "a fraction": (host.decode_request, b'{"cmd":"why","id":1.5}'),
    "a number of 900 kB": (host.decode_request, b'{"cmd":"why","id":' + b"9" * 900_000 + b"}"),
    "2**63": (host.decode_request, b'{"cmd":"why","id":9223372036854775808}'),
    "a number as text": (host.decode_request, b'{"cmd":"why","id":"1"}'),
    "a boolean for a number": (host.decode_request, b'{"cmd":"why","id":true}'),
    "a number for a boolean": (host.decode_request, b'{"cmd":"set_paused","name":"a","paused":1}'),
    "invalid UTF-8": (host.decode_request, b'{"cmd":"send","to":"a","body":"\xff\xfe"}'),
    "an encoded surrogate": (host.decode_request, b'{"cmd":"send","to":"a","body":"\xed\xa0\x80"}'),
    "a lone high surrogate": (host.decode_request, b'{"cmd":"send","to":"a","body":"\\ud800"}'),
    "a lone low surrogate": (host.decode_request, b'{"cmd":"send","to":"a","body":"\\udc00"}'),
    "an overlong encoding": (host.decode_request, b'{"cmd":"kill","name":"\xc0\xae\xc0\xae"}'),
    "a NUL": (host.decode_request, b'{"cmd":"kill","name":"a\x00"}'),
    "deep lists": (host.decode_request, b'{"cmd":"list","x":' + b"[" * DEEP),
    "deep lists that end": (host.decode_request, b'{"cmd":"list","x":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "deep lists before the cmd": (
        host.decode_request,
        b'{"x":' + b"[" * DEEP + b"]" * DEEP + b',"cmd":"list"}',
    ),
    "deep maps": (host.decode_request, b'{"cmd":' * DEEP),
    "a deep path": (host.decode_request, b'{"cmd":"kill","name":"../../etc/passwd"}'),
    "no bytes": (agent.decode_request, b""),
    "a reserved byte": (agent.decode_request, b"\xc1"),
    "a tag of 10 MB": (agent.decode_request, msgspec.msgpack.encode({"type": "x" * 10_000_000})),
    "a map of 4 G": (agent.decode_request, b"\xdf\xff\xff\xff\xff"),
    "a list of 4 G": (agent.decode_request, packed({"type": "ack_turn"}, "ids", b"\xdd\xff\xff\xff\xff")),
    "a list of 4 G to skip": (
        agent.decode_request,
        packed({"type": "ack_turn"}, "x", b"\xdd\xff\xff\xff\xff"),
    ),
    "a text of 4 G": (agent.decode_request, packed({"type": "send"}, "to", b"\xdb\xff\xff\xff\xff")),
    "deep in a field": (agent.decode_request, packed({"type": "publish"}, "events", b"\x91" * DEEP)),
    "deep to skip": (agent.decode_request, packed({"type": "whoami"}, "x", b"\x91" * 15_000_000)),
    "msgpack of invalid UTF-8": (agent.decode_request, packed({"type": "send"}, "to", b"\xa2\xff\xfe")),
    "NaN seconds": (
        agent.decode_request,
        msgspec.msgpack.encode({"type": "recv", "wait_seconds": NAN}),
    ),
    "negative seconds": (agent.decode_request, msgspec.msgpack.encode({"type": "recv", "wait_seconds": -1})),
    "33 messages": (agent.decode_request, msgspec.msgpack.encode({"type": "recv", "max": 33})),
    "an unhashable key": (agent.decode_request, b"\x82\xa4type\xa6whoami\x81\x01\x02\x03"),
    "an envelope of 4 G": (envelope.decode_to_daemon, b"\xdd\xff\xff\xff\xff\xa4call"),
    "an unknown envelope of 10 MB": (
        envelope.decode_to_daemon,
        msgspec.msgpack.encode(["x" * 10_000_000, 1]),
    ),
    "a deep envelope": (envelope.decode_to_daemon, b"\x91" * DEEP),
    "a deep call": (envelope.decode_to_daemon, b"\x93\xa4call\x01" + b"\x91" * 15_000_000),
    "call 0": (envelope.decode_to_daemon, msgspec.msgpack.encode(["call", 0, {"type": "whoami"}])),
    "call -1": (envelope.decode_to_daemon, msgspec.msgpack.encode(["call", -1, {"type": "whoami"}])),
    "call 2**64-1": (envelope.decode_to_daemon, msgspec.msgpack.encode(["call", 2**64 - 1, {}])),
    "a call without a request": (envelope.decode_to_daemon, msgspec.msgpack.encode(["call", 1])),
    "a reply to the daemon": (envelope.decode_to_daemon, msgspec.msgpack.encode(["reply", 1, {}])),
    "a call to the harness": (envelope.decode_to_harness, msgspec.msgpack.encode(["call", 1, {}])),
    "a map for an envelope": (envelope.decode_to_harness, msgspec.msgpack.encode({"reply": 1})),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_known_trap_is_refused_in_a_short_sentence(name: str) -> None:
    decode, data = TRAPS[name]

    assert outcome(decode, data) is None


def test_the_last_of_two_equal_keys_wins() -> None:
    assert host.decode_request(b'{"cmd":"why","id":1,"id":2}') == host.Why(id=2)


@pytest.mark.parametrize("value", [None, [], {}, 2**70, "x" * 1000, -1.5, True])
def test_an_unknown_key_may_hold_anything(value: object) -> None:
    assert host.decode_request(json.dumps({"cmd": "list", "x": value}).encode()) == host.List()


# ── what a refusal says ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"cmd":"why"}', ["why", "`id`"]),
        (b'{"cmd":"why","id":"x"}', ["why", "`$.id`", "int"]),
        (b'{"cmd":"send","to":"bob"}', ["send", "`body`"]),
        (b'{"cmd":"start","scope":{"agent_names":["ok","../x"]}}', ["start", "`$.scope.agent_names[1]`"]),
        (b'{"cmd":"inbox","agent":"a","limit":0}', ["inbox", ">= 1", "`$.limit`"]),
        (b'{"cmd":"inbox","agent":"a","limit":1001}', ["inbox", "<= 1000", "`$.limit`"]),
        (b'{"cmd":"spawn","name":"A B"}', ["spawn", "a-z, 0-9 and -, 1 to 63 characters", "`$.name`"]),
        (b'{"cmd":"why","id":' + b"9" * 5000 + b"}", ["out of range", "`$.id`"]),
        (b"{", ["the line is not JSON"]),
        (b'{"x":' + b"[" * DEEP, ["nested too deeply"]),
        (b'{"name":"a"}', ['the key "cmd" is missing']),
        (b'{"cmd":7}', ['"cmd" is not a string']),
        (b"[1]", ["no map of keys to values"]),
        (b'{"cmd":"agent-status"}', ["unknown cmd 'agent-status'", "did you mean 'agent_status'?"]),
        (b'{"cmd":"strt"}', ["did you mean 'start'?"]),
        (b'{"cmd":"frobnicate"}', ["unknown cmd 'frobnicate'"]),
    ],
)
def test_a_refused_line_names_the_cmd_and_the_field(line: bytes, words: list[str]) -> None:
    text = refusal(host.decode_request, line)

    assert [word for word in words if word not in text] == [], text


def test_nothing_is_suggested_for_a_cmd_that_resembles_none() -> None:
    assert "did you mean" not in refusal(host.decode_request, b'{"cmd":"frobnicate"}')


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"type": "send", "to": "bob"}, ["send", "`body`"]),
        ({"type": "recv", "max": 0}, ["recv", ">= 1", "`$.max`"]),
        ({"type": "wake", "from": "a\nb", "body": ""}, ["wake", "`$.from`"]),
        ({"type": "ack_turn", "ids": [1, "x"]}, ["ack_turn", "`$.ids[1]`"]),
        ({"type": "ackturn"}, ["unknown type 'ackturn'", "did you mean 'ack_turn'?"]),
        ({"type": "frobnicate"}, ["unknown type 'frobnicate'"]),
        ({"to": "bob"}, ['the key "type" is missing']),
        ({"type": 1}, ['"type" is not a string']),
        (["send"], ["no map of keys to values"]),
    ],
)
def test_a_refused_call_names_the_type_and_the_field(request_: object, words: list[str]) -> None:
    text = refusal(agent.decode_request, msgspec.msgpack.encode(request_))

    assert [word for word in words if word not in text] == [], text


# ── events ──────────────────────────────────────────────────────────────────────────────────────


def publish(payload: object) -> bytes:
    event = {"id": 7, "ts": 1.0, "kind": "note", "payload": payload}
    return msgspec.msgpack.encode({"type": "publish", "events": [event]})


def nested(levels: int) -> dict[str, Any]:
    value: Any = []
    for _ in range(levels - 2):
        value = [value]
    return {"x": value}


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        ({"x": msgspec.msgpack.Ext(5, b"x")}, "event 7: its payload is not JSON"),
        (
            {"x": "y" * MAX_EVENT_BYTES},
            "event 7: its payload is 262152 bytes, the limit is 262144",
        ),
        (nested(MAX_EVENT_DEPTH + 1), "event 7: its payload is nested deeper than 100 levels"),
    ],
)
def test_an_event_that_could_not_be_shown_is_refused(payload: object, words: str) -> None:
    assert words in refusal(agent.decode_request, publish(payload))


@pytest.mark.parametrize("payload", [{}, {"x": "y" * (MAX_EVENT_BYTES - 8)}, nested(MAX_EVENT_DEPTH)])
def test_an_event_at_the_limits_passes(payload: dict[str, Any]) -> None:
    assert agent.decode_request(publish(payload)) == agent.Publish(
        events=[agent.Event(id=7, ts=1.0, kind="note", payload=payload)]
    )


@pytest.mark.parametrize("ts", [NAN, float("inf"), -1.0, 1e300])
def test_an_event_of_no_possible_moment_is_refused(ts: float) -> None:
    event = {"id": 7, "ts": ts, "kind": "note"}

    text = refusal(agent.decode_request, msgspec.msgpack.encode({"type": "publish", "events": [event]}))

    assert "`$.events[0].ts`" in text


def test_a_command_of_a_later_daemon_is_told_apart() -> None:
    with pytest.raises(msgspec.ValidationError):
        agent.decode_command(msgspec.msgpack.encode({"type": "dance", "id": 1}))

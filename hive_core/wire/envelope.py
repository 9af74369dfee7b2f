"""The envelopes round requests and results on an agent's socket, sans-IO.

Each frame holds a msgpack array whose first item is the tag.  What is inside a call or a reply stays
raw until somebody knows its type, so a request that is wrong costs its own call and not the connection.
"""

import difflib
from collections.abc import Collection
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from hive_core.wire.errors import ErrorCode, ProtocolError
from hive_core.wire.frame import encode_frame
from hive_core.wire.limits import PROTOCOL


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First on a connection, both ways."""

    protocol: int
    role: str
    software: str


CallId = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Call(msgspec.Struct, frozen=True, array_like=True, tag="call"):
    """Harness to daemon.  *id* is unique among the open calls of the connection."""

    id: CallId
    request: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, array_like=True, tag="reply"):
    """The answer of call *id*."""

    id: int
    result: msgspec.Raw


class Fault(msgspec.Struct, frozen=True, array_like=True, tag="fault"):
    """Call *id* was refused, or a stream ended by a refusal.  Id 0 means the connection itself."""

    id: int
    code: str
    text: str
    reason: str | None = None


class Item(msgspec.Struct, frozen=True, array_like=True, tag="item"):
    """One item of the stream that call *id* opened."""

    id: int
    result: msgspec.Raw


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """The stream of call *id* is over."""

    id: int


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Harness to daemon: give up call *id*.  Answered by a fault `cancelled` or by the reply that won."""

    id: CallId


ToDaemon = Hello | Call | Cancel
ToHarness = Hello | Reply | Fault | Item | End

_ENCODER: Final = msgspec.msgpack.Encoder()
_TO_DAEMON: Final[msgspec.msgpack.Decoder[ToDaemon]] = msgspec.msgpack.Decoder(ToDaemon)
_TO_HARNESS: Final[msgspec.msgpack.Decoder[ToHarness]] = msgspec.msgpack.Decoder(ToHarness)

# Everything that msgspec raises on hostile bytes: deep nesting is a RecursionError.
DECODE_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError, OverflowError)

MAX_EXPLAINED_BYTES: Final = 64 * 1024
"""Of a request that cannot be read and is larger, msgspec's own words must do: to look what it would have
been, all of it is made into objects, and 16 MiB are a gigabyte of them and a second."""

# msgspec quotes an unknown tag whole, and a hostile one is as long as its frame.
_MAX_EXPLANATION_CHARS: Final = 300


def explain(error: Exception) -> str:
    """What msgspec says is wrong, at a length that fits a reply and a log line."""
    text = str(error)
    if len(text) <= _MAX_EXPLANATION_CHARS:
        return text
    half = _MAX_EXPLANATION_CHARS // 2
    return f"{text[:half]}…{text[-half:]}"


def explain_request(request: object, tag_field: str, known: Collection[str], error: Exception) -> str:
    """Say what is wrong with a *request* that is readable, but did not decode because of *error*."""
    if not isinstance(request, dict):
        return "it is no map of keys to values"
    tag = request.get(tag_field)
    if tag is None:
        return f'the key "{tag_field}" is missing'
    if not isinstance(tag, str):
        return f'"{tag_field}" is not a string'
    if tag in known:
        return f"{tag}: {explain(error)}"
    near = difflib.get_close_matches(tag[:40], known, n=1)
    return f"unknown {tag_field} {tag[:40]!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def decode_to_daemon(payload: bytes) -> ToDaemon:
    """Read what a harness sent.

    Raises:
        ProtocolError: it is none of hello, call, cancel.
    """
    try:
        return _TO_DAEMON.decode(payload)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"an unreadable frame: {explain(error)}") from None


def decode_to_harness(payload: bytes) -> ToHarness:
    """Read what the daemon sent.

    Raises:
        ProtocolError: it is none of hello, reply, fault, item, end.
    """
    try:
        return _TO_HARNESS.decode(payload)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"an unreadable frame: {explain(error)}") from None


def encode_hello(role: str, software: str) -> bytes:
    return encode_frame(_ENCODER.encode(("hello", PROTOCOL, role, software)))


def encode_call(call_id: int, request: msgspec.Struct) -> bytes:
    return encode_frame(_ENCODER.encode(("call", call_id, request)))


def encode_cancel(call_id: int) -> bytes:
    return encode_frame(_ENCODER.encode(("cancel", call_id)))


def encode_reply(call_id: int, result: msgspec.Struct) -> bytes:
    return encode_frame(_ENCODER.encode(("reply", call_id, result)))


def encode_item(call_id: int, result: msgspec.Struct) -> bytes:
    return encode_frame(_ENCODER.encode(("item", call_id, result)))


def encode_end(call_id: int) -> bytes:
    return encode_frame(_ENCODER.encode(("end", call_id)))


def encode_fault(call_id: int, code: ErrorCode, text: str, reason: str | None = None) -> bytes:
    return encode_frame(_ENCODER.encode(("fault", call_id, code.value, text, reason)))

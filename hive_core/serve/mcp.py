"""MCP on an agent's socket: JSON-RPC 2.0, a message a line, for any client in the agent's machine.

What the tools are stands in mcp_tools; here is the protocol round them.  It keeps no session: a call
that comes before `initialize`, or on another connection than that, is answered as any other.
"""

import logging
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import msgspec
import trio
from msgspec import UNSET, Meta, UnsetType

from hive_core.handlers.deps import Deps, Peer
from hive_core.serve.calls import CALLS_PER_TURN, OpenCalls, Shares
from hive_core.serve.mcp_tools import ListedTool, Tool, listed_for, tools_for
from hive_core.wire.envelope import DECODE_ERRORS, MAX_EXPLAINED_BYTES, explain
from hive_core.wire.errors import Disconnected, ErrorCode, LineTooLong, Refused
from hive_core.wire.lines import LineDecoder
from hive_core.wire.stream import Connection
from hive_core.wire.version import VERSION

NEWEST: Final = "2025-11-25"
VERSIONS: Final = frozenset({NEWEST, "2025-06-18", "2025-03-26", "2024-11-05"})

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602

RECEIVED: Final = "notifications/hyperhive/received"
"""Of a client that promised it: the answer to `requestId` is where it belongs."""
TELLS_META: Final = "hyperhive/tells"
"""In a call's `_meta`, true: RECEIVED will follow the answer, which otherwise counts as never read."""

ENOUGH_UNREAD_BYTES: Final = 2**20
"""A client that lets more answers lie than this is not read from until it takes them."""

INSTRUCTIONS: Final = (
    "You are the agent {name} in a hive of agents. A message to you begins a turn; when the turn ends well, "
    "the message is done. send(to, body) reaches another agent, `operator` (the person whose hive this is) "
    "or `*` (everyone); what you merely write reaches nobody. To wait within a turn, for an answer or for "
    "time to pass, call recv(wait_seconds=180), again if need be. To go on after this turn, call "
    "request_next_turn()."
)

log = logging.getLogger(__name__)

T = TypeVar("T")

RpcId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | Annotated[str, Meta(max_length=256)]


class _Incoming(msgspec.Struct, frozen=True):
    """A request, a notification, or an answer to a question that we never ask."""

    jsonrpc: str
    id: RpcId | UnsetType = UNSET
    method: str | UnsetType = UNSET
    params: msgspec.Raw | UnsetType = UNSET
    result: msgspec.Raw | UnsetType = UNSET
    error: msgspec.Raw | UnsetType = UNSET


class _Initialize(msgspec.Struct, frozen=True):
    protocolVersion: str  # noqa: N815 (MCP's own words, in these two)
    clientInfo: dict[str, Any] = {}  # noqa: N815


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: dict[str, Any] | None = None
    meta: dict[str, Any] | None = msgspec.field(name="_meta", default=None)


class _Answered(msgspec.Struct, frozen=True):
    requestId: RpcId  # noqa: N815


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    jsonrpc: str = "2.0"
    id: RpcId
    result: Any


class _ErrorBody(msgspec.Struct, frozen=True):
    code: int
    message: str


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    jsonrpc: str = "2.0"
    id: RpcId | None
    error: _ErrorBody


class _Text(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "text"
    text: str


class _ToolResult(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    content: list[_Text]
    structured_content: msgspec.Struct | UnsetType = UNSET
    is_error: bool = False


class _Tools(msgspec.Struct, frozen=True):
    tools: list[ListedTool]


class _RpcError(Exception):
    """The answer is one of JSON-RPC's own errors; to *request_id*, if that could be read."""

    def __init__(self, code: int, message: str, request_id: RpcId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.request_id = request_id


_ENCODER: Final = msgspec.json.Encoder()
_INCOMING: Final = msgspec.json.Decoder(_Incoming)
_ANYTHING: Final = msgspec.json.Decoder()


async def answer(
    deps: Deps, peer: Peer, shares: Shares, stop: trio.Event, connection: Connection, first: bytes
) -> None:
    """Serve a connection, whose *first* bytes have come, until the client leaves or *stop* is set."""
    async with trio.open_nursery() as nursery:
        calls: OpenCalls[RpcId] = OpenCalls(deps, peer, connection, shares, nursery)
        session = _Session(peer, connection, shares, calls)
        nursery.start_soon(session.stop_reading_when, stop)
        shares.watched.add(calls)
        try:
            await session.run(first)
        finally:
            shares.watched.discard(calls)
        nursery.cancel_scope.cancel()


def _encode_result(request_id: RpcId, result: object) -> bytes:
    return _ENCODER.encode(_Result(id=request_id, result=result)) + b"\n"


def _encode_error(request_id: RpcId | None, code: int, message: str) -> bytes:
    return _ENCODER.encode(_Error(id=request_id, error=_ErrorBody(code, message))) + b"\n"


class _ToolAnswer:
    """Answers one tools/call."""

    __slots__ = ("_connection", "_request_id", "_tool")

    def __init__(self, connection: Connection, request_id: RpcId, tool: Tool) -> None:
        self._connection, self._request_id, self._tool = connection, request_id, tool

    def reply(self, result: msgspec.Struct) -> None:
        self._send(_ToolResult([_Text(text=self._tool.render(result))], result))

    def fault(self, error: Refused) -> None:
        # Who has cancelled a call wants no answer to it.
        if error.code is not ErrorCode.CANCELLED:
            self._send(_ToolResult([_Text(text=error.text)], is_error=True))

    def item(self, item: msgspec.Struct) -> None:
        raise NotImplementedError("no tool is a stream")

    def end(self) -> None:
        raise NotImplementedError("no tool is a stream")

    def _send(self, result: _ToolResult) -> None:
        self._connection.send_nowait(_encode_result(self._request_id, result))


class _Session:
    def __init__(self, peer: Peer, connection: Connection, shares: Shares, calls: OpenCalls[RpcId]) -> None:
        self._peer, self._connection, self._shares, self._calls = peer, connection, shares, calls
        self._decoder = LineDecoder()
        self._reading = trio.CancelScope()
        self._tools = tools_for(peer.role)

    async def run(self, first: bytes) -> None:
        try:
            with self._reading:
                await self._read(first)
        except Disconnected:
            self._calls.forget_parked()
            self._calls.undo_doubtful()
            raise
        finally:
            self._calls.forget_parked()
        await self._calls.finish()
        await self._calls.settle()

    async def stop_reading_when(self, stop: trio.Event) -> None:
        await stop.wait()
        self._reading.cancel()

    async def _read(self, chunk: bytes) -> None:
        taken = 0
        while chunk:
            await self._shares.take_turn(len(chunk) + self._decoder.buffered_bytes)
            self._decoder.receive_data(chunk)
            while True:
                try:
                    line = self._decoder.next_line()
                except LineTooLong as error:
                    self._complain(None, INVALID_REQUEST, f"cannot read {error}")
                    continue
                if line is None:
                    break
                if line.strip():
                    began = trio.current_time()
                    self._take(line)
                    self._shares.account(len(line), began)
                    taken += 1
                    if taken % CALLS_PER_TURN == 0:
                        await trio.lowlevel.checkpoint()
                if self._connection.waiting_bytes > ENOUGH_UNREAD_BYTES:
                    await self._connection.drain()
            chunk = await self._connection.receive()
            self._calls.look()

    def _take(self, line: bytes) -> None:
        try:
            incoming = _read_line(line)
        except _RpcError as error:
            self._complain(error.request_id, error.code, error.message)
            return
        if incoming.method is UNSET:
            return  # an answer, and we have asked nothing
        try:
            if incoming.id is UNSET:
                self._note(incoming.method, incoming.params)
            else:
                self._answer(incoming.id, incoming.method, incoming.params)
        except _RpcError as error:
            if incoming.id is not UNSET:
                self._complain(incoming.id, error.code, error.message)

    def _note(self, method: str, params: msgspec.Raw | UnsetType) -> None:
        if method == "notifications/cancelled":
            self._calls.cancel(_read_params(params, _Answered).requestId)
        elif method == RECEIVED:
            self._calls.confirm(_read_params(params, _Answered).requestId)

    def _answer(self, request_id: RpcId, method: str, params: msgspec.Raw | UnsetType) -> None:
        match method:
            case "tools/call":
                self._call(request_id, _read_params(params, _Call))
            case "initialize":
                self._connection.send_nowait(
                    _encode_result(request_id, self._initialize(_read_params(params, _Initialize)))
                )
            case "tools/list":
                self._connection.send_nowait(_encode_result(request_id, _Tools(listed_for(self._peer.role))))
            case "ping":
                self._connection.send_nowait(_encode_result(request_id, {}))
            case _:
                raise _RpcError(METHOD_NOT_FOUND, f"cannot answer {method[:80]!r}: there is no such method")

    def _initialize(self, asked: _Initialize) -> dict[str, Any]:
        client = str(asked.clientInfo.get("name", "unknown"))[:80]
        log.debug("MCP client at the socket of %s: %r", self._peer.name, client)
        return {
            "protocolVersion": asked.protocolVersion if asked.protocolVersion in VERSIONS else NEWEST,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "hyperhive", "version": VERSION},
            "instructions": INSTRUCTIONS.format(name=self._peer.name),
        }

    def _call(self, request_id: RpcId, call: _Call) -> None:
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            raise _RpcError(
                INVALID_PARAMS, f"cannot call {call.name[:80]!r}: there is no such tool; there are {known}"
            )
        if request_id in self._calls:
            # Under its own id this would be taken for the answer of the call that is open.
            self._complain(None, INVALID_REQUEST, f"cannot take the call: id {request_id!r} is open already")
            return
        read = partial(tool.read, call.arguments or {}, call.meta or {})
        tells = (call.meta or {}).get(TELLS_META) is True
        self._calls.begin(request_id, read, _ToolAnswer(self._connection, request_id, tool), tells=tells)

    def _complain(self, request_id: RpcId | None, code: int, message: str) -> None:
        self._connection.send_nowait(_encode_error(request_id, code, message))


def _read_line(line: bytes) -> _Incoming:
    try:
        incoming = _INCOMING.decode(line)
    except DECODE_ERRORS as error:
        raise _why_unreadable(line, error) from None
    request_id = None if incoming.id is UNSET else incoming.id
    if incoming.jsonrpc != "2.0":
        raise _RpcError(INVALID_REQUEST, 'cannot read the message: "jsonrpc" is not "2.0"', request_id)
    if incoming.method is UNSET and incoming.result is UNSET and incoming.error is UNSET:
        raise _RpcError(INVALID_REQUEST, 'cannot read the message: the key "method" is missing', request_id)
    return incoming


def _why_unreadable(line: bytes, error: Exception) -> _RpcError:
    if len(line) > MAX_EXPLAINED_BYTES:
        return _RpcError(PARSE_ERROR, f"cannot read the line: {_explain(error)}")
    try:
        value = _ANYTHING.decode(line)
    except DECODE_ERRORS as unreadable:
        return _RpcError(PARSE_ERROR, f"cannot read the line: {_explain(unreadable)}")
    if isinstance(value, list):
        return _RpcError(INVALID_REQUEST, "cannot take a batch: send a message a line")
    request_id = None
    if isinstance(value, dict):
        with suppress(msgspec.ValidationError):
            request_id = msgspec.convert(value.get("id"), RpcId)
    return _RpcError(INVALID_REQUEST, f"cannot read the message: {explain(error)}", request_id)


def _read_params(params: msgspec.Raw | UnsetType, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(b"{}" if params is UNSET else params, type=kind)
    except DECODE_ERRORS as error:
        raise _RpcError(INVALID_PARAMS, f"cannot read params: {_explain(error)}") from None


def _explain(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else explain(error)

"""An agent's socket: frames of its harness, many calls and streams at once."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
import trio

from hive_core.deferred import Deferred
from hive_core.handlers.deps import Deps, Peer, Role
from hive_core.handlers.routes import ROUTES, Route
from hive_core.serve.doors import log_bug
from hive_core.wire import agent, envelope
from hive_core.wire.errors import Disconnected, ErrorCode, ProtocolError, Refused
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.limits import MAX_OPEN_CALLS, MAX_OPEN_STREAMS, PROTOCOL, SMALL_FRAME_BYTES
from hive_core.wire.stream import HELLO_TIMEOUT_S, Connection
from hive_core.wire.version import VERSION

CALLS_PER_TURN: Final = 32
"""Taken from one connection before all others have had their turn."""

MAX_SLOW_CALLS: Final = 2
"""Of one agent, that may be reading the database or a file at once; the others wait in line."""

MAX_HELLO_BYTES: Final = 4096
"""Before its hello a peer may not make us keep more; the limits of frames come after it."""

TOO_MANY: Final = envelope.encode_fault(0, ErrorCode.UNAVAILABLE, "cannot serve: too many connections")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """What the connections of one agent share, so that it holds up nobody but itself."""

    large: trio.Lock = field(default_factory=trio.Lock)
    """Held by the one that sends a frame above SMALL_FRAME_BYTES."""
    slow: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_SLOW_CALLS))


async def answer(
    deps: Deps, name: str, allowed_uid: int, shares: Shares, stop: trio.Event, connection: Connection
) -> None:
    """Serve one connection at the socket of agent *name*, for processes of *allowed_uid* alone."""
    process = connection.credentials()
    if process.uid != allowed_uid:
        log.warning("Peer refused at the socket of %s uid=%d pid=%d", name, process.uid, process.pid)
        text = f"cannot serve you: uid {process.uid} is not the uid of agent {name}"
        connection.send_nowait(envelope.encode_fault(0, ErrorCode.FORBIDDEN, text))
        return
    decoder = FrameDecoder()
    if not await _greet(connection, decoder):
        return
    async with trio.open_nursery() as nursery:
        peer = Peer(Role.AGENT, name, process.uid, process.pid)
        session = _Session(deps, peer, connection, decoder, shares, nursery)
        nursery.start_soon(session.stop_reading_when, stop)
        try:
            await session.read()
        finally:
            session.forget_parked()
        await session.finish()
        nursery.cancel_scope.cancel()


async def _greet(connection: Connection, decoder: FrameDecoder) -> bool:
    """Shake hands, and say whether to go on; otherwise the peer has been told why not."""
    with trio.move_on_after(HELLO_TIMEOUT_S):
        while True:
            chunk = await connection.receive()
            if not chunk:
                return False
            if not decoder.buffered_bytes and chunk[:1] != b"\x00":
                _refuse_language(connection, chunk)
                return False
            decoder.receive_data(chunk)
            try:
                if decoder.wanted_bytes > MAX_HELLO_BYTES:
                    raise ProtocolError(
                        f"a frame of {decoder.wanted_bytes} bytes, and a hello has {MAX_HELLO_BYTES} at most"
                    )
                payload = decoder.next_payload()
                hello = envelope.decode_to_daemon(payload) if payload is not None else None
            except ProtocolError as error:
                return _refuse_hello(connection, f"cannot read the hello: {error}")
            match hello:
                case None:
                    continue
                case envelope.Hello(protocol=protocol) if protocol != PROTOCOL:
                    older = "the harness (hive-agent)" if protocol < PROTOCOL else "the daemon (hive-core)"
                    text = (
                        f"cannot talk: you speak protocol {protocol}, this daemon {PROTOCOL}: update {older}"
                    )
                    return _refuse_hello(connection, text, ErrorCode.PRECONDITION_FAILED)
                case envelope.Hello(role="agent"):
                    connection.send_nowait(envelope.encode_hello("daemon", f"hive-core {VERSION}"))
                    return True
                case envelope.Hello(role=role):
                    return _refuse_hello(
                        connection, f"cannot talk: the role is agent here, not {role[:40]!r}"
                    )
                case _:
                    return _refuse_hello(connection, "cannot talk: the first frame is no hello")
    return _refuse_hello(connection, f"cannot talk: no hello within {HELLO_TIMEOUT_S:g} s")


def _refuse_hello(connection: Connection, text: str, code: ErrorCode = ErrorCode.INVALID_ARGUMENT) -> bool:
    connection.send_nowait(envelope.encode_fault(0, code, text))
    return False


def _refuse_language(connection: Connection, first: bytes) -> None:
    if first[:1] == b"{":
        error = {
            "code": -32601,
            "message": "cannot serve MCP: this daemon speaks frames alone on this socket",
        }
        connection.send_nowait(msgspec.json.encode({"jsonrpc": "2.0", "id": None, "error": error}) + b"\n")
    else:
        connection.send_nowait(b"cannot read this: a frame begins with the byte 0x00\n")


class _Session:
    """One connection after its hello: the calls that are open on it."""

    def __init__(
        self,
        deps: Deps,
        peer: Peer,
        connection: Connection,
        decoder: FrameDecoder,
        shares: Shares,
        nursery: trio.Nursery,
    ) -> None:
        self._deps, self._peer, self._connection = deps, peer, connection
        self._decoder, self._shares, self._nursery = decoder, shares, nursery
        self._reading = trio.CancelScope()
        self._open: dict[int, Deferred[msgspec.Struct] | trio.CancelScope] = {}
        self._streams: set[int] = set()
        self._mute = False
        self._settled = trio.Event()

    async def read(self) -> None:
        """Take requests until the peer leaves or `stop_reading_when` says so."""
        holds_large = False
        taken = 0
        try:
            with self._reading:
                while True:
                    while (payload := self._decoder.next_payload()) is not None:
                        self._take(payload)
                        taken += 1
                        if taken % CALLS_PER_TURN == 0:
                            await trio.lowlevel.checkpoint()
                    if not holds_large and self._decoder.wanted_bytes > SMALL_FRAME_BYTES:
                        await self._shares.large.acquire()
                        holds_large = True
                    elif holds_large and self._decoder.wanted_bytes <= SMALL_FRAME_BYTES:
                        self._shares.large.release()
                        holds_large = False
                    chunk = await self._connection.receive()
                    if not chunk:
                        return
                    self._decoder.receive_data(chunk)
        except ProtocolError as error:
            self._connection.send_nowait(
                envelope.encode_fault(0, ErrorCode.INVALID_ARGUMENT, f"cannot go on: {error}")
            )
            raise
        finally:
            if holds_large:
                self._shares.large.release()

    async def stop_reading_when(self, stop: trio.Event) -> None:
        await stop.wait()
        self._reading.cancel()

    def forget_parked(self) -> None:
        """Nobody will read the answers of what is parked: give it up without a word."""
        self._mute = True
        for waiting in list(self._open.values()):
            waiting.cancel()
        self._mute = False

    async def finish(self) -> None:
        """Wait for what cannot be given up, such as a send that is being committed."""
        while any(isinstance(waiting, Deferred) for waiting in self._open.values()):
            self._settled = trio.Event()
            await self._settled.wait()

    def _take(self, payload: bytes) -> None:
        match envelope.decode_to_daemon(payload):
            case envelope.Call(call_id, raw):
                self._call(call_id, raw)
            case envelope.Cancel(call_id):
                waiting = self._open.get(call_id)
                if waiting is not None:
                    waiting.cancel()
            case envelope.Hello():
                raise ProtocolError("a second hello")

    def _call(self, call_id: int, raw: msgspec.Raw) -> None:
        if call_id in self._open:
            raise ProtocolError(f"call {call_id} is open already")
        try:
            if len(self._open) >= MAX_OPEN_CALLS:
                raise Refused(
                    ErrorCode.UNAVAILABLE, f"cannot take the call: {MAX_OPEN_CALLS} are open, the limit"
                )
            request = agent.decode_request(raw)
            route = ROUTES[type(request)]
            if route.stream and len(self._streams) >= MAX_OPEN_STREAMS:
                raise Refused(
                    ErrorCode.UNAVAILABLE, f"cannot open the stream: {MAX_OPEN_STREAMS} are open, the limit"
                )
            if route.is_async:
                scope = self._open[call_id] = trio.CancelScope()
                if route.stream:
                    self._streams.add(call_id)
                self._nursery.start_soon(self._run, call_id, route, request, scope)
                return
            outcome = route.handler(self._deps, self._peer, request)
            if not isinstance(outcome, Deferred):
                self._connection.send_nowait(envelope.encode_reply(call_id, outcome))
                return
            self._open[call_id] = outcome
            outcome.then(partial(self._reply, call_id, route), partial(self._fail, call_id))
        except Refused as error:
            self._fault(call_id, error)
        except Exception:
            text = log_bug(f"a call of {self._peer.name}")
            self._fault(call_id, Refused(ErrorCode.INTERNAL, text))

    def _reply(self, call_id: int, route: Route, result: msgspec.Struct) -> None:
        self._close_call(call_id)
        self._connection.send_nowait(envelope.encode_reply(call_id, result))
        if self._connection.closed and route.undo is not None:
            route.undo(self._deps, self._peer, result)

    def _fail(self, call_id: int, error: Exception) -> None:
        self._close_call(call_id)
        if not isinstance(error, Refused):
            log.error("Call of %s failed: %r", self._peer.name, error)
            error = Refused(ErrorCode.INTERNAL, f"internal error: {type(error).__name__}")
        if not self._mute:
            self._fault(call_id, error)

    async def _run(
        self, call_id: int, route: Route, request: msgspec.Struct, scope: trio.CancelScope
    ) -> None:
        async def emit(item: msgspec.Struct) -> None:
            self._connection.send_nowait(envelope.encode_item(call_id, item))
            await self._connection.drain()

        try:
            with scope:
                if route.stream:
                    await route.handler(self._deps, self._peer, request, emit)
                    self._connection.send_nowait(envelope.encode_end(call_id))
                else:
                    async with self._shares.slow:
                        result = await route.handler(self._deps, self._peer, request)
                    self._connection.send_nowait(envelope.encode_reply(call_id, result))
            if scope.cancelled_caught:
                self._fault(call_id, Refused(ErrorCode.CANCELLED, "cannot go on: the call was cancelled"))
        except Refused as error:
            self._fault(call_id, error)
        except Disconnected:
            pass
        except Exception:
            self._fault(call_id, Refused(ErrorCode.INTERNAL, log_bug(f"a call of {self._peer.name}")))
        finally:
            self._streams.discard(call_id)
            self._close_call(call_id)

    def _fault(self, call_id: int, error: Refused) -> None:
        self._connection.send_nowait(envelope.encode_fault(call_id, error.code, error.text, error.reason))

    def _close_call(self, call_id: int) -> None:
        self._open.pop(call_id, None)
        self._settled.set()

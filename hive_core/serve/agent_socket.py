"""An agent's socket: frames of its harness, many calls and streams at once; MCP where a `{` comes first."""

from functools import partial
from typing import Final

import msgspec
import trio

from hive_core.handlers.deps import Deps, Peer, Role
from hive_core.serve import mcp
from hive_core.serve.calls import CALLS_PER_TURN, OpenCalls, Shares
from hive_core.serve.identity import Admit
from hive_core.wire import agent, envelope
from hive_core.wire.errors import ErrorCode, ProtocolError, Refused
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.ids import MANAGER
from hive_core.wire.limits import PROTOCOL, SMALL_FRAME_BYTES
from hive_core.wire.stream import HELLO_TIMEOUT_S, Connection
from hive_core.wire.version import VERSION

MAX_HELLO_BYTES: Final = 4096
"""Before its hello a peer may not make us keep more; the limits of frames come after it."""

TOO_MANY: Final = envelope.encode_fault(0, ErrorCode.UNAVAILABLE, "cannot serve: too many connections")


async def answer(
    deps: Deps, name: str, admit: Admit, shares: Shares, stop: trio.Event, connection: Connection
) -> None:
    """Serve one connection at the socket of agent *name*, for the processes that *admit* lets in."""
    process = connection.credentials()
    refusal = admit(process)
    if refusal is not None:
        connection.send_nowait(envelope.encode_fault(0, ErrorCode.FORBIDDEN, refusal))
        return
    role = Role.MANAGER if name == MANAGER else Role.AGENT
    with trio.move_on_after(HELLO_TIMEOUT_S) as patience:
        first = await connection.receive()
    if patience.cancelled_caught:
        _refuse_hello(connection, f"cannot talk: no hello within {HELLO_TIMEOUT_S:g} s")
    elif first[:1] == b"{":
        peer = Peer(role, name, process.uid, process.pid, in_turn=True)
        await mcp.answer(deps, peer, shares, stop, connection, first)
    elif first[:1] == b"\x00":
        peer = Peer(role, name, process.uid, process.pid)
        await _answer_frames(deps, peer, shares, stop, connection, first)
    elif first:
        connection.send_nowait(b"cannot read this: a frame begins with the byte 0x00, MCP with {\n")


async def _answer_frames(
    deps: Deps, peer: Peer, shares: Shares, stop: trio.Event, connection: Connection, first: bytes
) -> None:
    decoder = FrameDecoder()
    decoder.receive_data(first)
    if not await _greet(connection, decoder):
        return
    async with trio.open_nursery() as nursery:
        session = _Session(deps, peer, connection, decoder, shares, nursery)
        nursery.start_soon(session.stop_reading_when, stop)
        try:
            await session.read()
        finally:
            session.calls.forget_parked()
        await session.calls.finish()
        nursery.cancel_scope.cancel()


async def _greet(connection: Connection, decoder: FrameDecoder) -> bool:
    """Shake hands, and say whether to go on; otherwise the peer has been told why not."""
    with trio.move_on_after(HELLO_TIMEOUT_S):
        while True:
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
                    chunk = await connection.receive()
                    if not chunk:
                        return False
                    decoder.receive_data(chunk)
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


class _Frames:
    """Answers one call in frames."""

    __slots__ = ("_call_id", "_connection")

    def __init__(self, connection: Connection, call_id: int) -> None:
        self._connection, self._call_id = connection, call_id

    def reply(self, result: msgspec.Struct) -> None:
        self._connection.send_nowait(envelope.encode_reply(self._call_id, result))

    def fault(self, error: Refused) -> None:
        self._connection.send_nowait(
            envelope.encode_fault(self._call_id, error.code, error.text, error.reason)
        )

    def item(self, item: msgspec.Struct) -> None:
        self._connection.send_nowait(envelope.encode_item(self._call_id, item))

    def end(self) -> None:
        self._connection.send_nowait(envelope.encode_end(self._call_id))


class _Session:
    """One connection after its hello."""

    def __init__(
        self,
        deps: Deps,
        peer: Peer,
        connection: Connection,
        decoder: FrameDecoder,
        shares: Shares,
        nursery: trio.Nursery,
    ) -> None:
        self._connection, self._decoder, self._shares = connection, decoder, shares
        self._reading = trio.CancelScope()
        self.calls: OpenCalls[int] = OpenCalls(deps, peer, connection, shares, nursery)

    async def read(self) -> None:
        """Take requests until the peer leaves or `stop_reading_when` says so."""
        holds_large = False
        taken = 0
        try:
            with self._reading:
                while True:
                    while (payload := self._decoder.next_payload()) is not None:
                        began = trio.current_time()
                        self._take(payload)
                        self._shares.account(len(payload), began)
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
                    await self._shares.take_turn(len(chunk) + self._decoder.buffered_bytes)
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

    def _take(self, payload: bytes) -> None:
        match envelope.decode_to_daemon(payload):
            case envelope.Call(call_id, raw):
                if call_id in self.calls:
                    raise ProtocolError(f"call {call_id} is open already")
                self.calls.begin(
                    call_id, partial(agent.decode_request, raw), _Frames(self._connection, call_id)
                )
            case envelope.Cancel(call_id):
                self.calls.cancel(call_id)
            case envelope.Hello():
                raise ProtocolError("a second hello")

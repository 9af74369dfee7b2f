"""The one place where the wire touches trio: a Unix stream socket, and calls multiplexed over it.

Reading waits in trio; writing is a plain call, so that a reply can be written from the callback that
has the answer.  What the kernel does not take at once waits in a bounded buffer.
"""

import fcntl
import os
import select
import socket
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, TypeVar

import msgspec
import trio

from hive_core.wire import envelope
from hive_core.wire.envelope import DECODE_ERRORS
from hive_core.wire.errors import Disconnected, ErrorCode, ProtocolError, Refused
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.limits import MAX_OUT_BYTES, PROTOCOL
from hive_core.wire.unix import short_address

CHUNK_BYTES: Final = 64 * 1024
HELLO_TIMEOUT_S: Final = 10.0
MAX_WAITING_ITEMS: Final = 1024

T = TypeVar("T")


class Credentials(NamedTuple):
    """Who opened the other end, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Connection:
    """A connected Unix stream socket.

    `send_nowait` never waits and never raises.  When the peer is gone, what is sent is dropped and
    `receive` gives what the peer said before it left, then says so; when it has let more than
    *max_out_bytes* pile up, the connection is closed.
    """

    def __init__(
        self, sock: socket.socket, nursery: trio.Nursery, *, max_out_bytes: int = MAX_OUT_BYTES
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._nursery = nursery
        self._max_out_bytes = max_out_bytes
        self._out = bytearray()
        self._closed = False
        self._deaf = False
        self._drained = trio.lowlevel.ParkingLot()
        self.overrun = False
        """It was closed because the peer did not read."""

    @property
    def closed(self) -> bool:
        """Nothing more can be sent: it was closed here, or the peer is gone."""
        return self._closed or self._deaf

    @property
    def waiting_bytes(self) -> int:
        return len(self._out)

    @property
    def has_read_all(self) -> bool:
        """The peer has taken all that was sent: none of it waits, here or in the kernel, or was lost."""
        if self.closed or self._out:
            return False
        (queued,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        if queued:
            return False
        # Of a peer that left with something unread the kernel keeps nothing but the error.
        look = select.poll()
        look.register(self._socket, 0)
        return not any(events & select.POLLERR for _, events in look.poll(0))

    def credentials(self) -> Credentials:
        raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return Credentials(*struct.unpack("3i", raw))

    async def receive(self) -> bytes:
        """Give what has come, at most 64 KiB; b"" when the peer has closed its side.

        Raises:
            Disconnected: the connection broke, or was closed here.
        """
        while True:
            if self._closed:
                raise Disconnected("the connection is closed")
            try:
                await trio.lowlevel.wait_readable(self._socket)
                return self._socket.recv(CHUNK_BYTES)
            except BlockingIOError:
                continue
            except (OSError, ValueError, trio.ClosedResourceError) as error:
                # A peer that closes with unread replies in its buffer resets the connection.
                raise Disconnected(str(error)) from None

    def send_nowait(self, data: bytes) -> None:
        if self._closed or self._deaf:
            return
        if self._out:
            self._out += data
        else:
            sent = self._try_send(data)
            if sent == len(data) or self._deaf:
                return
            self._out += data[sent:]
            try:
                self._nursery.start_soon(self._flush)
            except RuntimeError:  # the connection's time is over, and nobody is left to flush
                self.close()
        if len(self._out) > self._max_out_bytes:
            self.overrun = True
            self.close()

    async def drain(self) -> None:
        """Wait until the kernel has taken everything that was sent, or the connection is closed."""
        while self._out and not self._closed:
            await self._drained.park()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._out.clear()
            self._drained.unpark_all()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def _try_send(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._deaf = True
            self._out.clear()
            self._drained.unpark_all()
            return 0

    async def _flush(self) -> None:
        while self._out and not self._closed:
            try:
                await trio.lowlevel.wait_writable(self._socket)
            except trio.ClosedResourceError:
                return
            except trio.Cancelled:
                self.close()  # nobody else would send the rest, and `drain` would wait for ever
                raise
            # Sends from the start of the buffer; appended data may have moved it meanwhile.
            sent = self._try_send(self._out)
            del self._out[:sent]
        self._drained.unpark_all()


def connect(path: str | os.PathLike[str]) -> socket.socket:
    """Connect to the Unix socket at *path*, however long that is.

    Does not wait: the kernel answers at once, with EAGAIN when the listener's queue is full.

    Raises:
        OSError: nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with short_address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


_StreamMessage = envelope.Item | envelope.Fault | envelope.End


class _Waiting:
    """A call whose answer has not come."""

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: envelope.Reply | envelope.Fault | None = None


class _Items:
    """The items of one stream.  A class, because an async generator that is left early is a leak."""

    def __init__(self, caller: "Caller", receive: "trio.MemoryReceiveChannel[_StreamMessage]") -> None:
        self._caller = caller
        self._receive = receive
        self._ended = False

    def __aiter__(self) -> "_Items":
        return self

    async def __anext__(self) -> msgspec.Raw:
        if self._ended:
            raise StopAsyncIteration
        try:
            message = await self._receive.receive()
        except trio.EndOfChannel:
            raise Disconnected(self._caller.why_gone) from None
        if isinstance(message, envelope.Item):
            return message.result
        self._ended = True
        if isinstance(message, envelope.Fault):
            raise _refused(message)
        raise StopAsyncIteration


class Caller:
    """The harness's end: many calls and streams at once over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._decoder = FrameDecoder()
        self._calls: dict[int, _Waiting] = {}
        self._streams: dict[int, trio.MemorySendChannel[_StreamMessage]] = {}
        self._last_id = 0
        self.why_gone = "the daemon closed the connection"
        self.gone = trio.Event()
        """Set when the connection has ended, for whatever reason."""

    async def call(self, request: msgspec.Struct, result_type: type[T]) -> T:
        """Ask and wait for the answer.  When cancelled, the daemon is told to give the call up.

        Raises:
            Refused: the daemon said no.
            Disconnected: the connection ended before the answer.
            ProtocolError: the answer is no *result_type*.
            ValueError: the request does not fit a frame, or holds text that is no UTF-8.
        """
        call_id, waiting = self._next_id(), _Waiting()
        self._calls[call_id] = waiting
        try:
            self._connection.send_nowait(envelope.encode_call(call_id, request))
            if self.gone.is_set():
                raise Disconnected(self.why_gone)
            await waiting.answered.wait()
        except trio.Cancelled:
            self._connection.send_nowait(envelope.encode_cancel(call_id))
            raise
        finally:
            self._calls.pop(call_id, None)
        if waiting.answer is None:
            raise Disconnected(self.why_gone)
        if isinstance(waiting.answer, envelope.Fault):
            raise _refused(waiting.answer)
        return _decode(waiting.answer.result, result_type)

    @asynccontextmanager
    async def stream(self, request: msgspec.Struct) -> AsyncIterator[AsyncIterator[msgspec.Raw]]:
        """Ask for a stream; give an iterator over its raw items.  Leaving the block cancels it.

        The iterator raises Refused when the daemon ends the stream with a fault, Disconnected when
        the connection ends, and stops when the stream does.
        """
        call_id = self._next_id()
        send, receive = trio.open_memory_channel[_StreamMessage](MAX_WAITING_ITEMS)
        self._streams[call_id] = send
        try:
            self._connection.send_nowait(envelope.encode_call(call_id, request))
            if self.gone.is_set():
                raise Disconnected(self.why_gone)
            yield _Items(self, receive)
        finally:
            if self._streams.pop(call_id, None) is not None:
                self._connection.send_nowait(envelope.encode_cancel(call_id))
            send.close()
            receive.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read answers until the connection ends, by either side's wish or because the daemon sent
        what is no answer.  Every open call then fails with Disconnected.
        """
        try:
            task_status.started()
            while True:
                # First: what came in one chunk with the daemon's hello.
                while (payload := self._decoder.next_payload()) is not None:
                    self._take(envelope.decode_to_harness(payload))
                if not (chunk := await self._connection.receive()):
                    break
                self._decoder.receive_data(chunk)
        except (Disconnected, ProtocolError) as error:
            self.why_gone = str(error)
        finally:
            self.gone.set()
            for waiting in self._calls.values():
                waiting.answered.set()
            for stream in self._streams.values():
                stream.close()
            self._streams.clear()
            self._connection.close()

    async def shake_hands(self, software: str, role: str = "agent") -> envelope.Hello:
        """Say hello and wait for the daemon's.  Before `run`.

        Raises:
            Refused: the daemon does not want to talk; the sentence says which side to update.
            ProtocolError: it speaks something else.
            Disconnected: it went away.
            trio.TooSlowError: it said nothing for 10 s.
        """
        self._connection.send_nowait(envelope.encode_hello(role, software))
        with trio.fail_after(HELLO_TIMEOUT_S):
            while (payload := self._decoder.next_payload()) is None:
                chunk = await self._connection.receive()
                if not chunk:
                    raise Disconnected("the daemon closed the connection instead of saying hello")
                self._decoder.receive_data(chunk)
        answer = envelope.decode_to_harness(payload)
        if isinstance(answer, envelope.Fault):
            raise _refused(answer)
        if not isinstance(answer, envelope.Hello):
            raise ProtocolError("the daemon's first frame is no hello")
        if answer.protocol != PROTOCOL:
            behind = "hive-agent" if answer.protocol > PROTOCOL else "the daemon"
            raise ProtocolError(
                f"the daemon speaks protocol {answer.protocol}, hive-agent {PROTOCOL}: update {behind}"
            )
        return answer

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _take(self, message: envelope.ToHarness) -> None:
        match message:
            case envelope.Reply(id=call_id) | envelope.Fault(id=call_id) if call_id in self._calls:
                waiting = self._calls[call_id]
                waiting.answer = message
                waiting.answered.set()
            case envelope.Item(id=call_id) | envelope.Fault(id=call_id) | envelope.End(id=call_id) if (
                call_id in self._streams
            ):
                stream = self._streams[call_id]
                try:
                    stream.send_nowait(message)
                except trio.WouldBlock:
                    raise ProtocolError("more stream items than are being read") from None
                if not isinstance(message, envelope.Item):
                    self._streams.pop(call_id).close()
            case envelope.Fault(id=0):
                raise ProtocolError(message.text)
            case _:
                pass  # the answer of a call that was given up


@asynccontextmanager
async def open_caller(path: str | os.PathLike[str], software: str) -> AsyncIterator[Caller]:
    """Connect to an agent's socket, shake hands, and read answers as long as the block lasts.

    Raises:
        OSError, and what `Caller.shake_hands` raises.
    """
    sock = connect(path)
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        connection = Connection(sock, nursery)
        try:
            caller = Caller(connection)
            await caller.shake_hands(software)
            await nursery.start(caller.run)
            yield caller
        except Exception as error:
            failure = error  # raised outside, so that the nursery wraps it in no group
        finally:
            connection.close()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _refused(fault: envelope.Fault) -> Refused:
    try:
        code = ErrorCode(fault.code)
    except ValueError:
        code = ErrorCode.INTERNAL
    return Refused(code, fault.text, fault.reason)


def _decode(raw: msgspec.Raw, result_type: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(raw, type=result_type)
    except DECODE_ERRORS as error:
        raise ProtocolError(f"an unreadable result: {error}") from None

"""Carries JSON-RPC between claude's own pipe and the daemon's MCP door, and outlives the daemon.

claude believes that its MCP server lives in the harness.  Every request of its waits here until the
door has answered: when the connection ends before, it is asked again over the next one, after the
greeting has been said again.  The door knows a repeated send by the id of the tool's use.

What a recv gave is done with the turn only when the door has been told that the model has it; the door
takes back what it has not been told of when the connection ends.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import trio

from hive_core.wire.envelope import DECODE_ERRORS
from hive_core.wire.errors import LineTooLong
from hive_core.wire.lines import LineDecoder

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES: Final = 16 * 2**20
"""32 messages of 64 KiB, as JSON at its worst."""
MAX_OPEN: Final = 64
"""What the door answers at once on one connection."""
MAX_UNSENT: Final = 2 * MAX_OPEN
FIRST_DELAY_S: Final = 0.05
LONGEST_DELAY_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 5.0
CHUNK_BYTES: Final = 64 * 2**10

INTERNAL_ERROR: Final = -32603
METHOD_NOT_FOUND: Final = -32601
HELLO: Final = "hive-hello"
TOOL_USE: Final = "claudecode/toolUseId"
TELLS: Final = "hyperhive/tells"
RECEIVED: Final = "notifications/hyperhive/received"
FLUSH_S: Final = 0.5
DONE: Final = {"jsonrpc": "2.0", "id": 0, "result": {}}
"""What claude wants to hear when it has sent a notification."""

Answer = Callable[[str, dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Open:
    """A request that claude waits for."""

    control_id: str
    method: str
    message: dict[str, Any]
    tells: bool


class Pump:
    """*answer* is called with the id of claude's control request and the JSON-RPC message for it."""

    def __init__(self, path: str | os.PathLike[str], answer: Answer) -> None:
        self._path = path
        self._answer = answer
        self._open: dict[bytes, _Open] = {}
        self._hello: dict[str, Any] | None = None
        self._greeted = False
        self._outgoing: trio.MemorySendChannel[bytes] | None = None
        self._hang_up = trio.CancelScope()
        self._unwritten = 0
        self._written = trio.Event()
        # Calls whose answers claude has, but not yet shown in its conversation; by the tool's use.
        self._given: dict[str, _Open] = {}
        self.listed = trio.Event()
        """Set when claude has got the list of tools: it can work."""
        self.complaint: str | None = None
        """Why there is no connection; None while there is one."""

    async def take(self, control_id: str, message: Any) -> None:
        """Take one message of claude's, and answer it when there is something to say."""
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            await self._answer(control_id, DONE)
            return
        if "id" not in message:
            await self._note(control_id, message)
            return
        key, method = _key(message["id"]), message["method"]
        if key in self._open or len(self._open) >= MAX_OPEN:
            why = "cannot call: too many calls are open" if key not in self._open else "this id is in use"
            await self._answer(control_id, _error(message["id"], INTERNAL_ERROR, why))
            return
        if method == "initialize":
            self._hello, self._greeted = message, False
        tells = _is_recv(message)
        if tells:
            message = _with_mark(message)
        self._open[key] = _Open(control_id, method, message, tells)
        self._send(message)

    def seen(self, tool_use: str) -> None:
        """The model has the answer to this use of a tool."""
        if tool_use in self._given:
            self._send(_received(self._given.pop(tool_use).message["id"]))

    def not_seen(self, tool_use: str) -> None:
        """The model was told that this use of a tool failed, whatever its answer was."""
        if tool_use in self._given:
            self._send(_cancelled(self._given.pop(tool_use).message["id"]))

    async def seen_all(self) -> None:
        """The model has had all answers, and nothing else will come."""
        for tool_use in list(self._given):
            self.seen(tool_use)
        with trio.move_on_after(FLUSH_S):
            await self.settle()

    async def settle(self) -> None:
        """Wait until the door has been sent all that there is for it, or there is no door."""
        while self._outgoing is not None and self._unwritten:
            await self._written.wait()

    def drop(self, control_id: str) -> None:
        """Forget the request that claude waits for no more."""
        for key, waiting in list(self._open.items()):
            if waiting.control_id == control_id:
                del self._open[key]
                self._send(_cancelled(waiting.message["id"]))
        for tool_use, given in list(self._given.items()):
            if given.control_id == control_id:
                self.not_seen(tool_use)

    async def run(self) -> None:
        """Be connected, again and again, until cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            connected_at: float | None = None
            try:
                with trio.fail_after(CONNECT_TIMEOUT_S):
                    stream = await trio.open_unix_socket(self._path)
                connected_at = trio.current_time()
                async with stream:
                    await self._serve(stream)
                self.complaint = self.complaint or "the daemon ended the connection"
            except trio.TooSlowError:
                self.complaint = "the daemon takes no connection"
            except OSError as error:
                self.complaint = f"{self._path}: {error.strerror or error}"
            if connected_at is not None and trio.current_time() - connected_at > LONGEST_DELAY_S:
                delay_s = FIRST_DELAY_S
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_DELAY_S)

    # ── one connection ──────────────────────────────────────────────────────────────────────────

    async def _serve(self, stream: trio.SocketStream) -> None:
        sending, unsent = trio.open_memory_channel[bytes](MAX_UNSENT)
        async with trio.open_nursery() as nursery, sending, unsent:
            self._outgoing, self._hang_up = sending, nursery.cancel_scope
            # What the last connection gave and was not told of, the door has taken back.
            self._given.clear()
            self._unwritten = 0
            nursery.start_soon(self._read, stream)
            nursery.start_soon(self._write, stream, unsent)
            if self._greeted and self._hello is not None:
                # A door that has just come back has not heard it.
                self._send({**self._hello, "id": HELLO})
                self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
            for waiting in list(self._open.values()):
                self._send(waiting.message)
            await trio.sleep_forever()

    async def _read(self, stream: trio.SocketStream) -> None:
        decoder = LineDecoder(MAX_ANSWER_BYTES)
        try:
            while chunk := await stream.receive_some(CHUNK_BYTES):
                decoder.receive_data(bytes(chunk))
                await self._read_lines(decoder)
        except trio.BrokenResourceError as error:
            self.complaint = f"the connection broke: {error}"
        finally:
            self._outgoing = None
        self._hang_up.cancel()

    async def _read_lines(self, decoder: LineDecoder) -> None:
        while True:
            try:
                line = decoder.next_line()
            except LineTooLong as error:
                log.warning("MCP answer dropped: %s", error)
                continue
            if line is None:
                return
            try:
                message = msgspec.json.decode(line)
            except DECODE_ERRORS:
                message = None
            if not isinstance(message, dict):
                self.complaint = f"the daemon answers {line[:200]!r}"
                log.warning("MCP answer not understood: %r", line[:200])
                continue
            await self._hear(message)

    async def _hear(self, message: dict[str, Any]) -> None:
        if "method" in message:
            if "id" in message:  # we serve nothing ourselves
                self._send(_error(message["id"], METHOD_NOT_FOUND, "method not found"))
            return
        waiting = self._open.pop(_key(message.get("id")), None)
        if waiting is None:  # our own greeting, or what was cancelled
            return
        self.complaint = None
        if "result" in message:
            if waiting.method == "initialize":
                self._greeted = True
            elif waiting.method == "tools/list":
                self.listed.set()
        if waiting.tells and "result" in message:
            self._given[_tool_use(waiting.message)] = waiting
        await self._answer(waiting.control_id, message)

    async def _note(self, control_id: str, message: dict[str, Any]) -> None:
        if message["method"] == "notifications/cancelled":
            params = message.get("params")
            if isinstance(params, dict):
                key = _key(params.get("requestId"))
                self._open.pop(key, None)
                self._given = {
                    use: given for use, given in self._given.items() if _key(given.message["id"]) != key
                }
        self._send(message)
        await self._answer(control_id, DONE)

    def _send(self, message: dict[str, Any]) -> None:
        """Send it now if there is a connection; a request that is open is sent over the next one anyway."""
        if self._outgoing is None:
            return
        try:
            self._outgoing.send_nowait(msgspec.json.encode(message) + b"\n")
            self._unwritten += 1
        except trio.WouldBlock:  # the door reads nothing: dial anew
            self._hang_up.cancel()
            self._outgoing = None

    async def _write(self, stream: trio.SocketStream, unsent: trio.MemoryReceiveChannel[bytes]) -> None:
        try:
            async for line in unsent:
                await stream.send_all(line)
                self._unwritten -= 1
                self._written.set()
                self._written = trio.Event()
        except trio.BrokenResourceError:
            pass
        self._hang_up.cancel()


def _is_recv(message: dict[str, Any]) -> bool:
    params = message.get("params")
    return message["method"] == "tools/call" and isinstance(params, dict) and params.get("name") == "recv"


def _with_mark(message: dict[str, Any]) -> dict[str, Any]:
    """Promise that the door will hear when the model has the answer."""
    params = message["params"]
    meta = params["_meta"] if isinstance(params.get("_meta"), dict) else {}
    return {**message, "params": {**params, "_meta": {**meta, TELLS: True}}}


def _tool_use(message: dict[str, Any]) -> str:
    """Give the use of a tool that *message* belongs to, or, of a claude that does not say, a name for it."""
    tool_use = message["params"]["_meta"].get(TOOL_USE)
    return tool_use if isinstance(tool_use, str) else f"call {_key(message['id'])!r}"


def _received(request_id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": RECEIVED, "params": {"requestId": request_id}}


def _key(request_id: Any) -> bytes:
    try:
        return msgspec.json.encode(request_id)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return b""


def _cancelled(request_id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}


def _error(request_id: Any, code: int, text: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}

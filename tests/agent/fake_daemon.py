"""The daemon as far as one harness can see it: a mailbox with leases, behind a real Unix socket."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from hive_core.wire import agent as wire
from hive_core.wire import envelope
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.stream import Connection
from hive_core.wire.unix import short_address


class FakeDaemon:
    """What it was asked stands in `asked`, in order; what it was sent in `sent`, without repeats."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Any] = []
        self.sent: list[wire.Send] = []
        self.events: list[wire.Event] = []
        self.snapshots: list[wire.Snapshot] = []
        self.answers: list[wire.ControlDone] = []
        self.acked: list[int] = []
        self.connections = 0
        self.paused = False
        self.refuse_hello: str | None = None
        self.refuse: dict[type, Refused] = {}
        self.lose_answer_of: type | None = None
        """The next request of this type is carried out, and the connection ends instead of an answer."""
        self._waiting: list[wire.Message] = []
        self._leased: list[wire.Message] = []
        self._handed_out: set[int] = set()
        self._ids_by_key: dict[str, int] = {}
        self._last_id = 0
        self._open: dict[Connection, int | None] = {}
        self._changed = trio.Event()
        self._listening = trio.CancelScope()

    # ── what a test does ────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until `stop`; may be run again afterwards."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            with short_address(self.path) as address:
                sock.bind(address)
            sock.listen(16)
            listener = trio.socket.from_stdlib_socket(sock)
            with trio.CancelScope() as self._listening:
                async with trio.open_nursery() as nursery:
                    task_status.started()
                    while True:
                        accepted, _ = await listener.accept()
                        nursery.start_soon(self._serve, accepted)
        self.path.unlink()

    def stop(self) -> None:
        self._listening.cancel()

    def drop_connections(self) -> None:
        for connection in list(self._open):
            connection.close()

    def deliver(self, body: str, sender: str = "operator", **fields: Any) -> int:
        self._last_id += 1
        self._waiting.append(
            wire.Message(id=self._last_id, sender=sender, recipient="alice", body=body, sent_at=1.0, **fields)
        )
        self._change()
        return self._last_id

    def lose_leases_to(self, *messages: wire.Message) -> None:
        """Messages that an earlier harness had in hand."""
        self._leased += messages
        self._handed_out |= {message.id for message in messages}
        self._last_id = max(message.id for message in messages)

    def command(self, command: wire.Command) -> None:
        self.send_item(command)

    def send_item(self, item: msgspec.Struct) -> None:
        for connection, stream in self._open.items():
            if stream is not None:
                connection.send_nowait(envelope.encode_item(stream, item))

    def end_control(self) -> None:
        for connection, stream in list(self._open.items()):
            if stream is not None:
                self._open[connection] = None
                connection.send_nowait(envelope.encode_end(stream))

    def asked_of(self, kind: type) -> list[Any]:
        return [request for request in self.asked if isinstance(request, kind)]

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        return [event.payload for event in self.events if event.kind == kind]

    async def wait_until(self, condition: Callable[["FakeDaemon"], object]) -> None:
        while not condition(self):
            await self._changed.wait()

    # ── what a daemon does ──────────────────────────────────────────────────────────────────────

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            connection = Connection(socket.socket(fileno=os.dup(sock.fileno())), nursery)
            sock.close()
            decoder = FrameDecoder()
            parked: dict[int, trio.CancelScope] = {}
            try:
                while chunk := await connection.receive():
                    decoder.receive_data(chunk)
                    while (payload := decoder.next_payload()) is not None:
                        match envelope.decode_to_daemon(payload):
                            case envelope.Hello():
                                self._greet(connection)
                            case envelope.Call(id=call_id, request=raw):
                                parked[call_id] = trio.CancelScope()
                                nursery.start_soon(
                                    self._answer, connection, call_id, bytes(raw), parked[call_id]
                                )
                            case envelope.Cancel(id=call_id) if call_id in parked:
                                parked[call_id].cancel()
            except Disconnected:
                pass
            finally:
                self._open.pop(connection, None)
                connection.close()
                nursery.cancel_scope.cancel()

    def _greet(self, connection: Connection) -> None:
        if self.refuse_hello is not None:
            connection.send_nowait(envelope.encode_fault(0, ErrorCode.PRECONDITION_FAILED, self.refuse_hello))
            return
        self.connections += 1
        self._open[connection] = None
        connection.send_nowait(envelope.encode_hello("daemon", "fake"))
        self._change()

    async def _answer(
        self, connection: Connection, call_id: int, raw: bytes, scope: trio.CancelScope
    ) -> None:
        try:
            request = wire.decode_request(raw)
            self.asked.append(request)
            self._change()
            if type(request) in self.refuse:
                raise self.refuse[type(request)]
            with scope:
                result = await self._carry_out(connection, call_id, request)
            if scope.cancelled_caught:
                raise Refused(ErrorCode.CANCELLED, "cannot wait any more: the call was cancelled")
            if self.lose_answer_of is type(request):
                self.lose_answer_of = None
                connection.close()
            elif result is not None:
                connection.send_nowait(envelope.encode_reply(call_id, result))
        except Refused as refused:
            connection.send_nowait(envelope.encode_fault(call_id, refused.code, refused.text))

    async def _carry_out(
        self, connection: Connection, call_id: int, request: wire.AnyRequest
    ) -> msgspec.Struct | None:
        match request:
            case wire.Send(idempotency_key=key):
                if key not in self._ids_by_key:
                    self._last_id += 1
                    self._ids_by_key[str(key)] = self._last_id
                    self.sent.append(request)
                    self._change()
                return wire.Sent(id=self._ids_by_key[str(key)])
            case wire.Recv(wait_seconds=seconds, max=count):
                with trio.move_on_after(seconds or 0):
                    await self.wait_until(lambda _: self._waiting and not self.paused)
                    # A lease after the cancel, and so perhaps after the requeue, would be lost.
                    await trio.lowlevel.checkpoint_if_cancelled()
                    return wire.Messages(messages=self._lease(count))
                return wire.Messages(messages=[])
            case wire.AckTurn(ids=ids):
                assert ids is not None
                done = [message for message in self._leased if message.id in ids]
                self._leased = [message for message in self._leased if message.id not in ids]
                self.acked += [message.id for message in done]
                self._change()
                return wire.Acked(acked=len(done))
            case wire.RequeueInflight():
                back, self._leased = self._leased, []
                self._waiting = sorted([*back, *self._waiting], key=lambda message: message.id)
                self._change()
                return wire.Requeued(requeued=len(back))
            case wire.SetAside(ids=ids):
                self._leased = [message for message in self._leased if message.id not in ids]
                self._change()
                return wire.Done()
            case wire.OpenThreads():
                return wire.Threads(threads=[], unread=len(self._waiting))
            case wire.CountPendingReminders():
                return wire.PendingReminders(pending=0)
            case wire.InboxStatus():
                return wire.Unread(unread=len(self._waiting))
            case wire.Publish(events=events, now=now):
                known = {event.id for event in self.events}
                self.events += [event for event in events if event.id not in known]
                self.snapshots += [now] if now is not None else []
                self._change()
                return wire.Done()
            case wire.SubscribeControl():
                self._open[connection] = call_id
                paused = wire.SetPaused(id=0, paused=self.paused)
                connection.send_nowait(envelope.encode_item(call_id, paused))
                return None
            case wire.ControlDone():
                self.answers.append(request)
                self._change()
                return wire.Done()
        raise Refused(ErrorCode.NOT_FOUND, f"cannot do {request}")

    def _lease(self, count: int) -> list[wire.Message]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        self._leased += taken
        flagged = [
            msgspec.structs.replace(message, redelivered=message.id in self._handed_out) for message in taken
        ]
        self._handed_out |= {message.id for message in taken}
        return flagged

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

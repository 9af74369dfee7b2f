import itertools
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.wire import agent, envelope
from hive_core.wire.errors import Disconnected, ErrorCode, ProtocolError, Refused
from hive_core.wire.frame import FrameDecoder, encode_frame
from hive_core.wire.limits import PROTOCOL
from hive_core.wire.stream import MAX_WAITING_ITEMS, Caller, Connection, connect, open_caller
from hive_core.wire.unix import short_address


class Peer:
    """The daemon's end of a connection, played by a test."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = trio.socket.from_stdlib_socket(sock)
        self._decoder = FrameDecoder()

    async def send(self, data: bytes) -> None:
        while data:
            data = data[await self.socket.send(data) :]

    async def next(self) -> envelope.ToDaemon:
        while (payload := self._decoder.next_payload()) is None:
            chunk = await self.socket.recv(65536)
            assert chunk, "the harness closed the connection"
            self._decoder.receive_data(chunk)
        return envelope.decode_to_daemon(payload)

    async def next_call(self) -> int:
        message = await self.next()
        assert isinstance(message, envelope.Call)
        return message.id

    async def read_to_end(self) -> bytes:
        received = bytearray()
        while chunk := await self.socket.recv(65536):
            received += chunk
        return bytes(received)

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
async def wire(nursery: trio.Nursery) -> AsyncIterator[tuple[Connection, Peer]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    connection, peer = Connection(ours, nursery), Peer(theirs)
    yield connection, peer
    connection.close()
    peer.close()


@pytest.fixture
async def line(wire: tuple[Connection, Peer], nursery: trio.Nursery) -> tuple[Caller, Peer]:
    """A caller that reads its answers, and the peer that gives them."""
    connection, peer = wire
    caller = Caller(connection)
    await nursery.start(caller.run)
    return caller, peer


def close_with_unread_data(sock: socket.socket, peer: Peer) -> None:
    sock.send(b"never read")
    peer.close()


# ── a connection ────────────────────────────────────────────────────────────────────────────────


async def test_what_is_sent_arrives_whole_however_much_it_is(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    connection, peer = wire
    pieces = [bytes([n]) * 70_000 for n in range(40)]

    for piece in pieces:
        connection.send_nowait(piece)
    assert connection.waiting_bytes > 0

    async def finish() -> None:
        await connection.drain()
        connection.close()

    nursery.start_soon(finish)
    assert await peer.read_to_end() == b"".join(pieces)


async def test_drain_waits_until_the_kernel_has_taken_everything(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    connection, peer = wire
    drained = trio.Event()

    async def drain() -> None:
        await connection.drain()
        drained.set()

    connection.send_nowait(bytes(1_000_000))
    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    assert not drained.is_set()

    received = 0
    while received < 1_000_000:
        received += len(await peer.socket.recv(65536))
    await drained.wait()
    assert connection.waiting_bytes == 0


async def test_drain_of_a_connection_with_nothing_to_send_returns(wire: tuple[Connection, Peer]) -> None:
    await wire[0].drain()


async def test_drain_ends_when_the_connection_is_closed(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    connection, _ = wire
    connection.send_nowait(bytes(1_000_000))
    nursery.start_soon(connection.drain)
    await wait_all_tasks_blocked()

    connection.close()


async def test_drain_ends_when_nobody_is_left_to_send_the_rest() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        async with trio.open_nursery() as nursery:
            connection = Connection(ours, nursery)
            connection.send_nowait(bytes(1_000_000))
            nursery.cancel_scope.cancel()

        assert connection.closed
        await connection.drain()


async def test_a_peer_that_does_not_read_is_cut_off(nursery: trio.Nursery) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with theirs:
        connection = Connection(ours, nursery, max_out_bytes=100_000)

        for _ in range(1000):
            connection.send_nowait(bytes(10_000))

        assert connection.closed
        assert connection.overrun
        assert connection.waiting_bytes == 0
        with pytest.raises(Disconnected, match="closed"):
            await connection.receive()


async def test_sending_after_the_close_is_harmless(wire: tuple[Connection, Peer]) -> None:
    connection, peer = wire
    connection.close()

    connection.send_nowait(b"late")
    connection.close()

    assert not connection.overrun
    assert await peer.read_to_end() == b""


async def test_sending_to_a_peer_that_is_gone_is_harmless(wire: tuple[Connection, Peer]) -> None:
    connection, peer = wire
    peer.close()

    for _ in range(3):
        connection.send_nowait(b"late")

    assert connection.closed
    assert not connection.overrun
    assert connection.waiting_bytes == 0
    await connection.drain()
    assert await connection.receive() == b""


async def test_a_peer_that_goes_while_data_waits_stops_the_sending(wire: tuple[Connection, Peer]) -> None:
    connection, peer = wire
    connection.send_nowait(bytes(1_000_000))
    peer.close()

    await connection.drain()

    assert connection.waiting_bytes == 0


async def test_what_the_peer_said_before_it_left_is_read_after_a_send_that_failed(
    wire: tuple[Connection, Peer],
) -> None:
    connection, peer = wire
    await peer.send(b"too many connections")
    peer.close()

    connection.send_nowait(b"hello")

    assert await connection.receive() == b"too many connections"
    assert await connection.receive() == b""


async def test_a_peer_that_closes_in_peace_ends_the_data(wire: tuple[Connection, Peer]) -> None:
    connection, peer = wire
    peer.close()

    assert await connection.receive() == b""


async def test_a_peer_that_closes_with_unread_data_is_a_disconnect(wire: tuple[Connection, Peer]) -> None:
    connection, peer = wire
    connection.send_nowait(b"never read")
    peer.close()

    with pytest.raises(Disconnected, match="reset"):
        await connection.receive()


async def test_closing_wakes_the_one_who_receives(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    connection, _ = wire
    ended = trio.Event()

    async def receive() -> None:
        with pytest.raises(Disconnected):
            await connection.receive()
        ended.set()

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    connection.close()

    await ended.wait()


async def test_the_kernel_says_who_is_at_the_other_end(wire: tuple[Connection, Peer]) -> None:
    assert wire[0].credentials() == (os.getpid(), os.getuid(), os.getgid())


# ── calls ───────────────────────────────────────────────────────────────────────────────────────


async def test_calls_are_answered_in_any_order(line: tuple[Caller, Peer], nursery: trio.Nursery) -> None:
    caller, peer = line
    answers: dict[int, int] = {}

    async def ask(limit: int) -> None:
        answers[limit] = (await caller.call(agent.Recent(limit=limit), agent.Unread)).unread

    for limit in range(1, 11):
        nursery.start_soon(ask, limit)
    asked = []
    for _ in range(10):
        call = await peer.next()
        assert isinstance(call, envelope.Call)
        request = agent.decode_request(call.request)
        assert isinstance(request, agent.Recent)
        asked.append((call.id, request.limit))
    assert len({call_id for call_id, _ in asked}) == 10

    random.Random(1).shuffle(asked)
    for call_id, limit in asked:
        await peer.send(envelope.encode_reply(call_id, agent.Unread(unread=limit * 100)))
    await wait_all_tasks_blocked()

    assert answers == {limit: limit * 100 for limit in range(1, 11)}


async def test_a_parked_call_does_not_hold_up_another(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line
    nursery.start_soon(caller.call, agent.Recv(wait_seconds=180), agent.Messages)
    await wait_all_tasks_blocked()
    nursery.start_soon(answer_next, peer, 2, agent.Sent(id=42))

    assert await caller.call(agent.Send(to="bob", body="hi"), agent.Sent) == agent.Sent(id=42)
    nursery.cancel_scope.cancel()


async def answer_next(peer: Peer, count: int, result: msgspec.Struct) -> None:
    """Take *count* calls and answer the last one."""
    call_id = 0
    for _ in range(count):
        call_id = await peer.next_call()
    await peer.send(envelope.encode_reply(call_id, result))


@pytest.mark.parametrize("code", list(ErrorCode))
async def test_a_fault_is_raised_with_its_code_text_and_reason(
    line: tuple[Caller, Peer], nursery: trio.Nursery, code: ErrorCode
) -> None:
    caller, peer = line

    async def refuse() -> None:
        await peer.send(envelope.encode_fault(await peer.next_call(), code, "cannot send: no", "why"))

    nursery.start_soon(refuse)
    with pytest.raises(Refused) as caught:
        await caller.call(agent.Whoami(), agent.Identity)

    assert (caught.value.code, caught.value.text, caught.value.reason) == (code, "cannot send: no", "why")


async def test_a_fault_with_a_code_of_a_later_daemon_counts_as_internal(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line

    async def refuse() -> None:
        fault = ["fault", await peer.next_call(), "paid_feature", "cannot", None]
        await peer.send(encode_frame(msgspec.msgpack.encode(fault)))

    nursery.start_soon(refuse)
    with pytest.raises(Refused) as caught:
        await caller.call(agent.Whoami(), agent.Identity)

    assert caught.value.code is ErrorCode.INTERNAL


async def test_an_answer_of_the_wrong_shape_costs_its_own_call_only(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line

    nursery.start_soon(answer_next, peer, 1, agent.Unread(unread=1))
    with pytest.raises(ProtocolError, match="unreadable result"):
        await caller.call(agent.Send(to="bob", body="hi"), agent.Sent)

    nursery.start_soon(answer_next, peer, 1, agent.Sent(id=1))
    assert await caller.call(agent.Send(to="bob", body="hi"), agent.Sent) == agent.Sent(id=1)


async def test_a_cancelled_call_tells_the_daemon(line: tuple[Caller, Peer], nursery: trio.Nursery) -> None:
    caller, peer = line
    with trio.move_on_after(0.001):
        await caller.call(agent.Recv(wait_seconds=180), agent.Messages)

    call_id = await peer.next_call()
    assert await peer.next() == envelope.Cancel(call_id)


async def test_the_answer_of_a_call_that_was_given_up_is_ignored(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line
    with trio.move_on_after(0.001):
        await caller.call(agent.Recv(wait_seconds=180), agent.Messages)
    call_id = await peer.next_call()
    await peer.next()

    await peer.send(envelope.encode_reply(call_id, agent.Messages(messages=[])))
    await peer.send(envelope.encode_fault(call_id, ErrorCode.CANCELLED, "cannot go on: cancelled"))
    await peer.send(envelope.encode_item(call_id, agent.Done()) + envelope.encode_end(call_id))

    nursery.start_soon(answer_next, peer, 1, agent.Sent(id=1))
    assert await caller.call(agent.Send(to="bob", body="hi"), agent.Sent) == agent.Sent(id=1)


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope just before the *step*-th time that its task runs on."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._task = trio.lowlevel.current_task()
        self._left = step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def test_a_call_may_be_cancelled_at_every_await(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line
    seen: list[envelope.ToDaemon] = []

    async def serve() -> None:
        while True:
            message = await peer.next()
            seen.append(message)
            if isinstance(message, envelope.Call):
                await peer.send(envelope.encode_reply(message.id, agent.Sent(id=message.id)))

    nursery.start_soon(serve)
    for step in itertools.count(0):
        seen.clear()
        with trio.CancelScope() as scope:
            if step == 0:
                scope.cancel()
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await caller.call(agent.Send(to="bob", body="hi"), agent.Sent)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await wait_all_tasks_blocked()

        calls = [message.id for message in seen if isinstance(message, envelope.Call)]
        given_up = [message.id for message in seen if isinstance(message, envelope.Cancel)]
        assert len(calls) == 1
        assert given_up == (calls if scope.cancelled_caught else [])
        again = await caller.call(agent.Send(to="bob", body="hi"), agent.Sent)
        assert again.id == calls[0] + 1
        if not scope.cancelled_caught:
            break
    assert step == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("unread", [False, True])
async def test_every_open_call_and_stream_ends_when_the_daemon_goes(
    line: tuple[Caller, Peer], nursery: trio.Nursery, unread: bool
) -> None:
    caller, peer = line
    ended = []

    async def ask(number: int) -> None:
        with pytest.raises(Disconnected):
            await caller.call(agent.Recv(wait_seconds=180), agent.Messages)
        ended.append(number)

    async def follow() -> None:
        with pytest.raises(Disconnected):
            async with caller.stream(agent.SubscribeControl()) as items:
                async for _ in items:
                    pass
        ended.append(0)

    async with trio.open_nursery() as callers:
        callers.start_soon(follow)
        for number in range(1, 6):
            callers.start_soon(ask, number)
        await wait_all_tasks_blocked()
        if not unread:
            for _ in range(6):
                await peer.next()
        peer.close()

    assert sorted(ended) == list(range(6))
    await caller.gone.wait()
    with pytest.raises(Disconnected):
        await caller.call(agent.Whoami(), agent.Identity)
    with pytest.raises(Disconnected):
        async with caller.stream(agent.SubscribeControl()):
            pass


async def test_a_fault_of_the_connection_gives_its_sentence_to_every_call(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line

    async def refuse() -> None:
        await peer.next_call()
        await peer.send(envelope.encode_fault(0, ErrorCode.UNAVAILABLE, "cannot serve: shutting down"))

    nursery.start_soon(refuse)
    with pytest.raises(Disconnected, match="cannot serve: shutting down"):
        await caller.call(agent.Whoami(), agent.Identity)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x00\x00\x00",
        b"\xff" * 8,
        encode_frame(b"\xc1"),
        encode_frame(b"\x91\xa4oops"),
        b'{"ok":true}\n',
    ],
)
async def test_a_daemon_that_breaks_the_protocol_is_left(line: tuple[Caller, Peer], garbage: bytes) -> None:
    caller, peer = line
    await peer.send(garbage)

    await caller.gone.wait()

    with pytest.raises(Disconnected, match="frame"):
        await caller.call(agent.Whoami(), agent.Identity)


async def test_ten_thousand_random_chunks_raise_nothing_else(nursery: trio.Nursery) -> None:
    dice = random.Random(7)
    answers = [
        envelope.encode_reply(1, agent.Sent(id=1)),
        envelope.encode_fault(1, ErrorCode.NOT_FOUND, "cannot"),
        envelope.encode_item(2, agent.Done()),
        envelope.encode_end(2),
        envelope.encode_hello("daemon", "x"),
    ]
    sent = lives = 0
    while sent < 10_000:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        connection, peer = Connection(ours, nursery), Peer(theirs)
        caller = Caller(connection)

        async def ask(caller: Caller = caller) -> None:
            with suppress(Disconnected, Refused, ProtocolError):
                await caller.call(agent.Send(to="bob", body="hi"), agent.Sent)

        async def follow(caller: Caller = caller) -> None:
            with suppress(Disconnected, Refused):
                async with caller.stream(agent.SubscribeControl()) as items:
                    async for _ in items:
                        pass

        async with trio.open_nursery() as attempt:
            await attempt.start(caller.run)
            attempt.start_soon(ask)
            attempt.start_soon(follow)
            # A wrong length may ask for megabytes, so no connection lives long.
            for _ in range(50):
                if caller.gone.is_set():
                    break
                sent += 1
                chunk = bytearray(dice.choice(answers) if dice.random() < 0.9 else dice.randbytes(20))
                if dice.random() < 0.2:
                    chunk[dice.randrange(len(chunk))] = dice.randrange(256)
                with suppress(OSError):
                    await peer.send(bytes(chunk))
                await trio.lowlevel.checkpoint()
            peer.close()
        assert connection.closed
        lives += 1
    assert lives > 100


# ── streams ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_gives_its_items_and_ends(line: tuple[Caller, Peer]) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()) as items:
        call_id = await peer.next_call()
        for number in range(5):
            await peer.send(envelope.encode_item(call_id, agent.Quiesce(id=number)))
        await peer.send(envelope.encode_end(call_id))

        received = [agent.decode_command(item) async for item in items]
        assert [item async for item in items] == []

    assert received == [agent.Quiesce(id=number) for number in range(5)]


async def test_a_stream_that_is_refused_raises_after_its_items(line: tuple[Caller, Peer]) -> None:
    caller, peer = line
    received = []
    async with caller.stream(agent.SubscribeControl()) as items:
        call_id = await peer.next_call()
        await peer.send(
            envelope.encode_item(call_id, agent.Quiesce(id=1))
            + envelope.encode_fault(call_id, ErrorCode.CONFLICT, "cannot go on: somebody else subscribed")
        )

        with pytest.raises(Refused, match="somebody else subscribed"):
            async for item in items:
                received.append(agent.decode_command(item))

    assert received == [agent.Quiesce(id=1)]


async def test_leaving_a_stream_early_cancels_it(line: tuple[Caller, Peer]) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()) as items:
        call_id = await peer.next_call()
        await peer.send(envelope.encode_item(call_id, agent.Quiesce(id=1)))
        async for _ in items:
            break

    assert await peer.next() == envelope.Cancel(call_id)


async def test_a_stream_that_has_ended_is_not_cancelled_too(
    line: tuple[Caller, Peer], nursery: trio.Nursery
) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()) as items:
        await peer.send(envelope.encode_end(await peer.next_call()))
        assert [item async for item in items] == []

    nursery.start_soon(caller.call, agent.Whoami(), agent.Identity)
    assert isinstance(await peer.next(), envelope.Call)
    nursery.cancel_scope.cancel()


async def test_items_that_came_before_the_end_of_the_connection_are_still_read(
    line: tuple[Caller, Peer],
) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()) as items:
        call_id = await peer.next_call()
        await peer.send(envelope.encode_item(call_id, agent.Done()) * 2)
        peer.close()
        await caller.gone.wait()

        received = []
        with pytest.raises(Disconnected):
            async for item in items:
                received.append(item)
    assert len(received) == 2


async def test_a_stream_that_ended_before_the_connection_did_ended_well(line: tuple[Caller, Peer]) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()) as items:
        call_id = await peer.next_call()
        await peer.send(envelope.encode_item(call_id, agent.Done()) + envelope.encode_end(call_id))
        peer.close()
        await caller.gone.wait()

        assert len([item async for item in items]) == 1


async def test_a_stream_that_nobody_reads_ends_the_connection_and_not_the_memory(
    line: tuple[Caller, Peer],
) -> None:
    caller, peer = line
    async with caller.stream(agent.SubscribeControl()):
        item = envelope.encode_item(await peer.next_call(), agent.Done())
        await peer.send(item * (MAX_WAITING_ITEMS + 1))
        await caller.gone.wait()

    with pytest.raises(Disconnected, match="more stream items than are being read"):
        await caller.call(agent.Whoami(), agent.Identity)


# ── shaking hands ───────────────────────────────────────────────────────────────────────────────


async def shake(wire: tuple[Connection, Peer], nursery: trio.Nursery, answer: bytes | None) -> envelope.Hello:
    connection, peer = wire

    async def reply() -> None:
        assert await peer.next() == envelope.Hello(PROTOCOL, "agent", "hive-agent 0.1")
        if answer is None:
            peer.close()
        else:
            await peer.send(answer)

    nursery.start_soon(reply)
    return await Caller(connection).shake_hands("hive-agent 0.1")


async def test_both_sides_say_hello(wire: tuple[Connection, Peer], nursery: trio.Nursery) -> None:
    hello = await shake(wire, nursery, envelope.encode_hello("daemon", "hyperhive 0.1"))

    assert hello == envelope.Hello(PROTOCOL, "daemon", "hyperhive 0.1")


async def test_a_refused_hello_raises_the_daemons_own_sentence(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    text = "cannot talk protocol 1, only 2: update hive-agent"

    with pytest.raises(Refused) as caught:
        await shake(wire, nursery, envelope.encode_fault(0, ErrorCode.PRECONDITION_FAILED, text))

    assert caught.value.text == text
    assert caught.value.code is ErrorCode.PRECONDITION_FAILED


@pytest.mark.parametrize(("protocol", "behind"), [(PROTOCOL + 1, "hive-agent"), (0, "the daemon")])
async def test_a_hello_of_another_version_says_which_side_to_update(
    wire: tuple[Connection, Peer], nursery: trio.Nursery, protocol: int, behind: str
) -> None:
    hello = encode_frame(msgspec.msgpack.encode(["hello", protocol, "daemon", "hyperhive 9"]))

    with pytest.raises(ProtocolError, match=f"update {behind}$"):
        await shake(wire, nursery, hello)


@pytest.mark.parametrize(
    "answer",
    [envelope.encode_end(1), b"\xff" * 8, b"HTTP/1.1 400 Bad Request\r\n\r\n", encode_frame(b"\xc1")],
)
async def test_something_else_than_hello_is_a_protocol_error(
    wire: tuple[Connection, Peer], nursery: trio.Nursery, answer: bytes
) -> None:
    with pytest.raises(ProtocolError):
        await shake(wire, nursery, answer)


async def test_a_daemon_that_leaves_instead_of_saying_hello_is_a_disconnect(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    with pytest.raises(Disconnected, match="instead of saying hello"):
        await shake(wire, nursery, None)


async def test_a_daemon_that_says_nothing_is_given_ten_seconds(
    wire: tuple[Connection, Peer], autojump_clock: MockClock
) -> None:
    started = trio.current_time()

    with pytest.raises(trio.TooSlowError):
        await Caller(wire[0]).shake_hands("hive-agent 0.1")

    assert trio.current_time() - started == 10


async def test_frames_that_come_in_one_chunk_with_hello_are_read(
    wire: tuple[Connection, Peer], nursery: trio.Nursery
) -> None:
    connection, peer = wire
    await peer.send(
        envelope.encode_hello("daemon", "hyperhive 0.1")
        + envelope.encode_fault(0, ErrorCode.UNAVAILABLE, "cannot serve: shutting down")
    )
    caller = Caller(connection)
    await caller.shake_hands("hive-agent 0.1")

    await nursery.start(caller.run)

    await caller.gone.wait()
    assert caller.why_gone == "cannot serve: shutting down"


# ── over a real socket ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[tuple[Path, trio.SocketListener]]:
    directory = tmp_path / "/".join(["d" * 50] * 5)
    directory.mkdir(parents=True)
    path = directory / "mcp.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        with short_address(path) as address:
            sock.bind(address)
        sock.listen()
        yield path, trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def accept(listener: trio.SocketListener) -> Peer:
    stream = await listener.accept()
    peer = Peer(socket.socket(fileno=os.dup(stream.socket.fileno())))
    await stream.aclose()
    return peer


async def test_open_caller_connects_shakes_hands_and_calls(
    listener: tuple[Path, trio.SocketListener], nursery: trio.Nursery
) -> None:
    path, listening = listener
    left: list[bytes] = []

    async def daemon() -> None:
        peer = await accept(listening)
        await peer.next()
        await peer.send(envelope.encode_hello("daemon", "hyperhive 0.1"))
        await answer_next(peer, 1, agent.Identity(name="alice", role="agent", version="0.1.0"))
        left.append(await peer.read_to_end())
        peer.close()

    nursery.start_soon(daemon)
    assert len(os.fsencode(path)) > 250
    async with open_caller(path, "hive-agent 0.1") as caller:
        assert (await caller.call(agent.Whoami(), agent.Identity)).name == "alice"
    await wait_all_tasks_blocked()

    assert left == [b""]
    assert caller.gone.is_set()


async def test_what_is_raised_inside_open_caller_comes_out_as_it_is(
    listener: tuple[Path, trio.SocketListener], nursery: trio.Nursery
) -> None:
    path, listening = listener

    async def daemon() -> None:
        peer = await accept(listening)
        await peer.send(envelope.encode_hello("daemon", "hyperhive 0.1"))
        await peer.read_to_end()
        peer.close()

    nursery.start_soon(daemon)
    with pytest.raises(LookupError, match="mine"):
        async with open_caller(path, "hive-agent 0.1"):
            raise LookupError("mine")


async def test_a_daemon_that_refuses_before_it_reads_is_understood(
    listener: tuple[Path, trio.SocketListener], nursery: trio.Nursery
) -> None:
    path, listening = listener

    async def daemon() -> None:
        peer = await accept(listening)
        await peer.send(envelope.encode_fault(0, ErrorCode.FORBIDDEN, "cannot serve uid 7 here"))
        peer.close()

    nursery.start_soon(daemon)
    with pytest.raises(Refused, match="cannot serve uid 7 here"):
        async with open_caller(path, "hive-agent 0.1"):
            pass


async def test_connecting_to_nothing_is_an_os_error_and_leaks_no_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "no.sock")
    (tmp_path / "file").touch()
    with pytest.raises(ConnectionRefusedError):
        connect(tmp_path / "file")

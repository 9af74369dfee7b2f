"""kill -9 in the middle of the load: what was answered must be there after the restart."""

import random
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from benchmarks import load
from benchmarks.dialects import ACK, FRAMES, RECV, SEND, LoadError
from benchmarks.ours import Daemon, argv, prepare, ring
from benchmarks.processes import Child, serves
from hive_core.wire import agent, envelope
from hive_core.wire.frame import FrameDecoder

AGENTS = 16
_TAKE_ALL = envelope.encode_call(RECV, agent.Recv(max=32))


@dataclass
class Seen:
    """What the clients know."""

    sent: set[int] = field(default_factory=set)
    """Ids that sends were answered with."""
    received: set[int] = field(default_factory=set)
    twice: set[int] = field(default_factory=set)
    """Came a second time and did not say that they may have."""

    @property
    def missing(self) -> set[int]:
        return self.sent - self.received

    def take(self, call: int, result: msgspec.Raw) -> int:
        """Note what a reply says, and give how many messages it brought."""
        if call == SEND:
            self.sent.add(msgspec.msgpack.decode(result, type=agent.Sent).id)
        if call != RECV:
            return 0
        messages = msgspec.msgpack.decode(result, type=agent.Messages).messages
        self.twice |= {m.id for m in messages if m.id in self.received and not m.redelivered}
        self.received |= {message.id for message in messages}
        return len(messages)


def crash_check(home: Path, kills: int) -> Seen:
    """Load a daemon and kill it, *kills* times; then take everything that is left."""
    names = ring(AGENTS)
    layout = prepare(home, names)
    seen, dice = Seen(), random.Random()
    for remaining in range(kills, -1, -1):
        child = Child(argv(layout), home / "daemon.log")
        try:
            child.wait_for(lambda: serves(layout.host_socket))
            with Daemon(child, layout).connected(names) as channels:
                if remaining:
                    _load_until(channels, names, seen, child, dice.uniform(0.2, 0.8))
                else:
                    for channel in channels:
                        _empty(channel, seen)
        finally:
            child.kill()
    return seen


def _load_until(
    channels: Sequence[load.Channel], names: Sequence[str], seen: Seen, child: Child, secs: float
) -> None:
    decoders = {channel.sock.fileno(): FrameDecoder() for channel in channels}
    by_fd = {channel.sock.fileno(): channel for channel in channels}
    send = [FRAMES.send(names[(channel.index + 1) % len(names)]) for channel in channels]
    kill_at, killed = time.monotonic() + secs, False
    with select.epoll() as epoll:
        for channel in channels:
            epoll.register(channel.sock, select.EPOLLIN)
            channel.write(send[channel.index] + FRAMES.recv)
        while by_fd:
            if not killed and time.monotonic() > kill_at:
                child.kill()
                killed = True
            ready = epoll.poll(load.STALL_S)
            if not ready:
                raise LoadError("the daemon hangs under the load that is to be interrupted")
            for fd, _ in ready:
                channel = by_fd[fd]
                try:
                    chunk = channel.sock.recv(65536)
                except ConnectionError:
                    chunk = b""
                if not chunk:
                    epoll.unregister(fd)
                    del by_fd[fd]
                    continue
                decoders[fd].receive_data(chunk)
                for call in _replies(decoders[fd], seen):
                    _write_on(
                        channel, {SEND: send[channel.index], RECV: FRAMES.ack + FRAMES.recv, ACK: b""}[call]
                    )


def _replies(decoder: FrameDecoder, seen: Seen) -> list[int]:
    calls: list[int] = []
    while (payload := decoder.next_payload()) is not None:
        reply = envelope.decode_to_harness(payload)
        if not isinstance(reply, envelope.Reply):
            raise LoadError(f"not a reply: {reply}")
        seen.take(reply.id, reply.result)
        calls.append(reply.id)
    return calls


def _write_on(channel: load.Channel, data: bytes) -> None:
    with suppress(ConnectionError):  # the daemon was killed: reading will say so
        channel.write(data)


def _empty(channel: load.Channel, seen: Seen) -> None:
    """Receive and ack until nothing is left."""
    channel.sock.settimeout(load.STALL_S)
    decoder = FrameDecoder()
    channel.sock.sendall(_TAKE_ALL)
    while True:
        if not (chunk := channel.sock.recv(2**20)):
            raise LoadError("the daemon closed a connection while its mailbox was emptied")
        decoder.receive_data(chunk)
        while (payload := decoder.next_payload()) is not None:
            reply = envelope.decode_to_harness(payload)
            if not isinstance(reply, envelope.Reply):
                raise LoadError(f"not a reply: {reply}")
            if reply.id == RECV:
                if not seen.take(RECV, reply.result):
                    return
                channel.sock.sendall(FRAMES.ack + _TAKE_ALL)

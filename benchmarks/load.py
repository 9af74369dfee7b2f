"""The load generator: one process, one epoll, requests encoded beforehand.

In a closed loop each client has one request open and sends the next when the answer is there; it finds
the highest rate, and its latencies leave out what a real sender would have waited in a queue.  In the
open loop messages are due at random moments whatever the server does, and latency counts from there.
"""

import gc
import os
import random
import resource
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.dialects import ACK, FRAMES, HELLO, RECV, SEND, Dialect, LoadError, numbered_send
from benchmarks.histogram import Histogram
from hive_core.wire.unix import short_address

WARM_S = 0.3
STALL_S = 10.0
MAX_OPEN = 48
"""Sends of one agent that the open loop has out at once; the daemon's limit is 64 calls."""

CLIENT_BOUND = 0.9


@dataclass(frozen=True)
class Result:
    """What one run of the load found."""

    rate: float
    p50_us: float
    p99_us: float
    total: int
    """Messages or requests, the warm-up's and the last ones included: what CPU time is divided by."""
    client_cpu: float
    """Share of one core that this process used."""

    @property
    def client_bound(self) -> bool:
        return self.client_cpu > CLIENT_BOUND


class Channel:
    """One connection to the server, as agent number *index*."""

    __slots__ = ("index", "rest", "sock")

    def __init__(self, path: Path, index: int, *, hello: bool = False) -> None:
        self.index = index
        self.rest = b""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(STALL_S)
        try:
            with short_address(path) as address:
                self.sock.connect(address)
            if hello:
                self.sock.sendall(HELLO)
                size = int.from_bytes(self._exactly(4), "big")
                if b"hello" not in (answer := self._exactly(size)):
                    raise LoadError(f"no hello: {answer!r}")
            self.sock.setblocking(False)
        except BaseException:
            self.sock.close()
            raise

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (chunk := self.sock.recv(size - len(data))):
                raise LoadError("the server closed the connection instead of saying hello")
            data += chunk
        return data

    def write(self, data: bytes) -> None:
        if self.sock.send(data) != len(data):
            raise LoadError("the server does not read")

    def read(self, split: Callable[[bytes], tuple[list[int], bytes]]) -> list[int]:
        data = self.sock.recv(65536)
        if not data:
            raise LoadError("the server closed a connection")
        calls, self.rest = split(self.rest + data if self.rest else data)
        return calls


@contextmanager
def _quiet_and_watched(channels: Sequence[Channel]):  # type: ignore[no-untyped-def]
    """Give a poll function for *channels*, with the garbage collector out of the way."""
    gc.collect()
    gc.disable()
    by_fd = {channel.sock.fileno(): channel for channel in channels}
    try:
        with select.epoll() as epoll:
            for fd in by_fd:
                epoll.register(fd, select.EPOLLIN)
            yield epoll, by_fd
    finally:
        gc.enable()


class _Clock:
    """Warm-up, then the time that counts, then the end."""

    def __init__(self, secs: float) -> None:
        self.begin = time.perf_counter_ns() + int(WARM_S * 1e9)
        self.end = self.begin + int(secs * 1e9)
        self._cpu, self._at = time.process_time(), time.perf_counter_ns()

    def client_cpu(self) -> float:
        wall = (time.perf_counter_ns() - self._at) / 1e9
        return (time.process_time() - self._cpu) / wall


def requests(channels: Sequence[Channel], dialect: Dialect, names: Sequence[str], secs: float) -> Result:
    """Closed loop of one request each: sends to the next agent, which nobody receives, or echoes."""
    split, now_ns = dialect.split, time.perf_counter_ns
    request = [dialect.send(names[(channel.index + 1) % len(names)]) for channel in channels]
    started = [0] * len(channels)
    histogram, total, waiting = Histogram(), 0, len(channels)
    add = histogram.add
    with _quiet_and_watched(channels) as (epoll, by_fd):
        clock = _Clock(secs)
        begin, end = clock.begin, clock.end
        for channel in channels:
            started[channel.index] = now_ns()
            channel.write(request[channel.index])
        while waiting:
            ready = epoll.poll(STALL_S)
            if not ready:
                raise LoadError(f"no answer for {STALL_S:g} s")
            for fd, _ in ready:
                channel = by_fd[fd]
                if not channel.read(split):
                    continue
                now = now_ns()
                index = channel.index
                total += 1
                if begin <= now < end:
                    add(now - started[index])
                if now < end:
                    started[index] = now
                    channel.write(request[index])
                else:
                    waiting -= 1
        cpu = clock.client_cpu()
    return _result(histogram, secs, total, cpu)


def ring(
    senders: Sequence[Channel],
    receivers: Sequence[Channel],
    dialect: Dialect,
    names: Sequence[str],
    secs: float,
) -> Result:
    """Closed loop of messages: agent i has one message to agent i + 1 under way; its recv is parked.

    The receiver acks and parks again; the sender goes on when it has its answer and its message was
    received.  *senders* and *receivers* may be the same connections.
    """
    count, split, now_ns = len(senders), dialect.split, time.perf_counter_ns
    send = [dialect.send(names[(index + 1) % count]) for index in range(count)]
    ack_and_recv = dialect.ack + dialect.recv
    started, missing = [0] * count, [0] * count
    histogram, total, under_way = Histogram(), 0, count
    add = histogram.add
    with _quiet_and_watched(list({id(c): c for c in (*senders, *receivers)}.values())) as (epoll, by_fd):
        for channel in receivers:
            channel.write(dialect.recv)
        clock = _Clock(secs)
        begin, end = clock.begin, clock.end

        def go_on(index: int) -> None:
            nonlocal under_way
            missing[index] -= 1
            if missing[index]:
                return
            now = now_ns()
            if now < end:
                missing[index], started[index] = 2, now
                senders[index].write(send[index])
            else:
                under_way -= 1

        for index in range(count):
            missing[index] = 1
            go_on(index)
        unacked = 0
        while under_way or unacked:
            ready = epoll.poll(STALL_S)
            if not ready:
                raise LoadError(f"no message for {STALL_S:g} s")
            for fd, _ in ready:
                channel = by_fd[fd]
                for call in channel.read(split):
                    if call == RECV:
                        now = now_ns()
                        sender = (channel.index or count) - 1
                        total += 1
                        if begin <= now < end:
                            add(now - started[sender])
                        channel.write(ack_and_recv)
                        unacked += 1
                        go_on(sender)
                    elif call == SEND:
                        go_on(channel.index)
                    elif call == ACK:
                        unacked -= 1
        cpu = clock.client_cpu()
    return _result(histogram, secs, total, cpu)


def open_loop(channels: Sequence[Channel], names: Sequence[str], rate: float, secs: float) -> Result:
    """Messages fall due at random moments, *rate* a second over all agents; latency from when one is due."""
    count, now_ns = len(channels), time.perf_counter_ns
    send = [
        [numbered_send(names[(i + 1) % count], number) for number in range(MAX_OPEN)] for i in range(count)
    ]
    ack_and_recv = FRAMES.ack + FRAMES.recv
    due: list[deque[int]] = [deque() for _ in range(count)]  # when the messages under way were due
    held: list[deque[int]] = [deque() for _ in range(count)]
    free = [list(range(MAX_OPEN)) for _ in range(count)]
    histogram, total, under_way, unacked = Histogram(), 0, 0, 0
    dice = random.Random(1)
    with _quiet_and_watched(channels) as (epoll, by_fd):
        for channel in channels:
            channel.write(FRAMES.recv)
        clock = _Clock(secs)
        next_due = now_ns()
        while True:
            now = now_ns()
            while next_due <= now and next_due < clock.end:
                held[dice.randrange(count)].append(next_due)
                under_way += 1
                next_due += int(dice.expovariate(rate) * 1e9)
            for index in range(count):
                while held[index] and free[index]:
                    due[index].append(held[index].popleft())
                    channels[index].write(send[index][free[index].pop()])
            if next_due >= clock.end and not under_way and not unacked:
                break
            timeout_s = min(max(0, next_due - now) / 1e9, STALL_S) if next_due < clock.end else STALL_S
            # epoll's own timeout counts in milliseconds, select's in microseconds.
            if not select.select([epoll], [], [], timeout_s)[0]:
                if timeout_s == STALL_S:
                    raise LoadError(f"no message for {STALL_S:g} s")
                continue
            for fd, _ in epoll.poll(0):
                channel = by_fd[fd]
                for call in channel.read(_split_numbered):
                    if call == RECV:
                        now = now_ns()
                        sender = (channel.index or count) - 1
                        total, under_way, unacked = total + 1, under_way - 1, unacked + 1
                        was_due = due[sender].popleft()  # the order per sender is kept
                        if clock.begin <= was_due < clock.end:
                            histogram.add(now - was_due)
                        channel.write(ack_and_recv)
                    elif call == ACK:
                        unacked -= 1
                    else:
                        free[channel.index].append(call - 128)
        cpu = clock.client_cpu()
    return _result(histogram, secs, total, cpu)


def _split_numbered(data: bytes) -> tuple[list[int], bytes]:
    """As FRAMES.split; the ids of sends, 128 and above, take a byte more."""
    calls, rest = FRAMES.split(data)
    if any(call == 0xCC for call in calls):
        at = 0
        for place, call in enumerate(calls):
            if call == 0xCC:
                calls[place] = data[at + 12]
            at += 4 + int.from_bytes(data[at : at + 4], "big")
    return calls, rest


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one; 200 agents need more than many shells give."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and os.name == "posix":
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _result(histogram: Histogram, secs: float, total: int, client_cpu: float) -> Result:
    if not histogram.count:
        raise LoadError("nothing was answered in the time that counts")
    return Result(
        histogram.count / secs, histogram.percentile_us(50), histogram.percentile_us(99), total, client_cpu
    )

"""Senders and receivers that speak raw frames, reconnect for ever, and note all they see."""

import random
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

RETRY_S = 0.02


class Broken(Exception):
    """The connection ended before the answer."""


@dataclass
class Seen:
    """What all of them saw."""

    accepted: dict[int, tuple[str, str, int]] = field(default_factory=dict)
    """By id: sender, recipient, and the number of the message between these two."""
    keys: dict[tuple[str, str], set[int]] = field(default_factory=lambda: defaultdict(set))
    delivered: dict[str, list[tuple[int, str, bool]]] = field(default_factory=lambda: defaultdict(list))
    """By recipient: id, body, redelivered, in the order of delivery."""
    reconnects: int = 0
    dropped: int = 0


class RawAgent:
    """One connection after the other to an agent's socket; one call at a time."""

    def __init__(self, path: Path, seen: Seen) -> None:
        self._path = str(path)
        self._seen = seen
        self._stream: trio.SocketStream | None = None
        self._buffer = b""
        self._calls = 0
        self.fresh = False
        """This connection is new: nothing was called on it yet."""

    async def call(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Call once.

        Raises:
            Broken: no answer came, and the next call has a new connection.
        """
        try:
            if self._stream is None:
                await self._connect()
            self._calls += 1
            await self._write(["call", self._calls, {"type": type_, **fields}])
            answer = await self._read()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self.close()
            raise Broken(str(error)) from None
        self.fresh = False
        assert answer[:2] == ["reply", self._calls], answer
        result: dict[str, Any] = answer[2]
        return result

    async def connected(self) -> None:
        while self._stream is None:
            try:
                await self._connect()
            except (OSError, trio.BrokenResourceError):
                self.close()
                await trio.sleep(RETRY_S)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def _connect(self) -> None:
        self._stream = await trio.open_unix_socket(self._path)
        self._buffer, self._calls, self.fresh = b"", 0, True
        self._seen.reconnects += 1
        await self._write(["hello", 1, "agent", "load 1"])
        answer = await self._read()
        assert answer[0] == "hello", answer

    async def _write(self, envelope: list[Any]) -> None:
        assert self._stream is not None
        payload = msgspec.msgpack.encode(envelope)
        await self._stream.send_all(struct.pack(">I", len(payload)) + payload)

    async def _read(self) -> list[Any]:
        while len(self._buffer) < 4 or len(self._buffer) < 4 + int.from_bytes(self._buffer[:4], "big"):
            assert self._stream is not None
            chunk = await self._stream.receive_some(1 << 16)
            if not chunk:
                raise trio.BrokenResourceError("the daemon closed the connection")
            self._buffer += chunk
        end = 4 + int.from_bytes(self._buffer[:4], "big")
        payload, self._buffer = self._buffer[4:end], self._buffer[end:]
        envelope: list[Any] = msgspec.msgpack.decode(payload)
        return envelope


async def send_until(
    stop: trio.Event, name: str, path: Path, recipients: list[str], rng: random.Random, seen: Seen
) -> None:
    """Send to random recipients; what was not answered is sent again with its key until it is."""
    agent = RawAgent(path, seen)
    try:
        await _send_until(stop, name, agent, recipients, rng, seen)
    finally:
        agent.close()


async def _send_until(
    stop: trio.Event, name: str, agent: RawAgent, recipients: list[str], rng: random.Random, seen: Seen
) -> None:
    counts: dict[str, int] = defaultdict(int)
    while not stop.is_set():
        to = rng.choice(recipients)
        counts[to] += 1
        key = f"{to}/{counts[to]}"
        body = f"{name}/{key}" + rng.choice(["", "", "x" * 100, "y" * 5000])
        while True:
            try:
                answer = await agent.call("send", to=to, body=body, idempotency_key=key)
            except Broken:
                await trio.sleep(RETRY_S)
                continue
            seen.accepted[answer["id"]] = name, to, counts[to]
            seen.keys[name, key].add(answer["id"])
            break
        if rng.random() < 0.05:
            await trio.sleep(rng.random() * 0.05)


async def receive_for_ever(
    name: str, path: Path, rng: random.Random, seen: Seen, *, requeues: bool, drops: float
) -> None:
    """Take messages and ack them; with probability *drops* lose the connection before the ack."""
    agent = RawAgent(path, seen)
    try:
        await _receive_for_ever(name, agent, rng, seen, requeues=requeues, drops=drops)
    finally:
        agent.close()


async def _receive_for_ever(
    name: str, agent: RawAgent, rng: random.Random, seen: Seen, *, requeues: bool, drops: float
) -> None:
    while True:
        try:
            await agent.connected()
            if requeues and agent.fresh:
                await agent.call("requeue_inflight")
            answer = await agent.call("recv", wait_seconds=30, max=rng.choice([1, 1, 4, 32]))
            for message in answer["messages"]:
                seen.delivered[name].append(
                    (message["id"], message["body"], message.get("redelivered", False))
                )
            if rng.random() < drops:
                seen.dropped += 1
                agent.close()
            elif answer["messages"]:
                await agent.call("ack_turn")
        except Broken:
            await trio.sleep(RETRY_S)


def check(seen: Seen, rows: Iterable[tuple[int, str, str, str, str]]) -> None:
    """Compare what was seen with the *rows* (id, sender, recipient, key, body) and with the promises."""
    stored = {row[0]: row for row in rows}
    assert {key: ids for key, ids in seen.keys.items() if len(ids) != 1} == {}, "a key has two ids"
    assert set(stored) == set(seen.accepted), "stored is not what was accepted"
    by_key = [(row[1], row[3]) for row in stored.values()]
    assert len(by_key) == len(set(by_key)), "a key is stored twice"

    for name, deliveries in seen.delivered.items():
        met: set[int] = set()
        latest: dict[str, int] = {}
        for message_id, body, redelivered in deliveries:
            sender, to, number = seen.accepted[message_id]
            assert to == name, f"message {message_id} of {to} was given to {name}"
            assert body == stored[message_id][4]
            if message_id in met:
                assert redelivered, f"message {message_id} came to {name} again without the flag"
                continue
            met.add(message_id)
            last = latest.get(sender, 0)
            assert number > last, f"{name} got message {number} of {sender} after {last}"
            latest[sender] = number

    delivered = {message_id for deliveries in seen.delivered.values() for message_id, _, _ in deliveries}
    lost = set(seen.accepted) - delivered
    assert not lost, (
        f"{len(lost)} of {len(seen.accepted)} accepted messages were never delivered: {sorted(lost)[:9]}"
    )

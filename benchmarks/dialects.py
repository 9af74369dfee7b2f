"""The bytes of each server's language: requests encoded beforehand, replies told apart by their call."""

from collections.abc import Callable
from dataclasses import dataclass

from hive_core.wire import agent, envelope

SEND, ACK, RECV = 1, 2, 3
"""Ids of the calls.  Each is open once at a time, so a request is the same bytes whenever it is sent."""

WAIT_S = 170
BODY = "x" * 256

Split = Callable[[bytes], tuple[list[int], bytes]]
"""Gives the call ids of the whole replies in what came, and the rest."""


class LoadError(Exception):
    """The load cannot go on; the server refused, broke the protocol, or hangs."""


@dataclass(frozen=True)
class Dialect:
    """How to talk to one kind of server."""

    split: Split
    send: Callable[[str], bytes]
    """The request that sends BODY to an agent."""
    ack: bytes
    recv: bytes


# ── frames ──────────────────────────────────────────────────────────────────────────────────────

HELLO = envelope.encode_hello("agent", "benchmarks")


def _split_frames(data: bytes) -> tuple[list[int], bytes]:
    calls: list[int] = []
    at, size = 0, len(data)
    while size - at >= 4:
        end = at + 4 + int.from_bytes(data[at : at + 4], "big")
        if end > size:
            break
        if data[at + 6 : at + 11] != b"reply":  # after the array's and the tag's first byte
            raise LoadError(f"not a reply: {envelope.decode_to_harness(data[at + 4 : end])}")
        calls.append(data[at + 11])
        at = end
    return calls, data[at:]


def numbered_send(to: str, number: int) -> bytes:
    """A send for the open loop, where several are open at once: its id is not below 128."""
    return envelope.encode_call(128 + number, agent.Send(to=to, body=BODY))


FRAMES = Dialect(
    split=_split_frames,
    send=lambda to: envelope.encode_call(SEND, agent.Send(to=to, body=BODY)),
    ack=envelope.encode_call(ACK, agent.AckTurn()),
    recv=envelope.encode_call(RECV, agent.Recv(wait_seconds=WAIT_S)),
)

# ── JSON lines, of the stand-in ─────────────────────────────────────────────────────────────────


def _split_lines(data: bytes) -> tuple[list[int], bytes]:
    lines = data.split(b"\n")
    rest = lines.pop()
    if any(line[:5] != b'{"n":' for line in lines):
        raise LoadError(f"not a reply: {lines[0]!r}")
    return [line[5] - 48 for line in lines], rest


LINES = Dialect(
    split=_split_lines,
    send=lambda to: b'{"n":%d,"cmd":"send","to":"%s","body":"%s"}\n' % (SEND, to.encode(), BODY.encode()),
    ack=b'{"n":%d,"cmd":"ack"}\n' % ACK,
    recv=b'{"n":%d,"cmd":"recv","wait":%d}\n' % (RECV, WAIT_S),
)

# ── echo ────────────────────────────────────────────────────────────────────────────────────────

ECHO_BYTES = len(FRAMES.send("a000"))


def _split_echo(data: bytes) -> tuple[list[int], bytes]:
    count = len(data) // ECHO_BYTES
    return [SEND] * count, data[count * ECHO_BYTES :]


ECHO = Dialect(split=_split_echo, send=lambda _to: b"e" * ECHO_BYTES, ack=b"", recv=b"")

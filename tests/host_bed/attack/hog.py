"""Run with /opt/hyperhive/bin/python3 as root in a machine: takes all it can get, for some seconds.

hog.py WHAT AMOUNT      prints how much it got
"""

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable

import msgspec

from hive_core.wire import agent, envelope
from hive_core.wire.frame import encode_frame

SECONDS = 4.0
SOCKET = "/run/hive/mcp.sock"


def forks(most: int) -> str:
    children: list[int] = []
    try:
        while len(children) < most:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            children.append(pid)
    except OSError as error:
        return f"{len(children)} processes, then {error.strerror}"
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        for _ in children:
            os.wait()
    return f"{len(children)} processes"


def memory(most: int) -> str:
    """In a child, which the kernel may kill for it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = []
        for number in range(most // 2**24):
            held.append(bytearray(b"x") * 2**24)
            os.write(writing, bytes([number & 0xFF]))
        os._exit(0)
    os.close(writing)
    got = 0
    while chunk := os.read(reading, 4096):
        got += len(chunk)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"{got * 16} MiB, then {'the end' if status == 0 else f'signal {-status}'}"


def processors(count: int) -> str:
    for _ in range(count):
        if os.fork() == 0:
            until = time.monotonic() + SECONDS
            while time.monotonic() < until:
                pass
            os._exit(0)
    for _ in range(count):
        os.wait()
    return f"{count} busy processes"


def console(megabytes: int) -> str:
    line = b"\x1b[2J\x1b]0;owned\x07" + b"x" * 3000 + b"\n"
    with open("/dev/console", "wb", buffering=0) as out:
        for number in range(megabytes):
            for _ in range(2**20 // len(line)):
                out.write(line)
            out.write(b"y" * 2**20 if number % 4 == 0 else b"")
    return f"{megabytes} MiB written to the console"


def connections(most: int) -> str:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 100,) * 2)
    until, held = time.monotonic() + SECONDS, []
    for _ in range(most):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(max(0.01, until - time.monotonic()))
        with contextlib.suppress(OSError):
            client.connect(SOCKET)
            held.append(client)
    time.sleep(max(0.0, until - time.monotonic()))
    return f"{len(held)} connections held"


def frames(count: int) -> str:
    """Large ones, of nonsense, over many connections at once; no answer is read."""
    payload = encode_frame(
        msgspec.msgpack.encode(("call", 1, {"type": "send", "to": "bob", "body": "x" * (12 * 2**20)}))
    )
    return _everywhere(count, lambda _: payload)


def calls(count: int) -> str:
    """As many calls as fit that make the daemon read its database; no answer is read."""
    recent = b"".join(envelope.encode_call(number + 1, agent.Recent(limit=1000)) for number in range(60))
    return _everywhere(count, lambda _: recent)


def objects(count: int) -> str:
    """Requests that become as many objects as fit into them, and one that is far too large."""

    def publish(size: int) -> bytes:
        many = b"\xdd" + size.to_bytes(4, "big") + b"\x80" * size  # an array of empty maps
        event = {"id": 1, "ts": 1.0, "kind": "k", "payload": {"a": b"@"}}
        packed = msgspec.msgpack.encode(("call", 1, {"type": "publish", "events": [event]}))
        return encode_frame(packed.replace(msgspec.msgpack.encode(b"@"), many))

    small, large = publish(380 * 2**10), publish(12 * 2**20)
    return _everywhere(count, lambda number: small if number % 4 else large)


def nests(count: int) -> str:
    return _everywhere(count, lambda _: b'{"jsonrpc":' + b"[" * 900_000 + b"\n", hello=False)


def sends(count: int) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SECONDS)
        client.connect(SOCKET)
        client.sendall(envelope.encode_hello("agent", "hog"))
        body = "y" * 60_000
        sent = 0
        with contextlib.suppress(OSError):
            for number in range(count):
                client.sendall(
                    envelope.encode_call(number + 1, agent.Send(to="operator", body=f"{number} {body}"))
                )
                sent += 1
                if number % 16 == 15:
                    client.recv(65536)
    return f"{sent} messages of 60 kB"


def _everywhere(count: int, data: Callable[[int], bytes], *, hello: bool = True) -> str:
    until, rounds, held = time.monotonic() + SECONDS, 0, []
    for number in range(count):
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(True)
        client.settimeout(1)
        with contextlib.suppress(OSError):
            client.connect(SOCKET)
            client.sendall(envelope.encode_hello("agent", "hog") if hello else b"")
            held.append([client, data(number), 0])
    for one in held:
        one[0].setblocking(False)
    while time.monotonic() < until and held:
        for one in list(held):
            client, bytes_, place = one
            try:
                one[2] += client.send(memoryview(bytes_)[place : place + 2**20])
            except BlockingIOError:
                continue
            except OSError:
                client.close()
                held.remove(one)
                continue
            if one[2] >= len(bytes_):
                one[2] = 0
                rounds += 1
        time.sleep(0.001)
    return f"{rounds} times through, {len(held)} of {count} connections left"


HOGS: dict[str, Callable[[int], str]] = {
    hog.__name__: hog
    for hog in (forks, memory, processors, console, connections, frames, calls, objects, nests, sends)
}

if __name__ == "__main__":
    print(HOGS[sys.argv[1]](int(sys.argv[2])))

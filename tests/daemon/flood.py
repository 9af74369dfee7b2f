"""Run as a program: floods an agent's socket with one call over many connections, and reads the answers.

python flood.py SOCKET CONNECTIONS SECONDS CALL-AS-JSON
"""

import itertools
import selectors
import socket
import struct
import sys
import time

import msgspec

CALLS_AT_ONCE = 40
"""Below the limit of open calls."""


def main(path: str, connections: int, seconds: float, call: bytes) -> None:
    ids = itertools.count(1)

    def calls() -> bytes:
        payloads = (b"\x93\xa4call\xcf" + struct.pack(">Q", next(ids)) + call for _ in range(CALLS_AT_ONCE))
        return b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)

    hello = msgspec.msgpack.encode(["hello", 1, "agent", "flood"])
    waiting: dict[socket.socket, bytes] = {}
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        waiting[sock] = struct.pack(">I", len(hello)) + hello
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
    answered = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        for key, ready in selector.select(0.1):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            try:
                if ready & selectors.EVENT_READ:
                    said = sock.recv(1 << 20)
                    if not said:
                        raise ConnectionResetError
                    answered += len(said)
                if ready & selectors.EVENT_WRITE:
                    data = waiting[sock] or calls()
                    waiting[sock] = data[sock.send(data) :]
            except BlockingIOError:
                continue
            except OSError:
                selector.unregister(sock)
                sock.close()
    print(answered)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]),
        float(sys.argv[3]),
        msgspec.msgpack.encode(msgspec.json.decode(sys.argv[4])),
    )

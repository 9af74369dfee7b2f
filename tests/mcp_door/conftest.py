import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec
import pytest

from hive_core.store.schema import migrate
from hive_core.wire import agent, envelope
from hive_core.wire.client import Client, TimedOut, Unreachable
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.unix import short_address

T = TypeVar("T")


def wait_until(holds: Callable[[], T], what: str, limit_s: float = 10.0) -> T:
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return value


class Daemon:
    """A daemon with the agents alice and bob, whose sockets are open and whose harnesses do not run."""

    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="hive-mcp-"))
        self.home = self.base / "h"
        self.process: subprocess.Popen[bytes] | None = None
        database = self.home / "state" / "broker.sqlite"
        database.parent.mkdir(parents=True)
        db = apsw.Connection(str(database))
        migrate(db, str(database))
        with db:
            for name in ("alice", "bob"):
                db.execute("insert into agents (name, wanted, created_at) values (?, 'stopped', 1)", (name,))
        db.close()

    def path(self, name: str = "alice") -> Path:
        return self.home / "run" / "agents" / name / "mcp.sock"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return (self.base / "log").read_text(errors="replace")

    def start(self) -> "Daemon":
        with (self.base / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(self.home)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={name: value for name, value in os.environ.items() if not name.startswith("HIVE_")},
            )  # fmt: skip
        wait_until(self._answers, "the daemon answers", 20)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        try:
            with Client(self.home / "run" / "host.sock") as client:
                return bool(client.ask({"cmd": "status"})["pid"] == self.process.pid)
        except (Unreachable, TimedOut):
            return False

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        with Client(self.home / "run" / "host.sock") as client:
            return client.ask({"cmd": cmd, **fields})

    def send(self, body: str, to: str = "alice") -> int:
        return int(self.ask("send", to=to, body=body)["id"])

    def inbox(self, name: str) -> list[dict[str, Any]]:
        """What *name* has not finished yet."""
        found: list[dict[str, Any]] = self.ask("inbox", agent=name, limit=1000)["messages"]
        return found

    def unread(self, name: str = "alice") -> int:
        """How many messages of *name* are deliverable."""
        rows = self.ask("agent_status")["agent_statuses"]
        return int(next(row["unread"] for row in rows if row["name"] == name))

    def mcp(self, name: str = "alice") -> "Mcp":
        return Mcp(self.path(name))

    def harness(self, name: str = "alice") -> "Harness":
        return Harness(self.path(name))

    def clean_up(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(15)
    with short_address(path) as address:
        sock.connect(address)
    return sock


class Mcp:
    """A client that writes and reads lines of JSON-RPC."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)
        self._lines = self.socket.makefile("rb")
        self._last_id = 0

    def __enter__(self) -> "Mcp":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def write(self, *messages: dict[str, Any] | bytes) -> None:
        encode = msgspec.json.encode
        self.socket.sendall(b"".join((m if isinstance(m, bytes) else encode(m)) + b"\n" for m in messages))

    def read(self) -> dict[str, Any] | None:
        line = self._lines.readline()
        return msgspec.json.decode(line) if line else None  # type: ignore[no-any-return]

    def begin(self, method: str, **params: Any) -> int:
        self._last_id += 1
        self.write({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        return self._last_id

    def begin_tool(self, name: str, /, meta: dict[str, Any] | None = None, **arguments: Any) -> int:
        return self.begin("tools/call", name=name, arguments=arguments, **({"_meta": meta} if meta else {}))

    def finish(self, request_id: int) -> dict[str, Any]:
        answer = self.read()
        assert answer is not None, "the daemon closed the connection"
        assert answer["id"] == request_id, answer
        return answer

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        return self.finish(self.begin(method, **params))

    def tool(self, name: str, /, meta: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        """Call a tool and give its result."""
        result: dict[str, Any] = self.finish(self.begin_tool(name, meta, **arguments))["result"]
        return result

    def recv(self, **arguments: Any) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.tool("recv", **arguments)["structuredContent"]["messages"]
        return messages

    def notify(self, method: str, **params: Any) -> None:
        self.write({"jsonrpc": "2.0", "method": method, "params": params})


class Harness:
    """One call at a time in frames, as the harness makes them."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)
        self._decoder = FrameDecoder()
        self.socket.sendall(envelope.encode_hello("agent", "test"))
        self._next()

    def __enter__(self) -> "Harness":
        return self

    def __exit__(self, *_error: object) -> None:
        self.socket.close()

    def call(self, request: agent.Request) -> Any:
        self.socket.sendall(envelope.encode_call(1, request))
        reply = self._next()
        assert isinstance(reply, envelope.Reply), reply
        return msgspec.msgpack.decode(reply.result)

    def recv(self) -> int:
        """Begin a turn; give the id of its message."""
        (message,) = self.call(agent.Recv(wait_seconds=5))["messages"]
        return int(message["id"])

    def ack(self, message_id: int) -> int:
        return int(self.call(agent.AckTurn(ids=[message_id]))["acked"])

    def _next(self) -> envelope.ToHarness:
        while (payload := self._decoder.next_payload()) is None:
            chunk = self.socket.recv(1 << 16)
            assert chunk, "the daemon closed the connection"
            self._decoder.receive_data(chunk)
        return envelope.decode_to_harness(payload)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    try:
        yield daemon.start()
        for sign in ("Traceback", "Internal error", "ended by a bug"):
            assert sign not in daemon.log, daemon.log[-5000:]
    finally:
        daemon.clean_up()

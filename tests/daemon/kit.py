"""Real daemons for tests: started, killed and cleaned up, and blocking clients of their two kinds of socket.

Every wait here has a limit, and a daemon's log is part of every failure.
"""

import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import apsw
import msgspec

from hive_core.store.schema import migrate
from hive_core.wire.client import Client, RequestFailed, TimedOut, Unreachable
from hive_core.wire.unix import short_address

T = TypeVar("T")

SOAK_S = float(os.environ.get("HIVE_SOAK_SECONDS", "0"))
"""0 is the short default; the longer variants take this long."""

_NOT_FOR_DAEMONS = ("HIVE_", "HYPERHIVE_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM", "XDG_STATE_HOME")


class TooLate(AssertionError):
    """What a test waited for did not come in time."""


def wait_until(holds: Callable[[], T], what: str, limit_s: float = 10.0, every_s: float = 0.02) -> T:
    """Give the first true value of *holds*."""
    deadline = time.monotonic() + limit_s
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TooLate(f"not within {limit_s:g} s: {what}")
        time.sleep(every_s)


class Daemon:
    """One home, and the daemon that serves it now and then.

    *environment* is all that it sees of the world, instead of what these tests run in.
    """

    def __init__(self, home: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment
        # Not pytest's tmp_path: the path of a socket has 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="hive-test-"))
        self.home = home or self.base / "h"
        self.log_path = self.base / "daemon.log"
        self.config_path = self.base / "hive.toml"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def host_socket(self) -> Path:
        return self.home / "run" / "host.sock"

    @property
    def database(self) -> Path:
        return self.home / "state" / "broker.sqlite"

    def agent_socket(self, name: str) -> Path:
        run = self.home / "run"
        return (run / "manager" if name == "manager" else run / "agents" / name) / "mcp.sock"

    def state(self, name: str) -> Path:
        """The state directory of an agent's harness."""
        return self.home / "state" / "agents" / name / "state"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # ── its life ────────────────────────────────────────────────────────────────────────────────

    def start(self, env: Mapping[str, str] | None = None, *, limit_s: float = 20.0) -> "Daemon":
        """Start it and wait until it answers on host.sock."""
        self.launch(env)
        self.wait_ready(limit_s)
        return self

    def launch(self, env: Mapping[str, str] | None = None) -> None:
        assert self.process is None or self.process.poll() is not None, "it runs already"
        argv = [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(self.home)]
        if self.config_path.exists():
            argv += ["--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean_environment(env, self._environment),
                start_new_session=True,
            )

    def wait_ready(self, limit_s: float = 20.0) -> None:
        assert self.process is not None
        process = self.process

        def answers() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the daemon ended with {process.returncode}:\n{self.log}")
            try:
                with Client(self.host_socket, timeout_s=limit_s) as client:
                    # The socket of a daemon that was killed may be there still, with nobody behind it.
                    return bool(client.ask({"cmd": "status"})["pid"] == process.pid)
            except (Unreachable, TimedOut):
                return False

        wait_until(answers, "the daemon answers", limit_s)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self, number: int = signal.SIGTERM, limit_s: float = 10.0) -> int:
        """Tell it to end and give its exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.wait_end(limit_s)

    def wait_end(self, limit_s: float = 10.0) -> int:
        assert self.process is not None
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise TooLate(f"the daemon did not end within {limit_s:g} s:\n{self.log}") from None

    def clean_up(self) -> None:
        """Kill the daemon and every process of this home, and delete everything."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

        def none_left() -> bool:
            left = {pid for path in (self.base, self.home) for pid in processes_of(path)}
            for pid in left:
                _kill(pid)
            return not left

        wait_until(none_left, f"the processes of {self.home} are gone")
        shutil.rmtree(self.base, ignore_errors=True)
        shutil.rmtree(self.home, ignore_errors=True)

    def check_log(self) -> None:
        """Fail if the daemon ever said that it has a bug."""
        for sign in ("Traceback", "Internal error", "internal error", "ended by a bug", "writer died"):
            assert sign not in self.log, f"{sign!r} in the daemon's log:\n{tail(self.log, 80)}"

    # ── asking it ───────────────────────────────────────────────────────────────────────────────

    def client(self, timeout_s: float = 15.0) -> Client:
        return Client(self.host_socket, timeout_s)

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """Ask on a fresh connection.

        Raises:
            RequestFailed: the daemon said no.
        """
        with self.client() as client:
            return client.ask({"cmd": cmd, **fields})

    def send(self, to: str, body: str, **fields: Any) -> int:
        return int(self.ask("send", to=to, body=body, **fields)["id"])

    def row(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.ask("agent_status")["agent_statuses"]
        return next(row for row in rows if row["name"] == name)

    def messages(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        with self.client() as client:
            while page := client.ask({"cmd": "messages", "since": found[-1]["id"] if found else 0}).get(
                "messages"
            ):
                found += page
        return found

    def message(self, message_id: int) -> dict[str, Any]:
        return next(row for row in self.messages() if row["id"] == message_id)

    def inbox(self, name: str) -> list[dict[str, Any]]:
        """What *name* has not finished yet."""
        found: list[dict[str, Any]] = self.ask("inbox", agent=name, limit=1000)["messages"]
        return found

    def events(self, name: str, *kinds: str) -> list[dict[str, Any]]:
        """Every event in the agent's file, or those of *kinds*."""
        found: list[dict[str, Any]] = []
        with self.client() as client:
            while page := client.ask(
                {"cmd": "events", "agent": name, "after": found[-1]["id"] if found else 0}
            ).get("events"):
                found += page
        return [row for row in found if not kinds or row["kind"] in kinds]

    def wait_acked(self, message_id: int, limit_s: float = 30.0) -> None:
        def is_acked() -> bool:
            (row,) = self.ask("messages", since=message_id - 1, limit=1)["messages"]
            return row["id"] == message_id and "acked_at" in row

        try:
            wait_until(is_acked, f"message {message_id} is done", limit_s)
        except TooLate as late:
            raise TooLate(f"{late}\n{tail(self.log, 30)}") from None

    def wait_row(self, name: str, limit_s: float = 15.0, **wanted: Any) -> dict[str, Any]:
        """Wait until the row of *name* has all the values *wanted*; None means that the key is absent."""
        seen: dict[str, Any] = {}

        def holds() -> bool:
            seen.update(row=self.row(name))
            return all(seen["row"].get(key) == value for key, value in wanted.items())

        try:
            wait_until(holds, f"{name} is {wanted}", limit_s)
        except TooLate as late:
            raise TooLate(f"{late}; its row: {seen['row']}\n{tail(self.log, 30)}") from None
        row: dict[str, Any] = seen["row"]
        return row

    def spawn(self, *names: str) -> None:
        """Create agents and wait until their harnesses have connected."""
        for name in names:
            self.ask("spawn", name=name)
        for name in names:
            self.wait_row(name, connected=True)

    def add_stopped(self, *names: str) -> "Daemon":
        """Write agents that are not wanted to run into the database, before the daemon starts.

        Their sockets and mailboxes work as any agent's; a test speaks for them.
        """
        assert self.process is None
        self.database.parent.mkdir(parents=True)
        db = apsw.Connection(str(self.database))
        migrate(db, str(self.database))
        with db:
            for name in names:
                db.execute("insert into agents (name, wanted, created_at) values (?, 'stopped', 1)", (name,))
        db.close()
        return self

    def agent(self, name: str, timeout_s: float = 15.0) -> "AgentClient":
        return AgentClient(self.agent_socket(name), timeout_s)

    def mcp(self, name: str = "alice") -> "McpClient":
        return McpClient(self.agent_socket(name))

    def rows_of(self, sql: str) -> list[tuple[Any, ...]]:
        """Read the database beside the daemon."""
        db = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def harnesses(self, name: str | None = None) -> list[int]:
        """Pids of the harness processes of this home, or of agent *name* of it."""
        part = str(self.home / "run" / "agents") + (f"/{name}/" if name else "/")
        return processes_with(part)


@contextmanager
def home_of(daemon: Daemon) -> Iterator[Daemon]:
    """Whatever is started there is gone afterwards, and the daemon has shown no bug."""
    try:
        yield daemon
        print(tail(daemon.log, 40))
        daemon.check_log()
    finally:
        daemon.clean_up()


class Fault(Exception):
    """The daemon refused a call."""

    def __init__(self, code: str, text: str, reason: str | None = None) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text, self.reason = code, text, reason


class AgentClient:
    """A blocking client of an agent's socket, written from design/wire.md alone: one call at a time."""

    def __init__(self, path: Path, timeout_s: float = 15.0, *, hello: bool = True) -> None:
        self.socket = connect(path, timeout_s)
        self._calls = 0
        self._buffer = b""
        if hello:
            try:
                self._shake_hands()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "AgentClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def write(self, envelope: list[Any]) -> None:
        self.socket.sendall(frame(msgspec.msgpack.encode(envelope)))

    def read(self) -> list[Any] | None:
        """Give the next frame's envelope; None when the daemon has closed the connection."""
        while len(self._buffer) < 4 or len(self._buffer) < 4 + int.from_bytes(self._buffer[:4], "big"):
            try:
                chunk = self.socket.recv(1 << 16)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                return None
            self._buffer += chunk
        end = 4 + int.from_bytes(self._buffer[:4], "big")
        payload, self._buffer = self._buffer[4:end], self._buffer[end:]
        envelope: list[Any] = msgspec.msgpack.decode(payload)
        return envelope

    def _shake_hands(self) -> None:
        with suppress(BrokenPipeError):  # it said why, and closed
            self.write(["hello", 1, "agent", "test 1"])
        answer = self.read()
        assert answer is not None
        if answer[0] == "fault":
            raise Fault(*answer[2:5])
        assert answer[:3] == ["hello", 1, "daemon"]

    def begin(self, type_: str, **fields: Any) -> int:
        """Call without waiting for the answer."""
        self._calls += 1
        self.write(["call", self._calls, {"type": type_, **fields}])
        return self._calls

    def finish(self, call_id: int) -> dict[str, Any]:
        answer = self.read()
        assert answer is not None, "the daemon closed the connection"
        assert answer[1] == call_id, answer
        if answer[0] == "fault":
            raise Fault(*answer[2:5])
        result: dict[str, Any] = answer[2]
        return result

    def call(self, type_: str, **fields: Any) -> dict[str, Any]:
        return self.finish(self.begin(type_, **fields))

    def recv(self, wait_seconds: float = 0, max: int = 1) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("recv", wait_seconds=wait_seconds, max=max)["messages"]
        return found


class McpClient:
    """A client that writes and reads lines of JSON-RPC on an agent's socket."""

    def __init__(self, path: Path) -> None:
        self.socket = connect(path)
        self._lines = self.socket.makefile("rb")
        self._last_id = 0

    def __enter__(self) -> "McpClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def write(self, *messages: dict[str, Any] | bytes) -> None:
        encode = msgspec.json.encode
        self.socket.sendall(b"".join((m if isinstance(m, bytes) else encode(m)) + b"\n" for m in messages))

    def read(self) -> dict[str, Any] | None:
        """Give the next line; None when the daemon has closed the connection."""
        line = self._lines.readline()
        return msgspec.json.decode(line) if line else None  # type: ignore[no-any-return]

    def begin(self, method: str, **params: Any) -> int:
        """Ask without waiting for the answer."""
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


class Follower:
    """Follows on a connection of its own: the items gather while the test does something else."""

    def __init__(self, daemon: Daemon, cmd: str, **fields: Any) -> None:
        self.items: list[dict[str, Any]] = []
        self.failure: RequestFailed | None = None
        self.ended = threading.Event()
        self._socket = connect(daemon.host_socket)
        self._lines = self._socket.makefile("rb")
        self._socket.sendall(msgspec.json.encode({"cmd": cmd, **fields}) + b"\n")
        first = msgspec.json.decode(self._lines.readline())
        assert first == {"version": 1, "ok": True}, first
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Follower":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a follower of events: those that came, one after the other."""
        return [row for item in list(self.items) for row in item["events"]]

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._lines.close()
        self._socket.close()

    def wait(self, holds: Callable[[list[dict[str, Any]]], T], what: str, limit_s: float = 10.0) -> T:
        """Wait until something is true of the items so far."""
        return wait_until(lambda: holds(list(self.items)), f"{what}; came: {self.items[-5:]}", limit_s)

    def wait_failure(self, limit_s: float = 10.0) -> RequestFailed:
        """Wait until the daemon ends the stream with a refusal."""
        return wait_until(lambda: self.failure, f"the stream fails; came: {self.items[-5:]}", limit_s)

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._lines:
                item = msgspec.json.decode(line)
                if not item["ok"]:
                    self.failure = RequestFailed(item)
                    break
                self.items.append(item)
        self.ended.set()


def connect(path: Path, timeout_s: float = 15.0) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(timeout_s)
    try:
        with short_address(path) as address:
            sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


def read_all(sock: socket.socket, limit: int = 1 << 24) -> bytes:
    """Read until the other side has closed."""
    data = b""
    while len(data) < limit:
        try:
            chunk = sock.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            break
        if not chunk:
            break
        data += chunk
    return data


def raw_line(path: Path, line: bytes, timeout_s: float = 15.0) -> dict[str, Any]:
    """Write one line as third parties do, and give the reply line."""
    with connect(path, timeout_s) as sock:
        sock.sendall(line + b"\n")
        with sock.makefile("rb") as lines:
            reply: dict[str, Any] = msgspec.json.decode(lines.readline())
    return reply


def run_core(*argv: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `hive-core` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "hive_core", *argv],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=clean_environment(env),
    )


def refusal(fn: Callable[[], object]) -> RequestFailed:
    """Give the refusal that *fn* must meet."""
    try:
        answer = fn()
    except RequestFailed as failed:
        return failed
    raise AssertionError(f"it was not refused: {answer}")


def git(directory: Path, *argv: str) -> str:
    """Run git as the manager would, in a repository that it works in, and give what it said."""
    identity = ["-c", "user.name=manager", "-c", "user.email=manager@hive"]
    done = subprocess.run(
        ["git", *identity, "-C", str(directory), *argv],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"},
    )
    return done.stdout.strip()


def clean_environment(
    extra: Mapping[str, str] | None = None, instead: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give what these tests run in, or what is given *instead*, with *extra*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_FOR_DAEMONS)}
    return dict(kept if instead is None else instead) | dict(extra or {})


def processes_of(home: Path) -> list[int]:
    """Pids of living processes that have *home* in their command line, or work in there."""

    def works_there(pid: str) -> bool:
        try:
            return Path("/proc", pid, "cwd").readlink().is_relative_to(home)
        except OSError:
            return False

    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    there = [int(pid) for pid in pids if works_there(pid) and int(pid) != os.getpid()]
    return list({*processes_with(str(home)), *there})


def processes_with(part: str) -> list[int]:
    """Pids of living processes with *part* somewhere in their command line."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if part.encode() in words:
                found.append(int(entry.name))
    return found


def rss_of(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def tail(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])


def seeded(request_name: str) -> random.Random:
    """A random source whose seed is in the output of a failure."""
    seed = int(os.environ.get("HIVE_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"{request_name}: HIVE_TEST_SEED={seed}")
    return random.Random(seed)


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def by(key: str, rows: Iterable[dict[str, Any]]) -> list[Any]:
    return [row[key] for row in rows]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

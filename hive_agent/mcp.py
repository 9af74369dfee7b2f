"""hive-agent mcp: MCP between a client's pipes and the agent's socket, through restarts of the daemon.

The client starts this and waits for it, so it imports next to nothing: no typing, and instead of
socket its C half; json not before the first line is on its way.

What goes through is passed on as it is, but for a key in each tools/call: when the daemon is gone in
mid-call the call is made again, and by its key what was done already is not done twice.  A repeated
recv is no loss either: a daemon that has restarted holds no lease, and one that has not takes back what
it was not told to have reached the client.
"""

import _socket
import os
import select
import time

DEFAULT_SOCKET = "/run/hive/mcp.sock"

PATIENCE_S = 60.0
"""How long a call waits for a daemon that is away."""
FIRST_DELAY_S = 0.05
LONGEST_DELAY_S = 1.0
LAST_ANSWERS_S = 5.0
"""For what the daemon is at when the client has closed its end."""

CHUNK_BYTES = 64 * 1024
PIPE_BYTES = 4096
"""A pipe that is writable takes this much without blocking (PIPE_BUF)."""
MAX_LINE_BYTES = 2**20
"""What the daemon takes (hive_core.wire.limits)."""
MAX_READ_BYTES = 8 * 2**20
"""Of a line that is longer than that, but not longer than this, the id is read for the refusal."""
ENOUGH_BYTES = 2**20
"""While this much waits for one side, no more is read from the other."""
MAX_OPEN_BYTES = 8 * 2**20
"""While calls of this size have no answer, no more are read."""

KEY = "hyperhive/key"
TELLS = "hyperhive/tells"
RECEIVED = "notifications/hyperhive/received"
MAX_PATH_BYTES = 107

EXIT_UNREACHABLE = 5
"""As of `hive`."""

UNREACHABLE = -32001
INVALID_REQUEST = -32600
PARSE_ERROR = -32700

Message = dict[str, object]


class Relay:
    """What is said on both sides, sans-IO: bytes come in by methods and go out in two buffers."""

    def __init__(self, path: str, patience_s: float = PATIENCE_S, *, now: float = 0.0) -> None:
        self._path, self._patience_s = path, patience_s
        self.to_client, self.to_daemon = bytearray(), bytearray()
        self._client_lines, self._daemon_lines = Lines(), Lines()
        # Lines that went through unread, since they were in a hurry.
        self._unread: list[tuple[bool, bytes]] = []
        self._hurry = True
        self._open: dict[str | int, bytes] = {}
        self._open_bytes = 0
        self._initialize: Message | None = None
        self._initialized = b""
        self._replays = 0
        self._alone_since: float | None = now
        self._complaint = ""
        # Calls whose answers the daemon wants to know to be there, and the answers that are on their way:
        # how much will have been passed on with the last byte of each.
        self._telling: set[str | int] = set()
        self._on_the_way: list[tuple[int, str | int]] = []
        self._passed_bytes = 0
        self.tells = True
        """Cleared when nothing more can be said to the daemon."""
        self._name = os.urandom(9).hex()
        self._calls = 0

    @property
    def connected(self) -> bool:
        return self._alone_since is None

    @property
    def wants_client(self) -> bool:
        """Whether to read from the client."""
        return len(self.to_daemon) < ENOUGH_BYTES and self._open_bytes < MAX_OPEN_BYTES

    @property
    def wants_daemon(self) -> bool:
        return len(self.to_client) < ENOUGH_BYTES

    def from_client(self, data: bytes, now: float) -> None:
        for line in self._client_lines.feed(data):
            if self._hurry and self.connected and _may_hurry(line):
                self._hurry = False
                self.to_daemon += line
                self._unread.append((True, line))
            elif line.strip():
                self._settle()
                self._ask(line, now)

    def from_daemon(self, data: bytes) -> None:
        for line in self._daemon_lines.feed(data):
            if not line.startswith(b"{"):
                continue
            if self._unread:
                self.to_client += line
                self._unread.append((False, line))
            else:
                self._settle()
                self._tell(line)

    def passed_on(self, size: int) -> None:
        """The client has taken so many bytes."""
        del self.to_client[:size]
        self._passed_bytes += size
        while self._on_the_way and self._on_the_way[0][0] <= self._passed_bytes:
            _, request_id = self._on_the_way.pop(0)
            if self.connected and self.tells:
                told: Message = {"jsonrpc": "2.0", "method": RECEIVED, "params": {"requestId": request_id}}
                self.to_daemon += _render(told)

    def connect(self) -> None:
        """There is a daemon: say again what the last one was told, and ask again what it did not answer."""
        self._alone_since = None
        if self._initialize is not None and self._initialize["id"] not in self._open:
            self._replays += 1
            again = self._initialize | {"id": f"{self._name}-{self._replays}"}
            self.to_daemon += _render(again) + self._initialized
        for line in self._open.values():
            self.to_daemon += line

    def disconnect(self, now: float) -> None:
        """The daemon is gone, and with it what it was still told and half of what it was saying."""
        self._settle()
        self._alone_since = now
        self.to_daemon.clear()
        self._on_the_way.clear()
        rest, self._daemon_lines = self._daemon_lines.rest, Lines()
        # Whom it does not let in, it tells so in the other language of this socket.
        at = rest.find(b"cannot ")
        self._complaint = f"; it says: {rest[at:].decode(errors='replace')[:200]!r}" if at >= 0 else ""

    def give_up(self, now: float) -> float | None:
        """Fail the calls that have waited too long; say when to look again."""
        if self._alone_since is None or not self._open:
            return None
        left_s = self._alone_since + self._patience_s - now
        if left_s > 0:
            return left_s
        for request_id in list(self._open):
            self._forget(request_id)
            text = f"cannot reach the daemon at {self._path}: it was away for {self._patience_s:g} s"
            self._refuse(request_id, UNREACHABLE, text + self._complaint)
        return None

    def _settle(self) -> None:
        unread, self._unread, self._hurry = self._unread, [], False
        for by_client, line in unread:
            message = _parse(line)
            if isinstance(message, dict):
                if by_client:
                    self._remember(message, line)
                else:
                    self._forget(message.get("id"))

    def _ask(self, line: bytes, now: float) -> None:
        message = _parse(line)
        if len(line) > MAX_LINE_BYTES:
            text = f"cannot pass on a line of {len(line)} bytes: the limit is {MAX_LINE_BYTES}"
            self._refuse(message.get("id") if isinstance(message, dict) else None, INVALID_REQUEST, text)
        elif isinstance(message, list):
            self._refuse(None, INVALID_REQUEST, "cannot take a batch: send a message a line")
        elif not isinstance(message, dict):
            self._refuse(None, PARSE_ERROR, "cannot read the line: it is no JSON object")
        else:
            line, tells = line.lstrip(), False
            if message.get("method") == "tools/call":
                tells = self._add_key(message)
                line = _render(message) or line
            self._remember(message, line)
            request_id = message.get("id")
            if tells and isinstance(request_id, str | int):
                self._telling.add(request_id)
            if self.connected:
                self.to_daemon += line
            else:
                self.give_up(now)

    def _remember(self, message: Message, line: bytes) -> None:
        request_id, method = message.get("id"), message.get("method")
        if isinstance(request_id, str | int) and isinstance(method, str):
            self._forget(request_id)
            self._open[request_id] = line
            self._open_bytes += len(line)
            if method == "initialize":
                self._initialize = message
        elif method == "notifications/initialized":
            self._initialized = line
        elif method == "notifications/cancelled":
            params = message.get("params")
            self._forget(params.get("requestId") if isinstance(params, dict) else None)

    def _add_key(self, message: Message) -> bool:
        """Give the call a key that tells it from every other one, if that can be.

        Gives whether it also promises that the daemon will be told when its answer is there.
        """
        params = message.get("params")
        if not isinstance(params, dict):
            return False
        meta = params.setdefault("_meta", {})
        # Who has a key of its own has its own way of going on, too.
        if not isinstance(meta, dict) or KEY in meta:
            return False
        self._calls += 1
        meta[KEY] = f"{self._name}-{self._calls}"
        if params.get("name") != "recv":
            return False
        meta[TELLS] = True
        return True

    def _tell(self, line: bytes) -> None:
        message = _parse(line)
        answered = message.get("id") if isinstance(message, dict) else None
        if isinstance(answered, str) and answered.startswith(f"{self._name}-"):
            return  # our own initialize, which the client has had answered long ago
        self.to_client += line
        if isinstance(answered, str | int) and answered in self._telling:
            self._on_the_way.append((self._passed_bytes + len(self.to_client), answered))
        self._forget(answered)

    def _forget(self, request_id: object) -> None:
        if isinstance(request_id, str | int):
            self._open_bytes -= len(self._open.pop(request_id, b""))
            self._telling.discard(request_id)

    def _refuse(self, request_id: object, code: int, text: str) -> None:
        error = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": text}}
        self.to_client += _render(error)


class Lines:
    """Cuts a stream into lines, each with its newline.  One that never ends becomes an unreadable one."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0
        self._skipping = False

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        lines = []
        self._buffer += data
        while (end := self._buffer.find(b"\n", self._scanned)) >= 0:
            lines.append(b"\n" if self._skipping else bytes(self._buffer[: end + 1]))
            del self._buffer[: end + 1]
            self._scanned, self._skipping = 0, False
        self._scanned = len(self._buffer)
        if self._scanned > MAX_READ_BYTES:
            if not self._skipping:
                lines.append(b"too long\n")
            self._buffer.clear()
            self._scanned, self._skipping = 0, True
        return lines


def _may_hurry(line: bytes) -> bool:
    return line.startswith(b"{") and b"tools/call" not in line and len(line) < MAX_LINE_BYTES


def _parse(line: bytes) -> object:
    import json

    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _render(message: Message) -> bytes:
    import json

    try:
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    except (ValueError, RecursionError):
        return b""


class Bridge:
    """Carries bytes between stdin, stdout and the socket at *path*, until stdin or stdout is closed."""

    def __init__(self, path: str, relay: Relay, stdin: int = 0, stdout: int = 1) -> None:
        self._path, self._relay = path, relay
        self._stdin, self._stdout = stdin, stdout
        self._socket: _socket.socket | None = None
        self._connected_at = 0.0
        self.reached = False
        self._delay_s = FIRST_DELAY_S
        self._next_try = 0.0
        self._ends_at: float | None = None

    def run(self) -> None:
        while not self._over():
            now = time.monotonic()
            if self._socket is None and self._ends_at is None and now >= self._next_try:
                self._connect(now)
            waits = [self._relay.give_up(now)]
            if self._ends_at is not None:
                waits.append(self._ends_at - now)
            elif self._socket is None:
                waits.append(self._next_try - now)
            self._wait(min((wait for wait in waits if wait is not None), default=None))

    def _over(self) -> bool:
        if self._ends_at is None:
            return False
        return time.monotonic() >= self._ends_at or (self._socket is None and not self._relay.to_client)

    def _wait(self, timeout_s: float | None) -> None:
        relay, poll = self._relay, select.poll()
        if self._ends_at is None and relay.wants_client:
            poll.register(self._stdin, select.POLLIN)
        # Also while there is nothing to write: its reader's end is our end.
        poll.register(self._stdout, select.POLLOUT if relay.to_client else 0)
        if self._socket is not None:
            wanted = select.POLLIN if relay.wants_daemon else 0
            poll.register(self._socket.fileno(), wanted | (select.POLLOUT if relay.to_daemon else 0))
        for fd, events in poll.poll(None if timeout_s is None else max(0, timeout_s) * 1000 + 1):
            if fd == self._stdin:
                self._read_client()
            elif fd == self._stdout:
                self._write_client(events)
            elif self._socket is not None:
                self._exchange(events)

    def _read_client(self) -> None:
        data = os.read(self._stdin, CHUNK_BYTES)
        if data:
            self._relay.from_client(data, time.monotonic())
            if self._socket is not None:
                self._exchange(select.POLLOUT)
            return
        # What the daemon is at is still answered; what is parked, it gives up.
        self._ends_at = time.monotonic() + LAST_ANSWERS_S
        self._relay.tells = False
        if self._socket is not None and not self._relay.to_daemon:
            self._socket.shutdown(_socket.SHUT_WR)

    def _write_client(self, events: int) -> None:
        if not events & select.POLLOUT:
            raise BrokenPipeError
        written = os.write(self._stdout, self._relay.to_client[:PIPE_BYTES])
        self._relay.passed_on(written)

    def _exchange(self, events: int) -> None:
        assert self._socket is not None
        try:
            if events & select.POLLOUT and self._relay.to_daemon:
                sent = self._socket.send(self._relay.to_daemon[:CHUNK_BYTES])
                del self._relay.to_daemon[:sent]
                if self._ends_at is not None and not self._relay.to_daemon:
                    self._socket.shutdown(_socket.SHUT_WR)
            if events & ~select.POLLOUT:
                data = self._socket.recv(CHUNK_BYTES)
                if not data:
                    raise ConnectionResetError
                self._relay.from_daemon(data)
        except BlockingIOError:
            pass
        except OSError:
            self._disconnect()

    def _connect(self, now: float) -> None:
        try:
            self._socket = _open_socket(self._path)
        except OSError:
            self._back_off(now)
        else:
            self._connected_at, self.reached = now, True
            self._relay.connect()

    def _disconnect(self) -> None:
        assert self._socket is not None
        self._socket.close()
        self._socket = None
        now = time.monotonic()
        if now - self._connected_at > LONGEST_DELAY_S:
            self._delay_s = FIRST_DELAY_S
        self._relay.disconnect(now)
        self._back_off(now)

    def _back_off(self, now: float) -> None:
        self._next_try = now + self._delay_s
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)


def _open_socket(path: str) -> _socket.socket:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if len(os.fsencode(path)) <= MAX_PATH_BYTES:
            sock.connect(path)
        else:  # as in hive_core.wire.unix, whose imports would cost as much as all of this
            directory, name = os.path.split(path)
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{fd}/{name}")
            finally:
                os.close(fd)
    except BaseException:
        sock.close()
        raise
    return sock


def run(path: str | None = None, patience_s: float = PATIENCE_S) -> int:
    """Be the bridge until the client closes its end, or a signal ends us."""
    path = path or os.environ.get("HIVE_AGENT_SOCKET") or DEFAULT_SOCKET
    bridge = Bridge(path, Relay(path, patience_s, now=time.monotonic()))
    try:
        bridge.run()
    except ConnectionError:  # the client's end
        return 0
    except KeyboardInterrupt:
        return 130
    if not bridge.reached:
        os.write(2, f"cannot reach the daemon at {path}\n".encode())
        return EXIT_UNREACHABLE
    return 0

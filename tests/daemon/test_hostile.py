"""Ten thousand hostile inputs on each kind of socket, while others are served as if nothing happened."""

import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import pytest

from .kit import SOAK_S, Daemon, Fault, connect, frame, read_all, rss_of, seeded, wait_until

INPUTS = 10_000
PER_CONNECTION = 20
WORST_S = 3.0
"""On a loaded machine with two cores; alone it is some milliseconds."""

MAX_GROWTH = 48 * 2**20

pack = msgspec.msgpack.encode


@pytest.fixture
def besieged(shared: Daemon) -> Iterator[Daemon]:
    """A daemon that serves others all the while, and says nothing of a bug."""
    with WellBehaved(shared) as others:
        yield shared
        wait_until(lambda: shared.ask("status")["connections"] <= 4, "all hostile connections are gone", 20)
    print(f"{others.rounds} rounds of others, the slowest {others.worst_s:.3f} s")
    assert others.failures == []
    assert others.rounds > 3
    assert others.worst_s < WORST_S
    shared.check_log()


class WellBehaved:
    """Others: an operator who looks, and two agents who write to each other."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._operate), threading.Thread(target=self._write)]
        self.rounds = 0
        self.worst_s = 0.0
        self.failures: list[BaseException] = []

    def __enter__(self) -> "WellBehaved":
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.rounds > 3 or self.failures, "others are served")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _operate(self) -> None:
        with self._noting(), self._daemon.client() as client:
            while not self._stop.wait(0.02):
                with self._timed():
                    assert client.ask({"cmd": "agent_status"})["agent_statuses"]
                with self._timed():
                    assert client.ask({"cmd": "status"})["store"] == "ok"

    def _write(self) -> None:
        with self._noting(), self._daemon.agent("bob") as bob, self._daemon.agent("carol") as carol:
            while not self._stop.wait(0.02):
                with self._timed():
                    sent = bob.call("send", to="carol", body="all quiet")["id"]
                    assert sent in [message["id"] for message in carol.recv(wait_seconds=10, max=32)]
                    carol.call("ack_turn")

    def _noting(self) -> "_Noting":
        return _Noting(self.failures)

    def _timed(self) -> "_Timed":
        return _Timed(self)


class _Noting:
    def __init__(self, failures: list[BaseException]) -> None:
        self._failures = failures

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None:
            self._failures.append(error)
        return True


class _Timed:
    def __init__(self, others: WellBehaved) -> None:
        self._others = others

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._others.rounds += 1
        self._others.worst_s = max(self._others.worst_s, time.monotonic() - self._began)


# ── bytes ───────────────────────────────────────────────────────────────────────────────────────


def _odd_value(rng: random.Random, depth: int = 0) -> Any:
    choices: list[Any] = [
        None,
        True,
        rng.randrange(-(2**63), 2**64),
        rng.choice([0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1]),
        rng.random() * 1e308,
        float("nan"),
        float("inf"),
        "x" * rng.randrange(200),
        "\x00\n\u2028" * 3,
        rng.choice(["alice", "bob", "*", "operator", "..", "../../etc", "", "-rf"]),
        rng.randbytes(rng.randrange(30)),
    ]
    if depth < 3:
        choices.append([_odd_value(rng, depth + 1) for _ in range(rng.randrange(4))])
        choices.append(
            {str(_odd_value(rng, 3))[:20]: _odd_value(rng, depth + 1) for _ in range(rng.randrange(4))}
        )
    return rng.choice(choices)


AGENT_TYPES = [
    *("send", "recv", "ack_turn", "requeue_inflight", "inbox_status", "recent", "wake", "operator_msg"),
    *("whoami", "set_status", "logs", "publish", "control_done", "nonsense", "quiesce", "set_aside"),
    *("request_spawn", "request_init_config", "request_apply_commit", "request_update_meta_inputs"),
    *("open_config", "list_approvals", "list_agents", "kill", "start", "restart", "update", "cancel_thread"),
]
AGENT_FIELDS = [
    *("to", "body", "in_reply_to", "idempotency_key", "wait_seconds", "max", "ids", "limit", "from"),
    *("text", "lines", "events", "now", "id", "ok", "type", "reason", "failed"),
    *("name", "agent", "commit_ref", "description", "inputs", "kind"),
]
COMMANDS = [
    *("list", "agent_status", "set_paused", "start", "stop", "restart", "urls", "pending", "kill", "destroy"),
    *("send", "inbox", "messages", "why", "events", "logs", "cancel_turn", "new_session", "set_model"),
    *("status", "nonsense", "approve", "allow", "dead", "dead_retry", "dead_drop"),
]
HOST_FIELDS = [
    *("name", "paused", "scope", "graceful", "purge", "to", "body", "in_reply_to", "idempotency_key"),
    *("agent", "limit", "since", "id", "after", "kinds", "lines", "model", "agents"),
]


def _hostile_frame(rng: random.Random) -> bytes:
    """One input for an agent's socket after its hello.  What it begins need not end."""
    call_id = rng.choice([1, 1, 2, rng.randrange(-5, 100), 2**63 - 1])
    match rng.randrange(14):
        case 0:
            return rng.randbytes(rng.randrange(1, 300))
        case 1:
            return frame(rng.randbytes(rng.randrange(1, 300)))
        case 2:
            return struct.pack(">I", rng.choice([0, 2**24, 2**31, 2**32 - 1]))
        case 3:
            whole = frame(pack(["call", call_id, {"type": "whoami"}]))
            return whole[: rng.randrange(len(whole))]
        case 4:
            depth = rng.choice([50, 1000, 20_000])
            return frame(b"\x93\xa4call\x01" + b"\x91" * depth + b"\xc0")
        case 5:
            return frame(b"\x93\xa4call\x01" + b"\x81\xa1a" * rng.choice([100, 20_000]) + b"\xc0")
        case 6:
            return frame(b"\x93\xa4call\x01\x81\xa4type\xa4\xff\xfe\xfd\xfc")
        case 7:
            return frame(b"\x93\xa4call\x01\xdf\xff\xff\xff\xff")
        case 8:
            return frame(pack(["cancel", call_id]))
        case 9:
            tag = rng.choice(["call", "reply", "hello", "end", "item", "fault", "", "x" * 1000])
            return frame(pack([tag, *(_odd_value(rng) for _ in range(rng.randrange(5)))]))
        case 10:
            return frame(pack(_odd_value(rng)))
        case _:
            fields = {rng.choice(AGENT_FIELDS): _odd_value(rng) for _ in range(rng.randrange(5))}
            request = {**fields, "type": rng.choice(AGENT_TYPES)}
            return frame(pack(["call", call_id, request]))


def _hostile_line(rng: random.Random) -> bytes:
    """One input for host.sock, with or without its newline."""
    match rng.randrange(12):
        case 0:
            return rng.randbytes(rng.randrange(1, 500))
        case 1:
            return rng.randbytes(rng.randrange(1, 500)).replace(b"\n", b"") + b"\n"
        case 2:
            return b"[" * rng.choice([10, 1000, 1000, 20_000]) + b"\n"
        case 3:
            return b'{"a":' * rng.choice([10, 1000, 1000, 10_000]) + b"\n"
        case 4:
            return b'{"cmd":"why","id":' + b"9" * rng.choice([19, 100, 5000]) + b"}\n"
        case 5:
            return b'{"cmd":"send","to":"bob","body":"\xff\xfe\\ud800"}\n'
        case 6:
            whole = b'{"cmd":"agent_status"}\n'
            return whole[: rng.randrange(len(whole))]
        case 7:
            return b"\n" * rng.randrange(1, 500)
        case 8:
            return msgspec.json.encode(_odd_json(rng)) + b"\n"
        case _:
            fields = {rng.choice(HOST_FIELDS): _odd_json(rng) for _ in range(rng.randrange(5))}
            # Nobody here is called zed, so that chance does not destroy those who are watched.
            names = {key: "zed" for key in ("name", "agent", "to") if key in fields and rng.random() < 0.7}
            scope = {"scope": {"agent_names": ["zed"]}} if "scope" in fields else {}
            return msgspec.json.encode({**fields, **names, **scope, "cmd": rng.choice(COMMANDS)}) + b"\n"


def _odd_json(rng: random.Random) -> Any:
    value = _odd_value(rng)
    return "zed" if value in ("alice", "bob", "*") or isinstance(value, bytes) else value


def _throw(path: Path, first: bytes, inputs: list[bytes], rng: random.Random) -> None:
    """Say it all on one connection, and read as much of the answers as mood has it."""
    with suppress(OSError), connect(path, 10) as sock:
        sock.sendall(first)
        for hostile in inputs:
            sock.sendall(hostile)
        match rng.randrange(4):
            case 0:
                return
            case 1:
                sock.shutdown(socket.SHUT_WR)
                read_all(sock)
            case 2:
                sock.settimeout(0.02)
                sock.recv(1)
            case 3:
                sock.shutdown(socket.SHUT_WR)


def _siege(daemon: Daemon, path: Path, first: bytes, inputs: Iterator[bytes], rng: random.Random) -> None:
    batch: list[bytes] = []
    warm = 0
    for number, hostile in enumerate(inputs):
        batch.append(hostile)
        if len(batch) >= rng.randrange(1, 2 * PER_CONNECTION):
            _throw(path, first, batch, rng)
            batch = []
        if number == INPUTS // 10:
            warm = rss_of(daemon.pid)
    _throw(path, first, batch, rng)
    time.sleep(0.2)
    assert daemon.process is not None
    assert daemon.process.poll() is None, "the daemon has ended"
    grown = rss_of(daemon.pid) - warm
    print(f"{warm / 2**20:.0f} MB, grown by {grown / 2**20:.1f} MB")
    assert grown < MAX_GROWTH
    assert daemon.ask("status")["rss_bytes"] < warm + MAX_GROWTH


def test_ten_thousand_hostile_inputs_on_host_sock(besieged: Daemon) -> None:
    rng = seeded("host.sock")

    _siege(besieged, besieged.host_socket, b"", (_hostile_line(rng) for _ in range(INPUTS)), rng)

    assert besieged.ask("list")["agents"] == ["alice", "bob", "carol"]


def test_ten_thousand_hostile_inputs_on_an_agent_s_socket(besieged: Daemon) -> None:
    rng = seeded("mcp.sock")
    hello = frame(pack(["hello", 1, "agent", "hostile"]))

    _siege(besieged, besieged.agent_socket("alice"), hello, (_hostile_frame(rng) for _ in range(INPUTS)), rng)

    with besieged.agent("alice") as alice:
        assert alice.call("whoami")["name"] == "alice"
    assert besieged.ask("list")["agents"] == ["alice", "bob", "carol"]


# ── shapes of hostility ─────────────────────────────────────────────────────────────────────────


def test_lines_without_an_end_are_not_kept(besieged: Daemon) -> None:
    before = rss_of(besieged.pid)
    socks = [connect(besieged.host_socket) for _ in range(20)]
    for sock in socks:
        sock.sendall(b"x" * (2 * 2**20))
    with connect(besieged.host_socket) as sock, sock.makefile("rb") as lines:
        sock.sendall(b"y" * (2 * 2**20))
        assert b"longer than 1048576 bytes" in lines.readline()
        sock.sendall(b'yyy\n{"cmd":"list"}\n')
        assert b'"agents"' in lines.readline()

    assert rss_of(besieged.pid) - before < MAX_GROWTH
    for sock in socks:
        sock.close()


def test_frames_without_an_end_are_not_kept(besieged: Daemon) -> None:
    before = rss_of(besieged.pid)
    hello = frame(pack(["hello", 1, "agent", "hostile"]))
    socks = [connect(besieged.agent_socket("alice"), 0.03) for _ in range(60)]
    for number, sock in enumerate(socks):
        with suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
            # Half of them before their hello, half after it.
            sock.sendall(b"" if number % 2 else hello)
            sock.sendall(struct.pack(">I", 2**24 - 1) + b"z" * (12 * 2**20))
    grown = rss_of(besieged.pid) - before
    for sock in socks:
        sock.close()

    assert grown < MAX_GROWTH + 16 * 2**20


def test_calls_whose_answers_nobody_reads_end_the_connection(besieged: Daemon) -> None:
    call = frame(pack(["call", 1, {"type": "recent", "limit": 1000}]))
    before = rss_of(besieged.pid)
    with besieged.agent("alice", 5) as deaf, suppress(OSError):
        for number in range(100_000):
            deaf.write(["call", number + 1, {"type": "whoami"}])
    with besieged.agent("alice", 5) as deaf, suppress(OSError):
        for number in range(5_000):
            deaf.write(["call", number + 1, {"type": "send", "to": "nobody", "body": "x" * 1000}])
    with besieged.agent("alice", 5) as deaf, suppress(OSError):
        deaf.socket.sendall(call * 100)

    assert rss_of(besieged.pid) - before < MAX_GROWTH


def test_requests_whose_answers_nobody_reads_are_not_carried_out_ahead(besieged: Daemon) -> None:
    before = rss_of(besieged.pid)
    with connect(besieged.host_socket, 1) as sock, suppress(TimeoutError):
        for _ in range(200_000):
            sock.sendall(b'{"cmd":"agent_status"}\n')

    assert rss_of(besieged.pid) - before < MAX_GROWTH


def test_thousands_of_calls_at_once_are_all_answered(besieged: Daemon) -> None:
    with besieged.agent("alice") as alice:
        for number in range(1, 3001):
            alice.write(["call", number, {"type": "send", "to": "nobody", "body": "x"}])
        answers = [alice.read() for _ in range(3000)]

    assert [answer[1] for answer in answers if answer] == list(range(1, 3001))
    assert {answer[2] for answer in answers if answer} == {"not_found"}


def test_a_call_id_that_is_open_twice_ends_the_connection_and_no_other(besieged: Daemon) -> None:
    with besieged.agent("alice") as alice, besieged.agent("alice") as other:
        alice.begin("subscribe_control")  # stays open, whatever waits in the mailbox
        assert alice.read() == ["item", 1, {"type": "set_paused", "id": 0, "paused": False}]
        alice.write(["call", 1, {"type": "whoami"}])
        fault = alice.read()
        assert fault is not None
        assert fault[:3] == ["fault", 0, "invalid_argument"]
        assert "open already" in fault[3]
        assert alice.read() is None
        assert other.call("whoami")["name"] == "alice"


def test_cancelling_what_is_not_there_is_ignored(besieged: Daemon) -> None:
    with besieged.agent("alice") as alice:
        for number in range(1, 5000):
            alice.write(["cancel", number])
        assert alice.call("whoami")["name"] == "alice"


def test_a_hundred_connections_at_once_leave_place_for_others(besieged: Daemon) -> None:
    for path in (besieged.agent_socket("alice"), besieged.host_socket):
        crowd = [connect(path) for _ in range(100)]
        # The two of others at host.sock, and those of agents at theirs, are inside already.
        assert besieged.ask("list") if path != besieged.host_socket else True
        for sock in crowd:
            sock.close()

        def lets_in(path: Path = path) -> bool:
            try:
                if path == besieged.host_socket:
                    return bool(besieged.ask("list"))
                with besieged.agent("alice") as alice:
                    return bool(alice.call("whoami"))
            except (Fault, Exception):
                return False

        wait_until(lets_in, "there is place again")


@pytest.mark.parametrize(
    "call",
    [
        {"type": "whoami"},
        {"type": "recent", "limit": 1000},
        {"type": "send", "to": "bob", "body": "x" * 1000},
    ],
    ids=lambda call: str(call["type"]),
)
def test_a_flood_of_calls_on_sixty_connections_slows_nobody_down_for_long(
    besieged: Daemon, call: dict[str, Any]
) -> None:
    for _ in range(20):
        besieged.send("alice", "x" * 50_000)
    program = Path(__file__).with_name("flood.py")
    argv = [str(besieged.agent_socket("alice")), "60", "1", msgspec.json.encode(call).decode()]

    flood = subprocess.run([sys.executable, str(program), *argv], capture_output=True, text=True, timeout=30)

    assert flood.returncode == 0, flood.stderr
    assert int(flood.stdout) > 50_000


def test_file_descriptors_that_a_peer_sends_along_are_not_kept(besieged: Daemon) -> None:
    hello = frame(pack(["hello", 1, "agent", "hostile"]))
    descriptors = Path(f"/proc/{besieged.pid}/fd")
    before = len(list(descriptors.iterdir()))
    with connect(besieged.agent_socket("alice")) as sock, connect(besieged.host_socket) as other:
        socket.send_fds(sock, [hello], [0] * 100)
        socket.send_fds(sock, [frame(pack(["call", 1, {"type": "whoami"}]))], [0] * 100)
        socket.send_fds(other, [b'{"cmd":"list"}\n'], [0] * 100)
        assert b"agents" in other.recv(1000)
        assert sock.recv(1000)

        assert len(list(descriptors.iterdir())) <= before + 10


def test_peers_that_connect_and_close_are_nothing(besieged: Daemon) -> None:
    for _ in range(1000):
        for path in (besieged.agent_socket("alice"), besieged.host_socket):
            connect(path).close()

    assert besieged.ask("list")


@pytest.mark.skipif(not SOAK_S, reason="waits for 10 s: set HIVE_SOAK_SECONDS")
def test_peers_that_never_say_hello_are_sent_away(besieged: Daemon) -> None:
    silent = [connect(besieged.agent_socket("alice"), 20) for _ in range(30)]
    for sock in silent[:15]:
        sock.sendall(b"\x00")
    began = time.monotonic()

    said = [read_all(sock) for sock in silent]

    assert time.monotonic() - began < 15
    assert all(b"no hello within" in words for words in said)
    for sock in silent:
        sock.close()


def test_followers_who_never_read_cost_little(besieged: Daemon) -> None:
    before = rss_of(besieged.pid)
    deaf = [connect(besieged.host_socket) for _ in range(40)]
    for sock in deaf:
        sock.sendall(b'{"cmd":"watch"}\n')
    with besieged.agent("alice") as alice:
        for number in range(1, 200):
            event = {"id": number, "ts": 1.0, "kind": "note", "payload": {"text": "x" * 100_000}}
            alice.call("publish", events=[event])

    assert rss_of(besieged.pid) - before < MAX_GROWTH + 10 * 2**20  # the rings of live events are 10 MB
    for sock in deaf:
        sock.close()

"""`hive-agent mcp` between real pipes and a real daemon, which comes and goes."""

import os
import random
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from .conftest import Daemon, wait_until

BRIDGE = [sys.executable, "-m", "hive_agent", "mcp"]


class Bridge:
    """The bridge's process, and the client at its pipes."""

    def __init__(self, path: Path, *more: str) -> None:
        self.process = subprocess.Popen(
            [*BRIDGE, "--socket", str(path), *more],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._last_id = 0
        self._buffer = b""

    def begin(self, method: str, **params: Any) -> int:
        self._last_id += 1
        assert self.process.stdin is not None
        request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        self.process.stdin.write(msgspec.json.encode(request) + b"\n")
        self.process.stdin.flush()
        return self._last_id

    def begin_tool(self, name: str, /, **arguments: Any) -> int:
        return self.begin("tools/call", name=name, arguments=arguments)

    def read(self, limit_s: float = 15.0) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], limit_s)
            assert ready, "the bridge says nothing"
            chunk = os.read(self.process.stdout.fileno(), 1 << 16)
            assert chunk, "the bridge has ended"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = msgspec.json.decode(line)
        return answer

    def finish(self, request_id: int) -> dict[str, Any]:
        answer = self.read()
        assert answer["id"] == request_id, answer
        return answer

    def tool(self, name: str, /, **arguments: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.finish(self.begin_tool(name, **arguments))["result"]
        return result

    def greet(self) -> dict[str, Any]:
        version: dict[str, Any] = {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "t"},
        }
        return self.finish(self.begin("initialize", **version))

    def close(self) -> tuple[int, bytes]:
        """Close its input; give its exit status and what else it says."""
        out, err = self.process.communicate(timeout=10)
        assert b"Traceback" not in err
        return self.process.returncode, out


@contextmanager
def bridged(path: Path, *more: str) -> Iterator[Bridge]:
    bridge = Bridge(path, *more)
    try:
        yield bridge
    finally:
        bridge.process.kill()
        bridge.process.communicate()


def test_it_gives_what_the_socket_gives(shared: Daemon) -> None:
    with bridged(shared.path()) as bridge:
        assert bridge.greet()["result"]["serverInfo"]["name"] == "hyperhive"
        assert bridge.tool("whoami")["structuredContent"]["name"] == "alice"
        assert bridge.close() == (0, b"")


def test_a_call_while_the_daemon_restarts_waits_and_succeeds(daemon: Daemon) -> None:
    with bridged(daemon.path()) as bridge:
        bridge.greet()
        daemon.kill()
        asked = bridge.begin_tool("send", to="bob", body="x")
        time.sleep(0.3)
        daemon.start()

        assert "isError" not in bridge.finish(asked)["result"]
    assert [row["body"] for row in daemon.inbox("bob")] == ["x"]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_parked_recv_outlives_the_daemon(daemon: Daemon, end: str) -> None:
    with bridged(daemon.path()) as bridge:
        bridge.greet()
        parked = bridge.begin_tool("recv", wait_seconds=60)
        time.sleep(0.2)
        getattr(daemon, end)()
        daemon.start()
        sent = daemon.send("for you")

        (message,) = bridge.finish(parked)["result"]["structuredContent"]["messages"]
        assert message["id"] == sent


def test_sends_arrive_once_however_often_the_daemon_is_killed_under_them(daemon: Daemon) -> None:
    source = random.Random(5)
    with bridged(daemon.path()) as bridge:
        bridge.greet()
        asked: list[int] = []
        answered: set[int] = set()
        for _ in range(5):
            asked += [bridge.begin_tool("send", to="bob", body=f"m{len(asked) + n}") for n in range(25)]
            time.sleep(source.uniform(0, 0.02))
            daemon.kill()
            daemon.start()
            while len(answered) < len(asked):
                answer = bridge.read()
                assert "isError" not in answer["result"]
                answered.add(answer["id"])
        assert answered == set(asked)
    bodies = [row["body"] for row in daemon.inbox("bob")]
    assert sorted(bodies) == sorted(f"m{number}" for number in range(125))


def test_a_daemon_that_stays_away_is_an_error_and_its_return_is_noticed(daemon: Daemon) -> None:
    with bridged(daemon.path(), "--patience", "0.5") as bridge:
        bridge.greet()
        daemon.kill()
        answer = bridge.finish(bridge.begin_tool("whoami"))
        assert answer["error"]["code"] == -32001
        assert "was away for 0.5 s" in answer["error"]["message"]
        daemon.start()
        wait_until(lambda: "result" in bridge.finish(bridge.begin_tool("whoami")), "it works again")


def test_an_agent_without_a_daemon_can_be_greeted_when_there_is_one(daemon: Daemon) -> None:
    daemon.kill()
    with bridged(daemon.path()) as bridge:
        time.sleep(0.2)
        assert bridge.process.stdin is not None
        daemon.start()
        assert bridge.greet()["result"]["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_and_quietly(shared: Daemon, number: signal.Signals) -> None:
    with bridged(shared.path()) as bridge:
        bridge.greet()
        bridge.begin_tool("recv", wait_seconds=60)
        began = time.monotonic()
        bridge.process.send_signal(number)
        _, err = bridge.process.communicate(timeout=10)

        assert time.monotonic() - began < 1
        assert err == b""


def test_the_end_of_its_input_ends_it_after_the_answers(shared: Daemon) -> None:
    shared.send("one")
    with bridged(shared.path()) as bridge:
        bridge.greet()
        bridge.begin_tool("send", to="bob", body="last words")
        bridge.begin_tool("get_logs")
        began = time.monotonic()
        status, out = bridge.close()

        assert status == 0
        assert {msgspec.json.decode(line)["id"] for line in out.splitlines()} == {2, 3}
        assert time.monotonic() - began < 2


def test_the_end_of_its_input_gives_up_what_is_parked(shared: Daemon) -> None:
    with bridged(shared.path()) as bridge:
        bridge.greet()
        bridge.begin_tool("recv", wait_seconds=60)
        began = time.monotonic()
        assert bridge.close() == (0, b"")
        assert time.monotonic() - began < 2


def test_the_end_of_its_reader_ends_it(shared: Daemon) -> None:
    with bridged(shared.path()) as bridge:
        bridge.greet()
        assert bridge.process.stdout is not None
        bridge.process.stdout.close()
        assert bridge.process.wait(5) == 0


def test_without_a_daemon_it_says_so_at_the_end_of_its_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [*BRIDGE, "--socket", str(tmp_path / "none")], input=b"", capture_output=True, timeout=10
    )
    assert (done.returncode, done.stderr) == (5, f"cannot reach the daemon at {tmp_path}/none\n".encode())


def test_its_socket_comes_from_the_environment_and_may_have_a_long_path(shared: Daemon) -> None:
    long = shared.base / ("x" * 120)
    long.mkdir()
    (long / "s").symlink_to(shared.path())
    done = subprocess.run(
        BRIDGE,
        input=b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n',
        env=os.environ | {"HIVE_AGENT_SOCKET": str(long / "s")},
        capture_output=True,
        timeout=10,
    )
    assert (done.stdout, done.returncode) == (b'{"jsonrpc":"2.0","id":1,"result":{}}\n', 0)


def test_large_answers_and_a_slow_reader(shared: Daemon) -> None:
    with bridged(shared.path()) as bridge:
        bridge.greet()
        body = "é" * 32_000
        asked = [bridge.begin_tool("send", to="alice", body=body) for _ in range(40)]
        taken = [bridge.begin_tool("recv", wait_seconds=5) for _ in range(40)]
        time.sleep(0.5)
        answers = [bridge.read() for _ in asked + taken]

        assert {answer["id"] for answer in answers} == {*asked, *taken}
        bodies = [
            message["body"]
            for answer in answers
            for message in answer["result"]["structuredContent"].get("messages", [])
        ]
        assert bodies == [body] * 40


def test_it_imports_next_to_nothing() -> None:
    probe = "import sys; sys.argv[1:] = ['mcp', '--socket', '/none']; from hive_agent.__main__ import main; main(); sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); {probe}"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=10,
    )  # fmt: skip
    assert not {"typing", "re", "enum", "json", "socket", "argparse", "msgspec", "trio"} & set(
        done.stderr.split()
    )


def test_it_starts_within_its_budget(shared: Daemon) -> None:
    """Against an interpreter that does nothing: 3 (design budget), here with room for a busy machine."""
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'
    commands = {
        "bare": [sys.executable, "-I", "-S", "-c", "pass"],
        "mcp": [*BRIDGE, "--socket", str(shared.path())],
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(16):
        for name, command in commands.items():
            began = time.perf_counter()
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                if name == "mcp":
                    process.stdin.write(ping)
                    process.stdin.flush()
                assert process.stdout.read(1) in {b"", b"{"}
                took_s = time.perf_counter() - began
                process.stdin.close()
            if turn:
                spent[name].append(took_s)
    bare, mcp = (statistics.median(spent[name]) for name in ("bare", "mcp"))
    print(f"hive-agent mcp, exec to first byte: {mcp * 1000:.1f} ms = {mcp / bare:.2f} x bare Python")
    assert mcp / bare < 4.5

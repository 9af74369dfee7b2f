"""An answer to recv that gets lost on its way: what was in it comes again, whatever its turn says.

The other way round, what was read is done with its turn and does not come again.
"""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from hive_agent.providers.claude.pump import Pump
from hive_core.wire import agent, envelope

from .conftest import Daemon, Harness, wait_until
from .test_bridge import bridged

TELLS = {"hyperhive/tells": True}
LARGE = "€" * 21_000
"""Four of them are an answer that no socket's buffer holds."""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Let the process do nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def begin_turn(daemon: Daemon, harness: Harness, *bodies: str) -> tuple[int, list[int]]:
    """Give the message that a turn began with, and those that wait behind it."""
    begun, *behind = [daemon.send(body) for body in ("begin", *bodies)]
    assert harness.recv() == begun
    return begun, behind


def handed_out(daemon: Daemon) -> None:
    wait_until(lambda: daemon.unread() == 0, "all is handed out")


def waits_again(daemon: Daemon, *ids: int) -> None:
    """They are deliverable, flagged, and nothing else is left."""
    wait_until(lambda: daemon.unread() == len(ids), "they are deliverable again")
    with daemon.mcp() as client:
        found = client.recv(max=32)
    assert [message["id"] for message in found] == list(ids)
    assert all(message["redelivered"] for message in found)


def is_done(daemon: Daemon) -> None:
    wait_until(lambda: daemon.inbox("alice") == [], "everything is done")


# ── the connection is lost, the daemon is not ───────────────────────────────────────────────────


def test_many_unread_answers_all_come_again(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, *"abcdefgh")
        client = daemon.mcp()
        for _ in behind:
            client.begin_tool("recv")
        handed_out(daemon)
        client.close()
        wait_until(lambda: daemon.unread() == len(behind), "all are deliverable again")

        assert harness.ack(begun) == 1
    waits_again(daemon, *behind)


def test_an_answer_that_was_half_read_comes_again(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, *[LARGE] * 4)
        client = daemon.mcp()
        client.begin_tool("recv", max=4)
        handed_out(daemon)
        with stopped(daemon.pid):
            # All that the kernel holds; the rest is still in the daemon, and so nothing is reset.
            client.socket.setblocking(False)
            read = 0
            with pytest.raises(BlockingIOError):
                while True:
                    read += len(client.socket.recv(1 << 20))
            client.close()
        assert 0 < read < 4 * len(LARGE.encode())
        wait_until(lambda: daemon.unread() == 4, "they are deliverable again")

        assert harness.ack(begun) == 1
    waits_again(daemon, *behind)


def test_a_turn_does_not_take_along_what_nobody_has_read(daemon: Daemon) -> None:
    for _ in range(12):
        with daemon.harness() as harness:
            begun, behind = begin_turn(daemon, harness, "a")
            client = daemon.mcp()
            client.begin_tool("recv")
            handed_out(daemon)
            with stopped(daemon.pid):
                # Both at once: which of the two it sees first is a matter of chance.
                client.close()
                harness.socket.sendall(envelope.encode_call(100, agent.AckTurn(ids=[begun])))
            waits_again(daemon, *behind)
        with daemon.harness() as harness:
            harness.finish_all()


def test_an_answer_that_is_read_after_the_end_of_its_turn_is_done_with_it(daemon: Daemon) -> None:
    with daemon.harness() as harness, daemon.mcp() as client:
        begun, _ = begin_turn(daemon, harness, "a")
        asked = client.begin_tool("recv")
        handed_out(daemon)
        assert harness.ack(begun) == 1  # the other one is still in the socket
        client.finish(asked)
        client.ask("ping")

        is_done(daemon)


def test_a_client_that_reads_all_and_leaves_gives_nothing_back(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, _ = begin_turn(daemon, harness, "a")
        with daemon.mcp() as client:
            client.recv()
        time.sleep(0.1)

        harness.ack(begun)
        is_done(daemon)


@pytest.mark.parametrize("reads", [False, True])
def test_a_client_that_has_said_its_last_word_may_read_or_not(daemon: Daemon, reads: bool) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, "a")
        client = daemon.mcp()
        asked = client.begin_tool("recv")
        client.socket.shutdown(socket.SHUT_WR)
        handed_out(daemon)
        assert harness.ack(begun) == 1
        if reads:
            time.sleep(0.2)
            client.finish(asked)
        client.close()
    if reads:
        is_done(daemon)
    else:
        waits_again(daemon, *behind)


def test_an_id_that_a_client_uses_for_every_call_does_no_harm(daemon: Daemon) -> None:
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "recv"}}
    with daemon.harness() as harness, daemon.mcp() as client:
        begun, behind = begin_turn(daemon, harness, "a", "b")
        for message_id in behind:
            client.write(call)
            answer = client.finish(1)["result"]["structuredContent"]
            assert [message["id"] for message in answer["messages"]] == [message_id]

        assert harness.ack(begun) == 3
        is_done(daemon)


# ── a client that tells when it has the answer ──────────────────────────────────────────────────


def test_what_a_client_does_not_say_it_has_is_not_done(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, "a")
        with daemon.mcp() as client:
            client.tool("recv", TELLS)
            assert harness.ack(begun) == 1
        waits_again(daemon, *behind)


@pytest.mark.parametrize("late", [False, True])
def test_what_a_client_says_it_has_is_done_with_its_turn(daemon: Daemon, late: bool) -> None:
    with daemon.harness() as harness, daemon.mcp() as client:
        begun, _ = begin_turn(daemon, harness, "a")
        asked = client.begin_tool("recv", TELLS)
        client.finish(asked)
        if late:
            assert harness.ack(begun) == 1
        client.notify("notifications/hyperhive/received", requestId=asked)
        client.ask("ping")
        if not late:
            assert harness.ack(begun) == 2

        is_done(daemon)


def test_a_cancel_takes_back_what_was_said_to_be_there(daemon: Daemon) -> None:
    with daemon.mcp() as client:
        sent = daemon.send("a")
        asked = client.begin_tool("recv", TELLS)
        client.finish(asked)
        client.notify("notifications/hyperhive/received", requestId=asked)
        client.notify("notifications/cancelled", requestId=asked)

        assert [message["id"] for message in client.recv()] == [sent]


def test_a_receipt_of_nothing_is_passed_over(daemon: Daemon) -> None:
    with daemon.mcp() as client:
        client.notify("notifications/hyperhive/received", requestId=77)
        client.write({"jsonrpc": "2.0", "method": "notifications/hyperhive/received", "params": {}})
        client.write({"jsonrpc": "2.0", "method": "notifications/hyperhive/received"})
        assert client.ask("ping")["result"] == {}


# ── the bridge ──────────────────────────────────────────────────────────────────────────────────


def test_what_a_killed_bridge_had_not_passed_on_comes_again(daemon: Daemon) -> None:
    with daemon.harness() as harness, bridged(daemon.path()) as bridge:
        bridge.greet()
        begun, behind = begin_turn(daemon, harness, *[LARGE] * 4)
        bridge.begin_tool("recv", max=4)
        handed_out(daemon)
        time.sleep(0.3)  # it has read what it can, and its client reads nothing
        bridge.process.kill()
        wait_until(lambda: daemon.unread() == 4, "they are deliverable again")

        assert harness.ack(begun) == 1
    waits_again(daemon, *behind)


def test_whenever_a_bridge_is_killed_its_message_was_read_or_comes_again(daemon: Daemon) -> None:
    at_random = random.Random(7)
    for _ in range(20):
        with daemon.harness() as harness, bridged(daemon.path()) as bridge:
            bridge.greet()
            begun, (drained,) = begin_turn(daemon, harness, "a")
            bridge.begin_tool("recv")
            time.sleep(at_random.choice((0, 0.001, 0.002, 0.005, 0.02)))
            bridge.process.kill()
            assert bridge.process.stdout is not None
            was_read = b'"structuredContent"' in bridge.process.stdout.read()
            harness.ack(begun)
        wait_until(lambda: daemon.unread() == 1 or not daemon.inbox("alice"), "it waits or is done")
        assert was_read or drained in [row["id"] for row in daemon.inbox("alice")]
        with daemon.harness() as harness:
            harness.finish_all()


def test_what_the_bridge_has_passed_on_is_done_with_its_turn(daemon: Daemon) -> None:
    with daemon.harness() as harness, bridged(daemon.path()) as bridge:
        bridge.greet()
        begun, _ = begin_turn(daemon, harness, "a", "b")
        for _ in range(2):
            assert len(bridge.tool("recv")["structuredContent"]["messages"]) == 1
        harness.ack(begun)

        is_done(daemon)


# ── the daemon goes ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_what_an_ended_daemon_had_handed_out_comes_again(daemon: Daemon, end: str) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, "a", "b")
        client = daemon.mcp()
        client.begin_tool("recv")
        wait_until(lambda: daemon.unread() == 1, "one is handed out")
    getattr(daemon, end)()
    daemon.start()
    client.close()
    with daemon.harness() as harness:  # the same turn, over a new connection
        assert harness.ack(begun) == 1
    wait_until(lambda: daemon.unread() == 2, "both are deliverable")
    with daemon.mcp() as again:
        found = again.recv(max=32)

    assert [message["id"] for message in found] == behind
    assert found[0]["redelivered"]


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_bridge_asks_the_next_daemon_and_gets_what_the_last_one_had_leased(
    daemon: Daemon, end: str
) -> None:
    with daemon.harness() as harness, bridged(daemon.path()) as bridge:
        bridge.greet()
        begun, _ = begin_turn(daemon, harness)
        asked = bridge.begin_tool("recv", wait_seconds=60)
        bridge.tool("whoami")  # and the other one is parked
        with stopped(bridge.process.pid):
            sent = daemon.send("a")
            handed_out(daemon)
            getattr(daemon, end)()
            daemon.start()
            with daemon.harness() as again:
                assert again.ack(begun) == 1
        (message,) = bridge.finish(asked)["result"]["structuredContent"]["messages"]
        assert message["id"] == sent
        # The last daemon's answer lay in the bridge's socket; the next one cannot know that it was read.
        wait_until(lambda: [row["id"] for row in daemon.inbox("alice")] == [sent], "it is not done")


# ── claude's pump ───────────────────────────────────────────────────────────────────────────────


class Pumped:
    """A pump at a daemon's door, in claude's place, and what claude gets from it."""

    def __init__(self, path: Path) -> None:
        self.pump = Pump(path, self._answer)
        self.answers: dict[str, dict[str, Any]] = {}
        self._changed = trio.Event()

    async def _answer(self, control_id: str, message: dict[str, Any]) -> None:
        self.answers[control_id] = message
        self._changed.set()
        self._changed = trio.Event()

    async def recv(self, tool_use: str) -> list[int]:
        params = {
            "name": "recv",
            "arguments": {"wait_seconds": 5},
            "_meta": {"claudecode/toolUseId": tool_use},
        }
        number = len(self.answers) + 1
        message = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
        await self.pump.take(tool_use, message)
        with trio.fail_after(10):
            while tool_use not in self.answers:
                await self._changed.wait()
        answer = self.answers[tool_use]["result"]["structuredContent"]
        return [message["id"] for message in answer["messages"]]


async def test_what_claude_was_given_and_did_not_show_comes_again(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, "a", "b")
        async with trio.open_nursery() as nursery:
            pumped = Pumped(daemon.path())
            nursery.start_soon(pumped.pump.run)
            assert [await pumped.recv("toolu_1"), await pumped.recv("toolu_2")] == [behind[:1], behind[1:]]
            pumped.pump.seen("toolu_1")
            with trio.fail_after(10):
                await pumped.pump.settle()
            nursery.cancel_scope.cancel()
        wait_until(lambda: daemon.unread() == 1, "the other one is deliverable again")

        assert harness.ack(begun) == 2
    waits_again(daemon, behind[1])


async def test_what_claude_has_had_when_it_ends_well_is_done(daemon: Daemon) -> None:
    with daemon.harness() as harness:
        begun, behind = begin_turn(daemon, harness, "a")
        async with trio.open_nursery() as nursery:
            pumped = Pumped(daemon.path())
            nursery.start_soon(pumped.pump.run)
            assert await pumped.recv("toolu_1") == behind
            await pumped.pump.seen_all()
            nursery.cancel_scope.cancel()
        harness.ack(begun)

        is_done(daemon)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_an_answer_that_outlived_its_daemon_is_read_and_comes_again(daemon: Daemon, end: str) -> None:
    with daemon.harness() as harness:
        begun, _ = begin_turn(daemon, harness)
        async with trio.open_nursery() as nursery:
            pumped = Pumped(daemon.path())
            nursery.start_soon(pumped.pump.run)
            asked = trio.Event()

            async def ask() -> None:
                assert await pumped.recv("toolu_1") == [sent]
                asked.set()

            nursery.start_soon(ask)
            await trio.sleep(0.3)
            # Nothing of this lets the pump run.
            sent = daemon.send("a")
            handed_out(daemon)
            getattr(daemon, end)()
            daemon.start()
            await asked.wait()
            pumped.pump.seen("toolu_1")
            await pumped.pump.settle()
            with daemon.harness() as again:
                assert again.ack(begun) == 1
            nursery.cancel_scope.cancel()
    waits_again(daemon, sent)


def test_a_new_harness_gets_everything_that_the_last_one_held(daemon: Daemon) -> None:
    program = (
        "import sys, time\n"
        "sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "from mcp_door.conftest import Harness, Mcp\n"
        "from hive_core.wire.agent import Recv\n"
        "harness, client = Harness(Path(sys.argv[1])), Mcp(Path(sys.argv[1]))\n"
        "harness.recv()\n"
        "client.begin_tool('recv')\n"
        "time.sleep(60)\n"
    )
    ids = [daemon.send(body) for body in "ab"]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", program, str(daemon.path())], env=environ) as process:
        handed_out(daemon)
        process.kill()
    with daemon.harness() as harness:
        harness.call(agent.RequeueInflight())
    waits_again(daemon, *ids)

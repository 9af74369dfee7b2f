"""Agents' sockets with nobody behind them but the test."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from daemon import kit
from daemon.kit import McpClient as Mcp
from daemon.kit import home_of, wait_until

__all__ = ["Daemon", "Harness", "Mcp", "wait_until"]

AGENTS = ("alice", "bob")


class Daemon(kit.Daemon):
    """A daemon with alice and bob, whose harnesses do not run.  Where nobody is named it is about alice."""

    def path(self, name: str = "alice") -> Path:
        return self.agent_socket(name)

    def send(self, body: str, to: str = "alice") -> int:  # type: ignore[override]
        return super().send(to, body)

    def unread(self, name: str = "alice") -> int:
        """How many messages of *name* are deliverable."""
        return int(self.row(name)["unread"])

    def harness(self, name: str = "alice") -> "Harness":
        return Harness(self.path(name))


class Harness(kit.AgentClient):
    """Turns in frames, as the harness takes them."""

    def call(self, request: str | msgspec.Struct, **fields: Any) -> dict[str, Any]:
        if not isinstance(request, str):
            fields = msgspec.to_builtins(request)
            request = fields.pop("type")
        return super().call(request, **fields)

    def recv(self) -> int:  # type: ignore[override]
        """Begin a turn; give the id of its message."""
        (message,) = super().recv(wait_seconds=5)
        return int(message["id"])

    def ack(self, message_id: int) -> int:
        return int(self.call("ack_turn", ids=[message_id])["acked"])

    def finish_all(self) -> None:
        """Take and finish whatever is there."""
        self.call("requeue_inflight")
        while messages := super().recv(max=32):
            self.call("ack_turn", ids=[message["id"] for message in messages])


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon of the test's own, which it may kill."""
    with home_of(Daemon()) as daemon:
        yield daemon.add_stopped(*AGENTS).start()


@pytest.fixture(scope="module")
def _running() -> Iterator[Daemon]:
    with home_of(Daemon()) as daemon:
        yield daemon.add_stopped(*AGENTS).start()
        assert daemon.stop() == 0


@pytest.fixture
def shared(_running: Daemon) -> Iterator[Daemon]:
    """The daemon that a module's tests take in turn; what one leaves in an inbox the next does not see."""
    yield _running
    for name in AGENTS:
        with _running.harness(name) as harness:
            harness.finish_all()
        wait_until(lambda name=name: not _running.inbox(name), f"nothing of {name}'s is left")

"""A real hive in real processes, small: a daemon, its agents with the scripted provider, a client."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hive_core.wire.client import Client, TimedOut, Unreachable

STUB_LOGIN = Path(__file__).parents[1] / "agent/stub_login.py"


def wait_until(holds: Callable[[], Any], what: str, limit_s: float = 20.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.03)
    return value


class Hive:
    def __init__(self) -> None:
        self.base = Path(tempfile.mkdtemp(prefix="hive3-"))
        self.home = self.base / "h"
        self._process: subprocess.Popen[bytes] | None = None
        self._env: dict[str, str] = {}

    def start(self, env: Mapping[str, str] | None = None) -> "Hive":
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HIVE", "HYPER"))}
        self._env = kept | dict(env or {})
        self.restart()
        return self

    def restart(self) -> None:
        argv = [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(self.home)]
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, env=self._env)
        wait_until(self._answers, "the daemon answers")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def clean_up(self) -> None:
        with suppress(Exception):
            for row in self.ask("agent_status")["agent_statuses"]:
                self.ask("destroy", name=row["name"])
            wait_until(lambda: not self.ask("list")["agents"], "the agents are gone")
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            self._process.kill()
            self._process.wait(10)
        shutil.rmtree(self.base, ignore_errors=True)

    def client(self) -> Client:
        return Client(self.home / "run/host.sock", 15.0)

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        with self.client() as client:
            return client.ask({"cmd": cmd, **fields})

    def spawn(self, name: str) -> None:
        self.ask("spawn", name=name)
        self.wait_row(name, connected=True)

    def row(self, name: str) -> dict[str, Any]:
        rows = self.ask("agent_status")["agent_statuses"]
        return next(row for row in rows if row["name"] == name)

    def wait_row(self, name: str, **wanted: Any) -> dict[str, Any]:
        def as_wanted() -> dict[str, Any] | None:
            row = self.row(name)
            return row if all(row.get(key) == value for key, value in wanted.items()) else None

        found: dict[str, Any] = wait_until(as_wanted, f"{name} is {wanted}")
        return found

    def send(self, to: str, body: str) -> int:
        return int(self.ask("send", to=to, body=body)["id"])

    def wait_acked(self, message_id: int) -> None:
        def is_acked() -> bool:
            (row,) = self.ask("messages", since=message_id - 1, limit=1)["messages"]
            return "acked_at" in row

        wait_until(is_acked, f"message {message_id} is done")

    def state(self, name: str) -> Path:
        return self.home / "state/agents" / name / "state"

    def stored(self, name: str) -> list[dict[str, Any]]:
        """Every event in the agent's file."""
        found: list[dict[str, Any]] = []
        while page := self.ask("events", agent=name, after=found[-1]["id"] if found else 0)["events"]:
            found += page
        return found

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.base / "log").read_text()
        try:
            return bool(self.ask("status")["pid"] == self._process.pid)
        except (Unreachable, TimedOut):
            return False


class Follower:
    """Follows an agent's events in a thread until the connection ends, or it is closed."""

    def __init__(self, hive: Hive, agent: str, after: int, **fields: Any) -> None:
        self.rows: list[dict[str, Any]] = []
        self._client = hive.client()
        self._request = {"cmd": "events", "agent": agent, "follow": True, "after": after, **fields}
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def ids(self) -> list[int]:
        return [row["id"] for row in self.rows]

    def wait(self, holds: Callable[[dict[str, Any]], bool], what: str) -> None:
        wait_until(lambda: any(holds(row) for row in self.rows), what)

    def close(self) -> None:
        with suppress(OSError):
            self._client._socket.shutdown(socket.SHUT_RDWR)
        self.join()

    def join(self) -> None:
        self._thread.join(20)
        self._client.close()

    def _run(self) -> None:
        with suppress(Exception):
            for item in self._client.follow(self._request):
                self.rows += item["events"]


@pytest.fixture
def hive() -> Iterator[Hive]:
    hive = Hive()
    yield hive
    hive.clean_up()

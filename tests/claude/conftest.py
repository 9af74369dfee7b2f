"""The real claude on a scripted API, alone and in a real hive."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_api.install_claude import find_claude, why_not
from fake_api.server import FakeApi

from hive_core.wire.client import Client, TimedOut, Unreachable

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = find_claude() is None
    reason = why_not() or "it is not installed: run tests/fake_api/install_claude.py"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.claude)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"no real claude: {reason}"))


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def environment(api: FakeApi, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"),
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "sk-ant-api03-fake",
        "CLAUDE_CODE_MAX_RETRIES": "1",
    }


def wait_until(holds: Callable[[], Any], what: str, limit_s: float = 30.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return value


class Hive:
    """A daemon with agents whose provider is the real claude."""

    def __init__(self, environment: dict[str, str]) -> None:
        # Not tmp_path: the path of a socket has 107 bytes.
        self.base = Path(tempfile.mkdtemp(prefix="hive-claude-test-"))
        self.home = self.base / "h"
        self._environment = {**environment, "HIVE_CLAUDE_BIN": str(find_claude())}
        self._environment.pop("CLAUDE_CONFIG_DIR")
        config = self.base / "config.toml"
        # Whoever kills on purpose must not run into the limit for machines that crash.
        config.write_text('[harness]\nprovider = "claude"\n[machines]\nrestart_limit = 100\n')
        self._argv = [sys.executable, "-m", "hive_core", "serve", "--local"]
        self._argv += ["--home", str(self.home), "--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.base / "log").open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, env=self._environment)
        wait_until(self._answers, "the daemon answers")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def stop(self) -> None:
        for row in self.ask("agent_status")["agent_statuses"]:
            self.ask("destroy", name=row["name"])
        wait_until(lambda: not self.ask("list")["agents"], "the agents are gone")
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)

    def remove(self) -> None:
        with suppress(Exception):
            self.stop()
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self.base, ignore_errors=True)

    def ask(self, cmd: str, **fields: Any) -> dict[str, Any]:
        with Client(self.home / "run/host.sock", 15.0) as client:
            return client.ask({"cmd": cmd, **fields})

    def spawn(self, *names: str) -> None:
        for name in names:
            self.ask("spawn", name=name)
        for name in names:
            wait_until(lambda name=name: self.row(name).get("connected"), f"{name} is there")

    def row(self, name: str) -> dict[str, Any]:
        rows = self.ask("agent_status")["agent_statuses"]
        return next(row for row in rows if row["name"] == name)

    def send(self, to: str, body: str) -> int:
        return int(self.ask("send", to=to, body=body)["id"])

    def messages(self) -> list[dict[str, Any]]:
        return list(self.ask("messages", limit=1000)["messages"])

    def wait_done(self, message_id: int) -> None:
        def is_done() -> bool:
            return any(row["id"] == message_id and "acked_at" in row for row in self.messages())

        wait_until(is_done, f"message {message_id} is done")

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while page := self.ask("events", agent=name, after=found[-1]["id"] if found else 0)["events"]:
            found += page
        return [row["payload"] for row in found if row["kind"] == kind]

    def wait_ends(self, name: str, count: int) -> list[dict[str, Any]]:
        def ends() -> list[dict[str, Any]] | None:
            found = self.events(name, "turn_end")
            return found if len(found) >= count else None

        return list(wait_until(ends, f"{count} turns of {name}"))

    @property
    def log(self) -> str:
        logs = [self.base / "log", *self.home.glob("state/agents/*/harness.log")]
        return "\n".join(f"== {log}\n{log.read_text()[-4000:]}" for log in logs if log.exists())

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            return bool(self.ask("status")["pid"] == self._process.pid)
        except (Unreachable, TimedOut):
            return False


@pytest.fixture
def hive(environment: dict[str, str]) -> Iterator[Hive]:
    hive = Hive(environment)
    try:
        hive.start()
        yield hive
    finally:
        hive.remove()

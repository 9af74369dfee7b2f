"""A bed on which the product serves as its own units, and what the tests do to it and see of it."""

import json
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hive_core.wire.client import Client, RequestFailed, TimedOut, Unreachable

from .bed import Bed

AS_WANTED_S = 15.0
"""What the issue grants: after any fault everything is as wanted again within that time."""
HOST_SOCKET = "/run/hyperhive/host.sock"
CONFIG = """\
[machines]
restart_limit = 3
restart_delay_s = 0.2
"""
TROUBLE = (Unreachable, TimedOut, FileNotFoundError, ConnectionError)

Row = dict[str, Any]


def wait_until(true: Callable[[], object], what: str, timeout_s: float = AS_WANTED_S) -> float:
    """Return how many seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


class HiveHost:
    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.run = bed.run

    def set_up(self, config: str = CONFIG) -> "HiveHost":
        """Install the product and its units, add an image, start the daemon.

        `make install` itself is tried in test_install: it builds wheels for half a minute.
        """
        self.bed.install_product()
        self.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"])
        self.bed.path("/etc/hyperhive/config.toml").write_text(config)
        self.run(["hive", "image", "add", "debian", "/srv/guest"], timeout_s=60)
        self.run(["systemctl", "start", "hive-core"], timeout_s=30)
        return self

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    @property
    def socket(self) -> Path:
        return self.bed.path(HOST_SOCKET)

    def ask(self, **request: Any) -> Row:
        """One request on host.sock, from outside of the bed: no process is started for it."""
        with Client(self.socket, timeout_s=20) as client:
            return client.ask(request)

    def hive(
        self, *words: str, check: bool = True, timeout_s: float = 40, input: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return self.run(["hive", *words], check=check, timeout_s=timeout_s, input=input)

    def look(self, *words: str) -> Any:
        return json.loads(self.hive(*words, "--json").stdout)

    def rows(self) -> dict[str, Row]:
        return {row["name"]: row for row in self.ask(cmd="agent_status")["agent_statuses"]}

    def row(self, agent: str) -> Row:
        return self.rows()[agent]

    def is_as_wanted(self, *agents: str) -> bool:
        """Whether those that are to run do and are connected, and those that are not do not."""
        with suppress(*TROUBLE):
            rows = self.rows()
            return all(_is_as_wanted(rows.get(agent)) for agent in agents or rows)
        return False

    def wait_as_wanted(self, *agents: str, timeout_s: float = AS_WANTED_S) -> float:
        return wait_until(
            lambda: self.is_as_wanted(*agents), f"as wanted: {', '.join(agents) or 'all'}", timeout_s
        )

    def leader(self, agent: str) -> int:
        """The init of its machine, as the bed numbers it."""
        return int(self.run(["machinectl", "show", f"h-{agent}", "-p", "Leader", "--value"]).stdout)

    def unit(self, agent: str, name: str) -> str:
        shown = self.run(["systemctl", "show", f"systemd-nspawn@h-{agent}", "-p", name, "--value"])
        return shown.stdout.strip()

    def daemon_pid(self) -> int:
        return int(self.run(["systemctl", "show", "hive-core", "-p", "MainPID", "--value"]).stdout)

    def inside(self, agent: str, *words: str, check: bool = True, input: str | None = None) -> str:
        return self.hive("exec", agent, "--", *words, check=check, input=input).stdout

    # ── messages ────────────────────────────────────────────────────────────────────────────────

    def send(self, to: str, body: str, key: str | None = None) -> int:
        """Send as the operator; gives the id.  With a *key* it may be repeated."""
        return int(self.ask(cmd="send", to=to, body=body, idempotency_key=key)["id"])

    def messages(self, since: int) -> list[Row]:
        """All messages with an id above *since*, oldest first."""
        found: list[Row] = []
        while True:
            last = found[-1]["id"] if found else since
            page = self.ask(cmd="messages", since=last, limit=1000)["messages"]
            if not page:
                return found
            found += page

    def last_message(self) -> int:
        page = self.ask(cmd="messages", limit=1)["messages"]
        return int(page[-1]["id"]) if page else 0

    def events_told(self, since: int, event: str) -> list[Row]:
        """What the daemon has told the operator: helper events of one kind."""
        told = [row for row in self.messages(since) if row["sender"] == "system"]
        bodies = [json.loads(row["body"]) for row in told if row["body"].startswith("{")]
        return [body for body in bodies if body["event"] == event]


def _is_as_wanted(row: Row | None) -> bool:
    if row is None or row.get("transient") or row.get("failed"):
        return False
    if row["wanted"] == "running":
        return bool(row["running"] and row["connected"])
    return not row["running"]


class Traffic:
    """Messages that go operator → alice → bob → operator, each with a number, whatever happens meanwhile.

    What the daemon did not answer is asked again under the same key, as any client would.
    """

    def __init__(self, hive: HiveHost, interval_s: float = 0.1) -> None:
        self._hive = hive
        self._interval_s = interval_s
        self._run = f"{time.monotonic_ns():x}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all)
        self._broken: BaseException | None = None
        self.ids: list[int] = []
        self.since = hive.last_message()

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _send_all(self) -> None:
        try:
            while not self._stop.wait(self._interval_s):
                number = len(self.ids)
                self.ids.append(self._send(f"{self._run}-{number}"))
        except BaseException as error:
            self._broken = error

    def _send(self, key: str) -> int:
        while True:
            try:
                return self._hive.send("alice", f"say bob: say operator: back {key}", key)
            except TROUBLE:
                assert not self._stop.wait(0.05), f"nobody took message {key}"

    def wait_all_back(self, timeout_s: float = AS_WANTED_S) -> str:
        """Wait until each has come through both machines and is acked everywhere, and say how many."""
        assert self._broken is None, self._broken
        wanted = {f"back {self._run}-{number}" for number in range(len(self.ids))}
        wait_until(lambda: wanted <= set(self._back()), f"{len(wanted)} messages are back", timeout_s)
        wait_until(lambda: not self._open(), "each is acked", timeout_s)
        assert len(set(self.ids)) == len(self.ids) > 0
        stored = {row["id"] for row in self._hive.messages(self.since)}
        assert set(self.ids) <= stored
        back = self._back()
        return f"{len(self.ids)} messages sent, {len(set(back))} back, {len(back) - len(set(back))} twice"

    def _back(self) -> list[str]:
        rows = self._hive.messages(self.since)
        return [
            row["body"]
            for row in rows
            if row["sender"] == "bob" and row["recipient"] == "operator" and self._run in row["body"]
            and row["body"].startswith("back ")
        ]  # fmt: skip

    def _open(self) -> list[Row]:
        rows = self._hive.messages(self.since)
        return [row for row in rows if row["recipient"] in {"alice", "bob"} and "acked_at" not in row]


@dataclass
class Latency:
    """How long answers took, in milliseconds."""

    phases: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, phase: str, taken_ms: float) -> None:
        self.phases.setdefault(phase, []).append(taken_ms)

    def p99_ms(self, phase: str | None = None) -> float:
        """Of one phase, or of all."""
        taken = self._taken(phase)
        return taken[min(len(taken) - 1, int(len(taken) * 0.99))] if taken else 0.0

    def describe(self, phase: str | None = None) -> str:
        taken = self._taken(phase)
        if not taken:
            return "never asked"
        worst, median = taken[-1], statistics.median(taken)
        return f"{len(taken)} answers, p50 {median:.1f} ms, p99 {self.p99_ms(phase):.1f} ms, worst {worst:.1f} ms"

    def slowest(self, count: int) -> list[str]:
        """The phases with the highest p99."""
        return sorted(self.phases, key=self.p99_ms, reverse=True)[:count]

    def _taken(self, phase: str | None) -> list[float]:
        if phase is not None:
            return sorted(self.phases.get(phase, []))
        return sorted(taken for phase in self.phases.values() for taken in phase)


ECHO = """
import os, socket, sys
os.umask(0)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
while True:
    client, _ = listener.accept()
    while line := client.recv(4096):
        client.send(b'{"ok": true}\\n')
"""
ECHO_SOCKET = "/run/echo.sock"
ECHO_UNIT = "an-echo.service"


class Watcher:
    """Asks for the daemon's status all the time, over one connection, and notes what each answer took.

    Beside it a process that only echoes is asked as often: what that takes is the processors' fault.
    """

    def __init__(self, hive: HiveHost, interval_s: float = 0.05) -> None:
        self._hive = hive
        self._interval_s = interval_s
        self._stop = threading.Event()
        self.daemon, self.echo = Latency(), Latency()
        self.phase = ""

    @contextmanager
    def watching(self) -> Iterator["Watcher"]:
        self._hive.run(["systemd-run", "-q", f"--unit={ECHO_UNIT}", "python3", "-c", ECHO, ECHO_SOCKET])
        echo = self._hive.bed.path(ECHO_SOCKET)
        wait_until(echo.exists, "somebody echoes")
        threads = [
            threading.Thread(target=self._watch, args=asked)
            for asked in ((self._hive.socket, self.daemon), (echo, self.echo))
        ]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(30)
            self._hive.run(["systemctl", "stop", ECHO_UNIT])

    def _watch(self, socket: Path, latency: Latency) -> None:
        due = time.perf_counter()
        with Client(socket, timeout_s=20) as client:
            # From the moment a question was due, so that the wait behind a late answer counts.
            while not self._stop.wait(max(0.0, due - time.perf_counter())):
                phase, began = self.phase, due
                due += self._interval_s
                try:
                    client.ask({"cmd": "status"})
                except (*TROUBLE, RequestFailed) as error:
                    latency.failures.append(f"{phase}: {error}")
                    return
                latency.note(phase, (time.perf_counter() - began) * 1000)


def table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = list(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    )

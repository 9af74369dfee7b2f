"""A daemon of a few lines: scripted answers on a real host.sock, and a log of what it was asked."""

import json
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

Request = dict[str, Any]
Answer = dict[str, Any] | list[dict[str, Any]] | bytes | None
Script = Answer | Callable[[Request], Answer]


class FakeHost:
    """Answers each `cmd` with what `answers` has for it: a dict is one reply, a list is a bare success and
    then these items, bytes are sent as they are, None is silence.  A function is asked for one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[Request] = []
        self.lines: list[bytes] = []
        self.answers: dict[str, Script] = {}
        self.rows: dict[str, dict[str, Any]] = {}
        self.hold_open = False
        """Whether a stream stays open after its last item."""
        self.ended = threading.Event()
        self._server = _Server(str(path), _Connection)
        self._server.host = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> "FakeHost":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def asked(self) -> list[Request]:
        """The requests that were no look at the roster."""
        return [request for request in self.requests if request["cmd"] not in {"agent_status", "list"}]

    def add(self, name: str, **flags: Any) -> dict[str, Any]:
        self.rows[name] = row(name) | flags
        return self.rows[name]

    def refuse(self, cmd: str, code: str, error: str = "cannot do that", **more: Any) -> None:
        self.answers[cmd] = {"ok": False, "code": code, "error": error} | more

    def answer(self, request: Request) -> Answer:
        cmd = request["cmd"]
        if cmd in self.answers:
            script = self.answers[cmd]
            return script(request) if callable(script) else script
        if cmd == "list":
            return {"agents": list(self.rows)}
        if cmd == "agent_status":
            return {"agent_statuses": list(self.rows.values())}
        return {}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    host: FakeHost


class _Connection(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        host = self.server.host
        try:
            for line in self.rfile:
                host.lines.append(line)
                request = json.loads(line)
                host.requests.append(request)
                answer = host.answer(request)
                if answer is None:
                    host.ended.wait(30)
                    return
                if isinstance(answer, bytes):
                    self.wfile.write(answer)
                elif isinstance(answer, dict):
                    self._say(answer)
                else:
                    self._say({})
                    for item in answer:
                        self._say(item)
                    if host.hold_open:
                        host.ended.wait(30)
                    return
        except ConnectionError:
            pass

    def _say(self, answer: dict[str, Any]) -> None:
        self.wfile.write(json.dumps({"version": 1, "ok": True} | answer).encode() + b"\n")


def row(name: str) -> dict[str, Any]:
    """A row of the roster as the daemon writes it for an agent at rest."""
    return {
        "name": name,
        "running": True,
        "failed": False,
        "needs_update": False,
        "needs_login": False,
        "pending_reminders": 0,
        "paused": False,
        "wanted": "running",
        "connected": True,
        "isolation": "none",
        "turn_state": "idle",
        "turn_state_since": "2026-01-31T12:00:00Z",
        "unread": 0,
        "active_model": "scripted",
        "provider": "scripted",
        "pid": 4711,
    }


def message(message_id: int, sender: str, recipient: str, body: str, **more: Any) -> dict[str, Any]:
    return {
        "id": message_id,
        "sender": sender,
        "recipient": recipient,
        "body": body,
        "sent_at": f"2026-01-31T12:00:{message_id % 60:02}Z",
    } | more


NO_STATS: Final = {
    "since": "2026-01-30T12:00:00Z",
    "turns": 0,
    "ok_turns": 0,
    "compactions": 0,
    "tokens": {"input": 0, "output": 0, "cache_read": 0, "cache_creation": 0},
    "cost_usd": 0.0,
    "ctx_max": 0,
    "tool_calls": 0,
    "tools": [],
    "wake_from": [],
    "results": [],
    "models": [],
}

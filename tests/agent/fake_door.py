"""An MCP door on a Unix socket that answers as it is told, and can go away in the middle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

TOOL = {"name": "send", "description": "send", "inputSchema": {"type": "object", "properties": {}}}
GREETING = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "d", "version": "0"},
}


class FakeDoor:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[dict[str, Any]] = []
        self.connections = 0
        self.answer_calls = True
        """Whether tools/call is answered."""
        self.answers: dict[str, Any] = {
            "initialize": GREETING,
            "tools/list": {"tools": [TOOL]},
            "tools/call": {"content": [{"type": "text", "text": "sent"}]},
        }
        self._scope = trio.CancelScope()
        self._changed = trio.Event()

    @property
    def methods(self) -> list[str]:
        return [message.get("method", "?") for message in self.heard]

    def calls(self) -> list[dict[str, Any]]:
        return [message for message in self.heard if message.get("method") == "tools/call"]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `go_away`."""
        self.path.unlink(missing_ok=True)
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(self.path))
        listening.listen()
        with trio.CancelScope() as self._scope:
            serve = trio.serve_listeners
            await serve(self._serve, [trio.SocketListener(listening)], task_status=task_status)
        listening.close()

    def go_away(self) -> None:
        self._scope.cancel()

    async def wait_until(self, holds: Callable[["FakeDoor"], object]) -> None:
        with trio.fail_after(10):
            while not holds(self):
                await self._changed.wait()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        buffer = b""
        async with stream:
            try:
                async for chunk in stream:
                    buffer += chunk
                    while b"\n" in buffer:
                        line, _, buffer = buffer.partition(b"\n")
                        await self._take(stream, json.loads(line))
            except trio.BrokenResourceError:
                pass

    async def _take(self, stream: trio.SocketStream, message: dict[str, Any]) -> None:
        self.heard.append(message)
        self._changed.set()
        self._changed = trio.Event()
        method = message.get("method")
        if "id" not in message or (method == "tools/call" and not self.answer_calls):
            return
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": self.answers.get(str(method), {})}
        await stream.send_all(json.dumps(answer).encode() + b"\n")

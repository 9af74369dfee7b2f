"""A Messages API that says what a script tells it to, for driving the real `claude` without a network.

    python tests/fake_api/server.py --port 8123 --script steps.json

A script is a list of steps, one for each inference, or an object that has such a list for each agent
(the name after "You are" in the system prompt; "*" for everyone else).  When it is used up the answer
is "ok.".  A step is an object, every key optional:

    text, thinking         what the model says
    tools                  [{"name", "input"}], tools that it calls after that
    stop_reason            instead of end_turn or tool_use
    usage                  {"input_tokens", …}: these instead of the ordinary numbers
    error, message         HTTP status and text instead of an answer
    retry_after, headers   with an error or an answer
    delay                  seconds before anything is answered
    chunk_delay, words     seconds between pieces of text, and words in each
    drop, mid_error        the connection ends, or an error event comes, in the middle
    n                      how often this step is taken; -1 is for ever
"""

import argparse
import contextlib
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"input_tokens": 12, "cache_creation_input_tokens": 345, "cache_read_input_tokens": 6789}
WINDOW_TOKENS = 1_000_000
ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    529: "overloaded_error",
}
MAX_LOG = 10_000

Step = dict[str, Any]


@dataclass
class Asked:
    """One inference that was asked for."""

    agent: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float = field(default_factory=time.time)

    @property
    def model(self) -> str:
        return str(self.body.get("model"))

    @property
    def system(self) -> str:
        return _text_of(self.body.get("system"))

    @property
    def words(self) -> str:
        """Everything that is in the conversation, as one text."""
        return "\n".join(_text_of(message.get("content")) for message in self.body.get("messages", []))

    @property
    def is_answer_of_tool(self) -> bool:
        """Whether the model has called a tool and is told what came of it."""
        said = [m for m in self.body.get("messages", []) if m.get("role") == "user"]
        content = said[-1].get("content") if said else None
        return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)

    @property
    def last_user(self) -> str:
        said = [m for m in self.body.get("messages", []) if m.get("role") == "user"]
        return _text_of(said[-1].get("content")) if said else ""


class FakeApi:
    """Serves on 127.0.0.1 in threads of its own, between `start` and `stop`."""

    def __init__(self, script: Sequence[Step] | Mapping[str, Sequence[Step]] = (), port: int = 0) -> None:
        self._lock = threading.Lock()
        self.respond: Callable[[Asked], Step | None] | None = None
        """Asked before the script, for what depends on the conversation; None leaves it to the script."""
        self._queues: dict[str, list[Step]] = {}
        self.asked: list[Asked] = []
        self.other: list[str] = []
        """Whatever else was requested, as "HEAD /"."""
        self.load(script)
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.api = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def load(self, script: Sequence[Step] | Mapping[str, Sequence[Step]]) -> None:
        """Forget what is left of the old script and go on with *script*."""
        queues = script if isinstance(script, Mapping) else {"*": script}
        with self._lock:
            self._queues = {agent: [dict(step) for step in steps] for agent, steps in queues.items()}

    def start(self) -> "FakeApi":
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.end_connections()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "FakeApi":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def next_step(self, asked: Asked) -> Step:
        with self._lock:
            self.asked.append(asked)
            del self.asked[:-MAX_LOG]
            step = self.respond(asked) if self.respond is not None else None
            if step is not None:
                return step
            queue = self._queues.get(asked.agent, self._queues.get("*", []))
            if not queue:
                return {"text": "ok."}
            step = queue[0]
            left = step.get("n", 1)
            if left == 1:
                queue.pop(0)
            elif left > 1:
                queue[0] = {**step, "n": left - 1}
            return step


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    api: FakeApi

    def __init__(self, *args: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def end_connections(self) -> None:
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is an interrupt, and ordinary."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self._note()
        self._refuse(404, "not found")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError:
            self._refuse(400, "no JSON")
            return
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self._answer(200, {"input_tokens": 4321})
        elif path == "/v1/messages":
            self._infer(body)
        else:
            self._note()
            self._refuse(404, "not found")

    def _note(self) -> None:
        self.server.api.other.append(f"{self.command} {self.path}")

    def _infer(self, body: dict[str, Any]) -> None:
        asked = Asked(_agent_of(body), body, {name.lower(): value for name, value in self.headers.items()})
        if asked.last_user == "Warmup":  # of claude 2.0: it must not take a step
            step: Step = {"text": "ok."}
        else:
            step = self.server.api.next_step(asked)
        time.sleep(step.get("delay", 0))
        if "error" in step:
            self._refuse(step["error"], step.get("message", "scripted"), _headers_of(step))
        elif body.get("stream"):
            self._stream(step, str(body.get("model")))
        else:
            self._answer(200, _whole(step, str(body.get("model"))), _headers_of(step))

    def _stream(self, step: Step, model: str) -> None:
        self.send_response(200)
        for name, value in {"content-type": "text/event-stream", **_headers_of(step)}.items():
            self.send_header(name, value)
        self.send_header("request-id", _new_id("req_"))
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(_events(step, model)):
            if event["type"] == "content_block_delta":
                time.sleep(step.get("chunk_delay", 0))
            if number >= 3 and step.get("drop"):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if number >= 3 and step.get("mid_error"):
                event = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            self._chunk(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            if event["type"] == "error":
                break
        self._chunk(b"")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        kind = ERROR_TYPES.get(status, "api_error")
        error = {"type": "error", "error": {"type": kind, "message": message}, "request_id": _new_id("req_")}
        self._answer(status, error, headers)

    def _answer(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _events(step: Step, model: str) -> Iterator[dict[str, Any]]:
    message = {**_whole(step, model), "content": [], "stop_reason": None}
    usage = _usage_of(step)
    message["usage"] = {**usage, "output_tokens": 1}
    yield {"type": "message_start", "message": message}
    yield {"type": "ping"}
    for index, block in enumerate(_blocks_of(step)):
        match block["type"]:
            case "text":
                start: dict[str, Any] = {"type": "text", "text": ""}
                pieces = _pieces(block["text"], step.get("words", 8))
                deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": piece} for piece in pieces]
            case "thinking":
                start = {"type": "thinking", "thinking": "", "signature": ""}
                deltas = [
                    {"type": "thinking_delta", "thinking": block["thinking"]},
                    {"type": "signature_delta", "signature": "c2ln"},
                ]
            case _:
                start = {**block, "input": {}}
                deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stopped = {"stop_reason": _stop_reason_of(step), "stop_sequence": None}
    yield {"type": "message_delta", "delta": stopped, "usage": {"output_tokens": usage["output_tokens"]}}
    yield {"type": "message_stop"}


def _whole(step: Step, model: str) -> dict[str, Any]:
    return {
        "id": _new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": _blocks_of(step),
        "stop_reason": _stop_reason_of(step),
        "stop_sequence": None,
        "usage": _usage_of(step),
    }


def _blocks_of(step: Step) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if step.get("thinking"):
        blocks.append({"type": "thinking", "thinking": step["thinking"], "signature": "c2ln"})
    if step.get("text") or not step.get("tools"):
        blocks.append({"type": "text", "text": step.get("text") or "ok."})
    for tool in step.get("tools", []):
        blocks.append(
            {"type": "tool_use", "id": _new_id("toolu_"), "name": tool["name"], "input": tool["input"]}
        )
    return blocks


def _usage_of(step: Step) -> dict[str, int]:
    return {**USAGE, "output_tokens": len(json.dumps(_blocks_of(step))) // 12, **step.get("usage", {})}


def _stop_reason_of(step: Step) -> str:
    return step.get("stop_reason") or ("tool_use" if step.get("tools") else "end_turn")


def _headers_of(step: Step) -> dict[str, str]:
    headers = {name: str(value) for name, value in step.get("headers", {}).items()}
    if "retry_after" in step:
        headers["retry-after"] = str(step["retry_after"])
    return headers


def _pieces(text: str, words: int) -> list[str]:
    parts = re.findall(r"\S+\s*|\s+", text)
    return ["".join(parts[start : start + words]) for start in range(0, len(parts), words)]


def _agent_of(body: dict[str, Any]) -> str:
    # The last one: the first is claude's own sentence, "You are a Claude agent".
    names = re.findall(r"\bYou are ([a-z0-9-]+)(?=[,.\s])", _text_of(body.get("system")))
    return names[-1] if names else "*"


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return str(content.get("text") or _text_of(content.get("content")))
    if isinstance(content, list):
        return "\n".join(_text_of(item) for item in content)
    return ""


def _new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex[:22]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--script", type=argparse.FileType("rb"))
    args = parser.parse_args()
    api = FakeApi(json.load(args.script) if args.script else (), args.port).start()
    print(f"ANTHROPIC_BASE_URL={api.url}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        api.stop()


if __name__ == "__main__":
    main()

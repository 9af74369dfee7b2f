"""One run of the command line: its pipes, its limits, its end.

The prompt is held back until claude has got the hive's list of tools, so a turn never runs without
them.  stdin stays open for the answers of MCP, for steering and for interrupting; it is closed when a
result has come and nothing is queued or left running, and then the process ends by itself.
"""

import logging
import os
import secrets
import signal
import stat
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from hive_agent.events import Emit
from hive_agent.providers.base import Outcome, TurnResult
from hive_agent.providers.claude.command import MARK, SERVER
from hive_agent.providers.claude.group import Group, open_group, sweep
from hive_agent.providers.claude.pump import Pump
from hive_agent.providers.claude.reading import BUSY_STATUSES, TurnReading
from hive_agent.providers.claude.stream import (
    MAX_STDOUT_LINE_BYTES,
    BackgroundTasks,
    ControlCancel,
    ControlRequest,
    Event,
    Init,
    Lifecycle,
    Retry,
    User,
    parse_line,
    tool_results,
)
from hive_core.wire.errors import LineTooLong
from hive_core.wire.lines import LineDecoder

log = logging.getLogger(__name__)

START_S: Final = 60.0
"""Until claude has the tools: it takes 4 s at worst, the rest is for a daemon that restarts."""
SILENCE_S: Final = 1800.0
"""Without a line on stdout.  claude gives up an API call after 10 min, and tells of long tools each 30 s."""
BACKGROUND_S: Final = 60.0
"""After a result, for commands that the model left running."""
CONTINUE_S: Final = 2.0
"""From the end of the last of those to the turn that it begins; 0.1 s was measured."""
EXIT_S: Final = 10.0
"""From the closing of stdin to the end."""
DRAIN_S: Final = 1.0
"""For the pipes of a process that has ended: something may have inherited them."""
LONGEST_RETRY_S: Final = 120.0
"""Longer than that we do not sit through a rate limit with a process at hand."""

INTERRUPT_S: Final = 0.5
TERMINATE_S: Final = 0.7
"""An operator who cancels sees the group gone in under 2 s.  Ordinarily each step takes 0.1 s."""
PATIENT_TERMINATE_S: Final = 5.0

STEER_S: Final = 3.0
MAX_STDERR_LINES: Final = 200
MAX_STDERR_LINE_BYTES: Final = 4096
MAX_UNWRITTEN: Final = 32
CHUNK_BYTES: Final = 64 * 2**10


def user_line(text: str, **more: Any) -> dict[str, Any]:
    """What others wrote: `client_composed` keeps a leading / or an @path from being carried out."""
    return {**command_line(text), "uuid": str(uuid.uuid4()), "client_composed": True, **more}


def command_line(text: str) -> dict[str, Any]:
    """What the operator wants claude to carry out, such as /compact."""
    return {"type": "user", "message": {"role": "user", "content": text}}


class Run:
    def __init__(
        self,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        door: Path,
        emit: Emit,
        reading: TurnReading,
        on_session: Callable[[str], None] = lambda _session_id: None,
        held_up: Callable[[bool], None] = lambda _held_up: None,
        steerable: bool = True,
    ) -> None:
        self._argv = argv
        self._cwd = cwd
        self._env = env
        self._emit = emit
        self.reading = reading
        self._on_session = on_session
        self._held_up = held_up
        self._steerable = steerable
        self._pump = Pump(door, self._answer_mcp)
        self._to_stdin, self._unwritten = trio.open_memory_channel[dict[str, Any]](MAX_UNWRITTEN)
        self._stdin_closed = False
        self._prompted = False
        self._steered: dict[str, trio.Event] = {}
        self._lifecycles = False
        self._continues = False
        self._deadline = float("inf")
        self._changed = trio.Event()
        self._interrupted = False
        self._trouble: TurnResult | None = None
        self._last_words = ""
        self._left_behind = ""
        self._stderr_lines = 0

    async def __call__(self, prompt: Mapping[str, Any]) -> str:
        """Start claude, let it work on *prompt*, and say how it ended.

        When this is cancelled, claude is interrupted and gone, with all that it started, within 2 s.

        Raises:
            OSError: it cannot be started.
        """
        ends: list[str | OSError] = []

        async def work() -> None:
            # A cancellation becomes an interrupt: what claude says last is wanted, and its end is sure.
            with trio.CancelScope(shield=True):
                try:
                    ends.append(await self._work(prompt))
                except OSError as error:
                    ends.append(error)
            waiting.cancel_scope.cancel()

        async with trio.open_nursery() as waiting:
            waiting.start_soon(work)
            try:
                await trio.Event().wait()
            finally:
                self.interrupt()
        (end,) = ends
        if isinstance(end, OSError):
            raise end
        return end

    def interrupt(self) -> None:
        """Make it end, soon.  Harmless when it has."""
        self._interrupted = True
        self._note_change()

    def judge(self, result: TurnResult) -> TurnResult:
        """Give *result*, or what went wrong round the model, with the figures of *result*."""
        if self._trouble is None:
            return result
        trouble = self._trouble
        return replace(result, outcome=trouble.outcome, note=trouble.note, reset_at=trouble.reset_at)

    @property
    def gave_up(self) -> bool:
        """Whether we ended it because something is wrong round the model."""
        return self._trouble is not None

    @property
    def last_words(self) -> str:
        return self._last_words

    async def steer(self, text: str) -> bool:
        """Give the model *text* within the turn; False when it will not read it any more."""
        if self._stdin_closed or self._interrupted or not (self._prompted and self._steerable):
            return False
        line_id, taken = str(uuid.uuid4()), trio.Event()
        if self._lifecycles:  # else it is a version that does not tell
            self._steered[line_id] = taken
        written = await self._write_line(user_line(text, uuid=line_id, priority="next"))
        if line_id in self._steered:
            with trio.move_on_after(STEER_S):
                await taken.wait()
            return taken.is_set()
        return written

    # ── the whole ───────────────────────────────────────────────────────────────────────────────

    async def _work(self, prompt: Mapping[str, Any]) -> str:
        self._set_limit(START_S)
        async with open_group(self._argv, cwd=self._cwd, env=self._env) as group:
            log.info("claude started pid=%d", group.pid)
            async with trio.open_nursery() as nursery:
                drained = trio.Event()
                nursery.start_soon(self._write_stdin, group)
                nursery.start_soon(self._pump.run)
                nursery.start_soon(self._begin, prompt)
                nursery.start_soon(self._guard, group)
                nursery.start_soon(self._read_pipes, group, drained)
                status = await group.wait()
                self._stdin_closed = True
                if self._interrupted or status == -signal.SIGKILL:
                    await sweep(f"{MARK}={self._env[MARK]}")
                _remove_socket(self._left_behind, group.pid)
                with trio.move_on_after(DRAIN_S):
                    await drained.wait()
                if self.reading.went_well and not self._interrupted and self._trouble is None:
                    # Not every version shows what it gave to the model.
                    await self._pump.seen_all()
                nursery.cancel_scope.cancel()
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        log.info("claude ended: %s", how)
        return how

    async def _begin(self, prompt: Mapping[str, Any]) -> None:
        """Shake hands, and give the prompt when the tools are there."""
        hello = {"subtype": "initialize"}
        await self._write_line({"type": "control_request", "request_id": _new_id(), "request": hello})
        await self._pump.listed.wait()
        # What is not asked for cannot have been said: an interrupt meanwhile has nothing to undo.
        if not self._interrupted:
            self._prompted = True
            self._set_limit(SILENCE_S)
            await self._write_line(dict(prompt))

    async def _guard(self, group: Group) -> None:
        """Wait for a reason to end the process, and end it."""
        while not self._interrupted and self._trouble is None:
            changed = self._changed
            with trio.move_on_at(self._deadline):
                await changed.wait()
                continue
            if trio.current_time() < self._deadline:
                continue
            if not self._overdue():
                break
        if self._interrupted:
            await self._end_quickly(group)
            return
        group.signal(signal.SIGTERM)
        await trio.sleep(PATIENT_TERMINATE_S)
        group.signal_group(signal.SIGKILL)

    def _overdue(self) -> bool:
        """Deal with a limit that ran out; False when nothing is left but to end the process."""
        if not self._prompted:
            why = self._pump.complaint or "claude does not ask for its tools"
            self._trouble = TurnResult(
                outcome=Outcome.FAILED, note=f"the hive's MCP server is not connected: {why}"
            )
        elif self.reading.results and not self.reading.in_turn:
            if not self._stdin_closed:
                if self.reading.background_tasks:
                    self._note(f"Commands in the background are not waited for after {BACKGROUND_S:g} s")
                self._close_stdin()
                return True
            # The result is there and counts, even if the process hangs.
            self._note("claude does not end after its result, and is ended")
        else:
            self._trouble = TurnResult(
                outcome=Outcome.FAILED, note=f"claude was silent for {SILENCE_S / 60:g} min"
            )
        return False

    async def _end_quickly(self, group: Group) -> None:
        """Interrupt, terminate, kill.  The first step makes claude say what the turn has cost."""
        results = self.reading.results
        request = {"type": "control_request", "request_id": _new_id(), "request": {"subtype": "interrupt"}}
        with trio.move_on_after(INTERRUPT_S):
            if self._prompted and await self._write_line(request):
                while self.reading.results == results and self.reading.in_turn:
                    await self._changed.wait()
        group.signal(signal.SIGTERM)
        await trio.sleep(TERMINATE_S)
        group.signal_group(signal.SIGKILL)

    # ── stdout ──────────────────────────────────────────────────────────────────────────────────

    async def _read_pipes(self, group: Group, drained: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_stdout, group)
            nursery.start_soon(self._read_stderr, group)
        drained.set()

    async def _read_stdout(self, group: Group) -> None:
        decoder = LineDecoder(MAX_STDOUT_LINE_BYTES)
        ended = False
        while not ended:
            chunk = await group.stdout.receive_some(CHUNK_BYTES)
            ended = not chunk
            # A last line may lack its end: what died in the middle of a word is worth reading too.
            decoder.receive_data(bytes(chunk) or b"\n")
            while True:
                try:
                    line = decoder.next_line()
                except LineTooLong as error:
                    self._note(f"Left out: {error}")
                    continue
                if line is None:
                    break
                if line.strip():
                    await self._take(line)

    async def _take(self, line: bytes) -> None:
        event, payload, problem = read = parse_line(line)
        if problem is not None:
            self._note(f"Not all of a line was understood: {problem}")
        if payload and not read.is_control:
            self._emit("stream", payload)
        self._see(event)
        note = self.reading.take(event)
        self._held_up(self.reading.is_held_up)
        if note is not None:
            self._note(note)
        match event:
            case ControlRequest():
                await self._take_request(event)
            case ControlCancel(request_id=request_id):
                self._pump.drop(request_id)
            case Init():
                self._check_servers()
                self._left_behind = event.messaging_socket_path
                if event.session_id:
                    self._on_session(event.session_id)
                self._continues = False
            case BackgroundTasks():
                self._continues = not self.reading.in_turn
            case Lifecycle():
                self._follow(event)
            case Retry() if event.error_status in BUSY_STATUSES:
                self._weigh(event)
        if self._prompted:
            self._reconsider()
        self._note_change()

    def _see(self, event: Event) -> None:
        if isinstance(event, User):
            for tool_use, good in tool_results(event):
                if good:
                    self._pump.seen(tool_use)
                else:
                    self._pump.not_seen(tool_use)

    def _reconsider(self) -> None:
        """Set the limit that holds after this line; close stdin when nothing more will come."""
        if self.reading.in_turn or not self.reading.results:
            self._set_limit(SILENCE_S)
        elif self._stdin_closed:
            pass
        elif self.reading.background_tasks or self._steered:
            self._set_limit(BACKGROUND_S)
        elif self._continues:
            # The end of a command begins a turn, and that one needs its tools as well.
            self._set_limit(CONTINUE_S)
        else:
            self._close_stdin()

    def _check_servers(self) -> None:
        status = self.reading.mcp.get(SERVER, "missing")
        if status != "connected":
            self._trouble = TurnResult(
                outcome=Outcome.FAILED, note=f"the hive's MCP server is not connected: {status}"
            )
        for name, status in self.reading.mcp.items():
            if name != SERVER and status != "connected":
                self._note(f"MCP server {name} is not connected: {status}")

    def _weigh(self, retry: Retry) -> None:
        if retry.retry_delay_ms / 1000 > LONGEST_RETRY_S:
            self._trouble = TurnResult(
                outcome=Outcome.RATE_LIMITED,
                note=f"rate limited for {retry.retry_delay_ms / 1000:.0f} s",
                reset_at=time.time() + retry.retry_delay_ms / 1000,
            )

    def _follow(self, event: Lifecycle) -> None:
        self._lifecycles = True
        taken = self._steered.get(event.command_uuid)
        if taken is None:
            return
        if event.state in ("queued", "started"):
            taken.set()
        if event.state in ("completed", "cancelled"):
            del self._steered[event.command_uuid]

    async def _take_request(self, asked: ControlRequest) -> None:
        request = asked.request
        if request.get("subtype") == "mcp_message" and request.get("server_name") == SERVER:
            await self._pump.take(asked.request_id, request.get("message"))
            return
        refusal = {
            "subtype": "error",
            "request_id": asked.request_id,
            "error": f"not supported: {str(request.get('subtype'))[:100]}",
        }
        await self._write_line({"type": "control_response", "response": refusal})

    # ── stdin ───────────────────────────────────────────────────────────────────────────────────

    async def _answer_mcp(self, control_id: str, message: dict[str, Any]) -> None:
        answer = {
            "subtype": "success",
            "request_id": control_id,
            "response": {"mcp_response": message},
        }
        await self._write_line({"type": "control_response", "response": answer})

    async def _write_line(self, line: dict[str, Any]) -> bool:
        try:
            await self._to_stdin.send(line)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return True

    async def _write_stdin(self, group: Group) -> None:
        async with self._unwritten, group.stdin:
            try:
                async for line in self._unwritten:
                    await group.stdin.send_all(msgspec.json.encode(line) + b"\n")
            except trio.BrokenResourceError:
                self._stdin_closed = True

    def _close_stdin(self) -> None:
        """Close it when what is in the queue is written."""
        if not self._stdin_closed:
            self._stdin_closed = True
            self._to_stdin.close()
            self._set_limit(EXIT_S)

    # ── stderr, notes, limits ───────────────────────────────────────────────────────────────────

    async def _read_stderr(self, group: Group) -> None:
        decoder = LineDecoder(MAX_STDERR_LINE_BYTES)
        while chunk := await group.stderr.receive_some(CHUNK_BYTES):
            decoder.receive_data(bytes(chunk))
            while True:
                try:
                    line = decoder.next_line()
                except LineTooLong as error:
                    line = f"({error})".encode()
                if line is None:
                    break
                self._complain(line)
        if decoder.buffered_bytes:
            decoder.receive_data(b"\n")
            self._complain(decoder.next_line() or b"")

    def _complain(self, line: bytes) -> None:
        text = line.decode(errors="replace").strip()
        if not text:
            return
        self._last_words = text[:500]
        self.reading.overhear(self._last_words)
        self._stderr_lines += 1
        if self._stderr_lines <= MAX_STDERR_LINES:
            self._note(text, "stderr")
        elif self._stderr_lines == MAX_STDERR_LINES + 1:
            self._note("More on stderr is left out")

    def _note(self, text: str, origin: str = "harness") -> None:
        self._emit("note", {"text": text, "origin": origin})

    def _set_limit(self, seconds: float) -> None:
        self._deadline = trio.current_time() + seconds
        self._note_change()

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _remove_socket(path: str, pid: int) -> None:
    """Remove the socket at *path*, which a claude that is killed leaves in /tmp, if it is that of *pid*."""
    socket = Path(path)
    with suppress(OSError, ValueError):
        status = socket.lstat()
        ours = stat.S_ISSOCK(status.st_mode) and status.st_uid == os.geteuid()
        if ours and socket.is_absolute() and socket.name == f"{pid}.sock":
            socket.unlink()


def _new_id() -> str:
    return secrets.token_hex(8)

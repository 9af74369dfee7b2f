"""A provider without a model: it does what it is told, word for word, and says what it read.

Demos and tests run whole hives with it.  Its events have the shape of claude's stream, so whatever
shows the one shows the other.  It never answers an answer, so two of them cannot keep each other awake.
"""

import hashlib
from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar, Final

import trio
from msgspec import UNSET

from hive_agent.config import Config
from hive_agent.events import Emit
from hive_agent.providers.base import BadProvider, Capabilities, Outcome, TurnPrompt, TurnResult
from hive_agent.providers.directives import Ask, Directive, Fail, Say, Sleep, parse_directives
from hive_agent.providers.script import BadScript, ScriptedTurn, read_script
from hive_agent.tools import Tools
from hive_core.wire.agent import Message
from hive_core.wire.errors import Refused
from hive_core.wire.ids import EVERYONE, OPERATOR, why_no_agent_name

MAX_QUOTE_CHARS: Final = 80
MANAGER: Final = "manager"


class Scripted:
    name: ClassVar[str] = "scripted"
    default_model: ClassVar[str] = "scripted"
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, turns: Iterable[ScriptedTurn] = ()) -> None:
        self._turns = deque(turns)

    @classmethod
    def open(cls, config: Config) -> "Scripted":
        if config.script is None:
            return cls()
        try:
            return cls(read_script(config.script).turns)
        except BadScript as error:
            raise BadProvider(str(error)) from None

    async def run_turn(self, prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        if prompt.message is None:
            return TurnResult(outcome=Outcome.OK)
        turn = _Turn(prompt.message, tools, emit)
        if self._turns:
            return await turn.play(self._turns.popleft())
        directives = parse_directives(prompt.message.body)
        if directives:
            return await turn.obey(directives)
        return await turn.answer()

    async def steer(self, text: str) -> bool:  # noqa: ARG002
        return False

    async def compact(self, model: str, tools: Tools, emit: Emit) -> TurnResult:  # noqa: ARG002
        return TurnResult(outcome=Outcome.OK)

    def is_logged_in(self) -> bool:
        return True


class _Turn:
    def __init__(self, message: Message, tools: Tools, emit: Emit) -> None:
        self._message = message
        self._tools = tools
        self._emit = emit
        self._tool_uses = 0

    async def play(self, script: ScriptedTurn) -> TurnResult:
        for step in script.events:
            await trio.sleep(step.delay)
            if step.stream is not None:
                self._emit("stream", step.stream)
            elif step.note is not None:
                self._emit("note", {"text": step.note, "origin": "stderr"})
            elif step.send is not None:
                await self._send(step.send.to, step.send.body, step.send.in_reply_to)
            elif step.error is not None:
                return TurnResult(outcome=Outcome.FAILED, note=step.error)
        return TurnResult(outcome=Outcome.OK if script.ok else Outcome.FAILED, note=script.note)

    async def obey(self, directives: list[Directive]) -> TurnResult:
        done: list[str] = []
        refusals: list[str] = []
        for directive in directives:
            match directive:
                case Say(to=to, text=text):
                    refusal = await self._send(to, text)
                    told = "everyone" if to == EVERYONE else to
                    deed = f"told {told} {_count(text)}"
                    problem = f"could not tell {told}: {refusal}"
                case Ask(text=text):
                    refusal = await self._send(OPERATOR, text)
                    deed = f"asked the operator {_count(text)}"
                    problem = f"could not ask the operator: {refusal}"
                case Sleep(seconds=seconds):
                    self._say(f"sleeping {seconds:g} s")
                    await trio.sleep(seconds)
                    refusal, deed, problem = None, f"slept {seconds:g} s", ""
                case Fail(why=why):
                    self._say(f"failing: {why}")
                    return TurnResult(outcome=Outcome.FAILED, note=why)
            done.append(deed if refusal is None else problem)
            if refusal is not None:
                refusals.append(problem)
        report = f"done: {'; '.join(done)}"
        return await self._close(report, refusals)

    async def answer(self) -> TurnResult:
        digest = render_digest(self._message)
        if not expects_answer(self._message):
            self._say(f"noted: {digest}")
            return TurnResult(outcome=Outcome.OK)
        return await self._close(digest, [])

    async def _close(self, report: str, refusals: list[str]) -> TurnResult:
        """Say *report*, to the sender too when that one waits for it."""
        if expects_answer(self._message):
            refusal = await self._send(self._message.sender, report, self._message.id)
            if refusal is not None:
                refusals.append(f"could not answer {self._message.sender}: {refusal}")
        self._say(report)
        return TurnResult(outcome=Outcome.OK, note="; ".join(refusals) or None)

    async def _send(self, to: str, body: str, in_reply_to: int | None = None) -> str | None:
        """Send, and show it as a tool's use; give the sentence of a refusal."""
        self._tool_uses += 1
        use_id = f"toolu_{self._message.id}_{self._tool_uses}"
        arguments: dict[str, Any] = {"to": to, "body": body}
        if in_reply_to is not None:
            arguments["in_reply_to"] = in_reply_to
        use = {"type": "tool_use", "id": use_id, "name": "mcp__hyperhive__send", "input": arguments}
        self._stream("assistant", use)
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": use_id}
        try:
            sent_id = await self._tools.send(to, body, in_reply_to)
        except Refused as refused:
            refusal = " ".join(refused.text.split())
            self._stream("user", {**result, "content": [_text(refusal)], "is_error": True})
            return refusal
        self._stream("user", {**result, "content": [_text(f"sent as message {sent_id}")]})
        return None

    def _say(self, text: str) -> None:
        self._stream("assistant", _text(text))

    def _stream(self, role: str, content: dict[str, Any]) -> None:
        self._emit("stream", {"type": role, "message": {"role": role, "content": [content]}})


def expects_answer(message: Message) -> bool:
    """Whether the sender of *message* waits for words.

    Not after a broadcast, not when it is an agent's answer, and not when its sender is a label that
    nobody can be reached by.
    """
    if message.broadcast:
        return False
    if message.sender == OPERATOR:
        return True
    is_agent = message.sender == MANAGER or why_no_agent_name(message.sender) is None
    return is_agent and message.in_reply_to is UNSET


def render_digest(message: Message) -> str:
    """Show that *message* was read, in one line."""
    words = " ".join(message.body.split())
    if len(words) > MAX_QUOTE_CHARS:
        words = words[:MAX_QUOTE_CHARS].rstrip() + "…"
    checksum = hashlib.sha256(message.body.encode(errors="surrogatepass")).hexdigest()[:8]
    return f'read {_count(message.body)} from {message.sender}: "{words}" (sha256 {checksum})'


def _count(text: str) -> str:
    words = len(text.split())
    return "1 word" if words == 1 else f"{words} words"


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}

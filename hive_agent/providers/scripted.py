"""A provider without a model: it does what it is told, word for word, and says what it read.

Demos and tests run whole hives with it.  Its events have the shape of claude's stream, so whatever
shows the one shows the other.  It never answers an answer, so two of them cannot keep each other awake.
A question's lines are carried out like a message's; one that does not say what to answer is answered
with its first option, or with what was read.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

import msgspec
import trio
from msgspec import UNSET

from hive_agent.config import DEFAULT_LOGIN_COMMAND, Config
from hive_agent.events import Emit
from hive_agent.providers.base import (
    BadProvider,
    Capabilities,
    Outcome,
    Program,
    TurnPrompt,
    TurnResult,
    Usage,
)
from hive_agent.providers.directives import (
    Answer,
    Ask,
    Context,
    Deed,
    Directive,
    Fail,
    Limit,
    Logout,
    Remind,
    Say,
    Sleep,
    Task,
    TooLong,
    parse_directives,
)
from hive_agent.providers.script import BadScript, ScriptedTurn, read_script
from hive_agent.system_prompt import read_task
from hive_agent.tools import Tools
from hive_core.wire.agent import Message
from hive_core.wire.errors import Refused
from hive_core.wire.ids import EVERYONE, OPERATOR, SYSTEM, why_no_agent_name

MAX_QUOTE_CHARS: Final = 80
MANAGER: Final = "manager"
WINDOW_TOKENS: Final = 200_000
COMPACTED_TOKENS: Final = 1000


class Question(msgspec.Struct, frozen=True, tag_field="event", tag="question_asked"):
    """A message from `system` that wants an answer."""

    id: int
    asker: str
    question: str
    options: list[str]


class Scripted:
    name: ClassVar[str] = "scripted"
    default_model: ClassVar[str] = "scripted"
    capabilities: ClassVar[Capabilities] = Capabilities(
        compact=True, sessions=True, login=True, efforts=("low", "medium", "high")
    )

    def __init__(
        self,
        turns: Iterable[ScriptedTurn] = (),
        logged_out: Path | None = None,
        login: Sequence[str] = DEFAULT_LOGIN_COMMAND,
        prompt_file: Path | None = None,
    ) -> None:
        """*logged_out* is the file that is there after a `logout`, until a login deletes it; *prompt_file*
        holds the task that `task` says.
        """
        self._turns = deque(turns)
        self._logged_out = logged_out
        self._login = login
        self._prompt_file = prompt_file
        self.cut_off: TurnResult | None = None
        self.held_up: Callable[[bool], None] = lambda _held_up: None
        self._too_long = False
        self._met: set[int] = set()

    @classmethod
    def open(cls, config: Config) -> "Scripted":
        logged_out = config.state / "scripted-logged-out"
        if config.script is None:
            return cls((), logged_out, config.login_command, config.prompt_file)
        try:
            turns = read_script(config.script).turns
            return cls(turns, logged_out, config.login_command, config.prompt_file)
        except BadScript as error:
            raise BadProvider(str(error)) from None

    async def run_turn(self, prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        if prompt.message is None:
            return TurnResult(outcome=Outcome.OK)
        task, notes = read_task(self._prompt_file)
        for note in notes:
            emit("note", {"text": note, "origin": "harness"})
        turn = _Turn(prompt.message, tools, emit, task)
        if self._turns:
            return await turn.play(self._turns.popleft())
        question = read_question(prompt.message)
        directives = parse_directives(question.question if question else prompt.message.body)
        if (trouble := self._trouble(directives, prompt.message)) is not None:
            return trouble
        contexts = [directive.tokens for directive in directives if isinstance(directive, Context)]
        deeds = [directive for directive in directives if isinstance(directive, Deed)]
        if question:
            deeds = with_answer(deeds, question)
        result = await (turn.obey(deeds) if deeds else turn.answer())
        return with_figures(result, contexts[-1]) if contexts else result

    async def steer(self, text: str) -> bool:  # noqa: ARG002
        return False

    async def compact(self, model: str, tools: Tools, emit: Emit) -> TurnResult:  # noqa: ARG002
        self._too_long = False
        return with_figures(TurnResult(outcome=Outcome.OK), COMPACTED_TOKENS)

    def is_logged_in(self) -> bool:
        return self._logged_out is None or not self._logged_out.exists()

    def login_program(self) -> Program:
        return Program(argv=self._login, env=os.environ)

    def _trouble(self, directives: Iterable[Directive], message: Message) -> TurnResult | None:
        """Give the bad end that the message orders; one that was met before comes to a good one."""
        for directive in directives:
            match directive:
                case TooLong() if self._too_long or message.id not in self._met:
                    self._met.add(message.id)
                    self._too_long = True
                    return TurnResult(outcome=Outcome.PROMPT_TOO_LONG, note="Prompt is too long")
                case Limit(seconds=seconds) if not message.redelivered:
                    reset_at = time.time() + seconds
                    return TurnResult(
                        outcome=Outcome.RATE_LIMITED, note="told to be limited", reset_at=reset_at
                    )
                case Logout() if not message.redelivered and self._logged_out is not None:
                    self._logged_out.touch()
                    return TurnResult(outcome=Outcome.NEEDS_LOGIN, note="told to log out")
        return None


class _Turn:
    def __init__(self, message: Message, tools: Tools, emit: Emit, task: str) -> None:
        self._message = message
        self._tools = tools
        self._emit = emit
        self._task = task
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

    async def obey(self, directives: Iterable[Deed]) -> TurnResult:
        done: list[str] = []
        refusals: list[str] = []
        for directive in directives:
            match directive:
                case Say(to=to, text=text):
                    refusal = await self._send(to, text)
                    told = "everyone" if to == EVERYONE else to
                    deed = f"told {told} {_count(text)}"
                    problem = f"could not tell {told}: {refusal}"
                case Ask(text=text, to=to, options=options):
                    refusal = await self._ask(to, text, options)
                    asked = "the operator" if to == OPERATOR else to
                    deed = f"asked {asked} {_count(text)}"
                    problem = f"could not ask {asked}: {refusal}"
                case Answer(text=text, id=question_id):
                    refusal = await self._answer_question(question_id or 0, text)
                    deed = f"answered question {question_id or 0}"
                    problem = f"could not answer question {question_id or 0}: {refusal}"
                case Remind(seconds=seconds, text=text):
                    refusal = await self._remind(text, seconds)
                    deed, problem = f"set a reminder in {seconds:g} s", f"could not set a reminder: {refusal}"
                case Sleep(seconds=seconds):
                    self._say(f"sleeping {seconds:g} s")
                    await trio.sleep(seconds)
                    refusal, deed, problem = None, f"slept {seconds:g} s", ""
                case Task():
                    refusal, deed, problem = None, f"my task: {_quote(self._task)}", ""
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
        arguments: dict[str, Any] = {"to": to, "body": body}
        if in_reply_to is not None:
            arguments["in_reply_to"] = in_reply_to

        async def send() -> str:
            return f"sent as message {await self._tools.send(to, body, in_reply_to)}"

        return await self._use("send", arguments, send)

    async def _ask(self, to: str, question: str, options: Sequence[str]) -> str | None:
        async def ask() -> str:
            return f"asked as question {await self._tools.ask(to, question, options)}"

        return await self._use("ask", {"to": to, "question": question, "options": list(options)}, ask)

    async def _answer_question(self, question_id: int, answer: str) -> str | None:
        async def say() -> str:
            await self._tools.answer(question_id, answer)
            return "answered"

        return await self._use("answer", {"id": question_id, "answer": answer}, say)

    async def _remind(self, message: str, delay_s: float) -> str | None:
        async def remind() -> str:
            return f"kept as reminder {await self._tools.remind(message, delay_s)}"

        return await self._use("remind", {"message": message, "delay_seconds": delay_s}, remind)

    async def _use(
        self, tool: str, arguments: dict[str, Any], call: Callable[[], Awaitable[str]]
    ) -> str | None:
        """Call a tool and show its use; give the sentence of a refusal."""
        self._tool_uses += 1
        use_id = f"toolu_{self._message.id}_{self._tool_uses}"
        use = {"type": "tool_use", "id": use_id, "name": f"mcp__hyperhive__{tool}", "input": arguments}
        self._stream("assistant", use)
        result: dict[str, Any] = {"type": "tool_result", "tool_use_id": use_id}
        try:
            said = await call()
        except Refused as refused:
            refusal = " ".join(refused.text.split())
            self._stream("user", {**result, "content": [_text(refusal)], "is_error": True})
            return refusal
        self._stream("user", {**result, "content": [_text(said)]})
        return None

    def _say(self, text: str) -> None:
        self._stream("assistant", _text(text))

    def _stream(self, role: str, content: dict[str, Any]) -> None:
        self._emit("stream", {"type": role, "message": {"role": role, "content": [content]}})


def with_figures(result: TurnResult, tokens: int) -> TurnResult:
    """Let *result* say that the last inference read *tokens*."""
    usage = Usage(input=1, cache_read=max(tokens - 1, 0), output=1)
    return replace(result, last=usage, total=usage, window=WINDOW_TOKENS, cost_usd=0.0)


def read_question(message: Message) -> Question | None:
    """Give the question that *message* asks; None when it asks none, or somebody only says that it does."""
    if message.sender != SYSTEM:
        return None
    try:
        return msgspec.json.decode(message.body, type=Question)
    except (msgspec.MsgspecError, RecursionError):
        return None


def with_answer(deeds: Sequence[Deed], question: Question) -> list[Deed]:
    """Give *deeds* so that they answer *question*, unless they fail."""
    whole = [replace(deed, id=deed.id or question.id) if isinstance(deed, Answer) else deed for deed in deeds]
    for deed in whole:
        if isinstance(deed, Fail) or (isinstance(deed, Answer) and deed.id == question.id):
            return whole
    said = question.options[0] if question.options else f"read {_count(question.question)}"
    return [*whole, Answer(said, question.id)]


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
    return f"read {_count(message.body)} from {message.sender}: {_quote(message.body)}"


def _quote(text: str) -> str:
    """Give the beginning of *text* on one line, and what tells it from every other one."""
    words = " ".join(text.split())
    if len(words) > MAX_QUOTE_CHARS:
        words = words[:MAX_QUOTE_CHARS].rstrip() + "…"
    checksum = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]
    return f'"{words}" (sha256 {checksum})'


def _count(text: str) -> str:
    words = len(text.split())
    return "1 word" if words == 1 else f"{words} words"


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}

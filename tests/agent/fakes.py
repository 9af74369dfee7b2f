"""Parts of the harness that do what a test says, in exact time."""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar

import msgspec
import trio

from hive_agent.config import Config
from hive_agent.events import Emit
from hive_agent.providers import Capabilities, Outcome, Program, TurnPrompt, TurnResult
from hive_agent.tools import Tools
from hive_core.wire import agent as wire
from hive_core.wire.errors import Refused

OK = TurnResult(outcome=Outcome.OK)
FAILED = TurnResult(outcome=Outcome.FAILED, note="told to fail")


LOOKS = {"inbox_status", "open_threads", "count_pending_reminders"}


def message(
    message_id: int = 1, body: str = "hello", sender: str = "operator", **fields: Any
) -> wire.Message:
    return wire.Message(id=message_id, sender=sender, recipient="alice", body=body, sent_at=1.0, **fields)


class FakeLink:
    """A mailbox with leases and no wire.  What was asked stands in `asked`, with the time."""

    def __init__(self, *messages: wire.Message) -> None:
        self.epoch = 1
        self.asked: list[tuple[float, Any]] = []
        self.waiting = list(messages)
        self.leased: list[wire.Message] = []
        self.dead: list[wire.Message] = []
        self.threads: list[wire.OpenThread] = []
        self.reminders = 0
        self.answers: dict[type, list[Exception | msgspec.Struct]] = {}
        """What to answer next to a request of this type, instead of the right thing."""
        self._arrived = trio.Event()

    @property
    def names(self) -> list[str]:
        """The tags of the requests that touch the mailbox, in order."""
        tags = [request.__struct_config__.tag for _, request in self.asked]
        return [tag for tag in tags if tag not in LOOKS]

    def times_of(self, kind: type) -> list[float]:
        return [asked_at for asked_at, request in self.asked if isinstance(request, kind)]

    def requests_of(self, kind: type) -> list[Any]:
        return [request for _, request in self.asked if isinstance(request, kind)]

    def deliver(self, message: wire.Message) -> None:
        self.waiting.append(message)
        self._arrived.set()
        self._arrived = trio.Event()

    async def call(self, request: msgspec.Struct, result_type: type[Any]) -> Any:
        self.asked.append((trio.current_time(), request))
        await trio.lowlevel.checkpoint()
        if self.answers.get(type(request)):
            answer = self.answers[type(request)].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        match request:
            case wire.Recv(wait_seconds=seconds):
                with trio.move_on_after(seconds or 0):
                    while not self.waiting:
                        await self._arrived.wait()
                    self.leased.append(self.waiting.pop(0))
                    return wire.Messages(messages=[self.leased[-1]])
                return wire.Messages(messages=[])
            case wire.AckTurn(ids=ids):
                self.leased = [leased for leased in self.leased if leased.id not in (ids or [])]
                return wire.Acked(acked=1)
            case wire.RequeueInflight():
                back = [msgspec.structs.replace(leased, redelivered=True) for leased in self.leased]
                self.waiting, self.leased = back + self.waiting, []
                return wire.Requeued(requeued=len(back))
            case wire.SetAside(ids=ids):
                self.dead += [leased for leased in self.leased if leased.id in ids]
                self.leased = [leased for leased in self.leased if leased.id not in ids]
                return wire.Done()
            case wire.OpenThreads():
                return wire.Threads(threads=self.threads, unread=len(self.waiting))
            case wire.CountPendingReminders():
                return wire.PendingReminders(pending=self.reminders)
            case wire.InboxStatus():
                return wire.Unread(unread=len(self.waiting))
            case wire.Send():
                return wire.Sent(id=100 + len(self.asked))
        raise AssertionError(request)


Turn = Callable[[TurnPrompt, Tools, Emit], Awaitable[TurnResult]]


class FakeProvider:
    """Ends each turn as the test says, by a result, an exception or a function; the last one for ever."""

    name: ClassVar[str] = "fake"
    default_model: ClassVar[str] = "fake-1"
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self,
        *turns: TurnResult | Exception | Turn,
        can: Capabilities | None = None,
        compactions: Iterable[TurnResult | Exception] = (),
    ) -> None:
        self._turns = list(turns) or [OK]
        self._compactions = list(compactions)
        self.capabilities = can or Capabilities()  # type: ignore[misc]
        self.prompts: list[TurnPrompt] = []
        self.times: list[float] = []
        self.cut_off: TurnResult | None = None
        self.held_up: Callable[[bool], None] = lambda _held_up: None
        self.compacted: list[float] = []
        """When `compact` was called."""
        self.compaction_takes_s = 0.0
        self.logged_in = True

    @classmethod
    def open(cls, config: Config) -> "FakeProvider":
        return cls()

    async def run_turn(self, prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        self.prompts.append(prompt)
        self.times.append(trio.current_time())
        turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        if isinstance(turn, Exception):
            raise turn
        if isinstance(turn, TurnResult):
            return turn
        return await turn(prompt, tools, emit)

    async def steer(self, text: str) -> bool:
        return False

    async def compact(self, model: str, tools: Tools, emit: Emit) -> TurnResult:
        self.compacted.append(trio.current_time())
        await trio.sleep(self.compaction_takes_s)
        outcome = self._compactions.pop(0) if self._compactions else OK
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def is_logged_in(self) -> bool:
        return self.logged_in

    def login_program(self) -> Program:
        return Program(argv=["true"], env={})


class Emitted:
    """Takes events and keeps them."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, kind: str, payload: dict[str, Any]) -> None:
        self.events.append((kind, payload))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [payload for emitted, payload in self.events if emitted == kind]


class FakeTools:
    """Takes what a turn sends and asks, except to those in *refused*, and what else it does."""

    def __init__(self, refused: dict[str, Refused] | None = None) -> None:
        self.sent: list[tuple[str, str, int | None]] = []
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.answered: list[tuple[int, str]] = []
        self.reminders: list[tuple[str, float]] = []
        self._refused = refused or {}

    async def send(self, to: str, body: str, in_reply_to: int | None = None) -> int:
        if to in self._refused:
            raise self._refused[to]
        self.sent.append((to, body, in_reply_to))
        return 40 + len(self.sent)

    async def ask(self, to: str, question: str, options: Sequence[str] = ()) -> int:
        if to in self._refused:
            raise self._refused[to]
        self.asked.append((to, question, tuple(options)))
        return len(self.asked)

    async def answer(self, question_id: int, answer: str) -> None:
        self.answered.append((question_id, answer))

    async def remind(self, message: str, delay_s: float) -> int:
        self.reminders.append((message, delay_s))
        return len(self.reminders)

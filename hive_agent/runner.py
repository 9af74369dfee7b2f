"""Runs one turn, or one compaction, and writes down what it took."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

import trio

from hive_agent.events import Emit
from hive_agent.link import Calls
from hive_agent.providers.base import Outcome, Provider, TurnPrompt, TurnResult
from hive_agent.state import Board, Status, TurnState
from hive_agent.tools import Tools
from hive_agent.turn_stats import COMPACT_FAILED, COMPACTED, NOTHING_OPEN, LeftOpen, TurnBegin, TurnRow
from hive_core.wire.agent import CountPendingReminders, Message, OpenThreads, PendingReminders, Threads
from hive_core.wire.errors import Refused
from hive_core.wire.ids import SELF

log = logging.getLogger(__name__)

CANCELLED: Final = TurnResult(outcome=Outcome.INTERRUPTED, note="cancelled by the operator")
INTERRUPTED: Final = TurnResult(outcome=Outcome.INTERRUPTED, note="interrupted: the harness stops")

COUNT_TIMEOUT_S: Final = 1.0
"""For what stands in the stats of a turn beside it: the ack waits for that."""


class Runner:
    """The one place that asks the provider for anything.  It does one thing at a time."""

    def __init__(
        self,
        link: Calls,
        provider: Provider,
        *,
        emit: Emit,
        board: Board,
        model: Callable[[], str],
        effort: Callable[[], str | None] = lambda: None,
        began: Callable[[TurnBegin], None] = lambda _row: None,
        record: Callable[[TurnRow], None] = lambda _row: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._provider = provider
        self._emit = emit
        self._board = board
        self._model = model
        self._effort = effort
        self._began = began
        self._record = record
        self._clock = clock
        provider.held_up = self._show_held_up
        self._running: tuple[str, trio.CancelScope] | None = None

    @property
    def model(self) -> str:
        """What the next turn will run with."""
        return self._model()

    @property
    def busy(self) -> bool:
        return self._running is not None

    def cancel(self) -> str | None:
        """Interrupt what runs and say what that was; None when nothing runs."""
        if self._running is None:
            return None
        what, scope = self._running
        scope.cancel()
        return what

    def begin(self, sender: str, body: str, unread: int = 0, **more: Any) -> None:
        """Tell whoever watches that a turn begins."""
        # First of all: from here on no kill can make it a turn that nobody counted.
        self._begin_row(sender, more.get("message_id"))
        self._board.set_turn_state(TurnState.THINKING)
        self._emit("turn_start", {"from": sender, "body": body, "unread": unread, **more})

    def end(self, result: TurnResult, **more: Any) -> None:
        ended: dict[str, Any] = {"ok": result.ok, **more}
        if result.note is not None:
            ended["note"] = result.note
        self._emit("turn_end", ended)
        self._board.set_turn_state(TurnState.IDLE)

    async def turn(
        self, text: str, *, message: Message | None = None, unread: int = 0, fresh: bool = False
    ) -> TurnResult:
        """Let the provider run a turn.  CANCELLED when the operator cut it off; trouble is a result too."""
        message_id = message.id if message else None
        prompt = TurnPrompt(
            text=text,
            message=message,
            unread=unread,
            model=self._model(),
            effort=self._effort(),
            fresh=fresh,
        )
        tools = Tools(self._link, message_id or 0)
        what = f"the turn over message {message_id}" if message else "the turn that writes notes"
        result = INTERRUPTED
        began = self._clock(), trio.current_time()
        sender = message.sender if message else SELF
        self._begin_row(sender, message_id)
        left_open = NOTHING_OPEN
        ended: float | None = None
        try:
            result = await self._contained(what, lambda: self._provider.run_turn(prompt, tools, self._emit))
            ended = trio.current_time()
            left_open = await self._count_open()
        finally:
            self._write_down(
                began,
                prompt.model,
                sender,
                result.outcome.value,
                self._with_figures(result),
                message_id,
                ended=ended,
                left_open=left_open,
            )
        return result

    async def compact(self) -> TurnResult:
        """Let the provider shorten the conversation."""
        before = self._board.turn_state
        model, tools = self._model(), Tools(self._link, 0)
        result = INTERRUPTED
        began = self._clock(), trio.current_time()
        self._board.set_turn_state(TurnState.COMPACTING)
        try:
            result = await self._contained(
                "the compaction", lambda: self._provider.compact(model, tools, self._emit)
            )
        finally:
            kind = COMPACTED if result.ok else COMPACT_FAILED
            self._write_down(began, model, SELF, kind, self._with_figures(result), None)
            self._board.set_turn_state(before)
        return result

    async def _count_open(self) -> LeftOpen:
        """Ask what the agent waits for after its turn.  Zeros, when there is no answer at once."""
        with trio.move_on_after(COUNT_TIMEOUT_S):
            try:
                threads = await self._link.call(OpenThreads(), Threads)
                reminders = await self._link.call(CountPendingReminders(), PendingReminders)
            except Refused as refusal:
                log.info("Open threads cannot be counted: %s", refusal.text)
            else:
                return LeftOpen(threads=len(threads.threads), reminders=reminders.pending)
        return NOTHING_OPEN

    async def _contained(self, what: str, ask: Callable[[], Awaitable[TurnResult]]) -> TurnResult:
        self._provider.cut_off = None
        with trio.CancelScope() as scope:
            self._running = what, scope
            try:
                return await ask()
            except Refused as refusal:
                return TurnResult(outcome=Outcome.FAILED, note=refusal.text)
            except Exception as error:
                # Somebody's words may have led to it: they must not end the harness, again and again.
                log.exception("Crash in %s", what)
                return TurnResult(outcome=Outcome.FAILED, note=f"internal error: {error!r}"[:500])
            finally:
                self._running = None
                self._show_held_up(False)
        return CANCELLED

    def _show_held_up(self, held_up: bool) -> None:
        if held_up:
            self._board.hold(Status.RATE_LIMITED)
        else:
            self._board.let_go(Status.RATE_LIMITED)

    def _with_figures(self, result: TurnResult) -> TurnResult:
        """Give *result* with what a turn that was cut off has cost all the same."""
        if self._provider.cut_off is None or result not in (CANCELLED, INTERRUPTED):
            return result
        return replace(self._provider.cut_off, outcome=result.outcome, note=result.note)

    def _begin_row(self, sender: str, message_id: int | None) -> None:
        row = TurnBegin(
            started_at=self._clock(), model=self._model(), wake_from=sender, message_id=message_id
        )
        self._began(row)

    def _write_down(
        self,
        began: tuple[float, float],
        model: str,
        sender: str,
        kind: str,
        result: TurnResult,
        message_id: int | None,
        *,
        ended: float | None = None,
        left_open: LeftOpen = NOTHING_OPEN,
    ) -> None:
        started_at, started = began
        self._record(
            TurnRow(
                started_at=started_at,
                duration_s=(trio.current_time() if ended is None else ended) - started,
                model=model,
                wake_from=sender,
                kind=kind,
                result=result,
                message_id=message_id,
                left_open=left_open,
            )
        )

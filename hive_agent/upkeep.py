"""Keeps the conversation within the model's context: notes, compactions, new beginnings.

What to do is decided in context.py.  All of it is best effort: a failure is a note, and never the
failure of the turn that was before it or comes after it.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from hive_agent.context import (
    MAX_COMPACT_FAILURES,
    AfterTurn,
    BeforeTurn,
    ContextSettings,
    after_good_turn,
    before_turn,
    compaction_helped,
    window_tokens,
)
from hive_agent.events import Emit
from hive_agent.providers.base import Capabilities, Outcome, TurnResult, Usage
from hive_agent.runner import CANCELLED, INTERRUPTED, Runner
from hive_agent.state import Board
from hive_agent.turn_stats import Seed
from hive_core.wire.ids import SELF

log = logging.getLogger(__name__)

_CHECKPOINT: Final = """\
This turn comes from your harness: nobody wrote to you. {why}

Write down what you will need to go on without this conversation, into your notes in the current \
directory (your state directory; add to the files that are there): what you are working on and for whom, \
what is decided, what is done and what is next, where the things are, who waits for an answer of yours. \
Write nothing that is in the files already, send no message, and begin no other work. Then end this turn."""

BEFORE_COMPACTION: Final = _CHECKPOINT.format(
    why="The conversation has grown long and is about to be shortened to a summary."
)
BEFORE_NEW_SESSION: Final = _CHECKPOINT.format(
    why="The conversation has grown long and has rested: your next turn begins a new one, without this one."
)


class Upkeep:
    def __init__(
        self,
        runner: Runner,
        capabilities: Capabilities,
        *,
        emit: Emit,
        board: Board,
        settings: ContextSettings,
        seed: Seed | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._can = capabilities
        self._emit = emit
        self._board = board
        self._settings = settings
        self._clock = clock
        self._ctx = seed.ctx if seed else None
        self._ended_at = seed.ended_at if seed else None
        self._windows: dict[str, int] = {}
        if seed and seed.window:
            self._windows[seed.model] = seed.window
        self._failures = 0
        self._board.set_context(self._ctx, self._window(runner.model))

    def observe(self, model: str, result: TurnResult, *, fresh: bool) -> None:
        """Take the figures of a turn that ran with *model*."""
        if result.window:
            self._windows[model] = result.window
        if fresh:
            self._failures = 0
            self._ctx = None
        if result.last is not None:
            self._ctx = result.last.prompt
        if result.ok or result.last is not None:
            self._ended_at = self._clock()
        self._board.set_context(self._ctx, self._window(model))
        if result.last is not None or result.total is not None or result.cost_usd is not None:
            self._show(model, result)

    async def before_turn(self) -> bool:
        """Get ready for a turn; True when it shall begin a new session, for which notes were written."""
        idle_s = None if self._ended_at is None else self._clock() - self._ended_at
        window = self._window(self._runner.model)
        plan = before_turn(self._ctx, window, self._settings, idle_s=idle_s, has_sessions=self._can.sessions)
        if plan is BeforeTurn.CONTINUE:
            return False
        self._note(f"The conversation is large ({self._fullness(window)}) and cold: notes, then a new one")
        written = await self._checkpoint(BEFORE_NEW_SESSION)
        return written.ok

    async def after_good_turn(self) -> None:
        """Shorten the conversation if it has grown long."""
        window = self._window(self._runner.model)
        plan = after_good_turn(
            self._ctx, window, self._settings, can_compact=self._can.compact, failures=self._failures
        )
        if plan is AfterTurn.NOTHING:
            return
        self._note(f"The conversation is long ({self._fullness(window)}): writing notes, then compacting")
        written = await self._checkpoint(BEFORE_COMPACTION)
        hopeless = written.outcome in (Outcome.RATE_LIMITED, Outcome.NEEDS_LOGIN) or written is CANCELLED
        if not hopeless:
            await self.compact()

    async def compact(self) -> bool:
        """Shorten the conversation now; False, and a note, when that did not work."""
        model = self._runner.model
        window = self._window(model)
        before = self._ctx
        result = await self._runner.compact()
        if not result.ok:
            self._note(f"The conversation could not be compacted: {result.note or result.outcome.value}")
            self._fail()
            return False
        if result.window:
            self._windows[model] = window = result.window
        self._ctx = result.last.prompt if result.last is not None else None
        self._board.set_context(self._ctx, window)
        if self._ctx is None:
            self._note("The conversation is compacted")
        else:
            was = "" if before is None else f" from {before} tokens"
            self._note(f"The conversation is compacted{was} to {self._ctx} tokens")
        self._show(model, result)
        if compaction_helped(self._ctx, window, self._settings):
            self._failures = 0
        else:
            self._fail()
        return True

    async def _checkpoint(self, text: str) -> TurnResult:
        model = self._runner.model
        self._runner.begin(SELF, text)
        result = INTERRUPTED
        try:
            result = await self._runner.turn(text)
        finally:
            self._runner.end(result)
        self.observe(model, result, fresh=False)
        if not result.ok:
            self._note(f"The notes could not be written: {result.note or result.outcome.value}")
        return result

    def _fail(self) -> None:
        self._failures += 1
        if self._failures == MAX_COMPACT_FAILURES:
            self._note("No more compactions until a prompt is too long, or a new session begins")

    def _window(self, model: str) -> int:
        return window_tokens(model, self._windows.get(model), self._settings)

    def _fullness(self, window: int) -> str:
        return f"{self._ctx} of {window} tokens"

    def _show(self, model: str, result: TurnResult) -> None:
        total = result.total or Usage()
        cost: dict[str, int | float] = {
            "input": total.input,
            "output": total.output,
            "cache_read": total.cache_read,
            "cache_creation": total.cache_creation,
        }
        if result.cost_usd is not None:
            cost["usd"] = result.cost_usd
        figures = {"ctx": self._ctx, "window": self._window(model), "cost": cost}
        self._emit("token_usage_changed", figures)

    def _note(self, text: str) -> None:
        self._emit("note", {"text": text, "origin": "harness"})

"""The turn loop and what it works with, put together for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hive_agent.context import ContextSettings
from hive_agent.mark import Mark
from hive_agent.readiness import Readiness
from hive_agent.runner import Runner
from hive_agent.state import Board, Status
from hive_agent.turn import TurnLoop
from hive_agent.turn_stats import Seed, TurnRow
from hive_agent.upkeep import Upkeep
from hive_core.wire import agent as wire

from .fakes import Emitted, FakeLink, FakeProvider


class Rig:
    """A turn loop with everything round it, in fake time: the wall clock is trio's, from 1000 on."""

    def __init__(
        self,
        link: FakeLink,
        provider: FakeProvider,
        state: Path = Path("/nowhere"),
        *,
        context: ContextSettings | None = None,
        seed: Seed | None = None,
    ) -> None:
        self.emitted = Emitted()
        self.rows: list[TurnRow] = []
        self.link = link
        self.mark = state / "limited"
        self.model = "fake-1"
        self.board = Board(self.emitted, provider="fake", model=lambda: self.model, clock=lambda: 5.0)
        self.board.let_go(Status.STARTING)
        self.emitted.events.clear()
        runner = Runner(
            link,
            provider,
            emit=self.emitted,
            board=self.board,
            model=lambda: self.model,
            effort=lambda: "high",
            record=self.rows.append,
            clock=self.now,
        )
        self.upkeep = Upkeep(
            runner,
            provider.capabilities,
            emit=self.emitted,
            board=self.board,
            settings=context or ContextSettings(),
            seed=seed,
            clock=self.now,
        )
        readiness = Readiness(
            provider,
            board=self.board,
            mark=Mark(self.mark),
            note=lambda text: self.emitted("note", {"text": text}),
            clock=self.now,
        )
        self.turns = TurnLoop(
            link, provider, runner, self.upkeep, readiness, emit=self.emitted, board=self.board
        )

    def now(self) -> float:
        return 1000 + trio.current_time()

    @property
    def acked(self) -> list[int]:
        return [message_id for ack in self.link.requests_of(wire.AckTurn) for message_id in ack.ids]

    @property
    def notes(self) -> list[str]:
        return [note["text"] for note in self.emitted.of("note")]

    @property
    def statuses(self) -> list[str]:
        return [change["status"] for change in self.emitted.of("status_changed")]

    @property
    def states(self) -> list[str]:
        return [change["state"] for change in self.emitted.of("turn_state_changed")]

    @property
    def kinds(self) -> list[str]:
        return [row.kind for row in self.rows]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[TurnLoop]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.turns.run)
            yield self.turns
            nursery.cancel_scope.cancel()

    async def run_for(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.turns.run()

"""What holds now in this harness: the state of the turn, the status of the agent."""

import time
from collections.abc import Callable
from enum import StrEnum

from hive_agent.events import Emit
from hive_core.wire.agent import Snapshot


class TurnState(StrEnum):
    IDLE = "idle"
    THINKING = "thinking"
    COMPACTING = "compacting"


class Status(StrEnum):
    """The first that holds is shown; ONLINE is when nothing does."""

    STOPPING = "stopping"
    STARTING = "starting"
    NEEDS_LOGIN_IN_PROGRESS = "needs_login_in_progress"
    NEEDS_LOGIN_IDLE = "needs_login_idle"
    PAUSED = "paused"
    RATE_LIMITED = "rate_limited"
    ONLINE = "online"


class Board:
    """Every change is an event; the whole goes with each publish as a snapshot."""

    def __init__(
        self,
        emit: Emit,
        *,
        provider: str,
        model: Callable[[], str],
        effort: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._emit = emit
        self._provider = provider
        self._model = model
        self._effort = effort
        self._clock = clock
        self._turn_state = TurnState.IDLE
        self._turn_state_since = clock()
        self._holding = {Status.STARTING}
        self._status = Status.STARTING
        self._ctx: int | None = None
        self._window: int | None = None

    @property
    def turn_state(self) -> TurnState:
        return self._turn_state

    @property
    def status(self) -> Status:
        return self._status

    def set_turn_state(self, state: TurnState) -> None:
        if state != self._turn_state:
            self._turn_state = state
            self._turn_state_since = self._clock()
            self._emit("turn_state_changed", {"state": state.value, "since": self._turn_state_since})

    def hold(self, status: Status) -> None:
        """Say that *status* is true from now on.  A stopping harness does not come back."""
        self._holding.add(status)
        self._show()

    def let_go(self, status: Status) -> None:
        """Say that *status* is not true any more."""
        self._holding.discard(status)
        self._show()

    def set_context(self, ctx: int | None, window: int) -> None:
        """Remember for the snapshot how full the conversation is, in tokens."""
        self._ctx, self._window = ctx, window

    def snapshot(self) -> Snapshot:
        return Snapshot(
            turn_state=self._turn_state.value,
            turn_state_since=self._turn_state_since,
            status=self._status.value,
            provider=self._provider,
            model=self._model(),
            effort=self._effort(),
            ctx_tokens=self._ctx,
            window_tokens=self._window,
        )

    def _show(self) -> None:
        holding = set(self._holding)
        if Status.NEEDS_LOGIN_IDLE not in holding:
            # Somebody logs in although nothing asks for it: turns go on meanwhile.
            holding.discard(Status.NEEDS_LOGIN_IN_PROGRESS)
        shown = next(status for status in Status if status in holding or status is Status.ONLINE)
        if shown != self._status:
            self._status = shown
            self._emit("status_changed", {"status": shown.value})

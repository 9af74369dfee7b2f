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
    STARTING = "starting"
    ONLINE = "online"
    PAUSED = "paused"
    STOPPING = "stopping"


class Board:
    """Every change is an event; the whole goes with each publish as a snapshot."""

    def __init__(
        self,
        emit: Emit,
        *,
        provider: str,
        model: Callable[[], str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._emit = emit
        self._provider = provider
        self._model = model
        self._clock = clock
        self._turn_state = TurnState.IDLE
        self._turn_state_since = clock()
        self._status = Status.STARTING

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

    def set_status(self, status: Status) -> None:
        # A stopping harness does not come back: a late command must not show it as online.
        if self._status not in (status, Status.STOPPING):
            self._status = status
            self._emit("status_changed", {"status": status.value})

    def snapshot(self) -> Snapshot:
        return Snapshot(
            turn_state=self._turn_state.value,
            turn_state_since=self._turn_state_since,
            status=self._status.value,
            provider=self._provider,
            model=self._model(),
        )

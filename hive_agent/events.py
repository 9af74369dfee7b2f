"""The bus: what happens in a turn goes to the agent's own file, and to the daemon as it happens.

An event's id is its cursor everywhere: ids count on from the newest one in the file.  Without a file
they count from the unix time in milliseconds, so that they rise all the same.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import trio

from hive_agent.event_file import EventFile, fit_payload
from hive_agent.link import ask
from hive_core.wire.agent import Done, Event, Publish, Snapshot
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_PUBLISH_EVENTS
from hive_core.wire.stream import Caller

log = logging.getLogger(__name__)

MAX_BATCH_BYTES: Final = 128 * 2**10
"""As JSON.  As msgpack, where each number may be 9 bytes, it still fits MAX_REQUEST_BYTES."""
MAX_UNCONFIRMED: Final = 1000
MAX_UNCONFIRMED_BYTES: Final = 16 * 2**20
UNAVAILABLE_PAUSE_S: Final = 1.0


class Emit(Protocol):
    def __call__(self, kind: str, payload: dict[str, Any]) -> object: ...


class Bus:
    def __init__(
        self,
        file: EventFile,
        publish: Callable[[Event, int], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._publish = publish
        self._clock = clock
        self._last_id = int(clock() * 1000) if file.last_id is None else file.last_id

    def emit(self, kind: str, payload: dict[str, Any]) -> Event:
        """Give the event its id, store it, and hand it on to be published.  Never fails."""
        payload, encoded = fit_payload(payload)
        self._last_id += 1
        event = Event(id=self._last_id, ts=self._clock(), kind=kind, payload=payload)
        self._file.append(event.id, event.ts, kind, encoded.decode())
        self._publish(event, len(encoded))
        return event

    def note(self, text: str, origin: str = "harness") -> None:
        """Emit a note: a line for whoever watches, from the harness, the operator or a tool's stderr."""
        self.emit("note", {"text": text, "origin": origin})


class _Waiting(NamedTuple):
    event: Event
    size_bytes: int


class Publisher:
    """Keeps events until the daemon has confirmed them, in order and within bounds.

    When it is full the oldest are dropped: they are in the agent's file already.
    """

    def __init__(self) -> None:
        self._unconfirmed: deque[_Waiting] = deque()
        self._unconfirmed_bytes = 0
        self._changed = trio.Event()

    def add(self, event: Event, size_bytes: int) -> None:
        self._unconfirmed.append(_Waiting(event, size_bytes))
        self._unconfirmed_bytes += size_bytes
        while len(self._unconfirmed) > MAX_UNCONFIRMED or self._unconfirmed_bytes > MAX_UNCONFIRMED_BYTES:
            self._drop_oldest()
        self._note_change()

    async def run(self, caller: Caller, snapshot: Callable[[], Snapshot]) -> None:
        """Publish over one connection: the snapshot at once, then whatever comes.

        Raises:
            Disconnected: what was not confirmed waits for the next connection.
        """
        greeted = False
        max_events = MAX_PUBLISH_EVENTS
        while True:
            batch = self._next_batch(max_events)
            if not batch and greeted:
                await self._changed.wait()
                continue
            try:
                await ask(caller, Publish(events=batch, now=snapshot()), Done)
            except Refused as refusal:
                if refusal.code == ErrorCode.UNAVAILABLE:
                    await trio.sleep(UNAVAILABLE_PAUSE_S)
                    continue
                log.warning("Events cannot be published: %s", refusal.text)
                if len(batch) > 1:  # find the one that the daemon does not take
                    max_events = 1
                    continue
            else:
                max_events = MAX_PUBLISH_EVENTS
            greeted = True
            if batch:
                self._confirm(batch[-1].id)

    async def wait_drained(self) -> None:
        while self._unconfirmed:
            await self._changed.wait()

    def _next_batch(self, max_events: int) -> list[Event]:
        batch: list[Event] = []
        size_bytes = 0
        for waiting in self._unconfirmed:
            size_bytes += waiting.size_bytes
            if len(batch) == max_events or (batch and size_bytes > MAX_BATCH_BYTES):
                break
            batch.append(waiting.event)
        return batch

    def _confirm(self, last_id: int) -> None:
        while self._unconfirmed and self._unconfirmed[0].event.id <= last_id:
            self._drop_oldest()
        self._note_change()

    def _drop_oldest(self) -> None:
        self._unconfirmed_bytes -= self._unconfirmed.popleft().size_bytes

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

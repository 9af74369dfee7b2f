"""What happens now: the live events of agents, the messages, and the rows that changed.

Publishing never waits.  Everything goes into rings of bounded size; a reader keeps its own place in a
ring and is told when the ring has overtaken it.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec
import trio

from hive_core.domain.event import Event
from hive_core.store.mailbox import StoredMessage
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_EVENT_BYTES

T = TypeVar("T")

EVENTS_PER_AGENT: Final = 1000
EVENT_BYTES_PER_AGENT: Final = 2 * 2**20
WATCH_ITEMS: Final = 4000
WATCH_BYTES: Final = 8 * 2**20


class Overtaken(Exception):
    """The reader was too slow: what it would get next is no longer in the ring."""


class Ended(Exception):
    """Nothing will come any more."""


class Ring(Generic[T]):
    """The newest items, in order.  A place is the number of an item, counted from 0."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._max_items, self._max_bytes = max_items, max_bytes
        self._bytes = 0
        self._ended = False
        self._readers = trio.lowlevel.ParkingLot()
        self.end = 0
        """The place of the item that comes next."""

    @property
    def begin(self) -> int:
        return self.end - len(self._items)

    def append(self, item: T, size: int) -> None:
        self._items.append((item, size))
        self._bytes += size
        self.end += 1
        while len(self._items) > self._max_items or (self._bytes > self._max_bytes and len(self._items) > 1):
            self._bytes -= self._items.popleft()[1]
        if self._readers:
            self._readers.unpark_all()

    def end_here(self) -> None:
        self._ended = True
        if self._readers:
            self._readers.unpark_all()

    def clear(self) -> None:
        self._items.clear()
        self._bytes = 0

    def items(self) -> list[T]:
        return [item for item, _ in self._items]

    async def after(self, place: int) -> list[T]:
        """Give the items from *place* on, waiting until there is one.

        Raises:
            Overtaken: some of them are gone.
            Ended: nothing comes any more.
        """
        while place >= self.end:
            if self._ended:
                raise Ended
            await self._readers.park()
        if place < self.begin:
            raise Overtaken
        newest_first = itertools.islice(reversed(self._items), self.end - place)
        return [item for item, _ in newest_first][::-1]


@dataclass(frozen=True, slots=True)
class AgentEvent:
    agent: str
    event: Event


@dataclass(frozen=True, slots=True)
class RowChanged:
    agent: str


WatchItem = StoredMessage | AgentEvent | RowChanged


class _Channel:
    def __init__(self) -> None:
        self.ring: Ring[Event] = Ring(EVENTS_PER_AGENT, EVENT_BYTES_PER_AGENT)
        self.last_id = 0
        self.last_ts = 0.0
        self.snapshot: wire.Snapshot | None = None


class Feed:
    """The rings: one of events per agent, and one of everything for those who watch the hive."""

    def __init__(self, said: Callable[[str, wire.Snapshot], None] = lambda _agent, _now: None) -> None:
        """*said* is called with what a harness says about itself, when that is something new."""
        self._said = said
        self._channels: dict[str, _Channel] = {}
        self.everything: Ring[WatchItem] = Ring(WATCH_ITEMS, WATCH_BYTES)

    def events_of(self, agent: str) -> Ring[Event]:
        return self._channel(agent).ring

    def snapshot_of(self, agent: str) -> wire.Snapshot | None:
        """What the harness of *agent* said last about itself; None after it was dropped."""
        channel = self._channels.get(agent)
        return channel.snapshot if channel else None

    def publish(self, agent: str, events: Iterable[wire.Event], now: wire.Snapshot | None) -> None:
        """Show *events* to whoever follows.  An id that is not above the last one is a repeat.

        Raises:
            Refused: INVALID_ARGUMENT for a payload that is too large or is no JSON.
        """
        shown = [_shown(event) for event in events]
        channel = self._channel(agent)
        if shown and shown[0].id <= channel.last_id and shown[0].ts > channel.last_ts:
            # Not a repeat, but a harness whose event file was lost: it counts from 1 again.
            channel.ring.clear()
            channel.last_id = 0
        for event in shown:
            if event.id > channel.last_id:
                channel.last_id, channel.last_ts = event.id, event.ts
                channel.ring.append(event, len(event.payload))
                self.everything.append(AgentEvent(agent, event), len(event.payload))
        if now is not None and now != channel.snapshot:
            channel.snapshot = now
            self._said(agent, now)
            self.changed(agent)

    def message(self, message: StoredMessage) -> None:
        self.everything.append(message, len(message.body))

    def changed(self, agent: str) -> None:
        """Something on the row of *agent* is different."""
        self.everything.append(RowChanged(agent), 0)

    def disconnected(self, agent: str) -> None:
        """What the harness said about itself no longer holds."""
        if agent in self._channels:
            self._channels[agent].snapshot = None
            self.changed(agent)

    def forget(self, agent: str) -> None:
        """*agent* is gone; whoever follows its events is told."""
        channel = self._channels.pop(agent, None)
        if channel is not None:
            channel.ring.end_here()
        self.changed(agent)

    def _channel(self, agent: str) -> _Channel:
        return self._channels.setdefault(agent, _Channel())


def _shown(event: wire.Event) -> Event:
    try:
        payload = msgspec.json.encode(event.payload)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT, f"cannot publish event {event.id}: no JSON: {error}"
        ) from None
    if len(payload) > MAX_EVENT_BYTES:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT,
            f"cannot publish event {event.id}: {len(payload)} bytes, the limit is {MAX_EVENT_BYTES}",
        )
    return Event(event.id, event.ts, event.kind, msgspec.Raw(payload))

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from hive_core.feed import AgentEvent, Feed, Overtaken, Ring, RowChanged
from hive_core.wire.agent import Event, Snapshot
from hive_core.wire.errors import Refused


def event(event_id: int, ts: float = 1.0, **payload: Any) -> Event:
    return Event(id=event_id, ts=ts, kind="note", payload=payload)


def shown(feed: Feed, agent: str = "alice") -> list[int]:
    return [event.id for event in feed.events_of(agent).items()]


async def test_a_reader_gets_everything_from_its_place_on() -> None:
    ring: Ring[str] = Ring(10, 1000)
    for text in "abc":
        ring.append(text, 1)
    assert await ring.after(0) == ["a", "b", "c"]
    assert await ring.after(2) == ["c"]


async def test_a_reader_waits_for_what_comes_next() -> None:
    ring: Ring[str] = Ring(10, 1000)
    got: list[str] = []

    async def read() -> None:
        got.extend(await ring.after(0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        ring.append("a", 1)
    assert got == ["a"]


@pytest.mark.parametrize(("max_items", "max_bytes"), [(3, 10**6), (10**6, 30)])
async def test_a_reader_that_was_overtaken_is_told(max_items: int, max_bytes: int) -> None:
    ring: Ring[int] = Ring(max_items, max_bytes)
    for number in range(5):
        ring.append(number, 10)
    assert (ring.begin, ring.end) == (2, 5)
    assert await ring.after(2) == [2, 3, 4]
    with pytest.raises(Overtaken):
        await ring.after(1)


def test_the_newest_item_stays_however_large() -> None:
    ring: Ring[int] = Ring(10, 30)
    ring.append(1, 10)
    ring.append(2, 99)
    assert ring.items() == [2]


def test_a_repeated_event_is_shown_once() -> None:
    feed = Feed()
    feed.publish("alice", [event(1), event(2)], None)
    feed.publish("alice", [event(2), event(3)], None)
    assert shown(feed) == [1, 2, 3]
    assert [item.event.id for item in feed.everything.items() if isinstance(item, AgentEvent)] == [1, 2, 3]


def test_a_harness_that_lost_its_file_counts_from_one_again() -> None:
    feed = Feed()
    feed.publish("alice", [event(50, ts=1.0), event(51, ts=2.0)], None)
    feed.publish("alice", [event(1, ts=3.0), event(2, ts=3.0)], None)
    assert shown(feed) == [1, 2]


def test_repeats_after_a_lost_answer_are_no_new_count() -> None:
    feed = Feed()
    feed.publish("alice", [event(50, ts=1.0), event(51, ts=2.0)], None)
    feed.publish("alice", [event(50, ts=1.0)], None)
    assert shown(feed) == [50, 51]


@pytest.mark.parametrize("payload", [{"x": "y" * 300_000}, {"x": msgspec.msgpack.Ext(5, b"?")}])
def test_an_event_that_cannot_be_shown_is_refused(payload: dict[str, Any]) -> None:
    feed = Feed()
    with pytest.raises(Refused, match="cannot publish event 7"):
        feed.publish("alice", [event(6), event(7, **payload)], None)
    assert shown(feed) == []


def test_a_changed_snapshot_changes_the_row_and_the_same_one_does_not() -> None:
    feed = Feed()
    feed.publish("alice", [], Snapshot(turn_state="thinking"))
    feed.publish("alice", [], Snapshot(turn_state="thinking"))
    assert feed.everything.items() == [RowChanged("alice")]
    feed.disconnected("alice")
    assert feed.snapshot_of("alice") is None

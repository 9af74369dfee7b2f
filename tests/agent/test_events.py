import logging
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from hive_agent.event_file import HOLD_OFF_S, EventFile, fit_payload
from hive_agent.events import MAX_BATCH_BYTES, MAX_UNCONFIRMED, Bus, Publisher
from hive_agent.link import Link
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_EVENT_BYTES, MAX_EVENT_DEPTH

from .fake_daemon import FakeDaemon

OpenBus = Callable[..., Bus]
OpenFile = Callable[..., EventFile]
NOW_MS = 1_700_000_000_000


@pytest.fixture
def open_file() -> Iterator[Callable[..., EventFile]]:
    with ExitStack() as stack:

        def open_file(path: Path, **options: Any) -> EventFile:
            file = EventFile(path, **options)
            stack.callback(file.close)
            return file

        yield open_file


@pytest.fixture
def open_bus(open_file: Callable[..., EventFile]) -> OpenBus:
    def open_bus(path: Path, publisher: Publisher | None = None) -> Bus:
        return Bus(open_file(path), (publisher or Publisher()).add, clock=lambda: NOW_MS / 1000)

    return open_bus


def rows(path: Path) -> list[Any]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT id, ts, kind, payload_json FROM events ORDER BY id").fetchall()
    db.close()
    return found


async def publish(daemon: FakeDaemon, publisher: Publisher, nursery: trio.Nursery) -> None:
    async def attend(caller: Any) -> None:
        await publisher.run(caller, wire.Snapshot)

    nursery.start_soon(Link(daemon.path, attend=[attend]).run)


# ── the file ────────────────────────────────────────────────────────────────────────────────────


def test_an_event_is_a_row_of_the_file(
    tmp_path: Path,
    open_bus: OpenBus,
) -> None:
    bus = open_bus(tmp_path / "events.sqlite")

    bus.emit("turn_end", {"ok": True})
    bus.note("half way")

    assert rows(tmp_path / "events.sqlite") == [
        (1, NOW_MS / 1000, "turn_end", '{"ok":true}'),
        (2, NOW_MS / 1000, "note", '{"text":"half way","origin":"harness"}'),
    ]


def test_the_file_is_private_and_in_wal_mode(
    tmp_path: Path,
    open_bus: OpenBus,
) -> None:
    open_bus(tmp_path / "events.sqlite").emit("note", {})

    assert stat.S_IMODE((tmp_path / "events.sqlite").stat().st_mode) == 0o600
    db = sqlite3.connect(tmp_path / "events.sqlite")
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    db.close()


def test_ids_go_on_above_what_is_stored_even_when_the_clock_went_back(
    tmp_path: Path, open_bus: OpenBus, open_file: Callable[..., EventFile]
) -> None:
    file = open_file(tmp_path / "events.sqlite")
    file.append(NOW_MS + 500, 1.0, "note", "{}")
    file.close()

    assert open_bus(tmp_path / "events.sqlite").emit("note", {}).id == NOW_MS + 501


def test_ids_go_on_when_the_host_has_pruned_every_row(tmp_path: Path, open_bus: OpenBus) -> None:
    open_bus(tmp_path / "events.sqlite").note("old")
    with sqlite3.connect(tmp_path / "events.sqlite") as db:
        db.execute("DELETE FROM events")
    db.close()

    open_bus(tmp_path / "events.sqlite").note("new")

    assert [row[0] for row in rows(tmp_path / "events.sqlite")] == [2]


def test_a_file_of_the_original_is_continued(
    tmp_path: Path,
    open_bus: OpenBus,
) -> None:
    with sqlite3.connect(tmp_path / "events.sqlite") as db:
        db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, ts INTEGER, kind TEXT, payload_json TEXT)")
        db.execute("INSERT INTO events VALUES (5, 1700000000, 'note', '{\"text\":\"old\"}')")
    db.close()

    open_bus(tmp_path / "events.sqlite").note("new")

    assert [row[0] for row in rows(tmp_path / "events.sqlite")] == [5, 6]


@pytest.mark.parametrize("broken", ["missing directory", "no database", "a directory"])
def test_without_a_file_events_are_published_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: str, open_file: Callable[..., EventFile]
) -> None:
    path = tmp_path / "events.sqlite"
    match broken:
        case "missing directory":
            path = tmp_path / "missing" / "events.sqlite"
        case "no database":
            path.write_bytes(b"this is no database" * 1000)
        case "a directory":
            path.mkdir()
    published: list[int] = []
    bus = Bus(open_file(path), lambda event, _: published.append(event.id), clock=lambda: NOW_MS / 1000)

    bus.note("one")
    bus.note("two")

    assert published == [NOW_MS + 1, NOW_MS + 2]
    assert len(caplog.records) == 1
    assert open_file(path).history() == []


def test_a_locked_file_costs_one_short_wait_and_one_log_line(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    open_file: Callable[..., EventFile],
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("hive_agent.event_file.BUSY_TIMEOUT_S", 0.01)
    now = 1000.0
    file = open_file(tmp_path / "events.sqlite", clock=lambda: now)
    vacuum = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    vacuum.execute("BEGIN IMMEDIATE")

    stored = [file.append(number, 1.0, "note", "{}") for number in (1, 2)]
    vacuum.execute("COMMIT")
    stored.append(file.append(3, 1.0, "note", "{}"))
    now += HOLD_OFF_S
    stored.append(file.append(4, 1.0, "note", "{}"))

    assert stored == [False, False, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "Events are not stored for now: database is locked",
        "Events are stored again",
    ]
    vacuum.close()
    file.close()


def test_history_gives_the_newest_or_what_follows_an_id(
    tmp_path: Path, open_file: Callable[..., EventFile]
) -> None:
    file = open_file(tmp_path / "events.sqlite")
    for number in range(1, 6):
        file.append(number, 1.0, "note", f'{{"text":"{number}"}}')

    assert [event.id for event in file.history(limit=2)] == [4, 5]
    assert [event.id for event in file.history(after=1, limit=3)] == [2, 3, 4]
    assert file.history(after=4)[0] == wire.Event(id=5, ts=1.0, kind="note", payload={"text": "5"})


# ── what fits ───────────────────────────────────────────────────────────────────────────────────


def test_a_payload_that_fits_is_left_alone() -> None:
    payload = {"text": "x" * 1000, "numbers": [1, 2.5, None, True]}

    assert fit_payload(payload)[0] is payload


def test_the_longest_strings_of_a_big_payload_are_cut() -> None:
    payload = {"short": "stays", "deep": {"list": ["ä" * 200_000, "also stays"]}}

    cut, encoded = fit_payload(payload)

    assert len(encoded) <= MAX_EVENT_BYTES
    assert msgspec.json.decode(encoded) == cut
    assert cut["truncated"] is True
    assert cut["short"] == "stays"
    assert cut["deep"]["list"][0].startswith("ää")
    assert cut["deep"]["list"][0].endswith("…")
    assert cut["deep"]["list"][1] == "also stays"


def test_a_payload_of_too_many_small_things_becomes_text() -> None:
    cut, encoded = fit_payload({"numbers": list(range(100_000))})

    assert len(encoded) <= MAX_EVENT_BYTES
    assert cut["truncated"] is True
    assert cut["text"].startswith('{"numbers":[0,1,2')


def nested(levels: int) -> dict[str, Any]:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return {"nested": value}


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "\ud800"},
        {"\udfff": 1},
        {"number": 10**30},
        {"number": -(2**63) - 1},
        nested(MAX_EVENT_DEPTH),
        nested(50_000),
    ],
    ids=["surrogate", "surrogate key", "huge", "very negative", "deep", "abysmal"],
)
def test_what_the_wire_cannot_carry_is_replaced(payload: dict[str, Any]) -> None:
    fitting, encoded = fit_payload(payload)

    event = wire.Event(id=1, ts=1.0, kind="stream", payload=fitting)
    wire.decode_request(msgspec.msgpack.encode(wire.Publish(events=[event])))
    assert msgspec.json.decode(encoded) == fitting


# ── live ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_connection_begins_with_a_snapshot(
    patient_clock: MockClock, daemon: FakeDaemon, nursery: trio.Nursery
) -> None:
    await publish(daemon, Publisher(), nursery)

    await daemon.wait_until(lambda daemon: daemon.snapshots)

    assert daemon.asked == [wire.Publish(now=wire.Snapshot())]


async def test_events_go_out_in_order_and_in_batches(
    patient_clock: MockClock, tmp_path: Path, daemon: FakeDaemon, nursery: trio.Nursery, open_bus: OpenBus
) -> None:
    publisher = Publisher()
    bus = open_bus(tmp_path / "events.sqlite", publisher)
    emitted = [bus.emit("stream", {"number": number}).id for number in range(150)]

    await publish(daemon, publisher, nursery)
    await publisher.wait_drained()

    assert [event.id for event in daemon.events] == emitted
    assert [len(request.events) for request in daemon.asked_of(wire.Publish)] == [64, 64, 22]
    assert all(request.now is not None for request in daemon.asked_of(wire.Publish))


async def test_a_batch_stays_small_in_bytes(
    patient_clock: MockClock, tmp_path: Path, daemon: FakeDaemon, nursery: trio.Nursery, open_bus: OpenBus
) -> None:
    publisher = Publisher()
    bus = open_bus(tmp_path / "events.sqlite", publisher)
    for _ in range(10):
        bus.emit("stream", {"text": "x" * (MAX_BATCH_BYTES // 5)})

    await publish(daemon, publisher, nursery)
    await publisher.wait_drained()

    assert [len(request.events) for request in daemon.asked_of(wire.Publish)] == [4, 4, 2]


async def test_after_a_reconnect_there_is_no_gap_and_no_repeat(
    patient_clock: MockClock, tmp_path: Path, daemon: FakeDaemon, nursery: trio.Nursery, open_bus: OpenBus
) -> None:
    publisher = Publisher()
    bus = open_bus(tmp_path / "events.sqlite", publisher)
    await publish(daemon, publisher, nursery)
    emitted = []
    for number in range(50):
        if number in (10, 30):
            daemon.lose_answer_of = wire.Publish
        if number == 20:
            daemon.drop_connections()
        emitted.append(bus.emit("stream", {"number": number}).id)
        await trio.sleep(0.05)

    await publisher.wait_drained()

    assert daemon.connections == 4
    assert [event.id for event in daemon.events] == emitted
    assert [row[0] for row in rows(tmp_path / "events.sqlite")] == emitted


async def test_what_is_not_confirmed_is_bounded_and_the_oldest_go(
    patient_clock: MockClock, tmp_path: Path, daemon: FakeDaemon, nursery: trio.Nursery, open_bus: OpenBus
) -> None:
    publisher = Publisher()
    bus = open_bus(tmp_path / "events.sqlite", publisher)
    emitted = [bus.emit("note", {}).id for _ in range(MAX_UNCONFIRMED + 5)]

    await publish(daemon, publisher, nursery)
    await publisher.wait_drained()

    assert [event.id for event in daemon.events] == emitted[5:]
    assert len(rows(tmp_path / "events.sqlite")) == MAX_UNCONFIRMED + 5


async def test_an_event_that_the_daemon_does_not_take_costs_only_itself(
    patient_clock: MockClock, daemon: FakeDaemon, nursery: trio.Nursery
) -> None:
    publisher = Publisher()
    for number in range(1, 11):
        kind = "\x00" if number == 4 else "note"
        publisher.add(wire.Event(id=number, ts=1.0, kind=kind), 2)

    await publish(daemon, publisher, nursery)
    await publisher.wait_drained()

    assert [event.id for event in daemon.events] == [1, 2, 3, 5, 6, 7, 8, 9, 10]


async def test_events_wait_while_the_daemon_is_not_available(
    patient_clock: MockClock, daemon: FakeDaemon, nursery: trio.Nursery
) -> None:
    publisher = Publisher()
    publisher.add(wire.Event(id=1, ts=1.0, kind="note"), 2)
    daemon.refuse[wire.Publish] = Refused(ErrorCode.UNAVAILABLE, "cannot publish: later")

    await publish(daemon, publisher, nursery)
    await trio.sleep(5)
    daemon.refuse.clear()
    await publisher.wait_drained()

    assert [event.id for event in daemon.events] == [1]

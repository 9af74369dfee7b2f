"""What an agent may have planted where its event file should be costs only its own history."""

import os
import sqlite3
from pathlib import Path

import pytest
import trio

from hive_core.host import agent_files
from hive_core.host.process import CommandError

FILE = "hyperhive-events.sqlite"


def event_file(directory: Path, count: int, payload: str = '{"text": "hi"}') -> None:
    db = sqlite3.connect(directory / FILE)
    db.execute("pragma journal_mode = wal")
    db.execute("create table events (id integer primary key, ts real, kind text, payload_json text)")
    db.executemany(
        "insert into events values (?, ?, ?, ?)",
        [(n, 100.0 + n, "note" if n % 2 else "stream", payload) for n in range(1, count + 1)],
    )
    db.commit()
    db.close()


async def read(
    directory: Path, *, after: int | None = None, limit: int = 100, kinds: list[str] | None = None
) -> list[int]:
    found, _ = await agent_files.read_events(directory, after=after, limit=limit, kinds=kinds)
    return [event.id for event in found]


async def test_events_are_read_from_both_ends(tmp_path: Path) -> None:
    event_file(tmp_path, 10)
    assert await read(tmp_path, limit=3) == [8, 9, 10]
    assert await read(tmp_path, after=0, limit=3) == [1, 2, 3]
    assert await read(tmp_path, after=8) == [9, 10]
    assert await read(tmp_path, kinds=["note"], limit=2) == [7, 9]


async def test_more_is_said_when_there_is_more(tmp_path: Path) -> None:
    event_file(tmp_path, 10)
    assert (await agent_files.read_events(tmp_path, after=0, limit=9, kinds=None))[1]
    assert not (await agent_files.read_events(tmp_path, after=0, limit=10, kinds=None))[1]


async def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert await read(tmp_path) == []


async def test_an_answer_is_bounded_whatever_the_file_holds(tmp_path: Path) -> None:
    event_file(tmp_path, 200, '{"text": "' + "x" * 200_000 + '"}')
    found, more = await agent_files.read_events(tmp_path, after=0, limit=1000, kinds=None)
    assert 0 < len(found) < 200
    assert more


@pytest.mark.parametrize(
    "payload", ["not json", "[1, 2]", '{"a": NaN}', "[" * 50_000, '{"x": "' + "y" * 400_000 + '"}']
)
async def test_a_strange_payload_is_one_strange_event(tmp_path: Path, payload: str) -> None:
    event_file(tmp_path, 2, payload)
    assert await read(tmp_path) == [1, 2]


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    event_file(elsewhere, 3)
    (tmp_path / FILE).symlink_to(elsewhere / FILE)
    with pytest.raises(CommandError, match="not a regular file"):
        await read(tmp_path)


async def test_a_fifo_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with trio.fail_after(8), pytest.raises(CommandError, match="not a regular file"):
        await read(tmp_path)


async def test_a_corrupt_file_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    with pytest.raises(CommandError, match="cannot read"):
        await read(tmp_path)


async def test_a_directory_is_deleted_without_following_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    doomed = tmp_path / "doomed"
    (doomed / "deep" / "er").mkdir(parents=True)
    (doomed / "link").symlink_to(kept)
    await agent_files.remove(doomed)
    assert not doomed.exists()
    assert (kept / "file").exists()
    await agent_files.remove(doomed)

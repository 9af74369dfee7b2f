"""The writer: batches, order, failures, and the end."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
import trio

from hive_core.store.database import MAX_WAITING, MAX_WAITING_BYTES, Outcome, Store, open_store
from hive_core.store.schema import SchemaError
from hive_core.wire.errors import ErrorCode, Refused


class Recorder:
    """Stores strings as rows of `noted`, and remembers the batches; "refuse" and "break" do as they say."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, db: apsw.Connection, ops: Sequence[str]) -> list[Outcome]:
        db.execute("create table if not exists noted (text)")
        outcomes: list[Outcome] = []
        for op in ops:
            if op == "break":
                db.execute("insert into nowhere values (1)")
            db.execute("insert into noted values (?)", (op,))
            outcomes.append(Refused(ErrorCode.CONFLICT, "cannot note") if op == "refuse" else op.upper())
        self.batches.append(list(ops))
        return outcomes


def noted(db: apsw.Connection) -> list[str]:
    if not db.execute("select 1 from sqlite_schema where name = 'noted'").fetchall():
        return []
    return [str(text) for (text,) in db.execute("select text from noted order by rowid")]


@asynccontextmanager
async def store_at(path: Path, apply: Recorder | None = None) -> AsyncIterator[Store[str]]:
    async with open_store(path, apply or Recorder()) as store:
        yield store


async def test_a_put_is_on_disk_when_it_is_answered(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        assert await store.put("a").wait() == "A"
        assert await store.read(noted) == ["a"]


async def test_puts_that_come_together_share_commits_and_keep_their_order(tmp_path: Path) -> None:
    recorder = Recorder()
    async with store_at(tmp_path / "x.sqlite", recorder) as store:
        answers = [store.put(str(number)) for number in range(500)]
        for answer in answers:
            await answer.wait()
        assert await store.read(noted) == [str(number) for number in range(500)]
    assert len(recorder.batches) < 50


async def test_a_job_sees_what_was_put_before_it_and_nothing_after(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        store.put("a")
        seen = store.submit(noted)
        store.put("b")
        assert await seen.wait() == ["a"]


async def test_a_refused_operation_costs_only_itself(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        first, refused, last = store.put("a"), store.put("refuse"), store.put("b")
        assert await first.wait() == "A"
        with pytest.raises(Refused, match="cannot note"):
            await refused.wait()
        assert await last.wait() == "B"


async def test_a_commit_that_fails_is_said_to_all_of_its_batch_and_the_store_goes_on(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        with pytest.raises(Refused) as refused:
            await store.put("break").wait()
        assert refused.value.code is ErrorCode.UNAVAILABLE
        assert store.trouble is not None
        assert await store.put("a").wait() == "A"
        assert store.trouble is None
        assert await store.read(noted) == ["a"]


async def test_a_job_that_raises_changes_nothing(tmp_path: Path) -> None:
    def half(db: apsw.Connection) -> None:
        db.execute("insert into noted values ('half')")
        raise LookupError("no")

    async with store_at(tmp_path / "x.sqlite") as store:
        await store.put("a").wait()
        with pytest.raises(LookupError):
            await store.write(half)
        assert await store.read(noted) == ["a"]


async def test_marks_are_stored_without_anybody_waiting(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        store.mark("m")
        with trio.fail_after(5):
            while await store.read(noted) != ["m"]:
                await trio.sleep(0.005)


async def test_marks_ride_with_the_put_that_comes_next(tmp_path: Path) -> None:
    recorder = Recorder()
    async with store_at(tmp_path / "x.sqlite", recorder) as store:
        store.mark("m")
        await store.put("a").wait()
    assert recorder.batches[0] == ["m", "a"]


async def test_marks_survive_a_commit_that_fails(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        store.mark("m")
        with pytest.raises(Refused):
            await store.put("break").wait()
        await store.put("a").wait()
        assert await store.read(noted) == ["m", "a"]


async def test_closing_commits_what_waits(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        for number in range(3000):
            store.mark(str(number))
    async with store_at(tmp_path / "x.sqlite") as store:
        assert await store.read(noted) == [str(number) for number in range(3000)]


async def test_puts_above_the_limit_are_refused_at_once(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        answers = [store.put("x") for _ in range(MAX_WAITING + 2000)]
        refused = [answer for answer in answers if answer.done]
        assert refused
        with pytest.raises(Refused, match="too much waits"):
            await refused[0].wait()


async def test_puts_that_would_fill_memory_are_refused_at_once(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        first, second = store.put("a", MAX_WAITING_BYTES), store.put("b", 1)
        with pytest.raises(Refused, match="too much waits"):
            await second.wait()
        await first.wait()
        assert await store.put("c", MAX_WAITING_BYTES).wait() == "C"


async def test_a_cancelled_write_is_carried_out_all_the_same(tmp_path: Path) -> None:
    async with store_at(tmp_path / "x.sqlite") as store:
        with trio.CancelScope() as scope:
            scope.cancel()
            await store.write(lambda db: db.execute("create table made (x)"))
        tables = await store.read(lambda db: db.execute("select name from sqlite_schema").fetchall())
        assert ("made",) in tables


async def test_a_clean_end_is_told_from_an_unclean_one(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    async with store_at(path) as store:
        assert store.was_clean
        copy = tmp_path / "copy.sqlite"
        await store.read(lambda db: db.execute("vacuum into ?", (str(copy),)))
    async with store_at(path) as store:
        assert store.was_clean
    async with store_at(copy) as store:  # taken while the store was open, as a kill leaves it
        assert not store.was_clean


async def test_a_bug_in_the_writer_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def buggy(_db: apsw.Connection, _ops: Sequence[str]) -> list[Outcome]:
        raise ZeroDivisionError

    async with open_store(tmp_path / "x.sqlite", buggy) as store:
        store.put("a")
        with trio.fail_after(5):
            await store.crashed.wait()
    assert "Store writer died" in caplog.text


@pytest.mark.parametrize(
    "content", [b"not a database, only text " * 100, b"SQLite format 3\0" + b"\xff" * 4000]
)
async def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"cannot open .*x\.sqlite"):
        async with store_at(path):
            pass
    assert path.read_bytes() == content

"""Search over a real store: what is on disk is found, by words, and nothing that is gone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.search import match_expression
from hive_core.search import Search, open_search
from hive_core.store import mailbox
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, Post, apply_batch
from hive_core.store.search_index import SearchIndex
from hive_core.wire.errors import ErrorCode, Refused


class Hive:
    def __init__(self, store: Store[MailboxOp], search: Search) -> None:
        self.store, self.search = store, search
        self.next_id = 1

    async def send(
        self, body: str, sender: str = "alice", to: str = "bob", reply_to: int | None = None
    ) -> int:
        message_id, self.next_id = self.next_id, self.next_id + 1
        await self.store.put(Post(message_id, sender, [to], body, 1000.0, in_reply_to=reply_to)).wait()
        return message_id

    async def find(self, typed: str, agent: str | None = None, limit: int = 50) -> list[int]:
        rows, not_indexed = await self.search.find(typed, agent, limit)
        assert not_indexed == 0
        return [row.id for row in rows]


@asynccontextmanager
async def hive_at(directory: Path) -> AsyncIterator[Hive]:
    async with open_store(directory / "broker.sqlite", apply_batch) as store, open_search(store) as search:
        yield Hive(store, search)


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path) as hive:
        yield hive


async def test_what_was_just_sent_is_found_by_any_of_its_words(hive: Hive) -> None:
    first = await hive.send("The BUILD failed: exit status 1, see foo_bar.py")
    await hive.send("all is well")
    third = await hive.send("the build works again, says Müller")

    assert await hive.find("build") == [first, third]
    assert await hive.find("build failed") == [first]
    assert await hive.find("muller") == [third]
    assert await hive.find("foo_bar") == [first]
    assert await hive.find("nothing") == []


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ('"exit status"', True),
        ('"status exit"', False),
        ("stat*", True),
        ("stat", False),
        ("exit AND status", False),
        ("exit OR x", False),
        ("body:exit", False),
        ("exit -status", True),
        ("NEAR(exit status)", False),
        ('exit "', True),
    ],
)
async def test_quotes_and_a_star_are_all_the_syntax_there_is(hive: Hive, typed: str, found: bool) -> None:
    await hive.send("exit status 1")

    assert bool(await hive.find(typed)) == found


@given(st.text(max_size=60))
def test_whatever_is_typed_is_searched_for_or_refused(typed: str) -> None:
    try:
        expression = match_expression(typed)
    except Refused as refusal:
        assert refusal.code is ErrorCode.INVALID_ARGUMENT
        return
    db = apsw.Connection(":memory:")
    db.execute("create virtual table words using fts5(body)")
    db.execute("select rowid from words where words match ?", (expression,)).fetchall()


async def test_only_what_an_agent_sent_or_got(hive: Hive) -> None:
    mine = await hive.send("apple", "alice", "bob")
    await hive.send("apple", "carol", "bob")
    to_me = await hive.send("apple", "carol", "alice")

    assert await hive.find("apple", agent="alice") == [mine, to_me]


async def test_the_newest_are_given_oldest_first(hive: Hive) -> None:
    ids = [await hive.send("apple") for _ in range(5)]

    assert await hive.find("apple", limit=2) == ids[-2:]


async def test_an_agents_own_are_found_below_many_of_others(hive: Hive) -> None:
    mine = await hive.send("apple", "alice", "bob")
    for _ in range(20):
        await hive.send("apple", "carol", "bob")

    assert await hive.find("apple", agent="alice", limit=3) == [mine]


async def test_long_messages_are_all_found_though_not_read_at_once(hive: Hive) -> None:
    ids = [await hive.send("apple " + "x" * 60_000) for _ in range(40)]

    assert await hive.find("apple") == ids


async def test_what_was_deleted_is_not_found_and_forgotten(hive: Hive) -> None:
    gone = await hive.send("apple")
    kept = await hive.send("apple")
    assert await hive.find("apple") == [gone, kept]

    await hive.store.write(lambda db: db.execute("delete from messages where id = ?", (gone,)))

    assert await hive.find("apple") == [kept]
    await hive.search.prune()
    assert hive.search._index.ids_after(0, 10) == [kept]


async def test_the_index_goes_on_where_it_was(tmp_path: Path) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.send("apple")
        await hive.find("apple")
    async with hive_at(tmp_path) as hive:
        hive.next_id = 2
        await hive.send("apple")

        assert await hive.find("apple") == [1, 2]


@pytest.mark.parametrize("damage", ["delete", "garbage", "other layout"])
async def test_an_index_that_is_lost_is_made_again(tmp_path: Path, damage: str) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.send("apple")
        await hive.find("apple")
    path = tmp_path / "search.sqlite"
    match damage:
        case "delete":
            path.unlink()
        case "garbage":
            path.write_bytes(b"no database at all" * 1000)
        case _:
            db = apsw.Connection(str(path))
            db.execute("pragma user_version = 99")
            db.close()

    async with hive_at(tmp_path) as hive:
        assert await hive.find("apple") == [1]


async def test_a_broken_index_is_a_refusal_and_no_end(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> int:
        raise apsw.CorruptError("database disk image is malformed")

    monkeypatch.setattr(SearchIndex, "last_id", broken)

    with pytest.raises(Refused, match="cannot search: the index") as refusal:
        await hive.find("apple")

    assert refusal.value.code is ErrorCode.UNAVAILABLE


# ── threads ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_thread_is_its_first_message_and_all_that_answer_in_it(hive: Hive) -> None:
    first = await hive.send("question")
    await hive.send("something else")
    answer = await hive.send("answer", "bob", "alice", reply_to=first)
    thanks = await hive.send("thanks", reply_to=answer)

    for each in (first, answer, thanks):
        rows = await hive.store.read(mailbox.thread, each, 10)
        assert [row.id for row in rows] == [first, answer, thanks]
    assert await hive.store.read(mailbox.thread, 99, 10) == []


async def test_a_thread_is_found_by_its_index(hive: Hive) -> None:
    plan = await hive.store.read(
        lambda db: db.execute(
            "explain query plan select id from messages"
            " where (id = ?1 or (thread_id = ?1 and in_reply_to is not null)) order by id",
            (1,),
        ).fetchall()
    )

    assert any("messages_replies" in str(step) for step in plan)
    assert not any(str(step[3]).startswith("SCAN messages") for step in plan)


async def test_a_message_that_goes_while_it_is_searched_for_is_not_missed_by_the_others(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await hive.send(f"build {number}")
    looked = mailbox.by_ids

    def gone(db: apsw.Connection, ids: list[int]) -> list[mailbox.StoredMessage]:
        monkeypatch.setattr(mailbox, "by_ids", looked)
        return []

    monkeypatch.setattr(mailbox, "by_ids", gone)

    assert await hive.find("build") == []
    assert await hive.find("build") == [1, 2, 3]


async def test_an_older_database_that_was_put_in_place_is_read_anew(tmp_path: Path) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.send("apples")
    (tmp_path / "older.sqlite").write_bytes((tmp_path / "broker.sqlite").read_bytes())
    async with hive_at(tmp_path) as hive:
        hive.next_id = 2
        await hive.send("pears")
        await hive.send("plums")
        assert await hive.find("plums") == [3]

    for path in tmp_path.glob("broker.sqlite*"):
        path.unlink()
    (tmp_path / "older.sqlite").rename(tmp_path / "broker.sqlite")
    async with hive_at(tmp_path) as hive:
        hive.next_id = 2
        assert await hive.find("apples") == [1]
        await hive.send("cherries")
        assert await hive.find("pears") == []
        assert await hive.find("cherries") == [2]


async def test_what_a_vacuum_deleted_is_forgotten_after_a_while(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await hive.send("old news")
    second = await hive.send("new news")
    assert await hive.find("news") == [first, second]
    await hive.store.write(lambda db: db.execute("delete from messages where id = ?", (first,)))

    async def indexed() -> list[int]:
        return await hive.search._ask(hive.search._index.ids_after, 0, 10)

    monkeypatch.setattr("hive_core.search.FILL_EVERY_S", 0.01)
    monkeypatch.setattr("hive_core.search.PRUNE_EVERY_S", 0.01)
    async with trio.open_nursery() as nursery:
        await nursery.start(hive.search.run)
        with trio.fail_after(10):
            while await indexed() != [second]:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

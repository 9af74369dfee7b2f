"""Files of our own older schemas, as they are out there: they open, and nothing in them is lost.

With a new migration comes a sample of the schema before it: tests/store/samples/schema-N.sql.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from hive_core.store import agents, mailbox, questions, reminders
from hive_core.store.database import open_store
from hive_core.store.mailbox import apply_batch
from hive_core.store.schema import APPLICATION_ID, MIGRATIONS, migrate

SAMPLES = Path(__file__).parent / "samples"
VERSIONS = range(1, len(MIGRATIONS))

Rows = dict[str, list[tuple[object, ...]]]


def sample(version: int, path: Path, journal: str = "wal") -> Path:
    with opened(path) as db:
        db.execute(f"pragma journal_mode = {journal}").fetchall()
        db.execute((SAMPLES / f"schema-{version}.sql").read_text())
    return path


@contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    db = apsw.Connection(str(path))
    try:
        yield db
    finally:
        db.close()


def columns(db: apsw.Connection) -> dict[str, list[str]]:
    tables = [str(name) for (name,) in db.execute("select name from sqlite_schema where type = 'table'")]
    return {table: [str(row[1]) for row in db.execute(f"pragma table_info({table})")] for table in tables}


def rows(db: apsw.Connection, wanted: dict[str, list[str]]) -> Rows:
    return {
        table: db.execute(f"select {', '.join(names)} from {table} order by 1").fetchall()
        for table, names in wanted.items()
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_there_is_a_sample_that_is_what_it_says(version: int, tmp_path: Path) -> None:
    with opened(sample(version, tmp_path / "db")) as db:
        assert (db.pragma("application_id"), db.pragma("user_version")) == (APPLICATION_ID, version)
        assert all(rows(db, columns(db)).values())


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_and_column_is_kept(version: int, journal: str, tmp_path: Path) -> None:
    path = sample(version, tmp_path / "db", journal)
    with opened(path) as db:
        had = columns(db)
        before = rows(db, had)
        assert migrate(db, str(path)) == len(MIGRATIONS)
        assert rows(db, had) == before
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert migrate(db, str(path)) == len(MIGRATIONS)
        assert rows(db, had) == before


@pytest.mark.parametrize("version", VERSIONS)
def test_it_ends_up_with_the_tables_of_a_fresh_file(version: int, tmp_path: Path) -> None:
    with opened(sample(version, tmp_path / "old")) as old, opened(tmp_path / "new") as new:
        migrate(old, "old")
        migrate(new, "new")
        assert columns(old) == columns(new)
        indexes = "select name, sql from sqlite_schema where type = 'index' order by name"
        assert old.execute(indexes).fetchall() == new.execute(indexes).fetchall()


@pytest.mark.parametrize("version", VERSIONS)
def test_its_rows_mean_what_they_meant(version: int, tmp_path: Path) -> None:
    path = sample(version, tmp_path / "db")
    with opened(path) as db:
        migrate(db, str(path))
        waiting, _ = mailbox.load_window(db, "alice", 0, [], 10, 10**6)
        alice, bob = agents.all_agents(db)
        assert [(message.body, message.redelivered) for message in waiting] == [
            ("still waits", False),
            ("in flight", True),
        ]
        assert [message.body for message in mailbox.recent(db, "operator", 10)] == ["to you"]
        assert mailbox.last_id(db) == 9
        assert (alice.name, alice.paused, alice.status_text) == ("alice", True, "reading")
        assert (bob.name, bob.destroyed_at) == ("bob", 1500.0)
        assert alice.uid_base == (1073741824 if version >= 2 else None)
        assert [(each.question, each.options) for each in questions.all_open(db, 10)] == [
            ("why?", ("a", "b"))
        ]
        assert [each.message for each in reminders.pending(db, None, 10)] == ["tea"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_daemon_opens_it(version: int, tmp_path: Path) -> None:
    async with open_store(sample(version, tmp_path / "db"), apply_batch) as store:
        assert store.schema == len(MIGRATIONS)
        assert store.was_clean
        assert await store.read(mailbox.count) == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_a_migration_that_is_cut_off_leaves_the_old_file(version: int, tmp_path: Path) -> None:
    path = sample(version, tmp_path / "db")
    with opened(path) as db:
        had = columns(db)
        before = rows(db, had)
        left = 2

        def refuse(_cursor: object, sql: str, _bindings: object) -> bool:
            nonlocal left
            left -= sql.lstrip().startswith(("alter", "create", "update", "insert", "drop"))
            return left > 0

        db.exec_trace = refuse  # type: ignore[assignment]
        with pytest.raises(apsw.ExecTraceAbort):
            migrate(db, str(path))
        db.exec_trace = None
        assert columns(db) == had
        assert rows(db, had) == before
        assert db.pragma("user_version") == version

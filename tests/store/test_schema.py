"""Files of every age of the original, of ours, and of others."""

import sqlite3
from pathlib import Path

import apsw
import pytest

from hive_core.store import agents, dead, mailbox
from hive_core.store.schema import APPLICATION_ID, MIGRATIONS, SchemaError, migrate

MESSAGES_OF_MAY_14 = """
create table messages (
    id integer primary key autoincrement, sender text not null, recipient text not null,
    body text not null, sent_at integer not null, delivered_at integer
);
insert into messages (sender, recipient, body, sent_at, delivered_at) values
    ('operator', 'alice', 'done long ago', 1000, 1001), ('bob', 'alice', 'still waits', 1002, null);
"""
APPROVALS_OF_MAY_14 = """
create table approvals (
    id integer primary key autoincrement, agent text not null, kind text not null, commit_ref text not null,
    requested_at integer not null, status text not null, resolved_at integer, note text
);
insert into approvals (agent, kind, commit_ref, requested_at, status) values ('alice', 'spawn', '', 1000, 'pending');
"""
QUESTIONS_OF_MAY_15 = """
create table operator_questions (
    id integer primary key autoincrement, asker text not null, question text not null,
    options_json text not null, multi integer not null, asked_at integer not null, answered_at integer, answer text
);
insert into operator_questions (asker, question, options_json, multi, asked_at) values ('alice', 'why?', '[]', 0, 1000);
"""
LEASES_OF_MAY_18 = """
alter table messages add column acked_at integer;
update messages set acked_at = 1001 where id = 1;
insert into messages (sender, recipient, body, sent_at, delivered_at) values ('bob', 'alice', 'in flight', 1003, 1004);
"""
REPLIES_OF_MAY_20 = """
alter table messages add column in_reply_to integer;
insert into messages (sender, recipient, body, sent_at, in_reply_to) values ('alice', 'bob', 'reply', 1005, 2);
insert into messages (sender, recipient, body, sent_at, in_reply_to) values ('bob', 'alice', 'again', 1006, 4);
"""
LATER = """
alter table approvals add column fetched_sha text;
alter table approvals add column description text;
alter table operator_questions add column deadline_at integer;
alter table operator_questions add column target text;
create table reminders (
    id integer primary key autoincrement, agent text not null, message text not null, due_at integer not null,
    file_path text, created_at integer not null, sent_at integer,
    attempt_count integer not null default 0, last_error text
);
insert into reminders (agent, message, due_at, created_at) values ('alice', 'tea', 5000, 1000);
create table schedules (id integer primary key, owner text, body text);
insert into schedules values (1, 'alice', 'each day');
"""

AGES = {
    "messages alone": [MESSAGES_OF_MAY_14],
    "with approvals": [MESSAGES_OF_MAY_14, APPROVALS_OF_MAY_14],
    "with questions": [MESSAGES_OF_MAY_14, APPROVALS_OF_MAY_14, QUESTIONS_OF_MAY_15],
    "with leases": [MESSAGES_OF_MAY_14, APPROVALS_OF_MAY_14, QUESTIONS_OF_MAY_15, LEASES_OF_MAY_18],
    "with replies": [
        MESSAGES_OF_MAY_14, APPROVALS_OF_MAY_14, QUESTIONS_OF_MAY_15, LEASES_OF_MAY_18, REPLIES_OF_MAY_20,
    ],
    "newest": [
        MESSAGES_OF_MAY_14, APPROVALS_OF_MAY_14, QUESTIONS_OF_MAY_15, LEASES_OF_MAY_18, REPLIES_OF_MAY_20, LATER,
    ],
}  # fmt: skip


def original(path: Path, scripts: list[str], journal: str = "delete") -> Path:
    db = sqlite3.connect(path)
    db.execute(f"pragma journal_mode = {journal}")
    for script in scripts:
        db.executescript(script)
    db.commit()
    db.close()
    return path


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def open_migrated(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    migrate(db, str(path))
    return db


@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize("age", AGES)
def test_a_file_of_the_original_opens_and_keeps_every_row(tmp_path: Path, age: str, journal: str) -> None:
    path = original(tmp_path / "broker.sqlite", AGES[age], journal)
    tables = [str(name) for (name,) in rows(path, "select name from sqlite_schema where type = 'table'")]
    before = {
        table: len(rows(path, f"select * from {table}")) for table in tables if table != "sqlite_sequence"
    }

    open_migrated(path).close()

    assert {table: len(rows(path, f"select * from {table}")) for table in before} == before
    assert rows(path, "pragma user_version") == [(len(MIGRATIONS),)]


@pytest.mark.parametrize("age", AGES)
def test_its_undelivered_messages_are_deliverable_and_its_delivered_ones_are_not(
    tmp_path: Path, age: str
) -> None:
    db = open_migrated(original(tmp_path / "broker.sqlite", AGES[age]))

    found, whole = mailbox.load_window(db, "alice", 0, [], 100, 10**6)

    bodies = [message.body for message in found]
    assert whole
    assert "still waits" in bodies
    assert "done long ago" not in bodies
    assert [message.redelivered for message in found if message.body == "in flight"] in ([], [True])
    db.close()


def test_its_replies_get_the_thread_of_what_they_answer(tmp_path: Path) -> None:
    db = open_migrated(original(tmp_path / "broker.sqlite", AGES["newest"]))

    threads = {row.body: row.thread_id for row in mailbox.page(db, None, 100)}

    assert threads == {"done long ago": 1, "still waits": 2, "in flight": 3, "reply": 2, "again": 2}
    db.close()


def test_ids_go_on_where_the_original_stopped_even_if_its_newest_rows_are_gone(tmp_path: Path) -> None:
    path = original(tmp_path / "broker.sqlite", [MESSAGES_OF_MAY_14, "delete from messages;"])
    db = open_migrated(path)
    assert mailbox.last_id(db) == 2
    db.close()


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    path = original(tmp_path / "broker.sqlite", AGES["newest"])
    open_migrated(path).close()
    first = rows(path, "select * from messages")
    open_migrated(path).close()
    assert rows(path, "select * from messages") == first


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = original(tmp_path / "broker.sqlite", [MESSAGES_OF_MAY_14, "create table agents (x);"])
    db = apsw.Connection(str(path))
    with pytest.raises(apsw.SQLError, match="agents"):
        migrate(db, str(path))
    db.close()
    assert rows(path, "pragma user_version") == [(0,)]
    assert [row[1] for row in rows(path, "pragma table_info(messages)")][-1] == "delivered_at"


def test_a_fresh_file_gets_every_table(tmp_path: Path) -> None:
    open_migrated(tmp_path / "broker.sqlite").close()
    tables = {
        name
        for (name,) in rows(tmp_path / "broker.sqlite", "select name from sqlite_schema where type='table'")
    }
    assert {"messages", "approvals", "operator_questions", "reminders", "agents", "daemon"} <= tables


def test_a_file_of_a_newer_hyperhive_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    open_migrated(path).close()
    db = apsw.Connection(str(path))
    db.execute("pragma user_version = 999")
    with pytest.raises(SchemaError, match=r"newer hyperhive \(schema 999.*update hyperhive"):
        migrate(db, str(path))
    assert db.pragma("user_version") == 999
    db.close()


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    path = original(tmp_path / "broker.sqlite", ["create table cookies (id integer);"])
    db = apsw.Connection(str(path))
    with pytest.raises(SchemaError, match="not the database of a hive"):
        migrate(db, str(path))
    db.close()

    path = original(tmp_path / "mail.sqlite", ["create table messages (id integer, subject text);"])
    db = apsw.Connection(str(path))
    with pytest.raises(SchemaError, match="lacks body, recipient, sender"):
        migrate(db, str(path))
    db.close()


def test_the_application_id_reads_hive() -> None:
    assert APPLICATION_ID.to_bytes(4, "big") == b"HIVE"


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_a_file_of_an_older_version_of_ours_keeps_what_waits_and_to_whom_agents_write(
    tmp_path: Path, version: int
) -> None:
    path = tmp_path / "broker.sqlite"
    db = apsw.Connection(str(path))
    with db:
        for step in MIGRATIONS[:version]:
            step(db)
        db.execute(f"pragma user_version = {version}")
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        db.execute(
            "insert into messages (sender, recipient, body, sent_at, delivered_at, acked_at) values"
            " ('bob', 'alice', 'done', 1, 2, 3), ('bob', 'alice', 'in flight', 1, 2, null),"
            " ('bob', 'alice', 'waits', 1, null, null)"
        )
        db.execute("insert into agents (name, wanted, created_at) values ('alice', 'running', 1)")

    migrate(db, str(path))

    assert mailbox.waiting_of(db, "alice") == (2, [2])
    assert [row.id for row in mailbox.unfinished(db, "alice", 9)] == [2, 3]
    assert (agents.allowed_of(db, "alice"), dead.counts(db)) == (None, {})
    db.close()

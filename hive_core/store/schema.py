"""The tables of broker.sqlite and how a file of any age becomes today's.

A file of the original has no version of its own: its tables grew by columns over time, so they are
read from the file and what is missing is added.  A file of ours says its version in user_version and
carries our application_id; from there on numbered migrations apply, each in the same transaction.
"""

from collections.abc import Callable
from typing import Final

import apsw

APPLICATION_ID: Final = 0x48495645  # "HIVE"

Columns = dict[str, str]

_ORIGINAL_TABLES: Final[dict[str, Columns]] = {
    "messages": {
        "id": "integer primary key autoincrement",
        "sender": "text not null",
        "recipient": "text not null",
        "body": "text not null",
        "sent_at": "real not null",
        "delivered_at": "real",
        "acked_at": "real",
        "in_reply_to": "integer",
    },
    "approvals": {
        "id": "integer primary key autoincrement",
        "agent": "text not null",
        "kind": "text not null default 'apply_commit'",
        "commit_ref": "text not null default ''",
        "requested_at": "real not null",
        "status": "text not null default 'pending'",
        "resolved_at": "real",
        "note": "text",
        "fetched_sha": "text",
        "description": "text",
    },
    "operator_questions": {
        "id": "integer primary key autoincrement",
        "asker": "text not null",
        "question": "text not null",
        "options_json": "text not null default '[]'",
        "multi": "integer not null default 0",
        "asked_at": "real not null",
        "deadline_at": "real",
        "answered_at": "real",
        "answer": "text",
        "target": "text",
        "answerer": "text",
    },
    "reminders": {
        "id": "integer primary key autoincrement",
        "agent": "text not null",
        "message": "text not null",
        "due_at": "real not null",
        "file_path": "text",
        "created_at": "real not null default 0",
        "sent_at": "real",
        "attempt_count": "integer not null default 0",
        "last_error": "text",
    },
}
"""The tables of the original with every column that any age of it had (in ours the times are real)."""

_OUR_COLUMNS: Final[dict[str, Columns]] = {
    "messages": {
        "redelivered": "integer not null default 0",
        "broadcast": "integer not null default 0",
        "thread_id": "integer",
        "cause_id": "integer",
        "sender_uid": "integer",
        "idempotency_key": "text",
    },
}


class SchemaError(Exception):
    """The file cannot be used.  The text says why and what to do."""


def migrate(db: apsw.Connection, path: str) -> int:
    """Bring the file to today's schema in one transaction and return its version.

    Raises:
        SchemaError: it was written by a newer hyperhive, or is not a hive's database.
    """
    with db:
        version = _version(db, path)
        for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
            step(db)
            db.execute(f"pragma user_version = {number}")
        db.execute(f"pragma application_id = {APPLICATION_ID}")
    return len(MIGRATIONS)


def _version(db: apsw.Connection, path: str) -> int:
    application_id = db.pragma("application_id")
    version = int(db.pragma("user_version"))
    if application_id == APPLICATION_ID:
        if version > len(MIGRATIONS):
            raise SchemaError(
                f"cannot open {path}: it was written by a newer hyperhive "
                f"(schema {version}, this one knows {len(MIGRATIONS)}); update hyperhive"
            )
        return version
    tables = {str(name) for (name,) in db.execute("select name from sqlite_schema where type = 'table'")}
    if application_id or (tables and "messages" not in tables):
        raise SchemaError(f"cannot open {path}: it is not the database of a hive")
    missing = {"id", "sender", "recipient", "body"} - set(_columns(db, "messages"))
    if tables and missing:
        raise SchemaError(f"cannot open {path}: its table messages lacks {', '.join(sorted(missing))}")
    return 0


def _columns(db: apsw.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in db.execute(f"pragma table_info({table})")]


def _adopt_original(db: apsw.Connection) -> None:
    had = _columns(db, "messages")
    for table, columns in _ORIGINAL_TABLES.items():
        _create_or_complete(db, table, columns | _OUR_COLUMNS.get(table, {}))
    if had and "acked_at" not in had:
        # In files of that age handing out was the end of it: what was delivered is done.
        db.execute("update messages set acked_at = delivered_at where delivered_at is not null")
    # A null thread_id means a thread of its own, so only replies are rewritten; parents come first.
    replies = db.execute("select id, in_reply_to from messages where in_reply_to is not null order by id")
    for message_id, parent in replies.fetchall():
        db.execute(
            "update messages set thread_id = (select coalesce(thread_id, id) from messages where id = ?)"
            " where id = ?",
            (parent, message_id),
        )


def _create_or_complete(db: apsw.Connection, table: str, columns: Columns) -> None:
    present = _columns(db, table)
    if not present:
        db.execute(f"create table {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        return
    for name, kind in columns.items():
        if name not in present:
            # A column that is added cannot be "not null" without a default; rows of that age have none.
            loose = kind if "default" in kind else kind.replace(" not null", "")
            db.execute(f"alter table {table} add column {name} {loose}")


def _first_of_ours(db: apsw.Connection) -> None:
    _adopt_original(db)
    for statement in (
        # Names its condition literally: `acked_at is ?` would not use it.
        "create index messages_waiting on messages (recipient, id) where acked_at is null",
        # No index on all recipients: it would cost each batch a page per recipient (benchmarks/README.md).
        "create index messages_to_operator on messages (id) where recipient = 'operator'",
        """create unique index messages_by_key on messages (sender, idempotency_key)
           where idempotency_key is not null""",
        """create table agents (
             name text primary key, wanted text not null, paused integer not null default 0,
             created_at real not null, destroyed_at real, status_text text, status_set_at real
           ) without rowid""",
        "create table daemon (key text primary key, value) without rowid",
        "insert into daemon values ('clean', 1)",
    ):
        db.execute(statement)


def _machines(db: apsw.Connection) -> None:
    """What was declared of an agent's machine, and the users that its files belong to."""
    for column in (
        "uid_base integer",
        "image text",
        "network text",
        "memory_max_bytes integer",
        "cpu_quota_percent integer",
        "tasks_max integer",
    ):
        db.execute(f"alter table agents add column {column}")
    # Two machines with the same users could write each other's files.
    db.execute("create unique index agents_by_uid_base on agents (uid_base) where uid_base is not null")


def _conversations(db: apsw.Connection) -> None:
    """What questions, reminders and dead letters are found by."""
    # The original wrote an answer and its time together; where one of them is missing the question is over.
    db.execute(
        "update operator_questions set answered_at = coalesce(answered_at, asked_at)"
        " where answered_at is null and answer is not null"
    )
    # Messages that were handed out in vain, and the few that nobody is given any more (store/dead.py).
    for column in ("attempts integer not null default 0", "dead_at real", "dead_reason text"):
        db.execute(f"alter table messages add column {column}")
    db.execute("drop index messages_waiting")
    db.execute(
        "create index messages_waiting on messages (recipient, id) where acked_at is null and dead_at is null"
    )
    db.execute(
        "create index messages_dead on messages (recipient, id)"
        " where acked_at is null and dead_at is not null"
    )
    # To whom an agent may write, as a JSON array; null: to anyone.
    db.execute("alter table agents add column allowed_recipients text")
    # Only replies: a message that answers nothing costs its sender no page of it.
    db.execute("create index messages_replies on messages (thread_id) where in_reply_to is not null")
    db.execute("create index questions_open on operator_questions (deadline_at) where answered_at is null")
    # The index on agent is also one on (agent, id): what is oldest of an agent goes first.
    db.execute(
        "create table repeats (id integer primary key autoincrement, agent text not null,"
        " key text not null, result integer not null, unique (agent, key))"
    )
    db.execute("create index repeats_of_agent on repeats (agent)")


def _approvals(db: apsw.Connection) -> None:
    """Who asked, what was decided on, what came of it; and what of an agent is deployed."""
    for column in (
        "proposer text not null default 'manager'",
        "base_sha text",
        "expires_at real",
        "decided_by_uid integer",
        "tag text",
        # Nothing happens to it any more: of one that was approved, its effect is over.
        "finished integer not null default 0",
    ):
        db.execute(f"alter table approvals add column {column}")
    # What the original had approved it had carried out.
    db.execute("update approvals set finished = 1 where status <> 'pending'")
    db.execute("create index approvals_open on approvals (id) where finished = 0")
    db.execute(
        "create table deploys (id integer primary key autoincrement, agent text not null, kind text not null,"
        " step text not null, requested_at real not null, approval_id integer, sha text, from_sha text,"
        " tag text, output text, before_json text, error text, uid integer, started_at real,"
        " finished_at real)"
    )
    db.execute("create index deploys_open on deploys (id) where finished_at is null")
    db.execute("create index deploys_of_agent on deploys (agent, id)")
    db.execute(
        "create unique index deploys_by_approval on deploys (approval_id) where approval_id is not null"
    )
    db.execute(
        "create table deploy_steps (id integer primary key autoincrement, deploy_id integer not null,"
        " step text not null, at real not null)"
    )
    db.execute("create index deploy_steps_of on deploy_steps (deploy_id)")
    # What runs, or is to: the commit, its tag, and its agent.toml as JSON (domain/manifest.py).
    for column in ("deployed_sha text", "deployed_tag text", "manifest text"):
        db.execute(f"alter table agents add column {column}")


def _declarations(db: apsw.Connection) -> None:
    """What the host's configuration says of an agent, as JSON, and the hash of what could not be had."""
    for column in ("declaration text", "refused_declaration text"):
        db.execute(f"alter table agents add column {column}")


MIGRATIONS: Final[tuple[Callable[[apsw.Connection], None], ...]] = (
    _first_of_ours,
    _machines,
    _conversations,
    _approvals,
    _declarations,
)
"""Number N is at index N - 1.  One that has been released is never changed."""

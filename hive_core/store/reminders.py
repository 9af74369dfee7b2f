"""The rows of reminders: what is there is pending; one that was delivered or cancelled is gone."""

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final, cast

import apsw

from hive_core.domain.reminder import MAX_ATTEMPTS, Reminder

_COLUMNS: Final = "id, agent, message, due_at, created_at, file_path, attempt_count, last_error"
_PENDING: Final = "sent_at is null"
"""The original kept some that it had sent."""


def insert(db: apsw.Connection, reminder: Reminder) -> int:
    """Store *reminder* under a new id, and give it."""
    db.execute(
        "insert into reminders (agent, message, due_at, created_at, file_path) values (?, ?, ?, ?, ?)",
        (reminder.agent, reminder.message, reminder.due_at, reminder.created_at, reminder.file_path),
    )
    return int(db.last_insert_rowid())


def get(db: apsw.Connection, reminder_id: int) -> Reminder | None:
    return next(_select(db, "id = ?", reminder_id), None)


def remove(db: apsw.Connection, reminder_id: int) -> None:
    db.execute("delete from reminders where id = ?", (reminder_id,))


def note_failure(db: apsw.Connection, reminder_id: int, error: str) -> None:
    db.execute(
        "update reminders set attempt_count = attempt_count + 1, last_error = ? where id = ?",
        (error, reminder_id),
    )


def reset(db: apsw.Connection, reminder_id: int) -> None:
    """Let it be tried again as if it had never failed."""
    db.execute("update reminders set attempt_count = 0, last_error = null where id = ?", (reminder_id,))


def due(db: apsw.Connection, now: float, agents: Collection[str], limit: int) -> list[Reminder]:
    """Those of *agents* whose time has come and that are not stuck, the longest due first."""
    return list(
        _select(
            db,
            "due_at <= ? and attempt_count < ?"
            " and agent in (select value from json_each(?)) order by due_at, id limit ?",
            now,
            MAX_ATTEMPTS,
            json.dumps(list(agents)),
            limit,
        )
    )


def next_due(db: apsw.Connection, agents: Collection[str]) -> float | None:
    rows = db.execute(
        f"select min(due_at) from reminders where {_PENDING} and attempt_count < {MAX_ATTEMPTS}"  # noqa: S608
        " and agent in (select value from json_each(?))",
        (json.dumps(list(agents)),),
    )
    return cast("float | None", rows.fetchall()[0][0])


def pending(db: apsw.Connection, agent: str | None, limit: int) -> list[Reminder]:
    """Those of *agent*, or of all, the next one first."""
    return list(_select(db, "(?1 is null or agent = ?1) order by due_at, id limit ?2", agent, limit))


def counts(db: apsw.Connection) -> dict[str, int]:
    """How many each agent has pending."""
    rows = db.execute(f"select agent, count(*) from reminders where {_PENDING} group by agent")  # noqa: S608
    return {str(agent): int(cast("int", count)) for agent, count in rows}


def count_of(db: apsw.Connection, agent: str) -> int:
    return counts(db).get(agent, 0)


def forget(db: apsw.Connection, agent: str) -> None:
    """Delete those of an agent that was purged."""
    db.execute("delete from reminders where agent = ?", (agent,))


def _select(db: apsw.Connection, where: str, *bindings: object) -> Iterator[Reminder]:
    rows: Iterable[Any] = db.execute(
        f"select {_COLUMNS} from reminders where {_PENDING} and {where}",  # noqa: S608
        cast("tuple[str, ...]", bindings),
    )
    return (Reminder(*row) for row in rows)

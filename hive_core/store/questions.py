"""The rows of questions.  They are kept for ever."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import apsw

from hive_core.domain.question import Question

_COLUMNS: Final = (
    "id, asker, target, question, options_json, multi, asked_at, deadline_at, answered_at, answer, answerer"
)
_OPEN: Final = "answered_at is null"


def insert(db: apsw.Connection, question: Question) -> int:
    """Store *question* under a new id, and give it."""
    db.execute(
        "insert into operator_questions (asker, target, question, options_json, multi, asked_at, deadline_at)"
        " values (?, ?, ?, ?, ?, ?, ?)",
        (
            question.asker,
            question.target,
            question.question,
            json.dumps(question.options),
            int(question.multi),
            question.asked_at,
            question.deadline_at,
        ),
    )
    return int(db.last_insert_rowid())


def get(db: apsw.Connection, question_id: int) -> Question | None:
    return next(_select(db, "id = ?", question_id), None)


def settle(db: apsw.Connection, question_id: int, answer: str, answerer: str, now: float) -> None:
    """End an open question."""
    db.execute(
        f"update operator_questions set answer = ?, answerer = ?, answered_at = ? where id = ? and {_OPEN}",  # noqa: S608
        (answer, answerer, now, question_id),
    )


def count_open_of(db: apsw.Connection, asker: str) -> int:
    rows = db.execute(f"select count(*) from operator_questions where {_OPEN} and asker = ?", (asker,))  # noqa: S608
    return int(rows.fetchall()[0][0])  # type: ignore[arg-type]


def count_open_for_operator(db: apsw.Connection) -> int:
    rows = db.execute(f"select count(*) from operator_questions where {_OPEN} and target is null")  # noqa: S608
    return int(rows.fetchall()[0][0])  # type: ignore[arg-type]


def all_open(db: apsw.Connection, limit: int) -> list[Question]:
    """The oldest open ones."""
    return list(_select_open(db, "true order by id limit ?", limit))


def newest(db: apsw.Connection, limit: int) -> list[Question]:
    """The newest ones, ended or not, oldest first."""
    return list(_select(db, "true order by id desc limit ?", limit))[::-1]


def open_by(db: apsw.Connection, asker: str, limit: int) -> list[Question]:
    """The oldest open ones that *asker* asked."""
    return list(_select_open(db, "asker = ? order by id limit ?", asker, limit))


def open_for(db: apsw.Connection, target: str, limit: int) -> list[Question]:
    """The oldest open ones that *target* is to answer."""
    return list(_select_open(db, "target = ? order by id limit ?", target, limit))


def due(db: apsw.Connection, now: float, limit: int) -> list[Question]:
    """Open ones whose time is up, the longest due first."""
    return list(_select(db, f"{_OPEN} and deadline_at <= ? order by deadline_at limit ?", now, limit))


def next_deadline(db: apsw.Connection) -> float | None:
    rows = db.execute(f"select min(deadline_at) from operator_questions where {_OPEN}")  # noqa: S608
    return cast("float | None", rows.fetchall()[0][0])


def _select(
    db: apsw.Connection, where: str, *bindings: object, table: str = "operator_questions"
) -> Iterator[Question]:
    rows: Iterable[Any] = db.execute(
        f"select {_COLUMNS} from {table} where {where}",  # noqa: S608
        bindings,
    )
    return (_question(row) for row in rows)


def _select_open(db: apsw.Connection, where: str, *bindings: object) -> Iterator[Question]:
    # Left to itself SQLite goes through all that were ever asked, since they are in order.
    table = "operator_questions indexed by questions_open"
    return _select(db, f"{_OPEN} and {where}", *bindings, table=table)


def _question(row: Sequence[Any]) -> Question:
    question_id, asker, target, text, options, multi, *rest = row
    return Question(question_id, asker, target, text, _options(options), bool(multi), *rest)


def _options(text: object) -> tuple[str, ...]:
    # The original wrote these too, and a row of its must not keep the others from being shown.
    try:
        options = json.loads(str(text or "[]"))
    except ValueError:
        return ()
    return tuple(map(str, options)) if isinstance(options, list) else ()

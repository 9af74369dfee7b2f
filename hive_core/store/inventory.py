"""What there is to keep or to delete, in slices: no look and no deletion takes more than milliseconds.

Old rows are found by id on the read connection; the writer gets their ids alone.  There is no index on
times: ids rise with them, and where a clock was set back a row goes later, never too early.
"""

import json
from typing import Final, NamedTuple, cast

import apsw

LOOK_ROWS: Final = 2000
"""Looked at in one read."""
SLICE_ROWS: Final = 100
"""Deleted in one transaction."""

_OLD: Final = "acked_at is not null and acked_at < ?"


class Found(NamedTuple):
    """What one look found: *ids* of old rows, and where to look next, None at the end."""

    ids: list[int]
    after: int | None


class Rows(NamedTuple):
    """What one count found, and where to count on, None at the end."""

    old: int
    acked: int
    after: int | None


class Space(NamedTuple):
    """The database's file."""

    bytes: int
    free_bytes: int
    """Pages that new rows will fill."""


def border(db: apsw.Connection, cutoff: float) -> int:
    """Give an id above which no message was sent before *cutoff*, by halving; a few rows are read."""
    (lowest, highest) = _row(db, "select (select min(id) from messages), (select max(id) from messages)")
    if lowest is None or highest is None:
        return 0
    low, high = lowest - 1, highest
    while low < high:
        middle = low + (high - low + 1) // 2
        nearest = "select id, sent_at from messages where id <= ? order by id desc limit 1"
        found = db.execute(nearest, (middle,)).fetchone()
        assert found is not None
        message_id, sent_at = cast("tuple[int, float]", found)
        if message_id <= low or sent_at < cutoff:
            low = middle
        else:
            high = message_id - 1
    return low


def find_old(db: apsw.Connection, after: int, upto: int, cutoff: float) -> Found:
    """Look at the next rows with ids above *after* for some that are old, at most SLICE_ROWS."""
    (first,) = _row(db, "select min(id) from messages where id > ?", after)
    if first is None or first > upto:
        return Found([], None)
    last = min(first + LOOK_ROWS - 1, upto)
    rows = db.execute(
        f"select id from messages where id >= ? and id <= ? and {_OLD} order by id limit ?",  # noqa: S608
        (first, last, cutoff, SLICE_ROWS),
    )
    ids = [cast("int", message_id) for (message_id,) in rows]
    return Found(ids, ids[-1] if len(ids) == SLICE_ROWS else last)


def delete_old(db: apsw.Connection, ids: list[int], cutoff: float) -> int:
    """Delete those of the messages *ids* that are old, and give how many."""
    db.execute(
        f"delete from messages where id in (select value from json_each(?)) and {_OLD}",  # noqa: S608
        (json.dumps(ids), cutoff),
    )
    return db.changes()


def count_some(db: apsw.Connection, after: int, cutoff: float) -> Rows:
    """Count the next rows with ids above *after*."""
    last, acked, old = _row(
        db,
        f"select max(id), sum(acked_at is not null), sum({_OLD}) from"  # noqa: S608
        " (select id, acked_at from messages where id > ? order by id limit ?)",
        cutoff,
        after,
        LOOK_ROWS,
    )
    return Rows(int(old or 0), int(acked or 0), last)


def count_waiting(db: apsw.Connection, most: int) -> tuple[int, int]:
    """How many messages wait, and how many are dead, each counted up to *most*."""
    waiting = "messages indexed by messages_waiting where acked_at is null and dead_at is null"
    dead = "messages indexed by messages_dead where acked_at is null and dead_at is not null"
    counts = [
        _number(db, f"select count(*) from (select 1 from {which} limit ?)", most)  # noqa: S608
        for which in (waiting, dead)
    ]
    return counts[0], counts[1]


def count_kept(db: apsw.Connection) -> tuple[int, int, int]:
    """How many approvals, questions and reminders there are."""
    tables = ("approvals", "operator_questions", "reminders")
    counts = [_number(db, f"select count(*) from {table}") for table in tables]  # noqa: S608
    return counts[0], counts[1], counts[2]


def space(db: apsw.Connection) -> Space:
    size = _number(db, "pragma page_size")
    return Space(_number(db, "pragma page_count") * size, _number(db, "pragma freelist_count") * size)


def _row(db: apsw.Connection, sql: str, *bindings: float) -> tuple[int | None, ...]:
    return cast("tuple[int | None, ...]", db.execute(sql, bindings).fetchall()[0])


def _number(db: apsw.Connection, sql: str, *bindings: float) -> int:
    return int(_row(db, sql, *bindings)[0] or 0)

"""The rows of dead letters: counted, buried, retried, dropped."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import apsw

_WAITS: Final = "acked_at is null and dead_at is null"
_DEAD: Final = "acked_at is null and dead_at is not null"
_INDEXED: Final = "messages indexed by messages_dead"
_GIVEN: Final = "id in (select value from json_each(?))"
_FAILED: Final = (
    f"update messages set attempts = attempts + 1, redelivered = 1 where {_GIVEN} and {_WAITS}"  # noqa: S608
    " returning id, attempts"
)
_RETRY: Final = (
    "update messages set attempts = 0, dead_at = null, dead_reason = null, redelivered = 1"  # noqa: S608
    f" where {_GIVEN} and {_DEAD} returning recipient"
)


def note_failures(db: apsw.Connection, ids: Sequence[int]) -> dict[int, int]:
    """Count a failed delivery of each of *ids* that waits, flag it redelivered, and give the counts."""
    rows: Iterable[Any] = db.execute(_FAILED, (json.dumps(ids),)).fetchall()
    return dict(rows)


def bury(db: apsw.Connection, message_id: int, reason: str, now: float) -> None:
    """Hand out a message no more."""
    db.execute(
        f"update messages set dead_at = ?, dead_reason = ? where id = ? and {_WAITS}",  # noqa: S608
        (now, reason, message_id),
    )


def counts(db: apsw.Connection) -> Counter[str]:
    """How many dead messages there are of whom."""
    rows: Iterable[Any] = db.execute(
        f"select recipient, count(*) from {_INDEXED} where {_DEAD} group by recipient"  # noqa: S608
    )
    return Counter(dict(rows))


def find(db: apsw.Connection, agent: str | None, limit: int) -> list[int]:
    """The oldest dead messages to *agent*, or to anyone."""
    rows: Iterable[Any] = db.execute(
        f"select id from {_INDEXED} where {_DEAD} and (?1 is null or recipient = ?1) order by id limit ?2",  # noqa: S608
        (agent, limit),
    )
    return [message_id for (message_id,) in rows]


def retry(db: apsw.Connection, ids: Sequence[int]) -> Counter[str]:
    """Make those of *ids* that are dead deliverable as if they had never failed; give how many of whom."""
    rows: Iterable[Any] = db.execute(_RETRY, (json.dumps(ids),)).fetchall()
    return Counter(recipient for (recipient,) in rows)


def drop(db: apsw.Connection, message_id: int, now: float) -> str | None:
    """Let a dead message be done, and give whose it was; None: it is not dead."""
    rows: Any = db.execute(
        f"update messages set acked_at = ? where id = ? and {_DEAD} returning recipient",  # noqa: S608
        (now, message_id),
    ).fetchall()
    return str(rows[0][0]) if rows else None

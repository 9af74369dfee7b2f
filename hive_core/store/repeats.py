"""Calls that were carried out, by the key that their caller gave them, so that a repeat does nothing again.

A harness and the MCP bridge make a call again when the daemon was gone before its answer.
"""

from typing import Final

import apsw

MAX_REMEMBERED: Final = 1000
"""Of one agent, the newest: many times what can be open at once."""


def find(db: apsw.Connection, agent: str, key: str | None) -> int | None:
    """Give what the call with *key* gave; None if there was none."""
    if key is None:
        return None
    row = db.execute("select result from repeats where agent = ? and key = ?", (agent, key)).fetchone()
    return None if row is None else int(row[0])


def remember(db: apsw.Connection, agent: str, key: str | None, result: int) -> None:
    """In the transaction of what is done."""
    if key is None:
        return
    db.execute("insert into repeats (agent, key, result) values (?, ?, ?)", (agent, key, result))
    db.execute(
        "delete from repeats where agent = ?1"
        " and id <= (select id from repeats where agent = ?1 order by id desc limit 1 offset ?2)",
        (agent, MAX_REMEMBERED),
    )


def forget(db: apsw.Connection, agent: str) -> None:
    """Of an agent that was purged."""
    db.execute("delete from repeats where agent = ?", (agent,))

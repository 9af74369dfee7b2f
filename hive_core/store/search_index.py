"""The words of all messages, in a file of its own: it can be lost, and is then made again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

import apsw

from hive_core.store.private import make_private

LAYOUT: Final = 1
"""Of the index.  One of another layout is thrown away."""


class SearchIndex:
    """An open index.  To be used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = _open(path)
        except apsw.Error:
            # Damaged, or no database: there is nothing in it that the messages do not say.
            for suffix in ("", "-wal", "-shm", "-journal"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = _open(path)

    def close(self) -> None:
        self._db.close()

    def last_id(self) -> int:
        """The newest message that is in it."""
        rows = self._db.execute("select value from progress").fetchall()
        return int(cast("int", rows[0][0]))

    def add(self, texts: Sequence[tuple[int, str]]) -> None:
        """Take up messages by id and text, above all that are in it."""
        with self._db:
            self._db.executemany("insert or replace into words (rowid, body) values (?, ?)", texts)
            self._db.execute("update progress set value = ?", (texts[-1][0],))

    def clear(self) -> None:
        with self._db:
            _make(self._db)

    def find(self, expression: str, below: int | None, limit: int) -> list[int]:
        """Give the ids of the newest messages that match, with ids under *below*; the newest first."""
        rows = self._db.execute(
            "select rowid from words where words match ?1 and (?2 is null or rowid < ?2)"
            " order by rowid desc limit ?3",
            (expression, below, limit),
        )
        return [int(cast("int", message_id)) for (message_id,) in rows]

    def ids_after(self, message_id: int, limit: int) -> list[int]:
        rows = self._db.execute(
            "select rowid from words where rowid > ? order by rowid limit ?", (message_id, limit)
        )
        return [int(cast("int", found)) for (found,) in rows]

    def forget(self, ids: Sequence[int]) -> None:
        with self._db:
            self._db.executemany("delete from words where rowid = ?", ((message_id,) for message_id in ids))


def _open(path: Path) -> apsw.Connection:
    make_private(path)
    db = apsw.Connection(str(path))
    try:
        db.set_busy_timeout(5000)
        db.execute("pragma journal_mode = wal").fetchall()
        db.execute("pragma synchronous = normal").fetchall()
        with db:
            if db.pragma("user_version") != LAYOUT:
                _make(db)
            db.execute("select value from progress").fetchall()
            db.execute("select count(*) from words where words match '\"x\"'").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def _make(db: apsw.Connection) -> None:
    """Make the tables anew."""
    db.execute("drop table if exists words")
    db.execute("drop table if exists progress")
    db.execute(
        "create virtual table words using fts5(body, content='', contentless_delete=1,"
        " tokenize=\"unicode61 remove_diacritics 2 tokenchars '_'\")"
    )
    db.execute("create table progress (value integer not null)")
    db.execute("insert into progress values (0)")
    db.execute(f"pragma user_version = {LAYOUT}")

"""The agent's own event file, and what may stand in it.

The host prunes the file from a process of its own and the agent may do anything to it, so no failure
here is more than a log line: an event that cannot be stored is published all the same.
"""

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from hive_core.wire.agent import Event
from hive_core.wire.limits import MAX_EVENT_BYTES, MAX_EVENT_DEPTH

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S: Final = 0.2
"""The turn loop stands still meanwhile; the host's vacuum works in slices far shorter than this."""
HOLD_OFF_S: Final = 1.0
"""After a failure, so that a file that stays locked does not cost BUSY_TIMEOUT_S for every event."""
MAX_HISTORY: Final = 2000

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ts REAL NOT NULL,
    kind TEXT NOT NULL,
    payload_json TEXT NOT NULL
)
"""


class EventFile:
    """`events(id, ts, kind, payload_json)` in SQLite, or nothing at all when it cannot be opened."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._failing = False
        self._hold_off_until = 0.0
        self.last_id: int | None = None
        """The highest id that was ever in the file when it was opened; None when it could not be."""
        try:
            self._db, self.last_id = _open(path)
        except (OSError, sqlite3.Error) as error:
            log.warning("Events are not stored: cannot open %s: %s", path, error)

    def append(self, event_id: int, ts: float, kind: str, payload_json: str) -> bool:
        """Store one event, or log why not and give False."""
        if self._db is None or self._clock() < self._hold_off_until:
            return False
        try:
            self._db.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (event_id, ts, kind, payload_json))
        except sqlite3.Error as error:
            if not self._failing:
                log.warning("Events are not stored for now: %s", error)
            self._failing = True
            self._hold_off_until = self._clock() + HOLD_OFF_S
            return False
        if self._failing:
            log.info("Events are stored again")
            self._failing = False
        return True

    def history(self, after: int | None = None, limit: int = MAX_HISTORY) -> list[Event]:
        """Give stored events, oldest first: the first *limit* above id *after*, or the newest ones."""
        if self._db is None:
            return []
        try:
            if after is None:
                newest = "SELECT * FROM events ORDER BY id DESC LIMIT ?"
                rows = self._db.execute(newest, (limit,)).fetchall()[::-1]
            else:
                following = "SELECT * FROM events WHERE id > ? ORDER BY id LIMIT ?"
                rows = self._db.execute(following, (after, limit)).fetchall()
            return [
                Event(id=event_id, ts=ts, kind=kind, payload=msgspec.json.decode(payload_json))
                for event_id, ts, kind, payload_json in rows
            ]
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            log.warning("Events cannot be read: %s", error)
            return []

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _open(path: Path) -> tuple[sqlite3.Connection, int]:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it 0644
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        last_id = _last_id(db)
    except BaseException:
        db.close()
        raise
    return db, last_id


def _last_id(db: sqlite3.Connection) -> int:
    (last_id,) = db.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    # The host prunes old rows, perhaps all of them: the sequence remembers.  Files of the original lack it.
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
        (given,) = db.execute(
            "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'"
        ).fetchone()
        last_id = max(last_id, given)
    return int(last_id)


# ── what fits ───────────────────────────────────────────────────────────────────────────────────


def fit_payload(payload: dict[str, Any], max_bytes: int = MAX_EVENT_BYTES) -> tuple[dict[str, Any], bytes]:
    """Give *payload* as it may be published, and as JSON of at most *max_bytes*.

    One that is too long has its longest strings cut and says `"truncated": true`.  What only Python can
    hold, and what is nested too deeply, is replaced by text.
    """
    try:
        msgspec.msgpack.encode(payload)
        encoded = msgspec.json.encode(payload)
        odd = encoded.count(b"{") + encoded.count(b"[") > MAX_EVENT_DEPTH
    except (OverflowError, UnicodeEncodeError, RecursionError):
        odd = True
    if odd:
        payload = _plain(payload, 1)
        encoded = msgspec.json.encode(payload)
    if len(encoded) <= max_bytes:
        return payload, encoded
    payload = _plain(payload, 1)
    max_chars = max_bytes // 2
    while max_chars >= 16:  # below that it is many small things that are too much
        shorter = {**_cut(payload, max_chars), "truncated": True}
        cut = msgspec.json.encode(shorter)
        if len(cut) <= max_bytes:
            return shorter, cut
        max_chars //= 2
    shorter = {"text": encoded[: max_bytes // 4].decode(errors="replace"), "truncated": True}
    return shorter, msgspec.json.encode(shorter)


def _plain(value: Any, depth: int) -> Any:
    match value:
        case dict() | list() | tuple() if depth > MAX_EVENT_DEPTH:
            return "…"
        case str():
            return value.encode(errors="replace").decode()
        case int() if not -(2**63) <= value < 2**63:
            return hex(value)[:100]
        case dict():
            return {_plain(str(name), depth): _plain(item, depth + 1) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item, depth + 1) for item in value]
    return value


def _cut(value: Any, max_chars: int) -> Any:
    match value:
        case str() if len(value) > max_chars:
            return value[:max_chars] + "…"
        case dict():
            return {name: _cut(item, max_chars) for name, item in value.items()}
        case list():
            return [_cut(item, max_chars) for item in value]
    return value

"""What each turn took, in a file of the agent: one row a turn, failed ones and those cut off by a kill too.

Nothing here may hurt a turn: whatever fails is a log line.  The host reads the file for `hive stats`, in
a process of its own (hive_core/host/agent_files_worker.py).
"""

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hive_agent.providers.base import TurnResult, Usage

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S: Final = 0.2
HOLD_OFF_S: Final = 10.0
"""After a failure, so that a file that stays locked does not cost BUSY_TIMEOUT_S for every turn."""
MAX_NOTE_CHARS: Final = 500
MAX_TOOLS: Final = 100

COMPACTED: Final = "compacted"
COMPACT_FAILED: Final = "compact_failed"
"""Kinds of rows that are no turns: their tokens and their cost count, they do not."""

RUNNING: Final = "running"
KILLED: Final = "killed"
"""What becomes of a row whose harness was gone before its turn had ended."""

COLUMNS: Final[Mapping[str, str]] = {
    "started_at": "REAL",
    "ended_at": "REAL",
    "duration_ms": "INTEGER",
    "model": "TEXT",
    "wake_from": "TEXT",
    "result_kind": "TEXT",
    "note": "TEXT",
    "input_tokens": "INTEGER",
    "output_tokens": "INTEGER",
    "cache_read_input_tokens": "INTEGER",
    "cache_creation_input_tokens": "INTEGER",
    "last_input_tokens": "INTEGER",
    "last_output_tokens": "INTEGER",
    "last_cache_read_input_tokens": "INTEGER",
    "last_cache_creation_input_tokens": "INTEGER",
    "tool_call_count": "INTEGER",
    "tool_call_breakdown_json": "TEXT",
    "open_threads_count": "INTEGER",
    "open_reminders_count": "INTEGER",
    "cost_usd": "REAL",
    "context_window_tokens": "INTEGER",
    "message_id": "INTEGER",
}
"""The last three are not the original's.  Every one may be NULL: files of other versions are taken over."""

_DEFINITIONS: Final = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
_SCHEMA: Final = (
    f"CREATE TABLE IF NOT EXISTS turn_stats (id INTEGER PRIMARY KEY AUTOINCREMENT, {_DEFINITIONS})"
)
_LATEST: Final = (
    "SELECT ended_at, model, last_input_tokens, last_cache_read_input_tokens,"
    " last_cache_creation_input_tokens, context_window_tokens FROM turn_stats"
    " WHERE last_input_tokens IS NOT NULL AND ended_at IS NOT NULL ORDER BY id DESC LIMIT 1"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnBegin:
    """What is known of a turn when it begins."""

    started_at: float
    model: str
    wake_from: str
    message_id: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOpen:
    """What an agent waits for, and what waits for it, when its turn has ended."""

    threads: int = 0
    """Reminders among them."""
    reminders: int = 0


NOTHING_OPEN: Final = LeftOpen()


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnRow:
    """One turn.  Times are unix seconds, *duration_s* is of a clock that nobody sets."""

    started_at: float
    duration_s: float
    model: str
    wake_from: str
    kind: str
    result: TurnResult
    message_id: int | None = None
    left_open: LeftOpen = NOTHING_OPEN


@dataclass(frozen=True, kw_only=True, slots=True)
class Seed:
    """How full the conversation was when an earlier harness ended."""

    ended_at: float
    ctx: int
    model: str = ""
    window: int | None = field(default=None)


class TurnStats:
    """`hyperhive-turn-stats.sqlite`, or nothing at all when it cannot be opened."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._db: sqlite3.Connection | None = None
        self._columns: list[str] = []
        self._hold_off_until = 0.0
        self._running: int | None = None
        try:
            self._db, self._columns = _open(path)
        except (OSError, sqlite3.Error) as error:
            log.warning("Turn stats are not kept: cannot open %s: %s", path, error)

    def begin(self, row: TurnBegin) -> None:
        """Add a row that `record` completes: whatever happens meanwhile, the turn is in the file.

        Nothing, when one has been begun already.
        """
        if self._running is not None:
            return
        values = {
            "started_at": row.started_at,
            "model": row.model,
            "wake_from": row.wake_from,
            "message_id": row.message_id,
            "result_kind": RUNNING,
        }
        self._running = self._store(None, values)

    def record(self, row: TurnRow) -> None:
        """Complete the row that was begun, or add one; or log why not."""
        begun, self._running = self._running, None
        self._store(begun, _values(row))

    def _store(self, row_id: int | None, values: Mapping[str, object]) -> int | None:
        """Put *values* into the row *row_id*, or a new one, and give its id; None: it could not be done."""
        if self._db is None or self._clock() < self._hold_off_until:
            return None
        names = [name for name in self._columns if name in values]
        if row_id is None:
            places = ", ".join("?" * len(names))
            statement = f"INSERT INTO turn_stats ({', '.join(names)}) VALUES ({places})"  # noqa: S608
        else:
            # Not UPDATE: the host may have pruned the row meanwhile.
            names = ["id", *names]
            places = ", ".join("?" * len(names))
            statement = f"INSERT OR REPLACE INTO turn_stats ({', '.join(names)}) VALUES ({places})"  # noqa: S608
        try:
            return self._db.execute(statement, [{"id": row_id, **values}[name] for name in names]).lastrowid
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            log.warning("Turn is missing in the stats: %s", error)
            self._hold_off_until = self._clock() + HOLD_OFF_S
            return None

    def latest(self) -> Seed | None:
        """Give how full the conversation was after the last turn that said so."""
        if self._db is None:
            return None
        try:
            found = self._db.execute(_LATEST).fetchone()
            if found is None:
                return None
            ended_at, model, *tokens, window = found
            return Seed(
                ended_at=float(ended_at),
                ctx=sum(int(count or 0) for count in tokens),
                model=str(model or ""),
                window=int(window) if window else None,
            )
        except (sqlite3.Error, TypeError, ValueError) as error:
            log.warning("Turn stats cannot be read: %s", error)
            return None

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _open(path: Path) -> tuple[sqlite3.Connection, list[str]]:
    """Give the database, and those of COLUMNS that its table has in the end."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite would make it 0644
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute(_SCHEMA)
        for name in COLUMNS.keys() - _columns_of(db):
            _add_column(db, name, COLUMNS[name])
        there = _columns_of(db)
        if "result_kind" in there:
            with contextlib.suppress(sqlite3.Error):
                db.execute("UPDATE turn_stats SET result_kind = ? WHERE result_kind = ?", (KILLED, RUNNING))
    except BaseException:
        db.close()
        raise
    return db, [name for name in COLUMNS if name in there]


def _columns_of(db: sqlite3.Connection) -> set[str]:
    return {str(column[1]) for column in db.execute("PRAGMA table_info(turn_stats)")}


def _add_column(db: sqlite3.Connection, name: str, kind: str) -> None:
    try:
        db.execute(f"ALTER TABLE turn_stats ADD COLUMN {name} {kind}")
    except sqlite3.Error as error:
        log.warning("Turn stats lack the column %s: %s", name, error)


def _values(row: TurnRow) -> dict[str, object]:
    result = row.result
    tools = dict(sorted(result.tools.items(), key=lambda tool: -tool[1])[:MAX_TOOLS])
    return {
        "started_at": row.started_at,
        "ended_at": row.started_at + row.duration_s,
        "duration_ms": round(row.duration_s * 1000),
        "model": row.model,
        "wake_from": row.wake_from,
        "result_kind": row.kind,
        "note": None if result.note is None else result.note[:MAX_NOTE_CHARS],
        **_tokens("", result.total),
        **_tokens("last_", result.last),
        "tool_call_count": sum(result.tools.values()),
        "tool_call_breakdown_json": json.dumps(tools, separators=(",", ":")),
        "open_threads_count": row.left_open.threads,
        "open_reminders_count": row.left_open.reminders,
        "cost_usd": result.cost_usd,
        "context_window_tokens": result.window,
        "message_id": row.message_id,
    }


def _tokens(prefix: str, usage: Usage | None) -> dict[str, object]:
    return {
        f"{prefix}input_tokens": usage and usage.input,
        f"{prefix}output_tokens": usage and usage.output,
        f"{prefix}cache_read_input_tokens": usage and usage.cache_read,
        f"{prefix}cache_creation_input_tokens": usage and usage.cache_creation,
    }

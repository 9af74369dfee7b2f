"""Prunes the databases of an agent by age, in the child of agent_upkeep.

Every file may be anything: a link, a FIFO, a database that lies about its pages, one whose index is cut off
while it is mapped.  So each is pruned in a process of its own, which may hang or die, and costs one line.

A database that its harness has open is pruned in transactions far shorter than the harness waits for them.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import select
import signal
import sqlite3
import stat
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from hive_core.host.turn_sums import STATS_FILE

EVENTS_FILE: Final = "hyperhive-events.sqlite"

FILE_S: Final = 4.0
"""For one file.  What is left of it then goes the next time."""
GRACE_S: Final = 1
SLICE_ROWS: Final = 100
"""Looked at in one transaction."""
MAX_ROWS: Final = 200_000
"""Looked at in one run."""
ENOUGH_YOUNG: Final = 2000
"""After so many rows in a row that stay, the rest of the file is taken to be young as well."""
SAMPLES: Final = 10
"""Random places looked at beyond that: what a wrong clock put there is found in time."""
BUSY_S: Final = 0.5
PAUSE_S: Final = 0.002

MAX_LIVE_BYTES: Final = 16 * 2**20
"""One with more in it is not written anew to give its space back: its harness waits 0.2 s, no longer."""
MIN_FREE_BYTES: Final = 4 * 2**20

_PR_SET_PDEATHSIG: Final = 1
_SIDECARS: Final = ("", "-wal", "-shm")


class _Task(NamedTuple):
    """What is to go of one file: rows of *table* whose *when* lies before *cutoff*."""

    file: str
    table: str
    when: tuple[str, ...]
    cutoff: float
    kind: str | None = None


def sweep(directory: Path, arguments: argparse.Namespace) -> None:
    """Prune the databases in *directory*, the working directory, and print a line of JSON for each."""
    for task in _tasks(arguments):
        sys.stdout.write(json.dumps(_contain(directory, task, dry_run=arguments.dry_run)) + "\n")
        sys.stdout.flush()


def _tasks(arguments: argparse.Namespace) -> list[_Task]:
    tasks: list[_Task] = []
    if arguments.events_before is not None:
        tasks.append(_Task(EVENTS_FILE, "events", ("ts",), arguments.events_before))
    elif arguments.streams_before is not None:
        tasks.append(_Task(EVENTS_FILE, "events", ("ts",), arguments.streams_before, "stream"))
    if arguments.stats_before is not None:
        tasks.append(_Task(STATS_FILE, "turn_stats", ("ended_at", "started_at"), arguments.stats_before))
    return tasks


def _contain(directory: Path, task: _Task, *, dry_run: bool) -> dict[str, object]:
    """Prune one file in a process of its own and give what it says, or how it ended."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.close(ours)
            _end_in_time()
            found = _prune_or_say_why(directory, task, dry_run=dry_run)
            os.write(theirs, json.dumps(found).encode()[:4096])
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    try:
        said = _read_within(ours, FILE_S + GRACE_S + 1)
    finally:
        os.close(ours)
        # It may hang where no signal of its own reaches it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    try:
        report: dict[str, object] = json.loads(said)
    except ValueError:
        return {"file": task.file, "error": _how_it_ended(status)}
    return {"file": task.file} | report


def _read_within(fd: int, limit_s: float) -> bytes:
    readable, _, _ = select.select([fd], [], [], limit_s)
    return os.read(fd, 4096) if readable else b""


def _end_in_time() -> None:
    # Our parent may be killed: nobody would wait for us then.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.setitimer(signal.ITIMER_REAL, FILE_S + GRACE_S)
    with contextlib.suppress(OSError):
        null = os.open("/dev/null", os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in {signal.SIGALRM, signal.SIGKILL, signal.SIGXCPU}:
            return "it takes too long"
        return f"reading it ends with {signal.Signals(number).name}"
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _prune_or_say_why(directory: Path, task: _Task, *, dry_run: bool) -> dict[str, object]:
    try:
        return _prune(directory, task, dry_run=dry_run)
    except OSError as error:
        return {"error": error.strerror or str(error)}
    except (sqlite3.Error, ValueError, OverflowError, MemoryError, RecursionError) as error:
        return {"error": str(error)[:200] or type(error).__name__}


def _prune(directory: Path, task: _Task, *, dry_run: bool) -> dict[str, object]:
    if not usable(directory, task.file):
        return {"missing": True}
    deadline = time.monotonic() + FILE_S
    # A file that stands in the working directory of a root that is not / has no absolute path for us.
    mode = "ro" if dry_run else "rw"
    db = sqlite3.connect(
        f"file:{quote(str(directory / task.file))}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
    )
    try:
        # A trigger of the agent's may loop for ever.
        db.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        for setting in (
            "trusted_schema = off",
            "temp_store = memory",
            "cell_size_check = on",
            "cache_size = -2000",
        ):
            db.execute(f"pragma {setting}")
        pruner = _Pruner(db, task, dry_run=dry_run, deadline=deadline)
        pruner.run()
        report: dict[str, object] = {"goes": pruner.goes, "looked_at": pruner.looked_at}
        if not pruner.finished:
            report["more"] = True
        if pruner.goes and not dry_run:
            report["freed_bytes"] = _give_back(db)
        return report
    finally:
        db.close()


def usable(directory: Path, name: str) -> bool:
    """Look whether SQLite may be let at the database; False: there is none.

    Raises:
        OSError: it would follow a link, or hang.
    """
    for suffix in _SIDECARS:
        try:
            # Without O_NONBLOCK a FIFO, or a lease that the agent does not give up, holds us for long.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(directory / f"{name}{suffix}", flags)
        except FileNotFoundError:
            if not suffix:
                return False
            continue
        except BlockingIOError:
            raise OSError(f"{name}{suffix} is leased") from None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(f"{name}{suffix} is not a regular file")
        finally:
            os.close(fd)
    try:
        journal = os.lstat(directory / f"{name}-journal")
    except FileNotFoundError:
        return True
    if not stat.S_ISREG(journal.st_mode) or journal.st_size:
        # A hot one names files that SQLite would write or delete; it is for the harness to roll back.
        raise OSError("it has a rollback journal, which is left to its harness")
    return True


class _Pruner:
    def __init__(self, db: sqlite3.Connection, task: _Task, *, dry_run: bool, deadline: float) -> None:
        self._db, self._task, self._dry_run, self._deadline = db, task, dry_run, deadline
        self.goes = self.looked_at = 0
        self.finished = True

    def run(self) -> None:
        columns = {str(row[1]) for row in self._db.execute(f"pragma table_info({self._task.table})")}
        when = [name for name in self._task.when if name in columns]
        if not when or (self._task.kind is not None and "kind" not in columns):
            return
        at = f"coalesce({', '.join(when)}, null)"
        self._old = f"typeof({at}) in ('integer', 'real') and {at} < ?"
        self._bindings: tuple[float | str, ...] = (self._task.cutoff,)
        if self._task.kind is not None:
            self._old += " and kind = ?"
            self._bindings += (self._task.kind,)
        first, last = self._one(f"select min(rowid), max(rowid) from {self._task.table}")  # noqa: S608
        if not isinstance(first, int) or not isinstance(last, int):
            return
        reached = self._walk(first - 1 if first > -(2**63) else first)
        for _ in range(SAMPLES):
            if reached is None or reached >= last or not self.finished:
                return
            self._walk(random.randint(reached, last), enough=SLICE_ROWS)  # noqa: S311

    def _walk(self, after: int, enough: int = ENOUGH_YOUNG) -> int | None:
        """Prune from row *after* on until *enough* rows stayed; give where that is, None at the end."""
        stayed = 0
        while stayed < enough:
            if self.looked_at >= MAX_ROWS or time.monotonic() > self._deadline:
                self.finished = False
                return after
            count, upto = self._one(
                f"select count(*), max(rowid) from (select rowid from {self._task.table}"  # noqa: S608
                " where rowid > ? order by rowid limit ?)",
                after,
                SLICE_ROWS,
            )
            if not count or not isinstance(upto, int):
                return None
            went = self._slice(after, upto)
            self.goes += went
            self.looked_at += int(count)
            stayed = 0 if went else stayed + int(count)
            after = upto
        return after

    def _slice(self, after: int, upto: int) -> int:
        where = f"rowid > ? and rowid <= ? and {self._old}"
        bindings = (after, upto, *self._bindings)
        count = int(self._one(f"select count(*) from {self._task.table} where {where}", *bindings)[0] or 0)  # noqa: S608
        if not count or self._dry_run:
            return count
        deleted = self._db.execute(f"delete from {self._task.table} where {where}", bindings).rowcount  # noqa: S608
        time.sleep(PAUSE_S)  # the harness may write meanwhile
        return max(deleted, 0)

    def _one(self, sql: str, *bindings: object) -> tuple[int | None, ...]:
        row: tuple[int | None, ...] = self._db.execute(sql, bindings).fetchone()
        return row


def _give_back(db: sqlite3.Connection) -> int:
    """Write a small file anew that is half empty, and give how many bytes that saved.

    Where pages are moved to their places one by one, as auto_vacuum has it, a page costs a millisecond and
    each insert another page; rows to come fill the gaps of a large file anyway.
    """
    size, pages, free = (
        int(db.execute(f"pragma {name}").fetchone()[0])
        for name in ("page_size", "page_count", "freelist_count")
    )
    freed = 0
    if free * 2 > pages and free * size >= MIN_FREE_BYTES and (pages - free) * size <= MAX_LIVE_BYTES:
        with contextlib.suppress(sqlite3.OperationalError):  # somebody reads it: the next time
            db.execute("vacuum")
            freed = (pages - int(db.execute("pragma page_count").fetchone()[0])) * size
    with contextlib.suppress(sqlite3.Error):
        db.execute("pragma wal_checkpoint(passive)").fetchall()
    return max(freed, 0)

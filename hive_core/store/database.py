"""The one writer of broker.sqlite, and the one reader.

All writing happens in one thread that owns the only write connection.  It takes whatever has been put
since it last looked, and commits that together: a batch costs one fsync however many senders share it.
Nothing waits for a fixed time to fill a batch; while one commit runs, the next batch fills itself.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Concatenate, Final, Generic, ParamSpec, TypeVar

import apsw
import trio

from hive_core.deferred import Deferred
from hive_core.store.private import make_private
from hive_core.store.schema import SchemaError, migrate
from hive_core.wire.errors import ErrorCode, Refused

P = ParamSpec("P")
T = TypeVar("T")
Op = TypeVar("Op")

MAX_BATCH: Final = 1024
MAX_WAITING: Final = 10_000
"""Operations that may wait for the writer; above it puts are refused."""

MAX_WAITING_BYTES: Final = 64 * 2**20
"""What they may hold in memory, while the disk does not answer."""

LAZY_S: Final = 0.02
"""How long marks wait for company before they are committed on their own."""

IDLE_CHECKPOINT_S: Final = 0.05
BIG_WAL_PAGES: Final = 8192
"""Pages that the write-ahead log may grow by before it is carried over into the file."""

MAX_PAUSE_S: Final = 0.002
TROUBLE_PAUSE_S: Final = 0.25

log = logging.getLogger(__name__)

Outcome = object
"""What applying one operation gave: its result, or the Refused that is its answer."""


class Signal(Enum):
    COMMIT = "commit"
    LAZY = "lazy"
    CLOSE = "close"


class _Job(Generic[T]):
    """A function of the write connection, in a transaction of its own, in its place in the order."""

    __slots__ = ("deferred", "run")

    def __init__(self, run: Callable[[apsw.Connection], T], deferred: Deferred[T]) -> None:
        self.run = run
        self.deferred = deferred


class _Put(Generic[Op]):
    __slots__ = ("deferred", "op", "size_bytes")

    def __init__(self, op: Op, deferred: Deferred[Outcome] | None, size_bytes: int = 0) -> None:
        self.op = op
        self.deferred = deferred
        self.size_bytes = size_bytes


class Store(Generic[Op]):
    """Rows that are put in batches, functions that run between the batches, and reads beside them.

    *apply* is called in the writer thread, inside a transaction, with the operations of a batch in the
    order in which they were put, and gives the outcome of each.
    """

    def __init__(
        self,
        path: Path,
        apply: Callable[[apsw.Connection, Sequence[Op]], list[Outcome]],
        trio_token: trio.lowlevel.TrioToken,
    ) -> None:
        self.path = path
        self.trouble: str | None = None
        """What went wrong at the last commit; None when it went well."""
        self._apply = apply
        self._token = trio_token
        self._wal_pages = self._checkpointed_pages = 0
        self._db = _open(path)
        self._db.set_wal_hook(self._note_wal)
        try:
            self.schema = migrate(self._db, str(path))
            self.was_clean = self._swap_clean(False)
        except BaseException:
            self._db.close()
            raise
        self._reader = _open(path, read_only=True)
        self._reading = trio.CapacityLimiter(1)
        self._waiting: deque[_Put[Op] | _Job[object]] = deque()
        self._signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._committing = False
        self._waiting_bytes = 0
        self._awaited = 0  # operations in `_waiting`, or at the writer, that somebody waits for
        self._lazy = False
        self.crashed: trio.Event = trio.Event()
        """The writer died of a bug; nothing can be stored any more."""
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, op: Op, size_bytes: int = 0) -> Deferred[Outcome]:
        """Store *op*, of *size_bytes*, with the next commit; its outcome comes when it is on disk.

        It fails with Refused UNAVAILABLE when the commit fails or too much is waiting.
        """
        deferred: Deferred[Outcome] = Deferred()
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            deferred.fail(Refused(ErrorCode.UNAVAILABLE, "cannot store: too much waits for the disk"))
            return deferred
        self._waiting.append(_Put(op, deferred, size_bytes))
        self._awaited += 1
        self._waiting_bytes += size_bytes
        self._commit_soon()
        return deferred

    def mark(self, op: Op) -> None:
        """Store *op* with a commit that comes anyway, or in a moment.  Nobody waits for it.

        Losing it to a crash must be harmless.
        """
        self._waiting.append(_Put(op, None))
        if not self._committing and not self._lazy:
            self._lazy = True
            self._signals.put(Signal.LAZY)

    def submit(self, run: Callable[[apsw.Connection], T]) -> Deferred[T]:
        """Run a function of the write connection in a transaction, after everything put before it."""
        deferred: Deferred[T] = Deferred()
        self._waiting.append(_Job(run, deferred))  # type: ignore[arg-type]
        self._awaited += 1
        self._commit_soon()
        return deferred

    async def write(
        self, fn: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``fn(db, *args)`` in one transaction and return its result when it is on disk.

        Shielded from cancellation: a write that was given to the writer is carried out, and its caller
        is told.  Keep *fn* to a few milliseconds; split longer work into batches.
        """
        job = self.submit(lambda db: fn(db, *args, **kwargs))
        with trio.CancelScope(shield=True):
            result = await job.wait()
        return result  # noqa: RET504 - mypy cannot know that the scope swallows nothing

    async def read(
        self, fn: Callable[Concatenate[apsw.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run ``fn(db, *args)`` on the read-only connection in a thread and return its result.

        Raises:
            Refused: UNAVAILABLE, when the file cannot be read.
        """
        try:
            return await trio.to_thread.run_sync(
                lambda: fn(self._reader, *args, **kwargs), limiter=self._reading, abandon_on_cancel=False
            )
        except apsw.Error as error:
            log.error("Store cannot read: %s", error)
            raise Refused(ErrorCode.UNAVAILABLE, f"cannot read what is stored: {error}") from None

    async def close(self) -> None:
        """Commit what waits, say in the file that this was a clean end, and close it."""
        with trio.CancelScope(shield=True):
            self._signals.put(Signal.CLOSE)
            await trio.to_thread.run_sync(self._thread.join)
            self._reader.close()
            if not self.crashed.is_set() and self.trouble is None:
                with contextlib.suppress(apsw.Error):
                    self._swap_clean(True)
            self._db.close()

    def _commit_soon(self) -> None:
        """Wake the writer when all that is ready now has been read.

        Woken by the first of many puts, it would commit that one alone and fight the loop for the GIL.
        """
        if not self._committing:
            self._committing = True
            self._token.run_sync_soon(self._signals.put, Signal.COMMIT)

    def _swap_clean(self, clean: bool) -> bool:
        with self._db as db:
            row = db.execute("select value from daemon where key = 'clean'").fetchone()
            db.execute("insert or replace into daemon values ('clean', ?)", (int(clean),))
        return bool(row and row[0])

    # ── in the writer thread ────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException:
            log.exception("Store writer died")
            self._in_loop(self.crashed.set)

    def _serve(self) -> None:
        pause_s = 0.0
        wal_is_new = False
        while True:
            try:
                signal = self._signals.get(timeout=IDLE_CHECKPOINT_S if wal_is_new else None)
            except queue.Empty:
                self._checkpoint()
                wal_is_new = False
                continue
            if signal is Signal.LAZY:
                with contextlib.suppress(queue.Empty):
                    signal = self._signals.get(timeout=LAZY_S)
                self._lazy = False
            if pause_s:
                # Senders that were just answered ask again within this time: one full batch instead
                # of two halves.  It scales with the disk, and one sender alone never pays it.
                time.sleep(pause_s)
            began = time.perf_counter()
            count, awaited = self._take_batch()
            wal_is_new = wal_is_new or count > 0
            pause_s = min((time.perf_counter() - began) * 0.1, MAX_PAUSE_S) if awaited > 1 else 0.0
            if self.trouble is not None:
                pause_s = TROUBLE_PAUSE_S
            if signal is Signal.CLOSE:
                # Marks that cannot be stored wait again, for ever: they are let go with the trouble.
                while self._take_batch()[0] and self.trouble is None:
                    pass
                return
            if self._wal_pages - self._checkpointed_pages > BIG_WAL_PAGES:
                self._checkpoint()

    def _take_batch(self) -> tuple[int, int]:
        """Commit what waits; give how many operations that were, and how many of them somebody waited for."""
        puts: list[_Put[Op]] = []
        jobs: list[_Job[object]] = []
        with contextlib.suppress(IndexError):
            while len(puts) < MAX_BATCH:
                item = self._waiting.popleft()
                if isinstance(item, _Job):
                    jobs.append(item)
                    break  # a job comes after what was put before it, and before what comes after
                puts.append(item)
        done: list[Callable[[], None]] = []
        if puts:
            done += self._commit(puts)
        for job in jobs:
            done.append(self._perform(job))
        awaited = len(jobs) + sum(put.deferred is not None for put in puts)
        size_bytes = sum(put.size_bytes for put in puts)
        self._in_loop(lambda: self._finish(done, awaited, size_bytes))
        return len(puts) + len(jobs), awaited

    def _commit(self, puts: list[_Put[Op]]) -> list[Callable[[], None]]:
        try:
            with _transaction(self._db) as db:
                outcomes = self._apply(db, [put.op for put in puts])
        except apsw.Error as error:
            self._say_trouble(error)
            refused = Refused(ErrorCode.UNAVAILABLE, f"cannot store: {error}")
            lost = [put for put in puts if put.deferred is None]
            # Marks are true whether or not they were stored: they try again with the next commit.
            self._waiting.extendleft(reversed(lost[:MAX_WAITING]))
            return [partial(put.deferred.fail, refused) for put in puts if put.deferred is not None]
        self.trouble = None
        answers: list[Callable[[], None]] = []
        for put, outcome in zip(puts, outcomes, strict=True):
            if put.deferred is None:
                continue
            if isinstance(outcome, Exception):
                answers.append(partial(put.deferred.fail, outcome))
            else:
                answers.append(partial(put.deferred.resolve, outcome))
        return answers

    def _perform(self, job: _Job[object]) -> Callable[[], None]:
        try:
            with _transaction(self._db) as db:
                result = job.run(db)
            self.trouble = None
        except apsw.Error as error:
            self._say_trouble(error)
            refused = Refused(ErrorCode.UNAVAILABLE, f"cannot store: {error}")
            return lambda: job.deferred.fail(refused)
        except Exception as error:
            failed = error
            return lambda: job.deferred.fail(failed)
        return lambda: job.deferred.resolve(result)

    def _say_trouble(self, error: apsw.Error) -> None:
        if self.trouble is None:
            log.error("Store cannot commit: %s", error)
        self.trouble = str(error)

    def _note_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        # Not the size of the -wal file: it stays as large as it ever was, and begins again from its start.
        self._wal_pages = pages
        self._checkpointed_pages = min(self._checkpointed_pages, pages)
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Carry the write-ahead log over into the file, so that the next commit begins it again.

        Passive: a reader that stays in it makes it grow and costs nobody else time.
        """
        try:
            self._db.execute("pragma wal_checkpoint(passive)").fetchall()
            self._checkpointed_pages = self._wal_pages
        except apsw.BusyError:
            pass
        except apsw.Error as error:  # a full disk: what is committed stays in the log meanwhile
            self._say_trouble(error)

    def _in_loop(self, fn: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(fn)

    # ── in the event loop ───────────────────────────────────────────────────────────────────────

    def _finish(self, done: Sequence[Callable[[], None]], awaited: int, size_bytes: int) -> None:
        self._committing = False
        self._awaited -= awaited
        self._waiting_bytes -= size_bytes
        for answer in done:
            answer()
        if self._awaited:
            self._committing = True
            self._signals.put(Signal.COMMIT)
        elif self._waiting and not self._lazy:
            # Marks that were made while the writer was at work, or that a failed commit gave back.
            self._lazy = True
            self._signals.put(Signal.LAZY)


@asynccontextmanager
async def open_store(
    path: Path, apply: Callable[[apsw.Connection, Sequence[Op]], list[Outcome]]
) -> AsyncIterator[Store[Op]]:
    """Open, or make, the database at *path*; close it cleanly at the end of the block.

    Raises:
        SchemaError: it was written by a newer hyperhive, is no hive's database, or is damaged.
    """
    try:
        store = Store(path, apply, trio.lowlevel.current_trio_token())
    except apsw.Error as error:
        raise SchemaError(f"cannot open {path}: {error}") from None
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def _transaction(db: apsw.Connection) -> Iterator[apsw.Connection]:
    """Commit what the block does, or nothing of it.

    Not apsw's ``with db``: that keeps the GIL while it commits, and the event loop stood still for as
    long as the disk took.
    """
    db.execute("begin immediate")
    try:
        yield db
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


def _open(path: Path, *, read_only: bool = False) -> apsw.Connection:
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    if not read_only:
        make_private(path)
    db = apsw.Connection(str(path), flags=flags)
    db.set_busy_timeout(5000)
    if not read_only:
        # The mode is read back: it silently stays what it was when another process has the file.
        if db.execute("pragma journal_mode = wal").fetchall() != [("wal",)]:
            db.close()
            raise SchemaError(f"cannot open {path}: another program keeps it out of WAL mode")
        db.execute("pragma synchronous = full").fetchall()
        db.execute("pragma wal_autocheckpoint = 0").fetchall()
    return db

"""Copies of the database while it is in use, and whole ones that are put back."""

import logging
from pathlib import Path
from typing import Final, cast

import apsw

from hive_core.store import mailbox
from hive_core.store.schema import APPLICATION_ID, MIGRATIONS, SchemaError

STEP_PAGES: Final = 2000
MIN_FREE_BYTES: Final = 64 * 2**20
MAX_LIVE_BYTES: Final = 512 * 2**20
"""What is written anew at a start: it takes seconds, and nobody is served before."""

log = logging.getLogger(__name__)


def copy_database(source: Path, target: Path) -> int:
    """Write the database *source* as it is at this moment into the new file *target*; give its messages.

    Meanwhile others write.  It holds one snapshot: without it each commit would make the copy begin again.
    The write-ahead log cannot begin again until it is done.

    Raises:
        apsw.Error: it cannot be read or written.
    """
    db = apsw.Connection(str(source), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(5000)
        db.execute("begin")
        db.execute("select count(*) from sqlite_schema").fetchall()
        copy = apsw.Connection(str(target))
        try:
            with copy.backup("main", db, "main") as backup:
                while not backup.done:
                    backup.step(STEP_PAGES)
            copy.execute("pragma journal_mode = delete").fetchall()
            return mailbox.count(copy)
        finally:
            copy.close()
    finally:
        db.close()


def check_database(path: Path) -> tuple[int, int]:
    """Give schema and number of messages of the database at *path*, which nobody uses.

    Raises:
        SchemaError: it is damaged, is no hive's, or was written by a newer hyperhive.
    """
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            if db.pragma("application_id") != APPLICATION_ID:
                raise SchemaError("it is not the database of a hive")
            schema = int(db.pragma("user_version"))
            if schema > len(MIGRATIONS):
                raise SchemaError(
                    f"it was written by a newer hyperhive (schema {schema}, this one knows "
                    f"{len(MIGRATIONS)}); update hyperhive"
                )
            found = db.execute("pragma integrity_check(3)").fetchall()
            if found != [("ok",)]:
                raise SchemaError(f"the database is damaged: {found[0][0]}")
            return schema, mailbox.count(db)
        finally:
            db.close()
    except apsw.Error as error:
        raise SchemaError(f"the database is damaged: {error}") from None


def uids_of(path: Path) -> dict[str, int]:
    """Give the users that the files of agents belong to, where these are not the daemon's own."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        columns = {str(row[1]) for row in db.execute("pragma table_info(agents)")}
        if "uid_base" not in columns:
            return {}
        rows = db.execute("select name, uid_base from agents where uid_base is not null")
        return {str(name): int(cast("int", uid)) for name, uid in rows}
    finally:
        db.close()


def give_back_space(
    path: Path, *, min_free_bytes: int = MIN_FREE_BYTES, max_live_bytes: int = MAX_LIVE_BYTES
) -> int:
    """Write a database that is half empty anew, before anybody uses it; give how many bytes that saved.

    There is no auto_vacuum: it costs each insert another page, and to move a free page to the end takes a
    millisecond of the only writer.  Files that are there could not be switched to it without being written
    anew either.  In service freed pages are filled by new rows.
    """
    if not path.exists():
        return 0
    try:
        saved = _write_anew(path, min_free_bytes, max_live_bytes)
    except apsw.Error as error:  # a full disk, or worse, which whoever opens it next says
        log.warning("Space of %s not given back: %s", path, error)
        return 0
    if saved:
        log.info("Space given back path=%s bytes=%d", path, saved)
    return saved


def _write_anew(path: Path, min_free_bytes: int, max_live_bytes: int) -> int:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.set_busy_timeout(5000)
        if db.pragma("application_id") != APPLICATION_ID or db.pragma("user_version") > len(MIGRATIONS):
            return 0
        size, pages, free = (int(db.pragma(name)) for name in ("page_size", "page_count", "freelist_count"))
        if free * 2 <= pages or free * size < min_free_bytes or (pages - free) * size > max_live_bytes:
            return 0
        db.execute("vacuum").fetchall()
        db.execute("pragma wal_checkpoint(truncate)").fetchall()
        return (pages - int(db.pragma("page_count"))) * size
    finally:
        db.close()

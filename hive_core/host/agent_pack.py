"""Packs an agent's directory into a tar stream and unpacks one, in the child of agent_upkeep.

Nothing is followed and nothing but directories, links and regular files is packed or made.  Databases of
the harness are packed as SQLite copies them, so that one in use is whole in the archive.
"""

import contextlib
import io
import os
import sqlite3
import stat
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, BinaryIO, Final
from urllib.parse import quote

from hive_core.host.agent_prune import usable

MAX_ENTRIES: Final = 200_000
MAX_FILE_BYTES: Final = 2 * 2**30
MAX_TOTAL_BYTES: Final = 16 * 2**30
MAX_DEPTH: Final = 40
MAX_COPIED_BYTES: Final = 96 * 2**20
"""A larger database is packed as it lies there: the copy is made in memory."""
LEFT_OUT: Final = ".hive-left-out"
"""The last entry of an archive names what is not in it, and why."""
_SQLITE: Final = b"SQLite format 3\0"


class _Budget:
    def __init__(self, plain: bool) -> None:
        self.plain = plain
        self.entries = MAX_ENTRIES
        self.bytes = MAX_TOTAL_BYTES
        self.left_out: list[str] = []

    def leave_out(self, path: str, why: str) -> None:
        if len(self.left_out) < 1000:
            self.left_out.append(f"{path}: {why}")


def pack(into: IO[bytes], *, without: Collection[str] = (), plain: bool = False) -> None:
    """Write what is below the working directory to *into*, but for the names *without* at the top.

    When *plain*, no database is looked into.

    Raises:
        OSError: the working directory cannot be read.
    """
    budget = _Budget(plain)
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT, errorlevel=1) as tar:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            _pack_directory(tar, root, "", 0, budget, without)
        finally:
            os.close(root)
        text = "\n".join(budget.left_out).encode(errors="replace")
        last = tarfile.TarInfo(LEFT_OUT)
        last.size = len(text)
        tar.addfile(last, io.BytesIO(text))


def pack_nothing(into: IO[bytes]) -> None:
    tarfile.open(fileobj=into, mode="w|").close()


def _pack_directory(
    tar: tarfile.TarFile, at: int, prefix: str, depth: int, budget: _Budget, without: Collection[str] = ()
) -> None:
    # What names commits of a repository goes before what holds them: more may come meanwhile.
    for name in sorted(os.listdir(at), key=lambda name: (name == "objects", name)):
        if name in without:
            continue
        path = f"{prefix}{name}"
        try:
            path.encode()
            entry = os.stat(name, dir_fd=at, follow_symlinks=False)
            budget.entries -= 1
            if budget.entries < 0:
                budget.leave_out(path, "there are too many files")
                return
            _pack_entry(tar, at, name, path, entry, depth, budget)
        except UnicodeEncodeError:
            budget.leave_out(repr(path), "its name is not UTF-8")
        except OSError as error:
            budget.leave_out(path, error.strerror or str(error))


def _pack_entry(
    tar: tarfile.TarFile, at: int, name: str, path: str, entry: os.stat_result, depth: int, budget: _Budget
) -> None:
    info = tarfile.TarInfo(path)
    info.mode = stat.S_IMODE(entry.st_mode) & 0o777
    info.uid, info.gid = entry.st_uid, entry.st_gid
    info.mtime = int(min(max(entry.st_mtime, 0), 2**33 - 1))
    if stat.S_ISDIR(entry.st_mode):
        if depth >= MAX_DEPTH:
            budget.leave_out(path, "it is too deep")
            return
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
        try:
            _pack_directory(tar, inner, f"{path}/", depth + 1, budget)
        finally:
            os.close(inner)
    elif stat.S_ISLNK(entry.st_mode):
        info.type = tarfile.SYMTYPE
        info.linkname = os.readlink(name, dir_fd=at)
        info.linkname.encode()
        tar.addfile(info)
    elif stat.S_ISREG(entry.st_mode):
        if name.endswith((".sqlite-wal", ".sqlite-shm")):
            return  # what they hold is in the copy of the database
        _pack_file(tar, at, name, path, info, budget)
    else:
        budget.leave_out(path, "it is neither a file nor a directory nor a link")


def _pack_file(
    tar: tarfile.TarFile, at: int, name: str, path: str, info: tarfile.TarInfo, budget: _Budget
) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=at)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            budget.leave_out(path, "it is no regular file any more")
            return
        info.size = found.st_size
        if info.size > MAX_FILE_BYTES or info.size > budget.bytes:
            budget.leave_out(path, f"it is too large, {info.size} bytes")
            return
        copy = None
        if (
            not budget.plain
            and name.endswith(".sqlite")
            and info.size <= MAX_COPIED_BYTES
            and file.read(16) == _SQLITE
        ):
            copy = _copy_database(at, name)
        file.seek(0)
        budget.bytes -= info.size
        if copy is None:
            tar.addfile(info, _Exactly(file, info.size))
        else:
            info.size = len(copy)
            tar.addfile(info, io.BytesIO(copy))


def _copy_database(at: int, name: str) -> bytes | None:
    """Give a database as it is at one moment, None when SQLite cannot read it."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fchdir(at)
        usable(Path(), name)
        with (
            contextlib.closing(sqlite3.connect(f"file:{quote(name)}?mode=ro", uri=True, timeout=1)) as db,
            contextlib.closing(sqlite3.connect(":memory:")) as copy,
        ):
            db.execute("pragma trusted_schema = off")
            db.backup(copy)
            image = copy.serialize()
            # In memory there is no write-ahead log; the harness switches it on again.
            return bytes(image)
    except (OSError, sqlite3.Error, MemoryError):
        return None
    finally:
        os.fchdir(here)
        os.close(here)


class _Exactly(io.RawIOBase):
    """As many bytes as the header says, whatever happens to the file meanwhile."""

    def __init__(self, file: BinaryIO | IO[bytes], size: int) -> None:
        self._file, self._left = file, size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        found = self._file.read(wanted)
        self._left -= wanted
        return found + bytes(wanted - len(found))


def unpack(source: IO[bytes], *, keep_owner: bool = False) -> None:
    """Make what a stream of pack() holds below the working directory, which is empty.

    As ours, or as those whose it was.

    Raises:
        OSError, ValueError: it is no such stream, names something elsewhere, or cannot be written.
    """
    entries, left = MAX_ENTRIES, MAX_TOTAL_BYTES
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for info in tar:
                entries, left = entries - 1, left - max(info.size, 0)
                if entries < 0 or left < 0:
                    raise ValueError("there is too much in it")
                if info.name != LEFT_OUT:
                    _unpack_entry(tar, info, root, keep_owner=keep_owner)
    except tarfile.TarError as error:
        raise ValueError(str(error)) from None
    finally:
        os.close(root)


def _unpack_entry(tar: tarfile.TarFile, info: tarfile.TarInfo, root: int, *, keep_owner: bool) -> None:
    parts = info.name.split("/")
    if len(parts) > MAX_DEPTH + 1 or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"{info.name!r} is no path below the state directory")
    with _directory_of(root, parts[:-1]) as at:
        if info.isdir():
            os.mkdir(parts[-1], (info.mode & 0o777) | 0o700, dir_fd=at)
        elif info.issym():
            os.symlink(info.linkname, parts[-1], dir_fd=at)
        elif info.isreg():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            fd = os.open(parts[-1], flags, (info.mode & 0o777) | 0o600, dir_fd=at)
            held = tar.extractfile(info)
            assert held is not None
            with os.fdopen(fd, "wb") as file:
                while chunk := held.read(2**20):
                    file.write(chunk)
        else:
            raise ValueError(f"{info.name!r} is neither a file nor a directory nor a link")
        if keep_owner:
            os.chown(parts[-1], info.uid, info.gid, dir_fd=at, follow_symlinks=False)


@contextlib.contextmanager
def _directory_of(root: int, parts: list[str]) -> Iterator[int]:
    at = os.dup(root)
    try:
        for part in parts:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        yield at
    finally:
        os.close(at)

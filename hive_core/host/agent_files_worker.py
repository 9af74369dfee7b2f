"""The child of agent_files: reads or deletes what an agent owns, under limits, and prints JSON lines.

Only the standard library: it starts in tens of milliseconds.
"""

import argparse
import contextlib
import errno
import itertools
import json
import os
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Final
from urllib.parse import quote

from hive_core.host.confinement import enter, limit_myself
from hive_core.host.turn_sums import STATS_FILE, sum_up

EVENTS_FILE: Final = "hyperhive-events.sqlite"
MAX_ANSWER_BYTES: Final = 8 * 2**20
MAX_PAYLOAD_BYTES: Final = 256 * 2**10
CREDENTIALS: Final = ".credentials.json"
MAX_CREDENTIALS_BYTES: Final = 2**20
NAMES_AT_ONCE: Final = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="agent_files_worker")
    parser.add_argument("verb", choices=("events", "remove", "stats", "size", "login"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--after", type=int)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--since", type=float, default=0.0)
    arguments = parser.parse_args()
    limit_myself(cpu_s=60 if arguments.verb == "remove" else 8)
    match arguments.verb:
        case "remove":
            return _remove(arguments.directory)
        case "size":
            return _weigh(arguments.directory)
        case "login":
            return _look_for_login(arguments.directory, arguments.uid)
    file = STATS_FILE if arguments.verb == "stats" else EVENTS_FILE
    try:
        directory = enter(arguments.directory, arguments.uid)
        if directory is None:
            print("{}" if arguments.verb == "stats" else "end")
        elif arguments.verb == "stats":
            print(json.dumps(sum_up(Path(directory), arguments.since, open_read_only)))
        else:
            print("more" if _print_events(Path(directory), arguments) else "end")
    except (OSError, sqlite3.Error, ValueError, MemoryError) as error:
        print(f"cannot read {file}: {error}", file=sys.stderr)
        return 1
    return 0


# ── deleting ────────────────────────────────────────────────────────────────────────────────────


def _remove(directory: Path) -> int:
    """Delete *directory* and what is in it; say what is left and why.

    As who we are: an agent's files belong to many users of its machine.  Nothing is opened but
    directories, one name at a time and no links; where we are root nothing outside can be named.
    """
    try:
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        root = os.open(directory.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except FileNotFoundError:
        return 0
    except OSError as error:
        print(f"cannot delete {directory}: {error.strerror}", file=sys.stderr)
        return 1
    try:
        os.fchdir(root)
        if os.geteuid() == 0:
            os.chroot(".")
        _empty(root)
        os.rmdir(directory.name, dir_fd=parent)
    except OSError as error:
        where = "" if error.filename is None else f"/{error.filename!s}"
        print(f"cannot delete {directory}{where}: {error.strerror}{_hint(error)}", file=sys.stderr)
        return 1
    return 0


def _empty(root: int) -> None:
    """Delete everything below the open directory *root*.

    A directory in a directory is moved up before it is emptied: so however deep an agent has nested them,
    there are two levels, two descriptors and no recursion.

    Raises:
        OSError: something cannot be deleted; its filename is where it was found.
    """
    taken = _MovedNames()
    while True:
        names = _names_in(root)
        if not names:
            return
        for name in names:
            if not _is_directory(name, root):
                os.unlink(name, dir_fd=root)
                continue
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=_writable(name, root))
            try:
                while inners := _names_in(fd):
                    for inner in inners:
                        if not _is_directory(inner, fd):
                            os.unlink(inner, dir_fd=fd)
                            continue
                        try:
                            os.rmdir(inner, dir_fd=fd)
                        except OSError as error:
                            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                                raise
                            _writable(inner, fd)
                            os.rename(inner, taken.next(root), src_dir_fd=fd, dst_dir_fd=root)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=root)


def _names_in(directory: int) -> list[str]:
    """Give what is in the open *directory*; only some of it when all might be too much for our memory."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in itertools.islice(entries, NAMES_AT_ONCE)]


class _MovedNames:
    """Names that nothing in a directory has."""

    def __init__(self) -> None:
        self._number = 0

    def next(self, directory: int) -> str:
        while True:
            self._number += 1
            name = f".moved-{self._number}"
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                return name


def _is_directory(name: str, directory: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)


def _writable(name: str, directory: int) -> int:
    """Let a directory of our own be emptied though its mode forbids it; give *directory*."""
    if os.geteuid():
        with contextlib.suppress(OSError):
            os.chmod(name, 0o700, dir_fd=directory)
    return directory


def _hint(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "; look with lsattr whether it is immutable, and take that away with chattr -R -ia"
    if error.errno == errno.EBUSY:
        return "; something is mounted there: umount it"
    return ""


# ── what is kept ────────────────────────────────────────────────────────────────────────────────


def _weigh(directory: Path) -> int:
    """Become a `du`: it looks at no file's content, follows no link, and knows trees of any depth."""
    try:
        os.execvp("du", ["du", "-sx", "--block-size=1", "--", str(directory)])  # noqa: S606, S607
    except OSError as error:
        print(f"cannot start du: {error.strerror}", file=sys.stderr)
        return 1


def _look_for_login(directory: Path, uid: int | None) -> int:
    """Say whether claude's *directory* has credentials, as the harness looks for them."""
    try:
        entered = enter(directory, uid)
        text = b"" if entered is None else _read_credentials(Path(entered, CREDENTIALS))
        kept = json.loads(text or b"{}")
        login = kept.get("claudeAiOauth", {}) if isinstance(kept, dict) else {}
        token = login.get("accessToken") or login.get("refreshToken")
    except (OSError, ValueError, AttributeError, RecursionError, MemoryError):
        token = None  # what nobody can read is no login
    print("yes" if token else "no")
    return 0


def _read_credentials(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(MAX_CREDENTIALS_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def open_read_only(path: Path) -> sqlite3.Connection | None:
    """Open a database that an agent may have made, None when there is none.

    Raises:
        OSError, sqlite3.Error: it is none.
    """
    try:
        # sqlite would follow a link and hang on a FIFO.
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(kind):
        raise OSError("it is not a regular file")
    # A file that stands in the working directory of a root that is not / has no absolute path for us.
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=2)
    db.execute("pragma trusted_schema = off")
    db.execute("pragma temp_store = memory")
    db.execute("pragma cell_size_check = on")
    return db


def _print_events(directory: Path, arguments: argparse.Namespace) -> bool:
    db = open_read_only(directory / EVENTS_FILE)
    if db is None:
        return False
    kinds = json.dumps(arguments.kind) if arguments.kind else None
    newest = arguments.after is None
    select = (
        "select id, ts, kind, payload_json from events"
        " where id > ?1 and (?2 is null or kind in (select value from json_each(?2))) order by id "
    )
    rows = db.execute(
        select + ("desc limit ?3" if newest else "limit ?3"),
        (-1 if newest else arguments.after, kinds, arguments.limit + 1),
    )
    lines: list[str] = []
    size = 0
    more = False
    for event_id, ts, event_kind, payload in rows:
        text = payload if isinstance(payload, str) and len(payload) <= MAX_PAYLOAD_BYTES else "{}"
        try:
            row = {"id": int(event_id), "ts": float(ts), "kind": str(event_kind), "payload": _parse(text)}
        except (TypeError, ValueError):
            continue  # the harness wrote no such row
        line = json.dumps(row)
        size += len(line)
        if len(lines) == arguments.limit or (lines and size > MAX_ANSWER_BYTES):
            more = True
            break
        lines.append(line)
    for line in reversed(lines) if newest else lines:
        print(line)
    return more and not newest


def _parse(text: str) -> object:
    try:
        payload = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {"unreadable": text[:200]}
    return payload if isinstance(payload, dict) else {"value": payload}


if __name__ == "__main__":
    sys.exit(main())

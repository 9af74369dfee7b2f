"""The child of proposals: reads a repository that an agent owns, or writes a new one, as that agent.

It runs no git and reads nothing that tells git what to do.  What it gives on are raw objects and packs,
found by names that only those can have, and the hash that a branch stands for.  Whatever lies there instead
(a link, a FIFO, a directory) is as good as missing.

    proposal_worker read DIRECTORY USER objects|refs    write a stream to stdout
    proposal_worker seed DIRECTORY USER SIZE            plant the files that come on stdin, SIZE bytes in all

USER is a number, `owner`: whoever owns DIRECTORY, or `-`: who we are.  Somebody waits for it, so that it
imports little: pathlib and argparse alone would take longer than all the rest.

The stream that `read` writes, each item with a line before it:

    object HASH SIZE    a loose object, compressed as it lies there
    pack SIZE
    head HASH           the commit that is checked out
    ref HASH NAME
    end                 the stream is whole
"""

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from typing import Final

from hive_core.host.confinement import enter, limit_myself

MAX_OBJECTS: Final = 20_000
MAX_PACKS: Final = 64
MAX_REFS: Final = 20_000
MAX_TOTAL_BYTES: Final = 256 * 2**20
MAX_TEXT_BYTES: Final = 8 * 2**20
"""Of a file with names of commits."""
MAX_SEED_BYTES: Final = 16 * 2**20

_TWO: Final = re.compile(r"[0-9a-f]{2}\Z")
_THIRTY_EIGHT: Final = re.compile(r"[0-9a-f]{38}\Z")
_HASH: Final = re.compile(r"[0-9a-f]{40}\Z")
_PACK: Final = re.compile(r"pack-[0-9a-f]{40}\.pack\Z")
_REF: Final = re.compile(r"refs(/[A-Za-z0-9_][A-Za-z0-9._+@=-]{0,127}){1,12}\Z")
_SEED: Final = ".hive-seed-"
_TRIES: Final = 4
_FAILURES: Final = (OSError, ValueError, MemoryError, RecursionError)


class Refused(ValueError):
    """It cannot be taken; the text is for whoever proposed it."""


def main() -> int:
    verb, directory, become, more = sys.argv[1:]
    limit_myself(cpu_s=30)
    try:
        if become == "owner":
            uid: int | None = os.lstat(directory).st_uid
        else:
            uid = None if become == "-" else int(become)
        if enter(directory, uid) is None:
            raise Refused("there is no such directory")
        if verb == "read":
            _read(refs=more == "refs")
        else:
            _seed(int(more))
    except BrokenPipeError:
        # Who reads it has had enough, and says why.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _FAILURES as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        sys.stderr.write(f"{where}{why}\n")
        return 1
    return 0


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


class _Budget:
    def __init__(self) -> None:
        self.objects = MAX_OBJECTS
        self.packs = MAX_PACKS
        self.bytes = MAX_TOTAL_BYTES

    def take(self, size: int) -> None:
        self.bytes -= size
        if self.bytes < 0:
            raise Refused(
                f"its repository has more than {MAX_TOTAL_BYTES >> 20} MiB of objects; git gc may help"
            )


def _read(*, refs: bool) -> None:
    out = sys.stdout.buffer
    with _directory(".git") as top:
        if top is None:
            raise Refused("there is no git repository: .git is missing, or no directory")
        budget = _Budget()
        head = _head(top)
        if head is not None:
            out.write(f"head {head}\n".encode())
        for name, commit in _refs(top) if refs else ():
            out.write(f"ref {commit} {name}\n".encode())
        with _directory("objects", top) as objects:
            if objects is None:
                raise Refused("there is no git repository: .git/objects is missing, or no directory")
            # Loose ones first: one that is packed meanwhile is in a pack that is listed afterwards.
            _send_loose(objects, budget)
            with _directory("pack", objects) as packs:
                if packs is not None:
                    _send_packs(packs, budget)
    out.write(b"end\n")
    out.flush()


def _send_loose(objects: int, budget: _Budget) -> None:
    for two in _names(objects, 4096):
        if not _TWO.match(two):
            continue
        with _directory(two, objects) as inner:
            if inner is None:
                continue
            for rest in _names(inner, MAX_OBJECTS + 4096):
                if not _THIRTY_EIGHT.match(rest):
                    continue
                budget.objects -= 1
                if budget.objects < 0:
                    raise Refused(
                        f"its repository has more than {MAX_OBJECTS} loose objects; git gc packs them"
                    )
                _send(rest, inner, f"object {two}{rest}", budget)


def _send_packs(packs: int, budget: _Budget) -> None:
    """Send each pack; look again when one vanishes, for what it held is in another then."""
    sent: set[str] = set()
    for _ in range(_TRIES):
        names = [name for name in _names(packs, 4096) if _PACK.match(name) and name not in sent]
        gone = False
        for name in names:
            if len(sent) == MAX_PACKS:
                raise Refused(f"its repository has more than {MAX_PACKS} packs; git gc makes one of them")
            if _send(name, packs, "pack", budget):
                sent.add(name)
            else:
                gone = True
        if not gone:
            return


def _send(name: str, at: int, what: str, budget: _Budget) -> bool:
    """Send the regular file *name*; False: there is none."""
    fd = _open_regular(name, at)
    if fd is None:
        return False
    with os.fdopen(fd, "rb", buffering=0) as file:
        left = os.fstat(fd).st_size
        budget.take(left)
        out = sys.stdout.buffer
        out.write(f"{what} {left}\n".encode())
        while left:
            chunk = file.read(min(left, 2**20))
            if not chunk:
                # It shrank: no object any more, but as long as was said.
                chunk = bytes(min(left, 2**20))
            out.write(chunk)
            left -= len(chunk)
    return True


def _head(top: int) -> str | None:
    text = _text("HEAD", top, 4096)
    if text is None:
        return None
    text = text.strip()
    if _HASH.match(text):
        return text
    name = text.removeprefix("ref:").strip() if text.startswith("ref:") else ""
    return _commit_of(name, top)


def _commit_of(name: str, top: int) -> str | None:
    """Give the hash that reference *name* has, by reading what git would."""
    if not _is_ref(name):
        return None
    *parts, last = name.split("/")
    with contextlib.ExitStack() as opened:
        at: int | None = top
        for part in parts:
            at = None if at is None else opened.enter_context(_directory(part, at))
        text = None if at is None else _text(last, at, 4096)
    if text is not None and _HASH.match(text.strip()):
        return text.strip()
    return dict(_packed_refs(top)).get(name)


def _is_ref(name: str) -> bool:
    return bool(_REF.match(name)) and ".." not in name and not name.endswith((".lock", "."))


def _packed_refs(top: int) -> Iterator[tuple[str, str]]:
    for line in (_text("packed-refs", top, MAX_TEXT_BYTES) or "").split("\n"):
        commit, _, name = line.partition(" ")
        if _HASH.match(commit) and _is_ref(name):
            yield name, commit


def _refs(top: int) -> list[tuple[str, str]]:
    """Give every reference, with what it stands for."""
    found = dict(_packed_refs(top))
    waiting = ["refs/heads", "refs/tags"]
    while waiting and len(found) <= MAX_REFS:
        prefix = waiting.pop()
        with contextlib.ExitStack() as opened:
            at: int | None = top
            for part in prefix.split("/"):
                at = None if at is None else opened.enter_context(_directory(part, at))
            if at is None:
                continue
            for name in _names(at, MAX_REFS + 1):
                path = f"{prefix}/{name}"
                if not _is_ref(path):
                    continue
                if stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                    waiting.append(path)
                    continue
                text = (_text(name, at, 4096) or "").strip()
                if _HASH.match(text):
                    found[path] = text
    if len(found) > MAX_REFS:
        raise Refused(f"its repository has more than {MAX_REFS} tags and branches")
    return sorted(found.items())


def _text(name: str, at: int, max_bytes: int) -> str | None:
    fd = _open_regular(name, at)
    if fd is None:
        return None
    with os.fdopen(fd, "rb") as file:
        held = file.read(max_bytes + 1)
    return None if len(held) > max_bytes else held.decode("ascii", "replace")


def _names(at: int, most: int) -> list[str]:
    """Give what is in an open directory.

    Raises:
        Refused: more than *most*.
    """
    names: list[str] = []
    with os.scandir(at) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > most:
                raise Refused(f"a directory of its repository has more than {most} entries; try git gc")
    return sorted(names)


@contextlib.contextmanager
def _directory(name: str, at: int | None = None) -> Iterator[int | None]:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _open_regular(name: str, at: int) -> int | None:
    # Looked at before it is opened: opening a device may do something.
    try:
        if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            return None
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=at)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}:
            return None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return fd


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


def _seed(size: int) -> None:
    """Write the files that come on stdin, of *size* bytes in all, and say whether that was done.

    Those of the repository appear together, last; a file that is there already stays as it is.
    """
    text = sys.stdin.buffer.read(MAX_SEED_BYTES + 1)
    if len(text) != size:
        raise ValueError(f"only {len(text)} of {size} bytes came")
    if os.path.lexists(".git"):
        sys.stdout.write("there\n")
        return
    top = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    for name in _names(top, 100_000):
        if name.startswith(_SEED):
            shutil.rmtree(name, ignore_errors=True)
    os.umask(0o022)
    fresh = f"{_SEED}{os.urandom(8).hex()}"
    os.mkdir(fresh)
    repository = os.open(fresh, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    for directory in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        with _made(repository, directory.split("/")):
            pass
    for path, held in _files(text):
        first, *rest = path.split("/")
        with contextlib.suppress(FileExistsError):
            _write(repository if first == ".git" else top, rest if first == ".git" else [first, *rest], held)
    os.fsync(repository)
    try:
        # Onto an empty directory it would go too.
        if os.path.lexists(".git"):
            raise FileExistsError
        os.rename(fresh, ".git")
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, None}:
            raise
        sys.stdout.write("there\n")
        return
    os.fsync(top)
    sys.stdout.write("done\n")


def _files(text: bytes) -> Iterator[tuple[str, bytes]]:
    """Take apart `PATH SIZE\\n` and as many bytes, again and again."""
    at = 0
    while at < len(text):
        end = text.index(b"\n", at)
        path, _, size = text[at:end].decode().rpartition(" ")
        at = end + 1 + int(size)
        if any(part in {"", ".", ".."} for part in path.split("/")):
            raise ValueError(f"{path!r} is no path")
        yield path, text[end + 1 : at]


def _write(at: int, parts: list[str], held: bytes) -> None:
    with _made(at, parts[:-1]) as inner:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with os.fdopen(os.open(parts[-1], flags, 0o644, dir_fd=inner), "wb") as file:
            file.write(held)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _made(at: int, parts: list[str]) -> Iterator[int]:
    here = os.dup(at)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = inner
        yield here
    finally:
        os.close(here)


if __name__ == "__main__":
    sys.exit(main())

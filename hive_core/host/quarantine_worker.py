"""The other child of proposals: makes a repository of the stream of proposal_worker, as the user of git.

The new repository has objects and no references, so that no name means anything in it but a hash.  A loose
object is kept when it is what its name says; packs are git's to check.  Prints JSON about what came.

    quarantine_worker DIRECTORY [UID GID]    without them as who we are
"""

import hashlib
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from hive_core.host.confinement import enter, limit_myself
from hive_core.host.proposal_worker import MAX_OBJECTS, MAX_PACKS, MAX_REFS, MAX_TOTAL_BYTES

MAX_OBJECT_BYTES: Final = 16 * 2**20
"""Of one object, unpacked."""
MAX_UNPACKED_BYTES: Final = 2**30
"""Of all loose objects, unpacked."""

CUT_SHORT: Final = "the repository could not be read to its end"

_CONFIG: Final = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n"
_LINE: Final = re.compile(
    rb"(?:object [0-9a-f]{40} \d{1,12}|pack \d{1,12}|head [0-9a-f]{40}|"
    rb"ref [0-9a-f]{40} refs/[!-~]{1,2000}|end)\n\Z"
)
_HEADER: Final = re.compile(rb"(?:blob|tree|commit|tag) (\d{1,20})\0")


class Received:
    def __init__(self) -> None:
        self.head: str | None = None
        self.refs: dict[str, str] = {}
        self.packs: list[str] = []
        self.too_large: list[str] = []
        self.objects = 0
        self.bytes_left = MAX_TOTAL_BYTES
        self.unpacked_left = MAX_UNPACKED_BYTES


def main() -> int:
    directory, *become = sys.argv[1:]
    limit_myself(cpu_s=30)
    try:
        if enter(directory, *map(int, become)) is None:
            raise FileNotFoundError(f"there is no {directory}")
        received = receive(sys.stdin.buffer)
    except (OSError, ValueError, MemoryError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    answer = {
        "head": received.head,
        "refs": received.refs,
        "packs": received.packs,
        "too_large": received.too_large[:10],
    }
    sys.stdout.write(json.dumps(answer))
    return 0


def receive(stream: BinaryIO) -> Received:
    """Make a repository in the working directory, which is empty.

    Raises:
        ValueError: the stream is no such one, does not end, or holds too much.
        OSError: it cannot be written.
    """
    for directory in ("objects/pack", "refs/heads", "refs/tags"):
        os.makedirs(directory)
    for name, text in (("HEAD", "ref: refs/heads/none\n"), ("config", _CONFIG)):
        with open(name, "x") as file:
            file.write(text)
    received = Received()
    while words := _words(stream):
        match words:
            case ["head", commit]:
                received.head = commit
            case ["ref", commit, name]:
                received.refs[name] = commit
                if len(received.refs) > MAX_REFS:
                    raise ValueError("there are too many references")
            case ["pack", size]:
                _take_pack(_chunks(stream, int(size), received), received)
            case ["object", name, size]:
                _take_object(name, stream, int(size), received)
    return received


def _words(stream: BinaryIO) -> list[str]:
    """Read the line before an item; nothing after the last."""
    matched = _LINE.match(stream.readline(4096))
    if matched is None:
        raise ValueError(CUT_SHORT)
    words = matched[0].decode().split()
    return [] if words == ["end"] else words


def _take_pack(chunks: Iterator[bytes], received: Received) -> None:
    if len(received.packs) == MAX_PACKS:
        raise ValueError("there are too many packs")
    # Any name that git takes for a pack's.
    received.packs.append(f"pack-{len(received.packs):040x}.pack")
    with open(f"objects/pack/{received.packs[-1]}", "xb") as file:
        for chunk in chunks:
            file.write(chunk)


def _chunks(stream: BinaryIO, size: int, received: Received) -> Iterator[bytes]:
    received.bytes_left -= size
    if received.bytes_left < 0:
        raise ValueError("there is too much in it")
    while size:
        chunk = stream.read(min(size, 2**20))
        if not chunk:
            raise ValueError(CUT_SHORT)
        size -= len(chunk)
        yield chunk


def _take_object(name: str, stream: BinaryIO, size: int, received: Received) -> None:
    """Keep a loose object whose content has its name as hash; drop any other, as if it were missing."""
    received.objects += 1
    if received.objects > MAX_OBJECTS:
        raise ValueError("there are too many loose objects")
    chunks = _chunks(stream, size, received)
    if size > MAX_OBJECT_BYTES + 2**16:
        received.too_large.append(name)
        for _ in chunks:
            pass
        return
    held = b"".join(chunks)
    if _is_sound(name, held, received):
        directory = f"objects/{name[:2]}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/{name[2:]}", "wb") as file:
            file.write(held)


def _is_sound(name: str, held: bytes, received: Received) -> bool:
    unpacking = zlib.decompressobj()
    try:
        begin = unpacking.decompress(held, 4096)
        header = _HEADER.match(begin)
        if header is None:
            return False
        size = int(header[1])
        if size > MAX_OBJECT_BYTES:
            received.too_large.append(name)
            return False
        received.unpacked_left -= size
        if received.unpacked_left < 0:
            raise ValueError(f"its loose objects are more than {MAX_UNPACKED_BYTES >> 20} MiB")
        # One byte more than there should be gives a bomb away.
        missing = header.end() + size - len(begin)
        rest = unpacking.decompress(unpacking.unconsumed_tail, max(missing, 0) + 1)
    except zlib.error:
        return False
    digest = hashlib.sha1(begin, usedforsecurity=False)
    digest.update(rest)
    return len(rest) == missing and digest.hexdigest() == name


if __name__ == "__main__":
    sys.exit(main())

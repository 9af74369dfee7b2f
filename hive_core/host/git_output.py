"""Reads what git says of files, differences and tags."""

import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hive_core.host.process import CommandError

Changed = Literal["added", "changed", "deleted", "mode"]

TAG: Final = re.compile(r"(proposal|approved|building|deployed|failed|denied)/(0|[1-9][0-9]{0,18})\Z")
"""The tags of an applied repository; there are no others."""
LINK: Final = "120000"
SUBMODULE: Final = "160000"


@dataclass(frozen=True, slots=True)
class Change:
    """One file that two commits do not have in common."""

    path: str
    """As git has it; bytes that are no UTF-8 are surrogates."""
    change: Changed
    added: int
    """Lines; 0 where it is binary."""
    removed: int
    binary: bool
    mode: str
    """git's, of the file as it would be: `100644`, `100755`, `120000` for a link; empty: deleted."""


@dataclass(frozen=True, slots=True)
class TagInfo:
    """A tag of an applied repository."""

    tag: str
    sha: str
    """The commit, in full."""
    at: float
    """When it was put there, in unix seconds."""
    subject: str
    """The first line of the commit's message."""
    note: str | None


@dataclass(frozen=True, slots=True)
class File:
    path: bytes
    mode: str
    kind: str
    sha: str
    size: int


def parse_files(listed: bytes) -> list[File]:
    """Read what `ls-tree -l -z` says."""
    files = []
    for line in listed.split(b"\0"):
        if line:
            about, path = line.split(b"\t", 1)
            mode, kind, sha, size = about.decode().split()
            if size != "-" and not size.isdecimal():
                raise CommandError(f"git ls-tree: {visible_path(path)} is missing")
            files.append(File(path, mode, kind, sha, 0 if size == "-" else int(size)))
    return files


def parse_changes(said: bytes) -> list[Change]:
    """Read what `diff-tree -z --raw --numstat` says: all of the one, then all of the other."""
    fields = deque(said.split(b"\0"))
    kinds: dict[bytes, tuple[Changed, str]] = {}
    lines: dict[bytes, tuple[bytes, bytes]] = {}
    while fields and (head := fields.popleft()):
        if head.startswith(b":"):
            before, after, old, new, letter = head[1:].decode().split(" ")
            kind = _kind_of(before, after, old, new, letter)
            kinds[fields.popleft()] = (kind, "" if letter == "D" else after)
        else:
            added, removed, path = head.split(b"\t", 2)
            lines[path] = (added, removed)
    changes = []
    for path, (change, mode) in kinds.items():
        added, removed = lines.get(path, (b"0", b"0"))
        binary = added == b"-"
        counts = (0, 0) if binary else (int(added), int(removed))
        changes.append(Change(os.fsdecode(path), change, *counts, binary, mode))
    return changes


def _kind_of(before: str, after: str, old: str, new: str, letter: str) -> Changed:
    if letter in "AD":
        return "added" if letter == "A" else "deleted"
    return "mode" if old == new and before != after else "changed"


def parse_tag(record: bytes) -> TagInfo | None:
    if not record.strip():
        return None
    tag, kind, sha, target, at, subject, inner, text = record.decode(errors="replace").split("\0", 7)
    if not TAG.match(tag.strip()):
        return None
    if kind != "tag":
        return TagInfo(tag.strip(), sha, float(at or 0), subject, None)
    return TagInfo(tag.strip(), target, float(at or 0), inner, text.strip())


def made_at(log: Path, otherwise: float) -> float:
    """Read from a reference's log when it was made; a tag without a note does not say so itself."""
    try:
        # It is git's, who reads what agents made: a FIFO in its place holds nobody up.
        fd = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            about = file.readline(4096).partition(b"\t")[0].split()
        return float(int(about[-2]))
    except (OSError, ValueError, IndexError):
        return otherwise


def visible_path(path: bytes) -> str:
    text = os.fsdecode(path)
    return repr("".join(char if char.isprintable() else "?" for char in text)[:200])

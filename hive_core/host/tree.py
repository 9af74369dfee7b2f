"""Looks into the tree of an operating system without leaving it: links are followed as they are inside."""

import os
import re
import stat
from pathlib import Path
from typing import Final

_PYTHON: Final = re.compile(r"python(3\.\d{1,3})\Z")
_MAX_OS_RELEASE_BYTES: Final = 64 * 2**10
_MAX_LINKS: Final = 40
"""As many as the kernel follows."""


def read_pretty_name(tree: Path) -> str:
    """Give what a tree calls itself, of at most 80 printable characters; empty when it does not say."""
    path = resolve_in(tree, "etc/os-release") or resolve_in(tree, "usr/lib/os-release")
    if path is None:
        return ""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return ""
        text = file.read(_MAX_OS_RELEASE_BYTES).decode(errors="replace")
    for line in text.splitlines():
        key, _, value = line.strip().partition("=")
        if key == "PRETTY_NAME":
            value = value.strip()
            if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
                value = value[1:-1]
            shown = re.sub(r"\\(.)", r"\1", value)
            return "".join(char for char in shown if char.isprintable())[:80]
    return ""


def resolve_in(tree: Path, path: str) -> Path | None:
    """Give where *path* leads when *tree* is the root; None if it leads nowhere.

    Links are followed as they are inside: an absolute one begins at *tree*, and none leaves it.
    """
    rest = [part for part in path.split("/") if part and part != "."]
    at: list[str] = []
    links = 0
    while rest:
        part = rest.pop(0)
        if part == "..":
            del at[-1:]
            continue
        here = tree.joinpath(*at, part)
        try:
            status = here.lstat()
        except OSError:
            return None
        if not stat.S_ISLNK(status.st_mode):
            at.append(part)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        target = str(here.readlink())
        if target.startswith("/"):
            at.clear()
        rest[:0] = [part for part in target.split("/") if part and part != "."]
    return tree.joinpath(*at)


def resolve_link_chain(path: Path, inside: Path) -> Path:
    """Follow *path* for as long as it lies in the directory *inside*, and give where it leads to."""
    for _ in range(_MAX_LINKS):
        if not path.is_relative_to(inside) or not path.is_symlink():
            return path
        path = Path(os.path.normpath(path.parent / path.readlink()))
    return path


def python_of(tree: Path) -> str | None:
    binaries = resolve_in(tree, "usr/bin")
    if binaries is None or not binaries.is_dir():
        return None
    found = [match[1] for entry in binaries.iterdir() if (match := _PYTHON.match(entry.name))]
    return max(found, key=lambda version: int(version.partition(".")[2]), default=None)


def python_of_harness(harness: Path) -> str | None:
    lib = harness / "lib"
    found = [
        match[1] for entry in (lib.iterdir() if lib.is_dir() else ()) if (match := _PYTHON.match(entry.name))
    ]
    return found[0] if len(found) == 1 else None

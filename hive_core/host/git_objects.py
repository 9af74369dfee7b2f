"""Makes the files of a new git repository with one commit; no program is needed for that."""

import hashlib
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Final

AUTHOR: Final = "hyperhive <hyperhive@localhost>"

_FILE_MODE: Final = 0o100644
_HEAD: Final = b"ref: refs/heads/main\n"
_CONFIG: Final = """\
[core]
\trepositoryformatversion = 0
\tfilemode = true
\tbare = false
\tlogallrefupdates = true
"""
_REMOTE: Final = """\
[remote "applied"]
\turl = {url}
\tfetch = +refs/heads/*:refs/remotes/applied/*
\ttagOpt = --tags
\tuploadpack = {upload_pack}
"""
# Git serves nothing of a repository that is somebody else's, and a program that it starts for a fetch learns
# nothing of its own `-c`: so it is said where that program is named.
_UPLOAD_PACK: Final = "git -c 'safe.directory=*' upload-pack"


def blob_hash(held: bytes) -> str:
    return _hash("blob", held).hex()


def repository(
    files: Mapping[str, bytes], *, message: str, now: float, applied: str | None = None
) -> dict[str, bytes]:
    """Give *files*, and those of a `.git` whose branch `main` has one commit of them, made at *now*.

    *applied* is where whoever works there finds what was applied.
    """
    objects: dict[str, bytes] = {}
    tree = _add_tree(objects, files, "")
    when = f"{int(now)} +0000"
    commit = f"tree {tree.hex()}\nauthor {AUTHOR} {when}\ncommitter {AUTHOR} {when}\n\n{message}\n"
    head = _add(objects, "commit", commit.encode())
    config = _CONFIG + (_REMOTE.format(url=applied, upload_pack=_UPLOAD_PACK) if applied is not None else "")
    return {
        **files,
        ".git/config": config.encode(),
        ".git/description": b"The proposed configuration of an agent\n",
        ".git/index": _index(files),
        **{f".git/objects/{name[:2]}/{name[2:]}": held for name, held in objects.items()},
        ".git/refs/heads/main": head.hex().encode() + b"\n",
        ".git/HEAD": _HEAD,
    }


def remote_of(applied: str) -> dict[str, str]:
    """Give the settings by which git finds what was applied."""
    return {
        "remote.applied.url": applied,
        "remote.applied.fetch": "+refs/heads/*:refs/remotes/applied/*",
        "remote.applied.tagOpt": "--tags",
        "remote.applied.uploadpack": _UPLOAD_PACK,
    }


def _add_tree(objects: dict[str, bytes], files: Mapping[str, bytes], prefix: str) -> bytes:
    entries: list[tuple[str, bytes]] = []
    for name in {path[len(prefix) :].split("/", 1)[0] for path in files if path.startswith(prefix)}:
        path = prefix + name
        if path in files:
            entries.append(
                (name, b"%o %s\0%s" % (_FILE_MODE, name.encode(), _add(objects, "blob", files[path])))
            )
        else:
            # Git sorts a directory as if its name ended in a slash.
            inner = _add_tree(objects, files, f"{path}/")
            entries.append((f"{name}/", b"40000 %s\0%s" % (name.encode(), inner)))
    return _add(objects, "tree", b"".join(held for _, held in sorted(entries, key=_in_bytes)))


def _in_bytes(entry: tuple[str, bytes]) -> bytes:
    return entry[0].encode()


def _add(objects: dict[str, bytes], kind: str, held: bytes) -> bytes:
    name = _hash(kind, held)
    objects[name.hex()] = zlib.compress(_header(kind, held) + held, 1)
    return name


def _hash(kind: str, held: bytes) -> bytes:
    return hashlib.sha1(_header(kind, held) + held, usedforsecurity=False).digest()


def _header(kind: str, held: bytes) -> bytes:
    return f"{kind} {len(held)}\0".encode()


def _index(files: Mapping[str, bytes]) -> bytes:
    """Give an index that has what the commit has; git fills in the rest when it first looks at the files."""
    text = b"DIRC" + struct.pack(">II", 2, len(files)) + b"".join(_index_entries(files))
    return text + hashlib.sha1(text, usedforsecurity=False).digest()


def _index_entries(files: Mapping[str, bytes]) -> Iterator[bytes]:
    for path in sorted(files, key=str.encode):
        name = path.encode()
        fixed = struct.pack(">10I", 0, 0, 0, 0, 0, 0, _FILE_MODE, 0, 0, 0) + _hash("blob", files[path])
        entry = fixed + struct.pack(">H", min(len(name), 0xFFF)) + name
        yield entry + bytes(8 - len(entry) % 8)

"""The child of agent_upkeep: writes, prunes and packs what an agent owns, as that agent, under limits.

Only the standard library: it starts in tens of milliseconds.
"""

import argparse
import contextlib
import os
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

from hive_core.host.agent_pack import pack, pack_nothing, unpack
from hive_core.host.agent_prune import sweep
from hive_core.host.confinement import enter, limit_myself

MAX_TEXT_BYTES: Final = 2**20
MAX_DEPTH: Final = 16
"""Directories that a path may name."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="agent_upkeep_worker")
    parser.add_argument("verb", choices=("write", "sweep", "pack", "unpack"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--path", default="")
    parser.add_argument("--size", type=int)
    parser.add_argument("--events-before", type=float)
    parser.add_argument("--streams-before", type=float)
    parser.add_argument("--stats-before", type=float)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--without", action="append", default=[])
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--ours", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    limit_myself(cpu_s=3600 if arguments.verb in {"pack", "unpack"} else 8)
    try:
        # Before it is out of sight.
        source = None if arguments.source is None else arguments.source.open("rb")
        directory = enter(arguments.directory, arguments.uid, arguments.gid)
        match arguments.verb:
            case "write":
                if directory is None:
                    raise OSError(f"there is no {arguments.directory}")
                text = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
                if arguments.size is not None and len(text) != arguments.size:
                    # Whoever was saying it is gone; its successor's whole text may be there already.
                    raise ValueError(f"only {len(text)} of {arguments.size} bytes came")
                write(arguments.path, text)
            case "sweep" if directory is not None:
                sweep(Path(directory), arguments)
            case "pack" if directory is None:
                pack_nothing(sys.stdout.buffer)
            case "pack":
                pack(sys.stdout.buffer, without=arguments.without, plain=arguments.plain)
            case "unpack" if directory is not None and source is not None:
                with source:
                    unpack(source, keep_owner=arguments.ours and os.geteuid() == 0)
    except (OSError, ValueError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.stderr.write(f"cannot {arguments.verb} {arguments.path or arguments.directory}: {why}\n")
        return 1
    return 0


def write(path: str, text: bytes) -> None:
    """Put *text* into the file *path* below the working directory, in place of what has that name.

    Directories that are missing are made.  A reader sees the old file or the new one, never half of it.

    Raises:
        OSError: a part of the path is a link or no directory, or it cannot be written.
        ValueError: it is no path below here, or the text is too long.
    """
    if len(text) > MAX_TEXT_BYTES:
        raise ValueError(f"it has more than {MAX_TEXT_BYTES} bytes")
    *directories, name = path.split("/")
    if len(directories) > MAX_DEPTH or any(
        part in {"", ".", ".."} or "\0" in part for part in path.split("/")
    ):
        raise ValueError("it is no path below the state directory")
    at = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in directories:
            at = _go_into(part, at)
        _write_whole(name, text, at)
    finally:
        os.close(at)


def _go_into(name: str, at: int) -> int:
    """Give the directory *name* in the open directory *at*, made if it is missing, and close *at*."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=at)
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
    os.close(at)
    return inner


def _write_whole(name: str, text: bytes, at: int) -> None:
    fresh = f".hive-{secrets.token_hex(8)}"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=at)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if _is_directory(name, at):
            raise IsADirectoryError(f"{name} is a directory")
        os.rename(fresh, name, src_dir_fd=at, dst_dir_fd=at)
    except BaseException:
        os.unlink(fresh, dir_fd=at)
        raise


def _is_directory(name: str, at: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())

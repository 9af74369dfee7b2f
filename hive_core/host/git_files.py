"""What is done to repositories, and with the files of their commits, without git."""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from hive_core.host.git_output import File


def lay_out(into: Path, files: list[tuple[File, bytes]]) -> None:
    into.parent.mkdir(parents=True, exist_ok=True)
    into.parent.chmod(0o755)
    for left in into.parent.glob(f".{into.name}.*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = into.parent / f".{into.name}.{secrets.token_hex(8)}"
    fresh.mkdir(mode=0o755)
    fresh.chmod(0o755)
    try:
        for file, held in files:
            path = fresh / os.fsdecode(file.path)
            for parent in [*reversed(path.relative_to(fresh).parents)][1:]:
                (fresh / parent).mkdir(exist_ok=True)
                (fresh / parent).chmod(0o755)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(fd, "wb") as out:
                out.write(held)
                os.fchmod(fd, 0o755 if file.mode == "100755" else 0o644)
                out.flush()
                os.fsync(fd)
        fresh.rename(into)
        _sync_directory(into.parent)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def swap(source: Path, put_aside: Path, new: Path, target: Path) -> None:
    """Put *new* at *target*, where *source* is, or was before a kill."""
    if source != put_aside:
        source.rename(put_aside)
    new.rename(target)
    _sync_directory(target.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def has_objects(repository_dir: Path) -> bool:
    """Say whether `git init` came to its end there."""
    return (repository_dir / "objects" / "pack").is_dir() and (repository_dir / "config").is_file()


def sweep_locks(repository_dir: Path, swept: set[Path]) -> None:
    """Once, take away locks of a git that was killed: there is no other daemon, and none of ours runs yet."""
    if repository_dir in swept:
        return
    swept.add(repository_dir)
    # We may be root and it is git's, who reads what agents made: no link in it is followed.
    try:
        top = os.open(repository_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        for where, directories, files, at in os.fwalk(".", dir_fd=top, follow_symlinks=False):
            directories[:] = [name for name in directories if where != "." or name == "refs"]
            for name in files:
                if name.endswith(".lock"):
                    with suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=at)
    finally:
        os.close(top)

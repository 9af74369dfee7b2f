"""Files of the host that an agent is given: copied into its directory of sockets, which its machine sees.

The host's configuration names them; they are read at each start of its machine, and gone when that has
ended.  Links are followed: secrets of sops or agenix are links into a file system of their own.
"""

import os
import secrets
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from hive_core.domain.cage import CannotStart

DIRECTORY: Final = "credentials"
MAX_BYTES: Final = 64 * 2**10
"""Of one."""


def lay_out(agent: str, files: Mapping[str, str], run_dir: Path, owner: int | None = None) -> None:
    """Let there be a copy of each of *files*, by name, in *run_dir*; for *owner* alone, None for us.

    Blocking, for a moment.  A machine that runs sees them change.

    Raises:
        CannotStart: one cannot be read, or not be written; it names the option and the path.
    """
    if not files:
        remove(run_dir)
        return
    contents = {name: _read(agent, name, Path(source)) for name, source in files.items()}
    directory = run_dir / DIRECTORY
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700)  # root needs no leave, and we of a local hive do
        if owner is not None:
            os.chown(directory, owner, owner)
        for path in list(directory.iterdir()):
            if path.name not in contents:
                path.unlink()
        for name, content in contents.items():
            put(directory / name, content, owner)
        directory.chmod(0o500)
    except OSError as error:
        raise CannotStart(f"cannot start {agent}: {error.filename}: {error.strerror}") from None


def remove(run_dir: Path) -> None:
    """Take them away.  Whatever cannot be deleted now is with the next start."""
    directory = run_dir / DIRECTORY
    with suppress(OSError):
        directory.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


def _read(agent: str, name: str, path: Path) -> bytes:
    who = f"cannot start {agent}: agents.{agent}.credentials.{name}: {path}"
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CannotStart(f"{who}: it is no plain file")
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CannotStart(f"{who}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise CannotStart(f"{who}: it is over {MAX_BYTES // 1024} KiB")
    return content


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end of a pipe, or becoming somebody's terminal."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def put(path: Path, content: bytes, owner: int | None = None) -> None:
    """Let *path*, in a directory that only we write to, be *content*, for *owner* alone; None: for us.

    Raises:
        OSError: it cannot be.
    """
    fresh = path.with_name(f".{secrets.token_hex(8)}")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            if owner is not None:
                os.fchown(file.fileno(), owner, owner)
        fresh.rename(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise

"""What a unit takes, from the files of its cgroup."""

import os
from pathlib import Path
from typing import Final

from hive_core.domain.cage import Usage

CGROUPS: Final = Path("/sys/fs/cgroup")
_MAX_BYTES: Final = 8192


def read_usage(control_group: str, mount: Path = CGROUPS) -> Usage | None:
    """Give what *control_group*, a path below *mount*, takes now; None when it is gone.

    A controller that this host does not have counts as nothing.
    """
    directory = mount / control_group.lstrip("/")
    cpu = _read(directory / "cpu.stat")
    if cpu is None:
        return None
    fields = dict(line.split(" ", 1) for line in cpu.splitlines() if " " in line)
    return Usage(
        cpu_usec=_number(fields.get("usage_usec")),
        memory_bytes=_number(_read(directory / "memory.current")),
        tasks=_number(_read(directory / "pids.current")),
    )


def _read(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        return os.read(fd, _MAX_BYTES).decode("ascii", errors="replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _number(text: str | None) -> int:
    text = (text or "").strip()
    return int(text) if text.isdigit() and text.isascii() else 0

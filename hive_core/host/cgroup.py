"""Where a process belongs, by its cgroup."""

import re
from pathlib import Path
from typing import Final

_MAX_BYTES: Final = 8192
_MACHINE: Final = re.compile(r"systemd-nspawn@[^/]*\.service\Z")
_UNIT: Final = re.compile(r"[^/]*\.(service|scope)\Z")


def unit_of(pid: int) -> str | None:
    """Give the unit of the host that process *pid* belongs to, the machine's for what runs in one.

    None: it is gone, or belongs to none.
    """
    try:
        with Path(f"/proc/{pid}/cgroup").open("rb") as file:
            text = file.read(_MAX_BYTES).decode(errors="replace")
    except OSError:
        return None
    path = next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")
    return unit_in(path)


def unit_in(path: str) -> str | None:
    """Give the unit that a cgroup *path* leads through.

    The outermost machine counts: below its own cgroup root of a machine may make ones of any name.
    """
    parts = path.split("/")
    for kind in (_MACHINE, _UNIT):
        for part in parts:
            if kind.match(part):
                return part
    return None

"""Which uids of this host are spoken for."""

from pathlib import Path
from typing import Final

from hive_core.domain.uid_range import Range

ETC: Final = Path("/etc")
PICKED: Final = Path("/run/systemd/nspawn-uid")
"""Where systemd-nspawn notes the ranges that it picked itself, a file named by the first uid of each."""

_RANGE: Final = 65536


def taken_ranges(etc: Path = ETC, picked: Path = PICKED) -> list[Range]:
    """Give the ranges of users of this host: accounts, subordinate ids, machines of others.

    Accounts of a directory service are not seen: asking for all of them may take minutes.

    Raises:
        OSError: a file is there and cannot be read.
    """
    accounts = [(first, 1) for name in ("passwd", "group") for _, _, first, *_ in _lines(etc / name, 3)]
    subordinate = [
        (first, int(count))
        for name in ("subuid", "subgid")
        for _, first, count, *_ in _lines(etc / name, 2)
        if str(count).isdecimal() and int(count)
    ]
    return [
        *((int(first), count) for first, count in (*accounts, *subordinate) if str(first).isdecimal()),
        *_picked(picked),
    ]


def _lines(path: Path, fields: int) -> list[list[str]]:
    """Give the lines of *path* with more than *fields* colons' worth of fields, split."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return []
    return [parts for line in text.splitlines() if len(parts := line.split(":")) > fields]


def _picked(directory: Path) -> list[Range]:
    try:
        names = [entry.name for entry in directory.iterdir()]
    except FileNotFoundError:
        return []
    return [(int(name), _RANGE) for name in names if name.isdecimal()]

"""What the sessions of processes take, from /proc."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import Final

from hive_core.domain.cage import Usage

MAX_PROCESSES: Final = 10_000
"""Looked at; beyond that the figures are too low, and still come."""

_TICK_USEC: Final = 1_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def usage_of(leaders: Collection[int]) -> dict[int, Usage]:
    """Give what each session takes whose leader's pid is among *leaders*."""
    sums: dict[int, Usage] = {}
    looked = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        looked += 1
        if looked > MAX_PROCESSES:
            break
        try:
            # Its name stands in parentheses and may have any character in it.
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        session = int(fields[3])
        if session in leaders:
            before = sums.get(session, Usage(0, 0, 0))
            ticks = sum(int(fields[number]) for number in (11, 12, 13, 14))  # its dead children's too
            sums[session] = Usage(
                cpu_usec=before.cpu_usec + ticks * _TICK_USEC,
                memory_bytes=before.memory_bytes + int(fields[21]) * _PAGE_BYTES,
                tasks=before.tasks + int(fields[17]),
            )
    return sums

"""Which users of the host an agent's machine gets: a range of its own, that nobody else has."""

from collections.abc import Iterable

from hive_core.domain.cage import UID_RANGE

Range = tuple[int, int]
"""First uid and how many."""


class NoRangeLeft(Exception):
    """Every range of the pool is taken.  The text says of which."""


def allocate(first: int, ranges: int, taken: Iterable[Range]) -> int:
    """Give the first uid of the lowest free range among *ranges* of them from *first* on.

    Raises:
        NoRangeLeft: none is free.
    """
    busy = sorted(taken)
    for number in range(ranges):
        base = first + number * UID_RANGE
        if not any(overlap((base, UID_RANGE), other) for other in busy):
            return base
    raise NoRangeLeft(f"all {ranges} uid ranges from {first} on are taken")


def overlap(one: Range, other: Range) -> bool:
    return one[0] < other[0] + other[1] and other[0] < one[0] + one[1]

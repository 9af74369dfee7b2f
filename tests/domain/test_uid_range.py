import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.cage import UID_RANGE
from hive_core.domain.uid_range import NoRangeLeft, allocate, overlap

FIRST = 0x40000000


def test_the_lowest_free_range_is_given() -> None:
    taken = [(FIRST, UID_RANGE), (FIRST + 2 * UID_RANGE, UID_RANGE)]

    assert allocate(FIRST, 8, []) == FIRST
    assert allocate(FIRST, 8, taken) == FIRST + UID_RANGE
    assert allocate(FIRST, 8, [*taken, (FIRST + UID_RANGE, 1)]) == FIRST + 3 * UID_RANGE


def test_the_last_range_is_given_and_then_none() -> None:
    taken = [(FIRST + number * UID_RANGE, UID_RANGE) for number in range(3)]

    assert allocate(FIRST, 4, taken) == FIRST + 3 * UID_RANGE
    with pytest.raises(NoRangeLeft, match="all 3 uid ranges"):
        allocate(FIRST, 3, taken)


@given(
    taken=st.lists(st.tuples(st.integers(FIRST - UID_RANGE, FIRST + 9 * UID_RANGE), st.integers(1, 200_000))),
    ranges=st.integers(1, 8),
)
def test_what_is_given_overlaps_nothing_that_is_taken(taken: list[tuple[int, int]], ranges: int) -> None:
    try:
        base = allocate(FIRST, ranges, taken)
    except NoRangeLeft:
        for number in range(ranges):
            assert any(overlap((FIRST + number * UID_RANGE, UID_RANGE), other) for other in taken)
        return
    uids = range(base, base + UID_RANGE)
    assert base in range(FIRST, FIRST + ranges * UID_RANGE, UID_RANGE)
    for first, count in taken:
        assert first + count <= uids.start or first >= uids.stop

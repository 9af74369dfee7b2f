import pytest

from hive_core.domain.clock import rfc3339


def test_a_moment_is_written_in_utc_with_a_z() -> None:
    assert rfc3339(1757248496.5) == "2025-09-07T12:34:56.500Z"
    assert rfc3339(1757248496.5, fraction=False) == "2025-09-07T12:34:56Z"


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1e300, 1e18])
def test_a_time_that_no_calendar_has_becomes_the_epoch(seconds: float) -> None:
    assert rfc3339(seconds) == "1970-01-01T00:00:00.000Z"

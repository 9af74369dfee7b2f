from datetime import UTC, datetime

import pytest

from hive_core.cli import human

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 ms"),
        (0.04, "40 ms"),
        (0.2, "0.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (3599.0, "59 min"),
        (3600.0, "1 h"),
        (7500.0, "2 h 5 min"),
        (172800.0, "2 d"),
        (176400.0, "2 d 1 h"),
    ],
)
def test_durations(seconds: float, shown: str) -> None:
    assert human.duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (40960, "40.0 KiB"), (3 * 2**30, "3.0 GiB"), (2**41, "2.0 TiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert human.size(count) == shown


def test_a_time_of_today_is_shown_without_its_date() -> None:
    assert human.moment("2026-01-31T03:04:05.678Z", NOON) == "03:04:05"
    assert human.moment("2026-01-30T03:04:05Z", NOON) == "2026-01-30 03:04:05"


@pytest.mark.parametrize("junk", [None, "", "yesterday", 17, "9999-99-99T00:00:00Z", "\x1b[31m"])
def test_what_is_no_time_is_no_error(junk: object) -> None:
    assert human.clock(junk) == "--:--:--"
    assert human.moment(junk, NOON) == "--:--:--"
    assert human.age(junk, NOON) == ""


def test_an_age_is_never_negative() -> None:
    assert human.age("2026-01-31T11:59:18Z", NOON) == "42 s"
    assert human.age("2026-01-31T12:00:07Z", NOON) == "0 ms"

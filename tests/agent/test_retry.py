import pytest

from hive_agent.retry import LONGEST_PARK_S, back_off_s, park_s, rate_limit_sleep_s

NOW = 1_700_000_000.0


def test_the_back_off_doubles_up_to_a_minute() -> None:
    assert [back_off_s(failures) for failures in (1, 2, 3, 4, 5, 6, 7, 8, 9000)] == [
        *(1, 2, 4, 8, 16, 32, 60),
        *(60, 60),
    ]


@pytest.mark.parametrize(
    ("reset_at", "parks", "seconds"),
    [
        (None, 1, 300),
        (NOW + 5, 1, 5),
        (NOW + 5 * 3600, 1, 5 * 3600),
        (NOW + LONGEST_PARK_S, 1, LONGEST_PARK_S),
        (NOW + LONGEST_PARK_S + 1, 1, 300),
        (NOW, 1, 300),
        (NOW - 5, 1, 300),
        (0.0, 1, 300),
        (float("inf"), 1, 300),
        (float("nan"), 1, 300),
        (NOW + 0.1, 1, 1),
        (NOW + 0.1, 2, 2),
        (NOW + 0.1, 5, 16),
        (NOW + 0.1, 100, 60),
        (NOW + 100, 100, 100),
    ],
)
def test_a_park_lasts_until_the_limit_ends_if_that_makes_sense(
    reset_at: float | None, parks: int, seconds: float
) -> None:
    assert park_s(reset_at, NOW, sleep_s=300, parks=parks) == pytest.approx(seconds)


def test_the_sleep_is_told_by_the_environment() -> None:
    assert rate_limit_sleep_s({}) == 300
    assert rate_limit_sleep_s({"HIVE_RATE_LIMIT_SLEEP_SECS": "0.5"}) == 0.5
    for wrong in ("never", "-1", "inf", "nan"):
        with pytest.raises(ValueError, match="HIVE_RATE_LIMIT_SLEEP_SECS"):
            rate_limit_sleep_s({"HIVE_RATE_LIMIT_SLEEP_SECS": wrong})

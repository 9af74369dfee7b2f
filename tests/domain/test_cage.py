from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Machines
from hive_core.domain.cage import (
    MAX_MACHINE_NAME,
    Cage,
    CannotStart,
    Limits,
    Network,
    Shape,
    parse_percent,
    parse_size,
    resolve,
)

BASE = 0x40000000


def test_what_was_not_declared_is_as_the_hive_has_it() -> None:
    machines = Machines(image="debian", network="veth", memory_max="1G", cpu_quota="50%", tasks_max=100)

    cage = resolve("alice", BASE, Shape(), machines)

    assert cage == Cage(
        agent="alice",
        machine="h-alice",
        uid_base=BASE,
        image="debian",
        network=Network.VETH,
        limits=Limits(memory_max_bytes=2**30, cpu_quota_percent=50, tasks_max=100),
        is_manager=False,
    )


def test_what_was_declared_wins_over_the_hive() -> None:
    machines = Machines(image="debian", network="veth")
    shape = Shape("tools", Network.NONE, 2**20, 7, 64)

    cage = resolve("alice", BASE, shape, machines)

    assert (cage.image, cage.network, cage.limits) == ("tools", Network.NONE, Limits(2**20, 7, 64))


def test_a_new_hive_gives_the_limits_of_the_original_and_no_network() -> None:
    cage = resolve("alice", BASE, Shape(), Machines())

    assert cage.limits == Limits(4 * 2**30, 200, 2048)
    assert cage.network is Network.NONE


def test_only_the_agent_called_manager_gets_what_the_manager_gets() -> None:
    assert resolve("manager", BASE, Shape(), Machines()).is_manager
    assert not resolve("manager-2", BASE, Shape(), Machines()).is_manager


def test_a_name_that_systemd_cannot_take_is_refused_with_both_lengths() -> None:
    longest = "a" * (MAX_MACHINE_NAME - len("h-"))
    assert len(resolve(longest, BASE, Shape(), Machines()).machine) == MAX_MACHINE_NAME

    with pytest.raises(CannotStart, match=r"cannot start a+: .* 65 characters, and systemd allows 64"):
        resolve(longest + "a", BASE, Shape(), Machines())


@pytest.mark.parametrize(
    "setting", [{"memory_max": "much"}, {"cpu_quota": "all"}, {"memory_max": ""}, {"cpu_quota": "0%"}]
)
def test_a_limit_that_cannot_be_read_starts_nothing(setting: dict[str, str]) -> None:
    machines = msgspec.convert(setting, Machines)

    with pytest.raises(CannotStart, match="cannot start alice: the configuration's limits: "):
        resolve("alice", BASE, Shape(), machines)


def test_a_declared_limit_needs_no_readable_default() -> None:
    shape = Shape(memory_max_bytes=2**20, cpu_quota_percent=10)

    assert (
        resolve("alice", BASE, shape, Machines(memory_max="much", cpu_quota="all")).limits.tasks_max == 2048
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1", 1), ("1k", 2**10), ("512M", 512 * 2**20), (" 4G ", 4 * 2**30), ("2T", 2**41)],
)
def test_sizes_are_read_as_systemd_reads_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.5G", "1GB", "0x10", "1 G", "9" * 16, "4G\n4G", "infinity"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="say it as 512M or 4G"):
        parse_size(text)


@given(st.integers(1, 999_999))
def test_every_share_of_processors_comes_back(percent: int) -> None:
    assert parse_percent(f"{percent}%") == percent
    assert parse_percent(str(percent)) == percent


@given(st.text(max_size=12))
def test_no_text_is_more_than_a_size_or_a_refusal(text: str) -> None:
    for parse in (parse_size, parse_percent):
        with suppress(ValueError):
            assert parse(text) >= 0

"""Addresses of links follow from uid ranges, and no two machines share one."""

from ipaddress import IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.address import NoPairLeft, pair_of, parse_subnet
from hive_core.domain.cage import UID_RANGE

FIRST = 0x40000000
subnets = st.builds(
    lambda bits, prefix: IPv4Network((bits, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(12, 29),
)


@given(subnet=subnets, one=st.integers(0, 5000), other=st.integers(0, 5000))
def test_pairs_lie_in_the_subnet_and_do_not_overlap(subnet: IPv4Network, one: int, other: int) -> None:
    room = subnet.num_addresses // 2 - 2
    one, other = one % room, other % room
    mine = pair_of(subnet, FIRST, FIRST + one * UID_RANGE)
    its = pair_of(subnet, FIRST, FIRST + other * UID_RANGE)

    assert {mine.host, mine.guest}.isdisjoint({its.host, its.guest}) == (one != other)
    assert IPv4Network(f"{mine.host}/31").supernet(new_prefix=subnet.prefixlen) == subnet
    assert mine.guest == mine.host + 1
    assert not {mine.host, mine.guest} & {subnet.network_address, subnet.broadcast_address}


def test_a_subnet_that_is_too_small_says_for_how_many_it_is() -> None:
    subnet = parse_subnet("10.0.0.0/29")
    assert str(pair_of(subnet, FIRST, FIRST + UID_RANGE).guest) == "10.0.0.5"
    with pytest.raises(NoPairLeft, match="addresses for 2 machines"):
        pair_of(subnet, FIRST, FIRST + 2 * UID_RANGE)


@pytest.mark.parametrize("uid_base", [FIRST - UID_RANGE, FIRST + 1])
def test_uids_out_of_the_pool_have_no_addresses(uid_base: int) -> None:
    with pytest.raises(ValueError, match="begins no uid range"):
        pair_of(parse_subnet("10.0.0.0/16"), FIRST, uid_base)


@pytest.mark.parametrize("text", ["10.0.0.0/30", "10.0.0.1/16", "fd00::/64", "here"])
def test_what_is_no_subnet_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_subnet(text)

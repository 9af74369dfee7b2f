"""Which addresses the link of a machine gets: a pair of its own, that follows from its uid range."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from hive_core.domain.cage import UID_RANGE


@dataclass(frozen=True, slots=True)
class Pair:
    """The two ends of a link.  Together they are a /31 (RFC 3021)."""

    host: IPv4Address
    guest: IPv4Address


class NoPairLeft(Exception):
    """The subnet has no addresses for so many machines.  The text says how many it has."""


def parse_subnet(text: str) -> IPv4Network:
    """Read `10.213.0.0/16`.

    Raises:
        ValueError: it is no network of IPv4, or of fewer than eight addresses.
    """
    subnet = IPv4Network(text)
    if subnet.prefixlen > 29:
        raise ValueError(f"{text[:40]!r} is too small a subnet: it takes a /29 at least")
    return subnet


def pair_of(subnet: IPv4Network, uid_first: int, uid_base: int) -> Pair:
    """Give the addresses of the machine whose uids begin at *uid_base*.

    The first and the last pair are nobody's: they hold the network's own address and its broadcast address.

    Raises:
        NoPairLeft: *subnet* is too small for it.
        ValueError: *uid_base* does not begin a range of the pool from *uid_first* on.
    """
    number, rest = divmod(uid_base - uid_first, UID_RANGE)
    if rest or number < 0:
        raise ValueError(f"{uid_base} begins no uid range of the pool from {uid_first} on")
    pairs = subnet.num_addresses // 2 - 2
    if number >= pairs:
        raise NoPairLeft(
            f"subnet {subnet} has addresses for {pairs} machines, and this is the {number + 1}th"
        )
    host = subnet.network_address + 2 * (number + 1)
    return Pair(host, host + 1)

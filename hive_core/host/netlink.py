"""Links of machines to the outside: addresses at both ends, and rules for what may pass.

A machine with a link reaches what the host reaches outside, under the host's address.  It reaches no other
machine and no service of the host, and nobody opens a connection to it.
"""

import socket
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta

from hive_core.domain.address import Pair
from hive_core.host import machinectl
from hive_core.host.process import CommandError

WORKER_S: Final = 15.0
"""It imports pyroute2, which takes half a second on a slow machine."""
NFT_S: Final = 15.0
TABLE: Final = "hyperhive"
ROUTES: Final = Path("/proc/net/route")
_WORKER: Final = (
    # A unit of its own: it may enter namespaces, which the daemon must not.
    *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"),
    "--property=CapabilityBoundingSet=CAP_NET_ADMIN CAP_SYS_ADMIN CAP_SYS_PTRACE",
    *("--property=NoNewPrivileges=yes", "--property=ProtectSystem=strict"),
    *("--property=RuntimeMaxSec=10", "--property=MemoryMax=256M", "--"),
    *(sys.executable, "-I", "-m", "hive_core.host.netlink_worker"),
)

_DECLARATION: Final = f"""\
table inet {TABLE} {{
	set links {{ type ifname; }}
	set sources {{ type ifname . ipv4_addr; }}
	chain input {{ type filter hook input priority filter - 10; policy accept; }}
	chain forward {{ type filter hook forward priority filter - 10; policy accept; }}
	chain postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Link:
    """The link of one running machine."""

    leader: int
    """The host's pid of its init."""
    control_group: str
    index: int
    """Of the host's end."""
    pair: Pair


class NoLink(Exception):
    """A machine cannot be connected.  The text says what of it."""


class _Connected(msgspec.Struct, frozen=True):
    interface: Annotated[str, Meta(min_length=1, max_length=15)]
    mtu: int


class Links:
    """Connects machines, one after the other, since all share one table of rules."""

    def __init__(self) -> None:
        self._lock = trio.Lock()

    async def connect(self, link: Link, subnet: IPv4Network) -> str:
        """Give *link* its addresses, and return the name of its interface here.

        The rules stand before a packet can pass.

        Raises:
            NoLink: nft is missing, the host may not forward, or the machine's end cannot be set up.
        """
        async with self._lock:
            try:
                interface = socket.if_indextoname(link.index)
            except OSError:
                raise NoLink("its network link is gone already") from None
            try:
                await self._admit(interface, link.pair, subnet)
            except CommandError as error:
                raise NoLink(
                    f"the host's packet filter cannot be set, is nftables installed? {error}"
                ) from None
            try:
                await _address(link)
            except CommandError as error:
                raise NoLink(f"its network link cannot be set up: {error}") from None
        return interface

    async def keep(self, interface: str, pair: Pair, subnet: IPv4Network) -> bool:
        """Set the rules again if they are gone: whoever reloads a firewall may take all of them away.

        Says whether they were gone.

        Raises:
            CommandError: they cannot be set.
        """
        async with self._lock:
            try:
                sources = parse_sources(await _list_sources())
            except CommandError:  # there is no such table
                sources = []
            if (interface, str(pair.guest)) in sources:
                return False
            await self._admit(interface, pair, subnet)
            return True

    async def _admit(self, interface: str, pair: Pair, subnet: IPv4Network) -> None:
        await _nft("-f", "-", said_to=render_rules(subnet))
        listed = await _list_sources()
        await _nft("-f", "-", said_to=render_admission(interface, pair, parse_sources(listed)))


def is_up(interface: str, routes: Path = ROUTES) -> bool:
    """Whether *interface* has an address and is up: then there is a route."""
    with routes.open() as file:
        return any(line.split("\t", 1)[0] == interface for line in file)


def render_rules(subnet: IPv4Network) -> str:
    """Give the table as one transaction that leaves its sets as they are."""
    return f"""\
{_DECLARATION}\
flush chain inet {TABLE} input
flush chain inet {TABLE} forward
flush chain inet {TABLE} postrouting
table inet {TABLE} {{
	chain input {{
		iifname != @links accept
		iifname . ip saddr != @sources drop
		ip protocol icmp icmp type echo-request accept
		ct state established,related accept
		drop
	}}
	chain forward {{
		iifname @links meta nfproto != ipv4 drop
		iifname @links iifname . ip saddr != @sources drop
		iifname @links oifname @links drop
		oifname @links ct state established,related accept
		oifname @links drop
	}}
	chain postrouting {{
		ip saddr {subnet} oifname != @links masquerade
	}}
}}
"""


def render_admission(interface: str, pair: Pair, sources: list[tuple[str, str]]) -> str:
    """Give the transaction that lets *interface* send from the guest's address of *pair*, and only that.

    *sources* is who may send from where now; what contradicts is taken out.
    """
    guest = str(pair.guest)
    old = [source for source in sources if interface == source[0] or guest == source[1]]
    return "".join(
        [
            *(f'delete element inet {TABLE} sources {{ "{name}" . {address} }}\n' for name, address in old),
            f'add element inet {TABLE} sources {{ "{interface}" . {guest} }}\n',
            f'add element inet {TABLE} links {{ "{interface}" }}\n',
        ]
    )


def parse_sources(answer: bytes) -> list[tuple[str, str]]:
    """Read what `nft -j list set` says of who may send from where.

    Raises:
        CommandError: it says something else.
    """
    try:
        listed: list[dict[str, Any]] = msgspec.json.decode(answer)["nftables"]
        elements = next(item["set"] for item in listed if "set" in item).get("elem", [])
        return [(str(element["concat"][0]), str(element["concat"][1])) for element in elements]
    except (msgspec.MsgspecError, LookupError, TypeError, StopIteration, AttributeError) as error:
        raise CommandError(f"nft -j list set: no such answer was expected: {error!r}") from None


async def _address(link: Link) -> _Connected:
    argv = [
        *_WORKER,
        *(f"--leader={link.leader}", f"--control-group={link.control_group}", f"--index={link.index}"),
        *(f"--host={link.pair.host}", f"--guest={link.pair.guest}"),
    ]
    answer = await machinectl.run(argv, timeout_s=WORKER_S)
    try:
        return msgspec.json.decode(answer, type=_Connected)
    except (msgspec.MsgspecError, ValueError) as error:
        raise CommandError(f"{' '.join(argv)}: {error}") from None


async def _list_sources() -> bytes:
    return await _nft("-j", "list", "set", "inet", TABLE, "sources")


async def _nft(*arguments: str, said_to: str | None = None) -> bytes:
    words = None if said_to is None else said_to.encode()
    return await machinectl.run(["nft", *arguments], timeout_s=NFT_S, said_to=words)

"""The child of netlink: gives both ends of a machine's link their addresses, and prints JSON.

A child, because pyroute2 costs 12 MiB, and because it enters the network namespace of a machine, which
belongs to somebody hostile.  What is there can make this child fail, and nothing else.
"""

import argparse
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

DEFAULT_MTU: Final = 1500
IP_FORWARD: Final = Path("/proc/sys/net/ipv4/ip_forward")


class CannotConnect(Exception):
    pass


def main() -> int:
    parser = argparse.ArgumentParser(prog="netlink_worker")
    parser.add_argument("--leader", type=int, required=True)
    parser.add_argument("--control-group", required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--guest", required=True)
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CPU, (8, 8))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from pyroute2 import NetlinkError, netns

    try:
        _forward()
        fd = _open_namespace(arguments.leader, arguments.control_group)
        try:
            answer = _address_host(arguments)
            netns.setns(fd)
        finally:
            os.close(fd)
        _address_guest(arguments, answer["mtu"])
    except (CannotConnect, OSError, NetlinkError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


def _forward() -> None:
    try:
        if IP_FORWARD.read_text().strip() != "1":
            IP_FORWARD.write_text("1")
    except OSError as error:
        raise CannotConnect(
            f"net.ipv4.ip_forward = 1 cannot be set: {error.strerror}; say so in a file below /etc/sysctl.d"
        ) from None


def _open_namespace(leader: int, control_group: str) -> int:
    """Open the network namespace of *leader*, which must be a process of *control_group* and not of ours."""
    fd = os.open(f"/proc/{leader}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    # Asked after it was opened: the pid could have become somebody else's in between, and that might be us.
    lines = Path(f"/proc/{leader}/cgroup").read_text().splitlines()
    own = Path("/proc/self/ns/net").stat()
    theirs = os.fstat(fd)
    if not any(line.startswith(f"0::{control_group}/") for line in lines):
        os.close(fd)
        raise CannotConnect(f"process {leader} is not of {control_group}")
    if (own.st_dev, own.st_ino) == (theirs.st_dev, theirs.st_ino):
        os.close(fd)
        raise CannotConnect("the machine has no network of its own")
    return fd


def _address_host(arguments: argparse.Namespace) -> dict[str, Any]:
    from pyroute2 import IPRoute

    with IPRoute() as route:
        link = _only(route.link("get", index=arguments.index))
        if _kind(link) != "veth":
            raise CannotConnect(f"interface {arguments.index} is no veth")
        mtu = _uplink_mtu(route)
        route.flush_addr(index=arguments.index)
        route.addr("add", index=arguments.index, address=arguments.host, prefixlen=31)
        route.link("set", index=arguments.index, mtu=mtu, state="up")
        return {"interface": link.get_attr("IFLA_IFNAME"), "mtu": mtu}


def _address_guest(arguments: argparse.Namespace, mtu: int) -> None:
    """In the machine's namespace: find the end whose other end is ours."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        ends = [
            link
            for link in route.get_links()
            if _kind(link) == "veth" and link.get_attr("IFLA_LINK") == arguments.index
        ]
        index = _only(ends)["index"]
        route.flush_addr(index=index)
        route.addr("add", index=index, address=arguments.guest, prefixlen=31)
        route.link("set", index=index, mtu=mtu, state="up")
        route.route("replace", dst="default", gateway=arguments.host, oif=index)


def _uplink_mtu(route: Any) -> int:
    """The MTU of whatever leads outside, so that nothing of a machine is too big for it."""
    for default in route.get_default_routes():
        index = default.get_attr("RTA_OIF")
        if index is not None:
            mtu = _only(route.link("get", index=index)).get_attr("IFLA_MTU")
            return int(mtu) if mtu else DEFAULT_MTU
    return DEFAULT_MTU


def _kind(link: Any) -> str | None:
    about = link.get_attr("IFLA_LINKINFO")
    return None if about is None else about.get_attr("IFLA_INFO_KIND")


def _only(found: Any) -> Any:
    found = list(found)
    if len(found) != 1:
        raise CannotConnect(f"{len(found)} interfaces were found where there should be one")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())

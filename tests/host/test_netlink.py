"""Links of machines: which rules are set, in which order, and what is said when they cannot be."""

import os
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from host.conftest import Fake
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.address import Pair
from hive_core.host import netlink_worker
from hive_core.host.netlink import Link, Links, NoLink, parse_sources, render_admission, render_rules
from hive_core.host.process import CommandError

SUBNET = IPv4Network("10.213.0.0/16")
PAIR = Pair(IPv4Address("10.213.0.2"), IPv4Address("10.213.0.3"))
LOOPBACK = Link(leader=1, control_group="/machine.slice/x", index=1, pair=PAIR)
"""Every host has an interface 1."""
LISTED = (
    '{"nftables": [{"metainfo": {"version": "1.0.6"}}, {"set": {"family": "inet", "name": "sources", "table":'
    ' "hyperhive", "type": ["ifname", "ipv4_addr"], "handle": 2, "elem": [{"concat": ["ve-h-bob", "10.213.0.5"]},'
    ' {"concat": ["ve-h-old", "10.213.0.3"]}]}}]}'
)


def test_the_rules_let_nobody_through_who_is_not_named() -> None:
    rules = render_rules(SUBNET)

    assert "iifname @links oifname @links drop" in rules
    assert rules.index("flush chain") < rules.index("masquerade")
    assert "flush set" not in rules, "running machines would be cut off"


def test_who_contradicts_the_newcomer_is_taken_out_in_the_same_transaction() -> None:
    admission = render_admission("ve-h-new", PAIR, parse_sources(LISTED.encode()))

    assert admission.splitlines() == [
        'delete element inet hyperhive sources { "ve-h-old" . 10.213.0.3 }',
        'add element inet hyperhive sources { "ve-h-new" . 10.213.0.3 }',
        'add element inet hyperhive links { "ve-h-new" }',
    ]


def test_an_empty_set_is_read() -> None:
    assert parse_sources(b'{"nftables": [{"set": {"name": "sources"}}]}') == []


@given(st.binary() | st.sampled_from([b"{}", b'{"nftables": 5}', b'{"nftables": [{"set": {"elem": [5]}}]}']))
def test_an_answer_of_nft_that_makes_no_sense_is_an_error(answer: bytes) -> None:
    with pytest.raises(CommandError):
        parse_sources(answer)


async def test_the_rules_stand_before_the_link_is_up(fake_program: Fake, tmp_path: Path) -> None:
    fake_program("nft", f"case $1 in -j) echo '{LISTED}';; *) cat >> {tmp_path}/rules;; esac")
    fake_program("systemd-run", """echo '{"interface": "lo", "mtu": 1500}'""")

    await Links().connect(LOOPBACK, SUBNET)

    order = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert order == ["nft", "nft", "nft", "systemd-run"]
    assert 'add element inet hyperhive links { "lo" }' in (tmp_path / "rules").read_text()


async def test_a_host_without_nft_says_so(fake_program: Fake) -> None:
    fake_program("nft", "echo 'Operation not permitted' >&2; exit 1")
    worker = fake_program("systemd-run")

    with pytest.raises(NoLink, match=r"packet filter cannot be set.*Operation not permitted"):
        await Links().connect(LOOPBACK, SUBNET)

    assert worker.calls == []


async def test_a_link_that_cannot_be_set_up_says_why(fake_program: Fake) -> None:
    fake_program("nft", f"case $1 in -j) echo '{LISTED}';; *) cat > /dev/null;; esac")
    fake_program("systemd-run", "echo 'net.ipv4.ip_forward = 1 cannot be set' >&2; exit 1")

    with pytest.raises(NoLink, match=r"network link cannot be set up.*ip_forward"):
        await Links().connect(LOOPBACK, SUBNET)


async def test_rules_that_somebody_took_away_are_set_again(fake_program: Fake, tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    program = fake_program("nft", f"case $1 in -j) cat {listed};; *) cat > {listed}; exit 0;; esac")
    links = Links()

    listed.write_text(LISTED)
    assert not await links.keep("ve-h-old", PAIR, SUBNET)
    assert program.calls == ["-j list set inet hyperhive sources"]

    fake_program(
        "nft", f"case $1 in -j) cat {listed};; *) cat > {tmp_path}/told; cp {tmp_path}/all {listed};; esac"
    )
    (tmp_path / "all").write_text(LISTED)
    listed.write_text("No such file or directory")
    assert await links.keep("ve-h-new", PAIR, SUBNET)
    assert "ve-h-new" in (tmp_path / "told").read_text()


async def test_an_interface_that_is_gone_is_no_link() -> None:
    gone = Link(leader=1, control_group="/x", index=2**30, pair=PAIR)

    with pytest.raises(NoLink, match="gone"):
        await Links().connect(gone, SUBNET)


def test_the_worker_enters_no_namespace_but_the_machines() -> None:
    with pytest.raises(netlink_worker.CannotConnect, match=r"is not of /machine.slice/x"):
        netlink_worker._open_namespace(os.getpid(), "/machine.slice/x")

    group = next(
        line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")
    )
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            with pytest.raises(netlink_worker.CannotConnect, match=r"is not of|no network of its own"):
                netlink_worker._open_namespace(process.pid, group.rstrip("/"))
        finally:
            process.kill()

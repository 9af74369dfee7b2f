"""The machines of a host, on a real systemd: started, found, ended, and never left half."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .bed import Bed

PYTHON = "/opt/hyperhive/bin/python3"
INSIDE = "/src/hyperhive/tests/host_bed/inside_machines.py"
IMAGE = "/var/lib/machines/test-machines"


def daemon(bed: Bed, scenario: str, agent: str, *more: str) -> Any:
    """Let another daemon play *scenario* with the machine of *agent*, and give what it saw."""
    said = bed.run([PYTHON, INSIDE, scenario, agent, *more], timeout_s=60).stdout
    return json.loads(said.splitlines()[-1])


@pytest.fixture(scope="module")
def host(bed: Bed) -> Iterator[Bed]:
    bed.run(["ln", "-sfn", "/srv/guest", IMAGE])
    yield bed
    daemon(bed, "clear", "zoe")
    daemon(bed, "forget", "zoe")
    bed.run(["rm", "-rf", IMAGE, "/run/hyperhive", "/var/lib/hyperhive/agents", "/var/lib/hyperhive/configs"])


@pytest.fixture
def zoe(host: Bed) -> Bed:
    """The bed, and zoe's machine runs in it."""
    started = daemon(host, "start", "zoe")
    assert started.get("owner") == 0, started
    return host


def test_a_machine_is_found_by_the_daemons_that_come_after(host: Bed) -> None:
    started = daemon(host, "start", "zoe")

    found = daemon(host, "find", "zoe")

    assert found["pid"] == started["pid"]
    assert found["as_declared"]
    assert found["cpu_usec"] > 0
    assert found["member"] == [True, False]
    assert daemon(host, "start", "zoe")["pid"] == started["pid"], "it runs"
    assert daemon(host, "find", "yan") == {"pid": None}


@pytest.mark.parametrize(
    ("how", "story"),
    [
        ("terminate", "it shut down"),
        ("kill", "killed by SIGKILL"),
        ("init", "exit status 1"),
        ("nspawn", "killed by SIGKILL"),
        ("reboot", "it shut down"),
    ],
)
def test_an_end_is_noticed_at_once_and_told(zoe: Bed, how: str, story: str) -> None:
    ended = daemon(zoe, "end", "zoe", how)

    assert ended["story"] == story
    assert ended["seconds"] < (5 if how in {"terminate", "reboot"} else 1)
    assert ended["asked"] < 0.5
    assert not ended["found"]
    print(f"end by {how}: {ended['seconds'] * 1000:.0f} ms")


def test_it_starts_again_and_again_faster_than_systemd_would_let_it(host: Bed) -> None:
    for _ in range(7):
        started = daemon(host, "start", "zoe")
        print(f"start: {started['seconds'] * 1000:.0f} ms")
        daemon(host, "end", "zoe", "kill")


def test_without_machined_it_is_found_and_ended_all_the_same(zoe: Bed) -> None:
    zoe.run(["systemctl", "mask", "--runtime", "--now", "systemd-machined"])
    try:
        assert daemon(zoe, "find", "zoe")["pid"]
        assert daemon(zoe, "end", "zoe", "terminate")["story"] == "it shut down"
    finally:
        zoe.run(["systemctl", "unmask", "--runtime", "systemd-machined"])


def test_a_start_by_hand_is_told_at_once_though_machined_was_killed(zoe: Bed) -> None:
    daemon(zoe, "end", "zoe", "terminate")

    appeared = daemon(zoe, "appear", "zoe")

    assert appeared["found"]
    assert appeared["seconds"] < 5
    print(f"appeared: {appeared['seconds'] * 1000:.0f} ms")


def test_a_start_that_fails_says_what_nspawn_said(host: Bed) -> None:
    broken = daemon(host, "break_start", "yan")

    assert broken["said"].startswith(
        "cannot start yan: its machine did not come up: Failed to stat /var/lib/"
    )
    assert broken["state"] == "failed"
    assert daemon(host, "start", "yan")["pid"]
    daemon(host, "end", "yan", "terminate")


def test_a_cancelled_start_leaves_no_machine(host: Bed) -> None:
    daemon(host, "clear", "zoe")

    cancelled = daemon(host, "cancel_start", "yan")

    assert cancelled["cancelled"]
    assert cancelled["state"] in {"failed", "inactive"}
    assert cancelled["pid"] == 0
    assert daemon(host, "start", "yan")["pid"]


def test_limits_are_what_systemd_shows(zoe: Bed) -> None:
    asked = [
        "systemctl",
        "show",
        "systemd-nspawn@h-zoe.service",
        "-p",
        "MemoryMax,CPUQuotaPerSecUSec,TasksMax",
    ]
    assert sorted(zoe.run(asked).stdout.split()) == [
        "CPUQuotaPerSecUSec=2s",
        f"MemoryMax={4 * 2**30}",
        "TasksMax=2048",
    ]

    daemon(zoe, "limit", "zoe")

    assert sorted(zoe.run(asked).stdout.split()) == [
        "CPUQuotaPerSecUSec=500ms",
        f"MemoryMax={2**29}",
        "TasksMax=300",
    ]


def test_its_console_is_its_log(zoe: Bed) -> None:
    logs = daemon(zoe, "read_logs", "zoe")

    assert "a red marker" in logs["read"]
    assert len(logs["followed"]) > 5


def test_nothing_is_left_of_a_forgotten_one(zoe: Bed) -> None:
    assert daemon(zoe, "forget", "zoe") == {"left": []}
    assert daemon(zoe, "find", "zoe") == {"pid": None}
    shown = zoe.run(["systemctl", "show", "systemd-nspawn@h-zoe.service", "-p", "MemoryMax"]).stdout
    assert shown == "MemoryMax=infinity\n"


OUTSIDE = """
ip netns add outside
ip link add up0 mtu 1400 type veth peer name out0 mtu 1400 netns outside
ip addr add 192.0.2.1/24 dev up0; ip link set up0 up
ip -n outside addr add 192.0.2.2/24 dev out0; ip -n outside link set out0 up
ip -n outside route add 10.213.0.0/16 via 192.0.2.1
ip route add default via 192.0.2.2
"""
SERVE = """
import socket, sys
server = socket.create_server(("", 7000))
print("serving", flush=True)
while True:
    client, (peer, _) = server.accept()
    client.send(peer.encode())
    client.close()
"""
TRY = """
import socket, sys
for address in sys.argv[1:]:
    try:
        with socket.create_connection((address, 7000), 1) as server:
            print(address, server.recv(100).decode())
    except OSError as error:
        print(address, type(error).__name__)
"""


@pytest.fixture(scope="module")
def linked(host: Bed) -> Iterator[Bed]:
    """xia and wim have links; something listens outside, on the host and in wim's machine."""
    host.run(["sh", "-ec", OUTSIDE])
    for agent in ("xia", "wim"):
        assert "pid" in daemon(host, "start", agent)
    servers = [["ip", "netns", "exec", "outside", "python3"], ["python3"], within("wim", "python3")]
    running = [host.popen([*argv, "-c", SERVE], stdout=subprocess.PIPE, text=True) for argv in servers]
    for server in running:
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n"
    yield host
    # The machines first: what was started in one outlives whoever started it from here.
    daemon(host, "clear", "zoe")
    for server in running:
        server.kill()
        server.communicate(timeout=10)
    host.run(
        [
            "sh",
            "-ec",
            "ip netns del outside; ip link del up0 2>/dev/null || true; nft delete table inet hyperhive",
        ]
    )


def within(agent: str, *argv: str) -> list[str]:
    return ["systemd-run", "-M", f"h-{agent}", "--pipe", "--wait", "-q", *argv]


def reach(bed: Bed, argv: list[str], *addresses: str) -> dict[str, str]:
    said = bed.run([*argv, "python3", "-c", TRY, *addresses], timeout_s=30).stdout
    return dict(line.split() for line in said.splitlines())


XIA, WIM = ("10.213.0.206", "10.213.0.207"), ("10.213.0.208", "10.213.0.209")
"""Host's end, machine's end."""


def test_a_machine_with_a_link_reaches_the_outside_as_the_host(linked: Bed) -> None:
    assert reach(linked, within("xia"), "192.0.2.2") == {"192.0.2.2": "192.0.2.1"}


def test_it_reaches_neither_the_host_nor_another_machine(linked: Bed) -> None:
    closed = ["192.0.2.1", XIA[0], WIM[0], WIM[1]]

    assert reach(linked, within("xia"), *closed) == dict.fromkeys(closed, "TimeoutError")
    assert reach(linked, [], "192.0.2.1") == {"192.0.2.1": "192.0.2.1"}, "something listens there"


def test_nobody_outside_reaches_a_machine_but_the_host_does(linked: Bed) -> None:
    assert reach(linked, ["ip", "netns", "exec", "outside"], WIM[1]) == {WIM[1]: "TimeoutError"}
    assert reach(linked, [], WIM[1]) == {WIM[1]: WIM[0]}


def test_a_machine_cannot_send_as_another_one(linked: Bed) -> None:
    leader = daemon(linked, "find", "xia")["pid"]
    linked.run(["nsenter", "-t", str(leader), "-n", "ip", "addr", "add", "10.213.0.99/32", "dev", "host0"])
    spoof = TRY.replace("(address, 7000), 1", "(address, 7000), 1, ('10.213.0.99', 0)")

    said = linked.run([*within("xia", "python3"), "-c", spoof, "192.0.2.2"]).stdout

    assert said == "192.0.2.2 TimeoutError\n"


def test_its_link_takes_what_the_way_out_takes(linked: Bed) -> None:
    links = json.loads(linked.run([*within("xia", "ip"), "-j", "link", "show", "host0"]).stdout)

    assert links[0]["mtu"] == 1400


def test_a_firewall_that_is_taken_away_comes_back(linked: Bed) -> None:
    linked.run(["nft", "flush", "ruleset"])
    assert reach(linked, within("xia"), "192.0.2.1") == {"192.0.2.1": XIA[1]}, "it was the firewall"

    daemon(linked, "tidy", "xia")
    daemon(linked, "tidy", "wim")

    assert reach(linked, within("xia"), "192.0.2.1") == {"192.0.2.1": "TimeoutError"}
    assert reach(linked, within("xia"), "192.0.2.2") == {"192.0.2.2": "192.0.2.1"}


def test_a_link_that_a_killed_daemon_did_not_set_up_is_set_up_by_the_next(linked: Bed) -> None:
    linked.run(["systemctl", "restart", "systemd-nspawn@h-xia"])
    assert reach(linked, within("xia"), "192.0.2.2") == {"192.0.2.2": "OSError"}, "it has no address"

    daemon(linked, "tidy", "xia")

    assert reach(linked, within("xia"), "192.0.2.2") == {"192.0.2.2": "192.0.2.1"}


def test_a_link_outlives_a_restart_of_its_machine(linked: Bed) -> None:
    daemon(linked, "end", "xia", "kill")
    daemon(linked, "start", "xia")

    assert reach(linked, within("xia"), "192.0.2.2", WIM[1]) == {
        "192.0.2.2": "192.0.2.1",
        WIM[1]: "TimeoutError",
    }

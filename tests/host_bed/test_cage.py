"""A machine in the cage that the design asks for: whether this host can give it, before any code of ours."""

import subprocess
from collections.abc import Iterator

import pytest

from hive_core.wire.version import VERSION

from .bed import Bed

BASE = 0x3B9A0000  # a range of 65536 user ids that nobody has
MACHINE = "h-cage"
SETTINGS = f"""\
[Exec]
Boot=yes
PrivateUsers={BASE}:65536
NotifyReady=yes

[Files]
PrivateUsersOwnership=map
Bind=/var/lib/hyperhive/cage:/state
BindReadOnly=/run/hyperhive/agents/cage:/run/hive
BindReadOnly=/opt/hyperhive

[Network]
Private=yes
VirtualEthernet=no
"""
LISTEN = """
import os, socket, struct, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/hyperhive/agents/cage/mcp.sock")
os.chown("/run/hyperhive/agents/cage/mcp.sock", int(sys.argv[1]), int(sys.argv[1]))
os.chmod("/run/hyperhive/agents/cage/mcp.sock", 0o600)
listener.listen()
print("listening", flush=True)
peer = listener.accept()[0].getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
pid, uid, gid = struct.unpack("3i", peer)
print(uid, open(f"/proc/{pid}/cgroup").read().splitlines()[-1])
"""
CONNECT = "import socket; socket.socket(socket.AF_UNIX).connect('/run/hive/mcp.sock')"


@pytest.fixture(scope="module")
def cage(bed: Bed) -> Iterator[Bed]:
    """The bed with the machine running in it."""
    bed.clone_guest(MACHINE)
    bed.run(["mkdir", "-p", "/run/systemd/nspawn", "/run/hyperhive/agents/cage", "/var/lib/hyperhive/cage"])
    bed.run(["chown", f"{BASE}:{BASE}", "/var/lib/hyperhive/cage"])
    bed.run(["chmod", "700", "/var/lib/hyperhive/cage"])
    bed.path(f"/run/systemd/nspawn/{MACHINE}.nspawn").write_text(SETTINGS)
    bed.run(["machinectl", "start", MACHINE])
    yield bed
    bed.run(["systemctl", "stop", f"systemd-nspawn@{MACHINE}"])
    bed.run(["rm", "-rf", f"/var/lib/machines/{MACHINE}", f"/run/systemd/nspawn/{MACHINE}.nspawn"])
    bed.run(["rm", "-rf", "/run/hyperhive", "/var/lib/hyperhive/cage"])


def inside(bed: Bed, script: str) -> str:
    return bed.run(["systemd-run", "-M", MACHINE, "--pipe", "--wait", "-q", "sh", "-c", script]).stdout


def test_the_machine_is_ready_when_its_start_returns(cage: Bed) -> None:
    assert inside(cage, "systemctl is-system-running --wait") == "running\n"


def test_its_root_owns_its_state_under_its_own_uid_on_the_host(cage: Bed) -> None:
    inside(cage, "id -u > /state/who")

    written = cage.path("/var/lib/hyperhive/cage/who")
    assert written.read_text() == "0\n"
    assert written.stat().st_uid == BASE


def test_it_cannot_touch_the_directory_of_its_socket(cage: Bed) -> None:
    assert "Read-only" in inside(cage, "touch /run/hive/planted 2>&1 || true")


def test_its_only_link_is_lo(cage: Bed) -> None:
    assert [line.split()[1] for line in inside(cage, "ip -o link").splitlines()] == ["lo:"]


def test_the_kernel_says_which_machine_and_unit_a_client_is(cage: Bed) -> None:
    with cage.popen(["python3", "-c", LISTEN, str(BASE)], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        assert listener.stdout.readline() == "listening\n"

        inside(cage, f'exec /opt/hyperhive/bin/python3 -c "{CONNECT}; import time; time.sleep(0.5)"')
        uid, cgroup = listener.stdout.readline().split()

    assert uid == str(BASE)
    assert f"/machine.slice/systemd-nspawn@{MACHINE}.service/payload/system.slice/run-" in cgroup


def test_the_harness_runs_in_it_from_a_read_only_bind(cage: Bed) -> None:
    assert VERSION in inside(cage, "/opt/hyperhive/bin/hive-agent --version")


def test_its_processes_are_in_the_cgroup_of_the_bed(cage: Bed) -> None:
    payload = cage.cgroup / f"machine.slice/systemd-nspawn@{MACHINE}.service/payload"

    assert "populated 1" in (payload / "cgroup.events").read_text()


def test_limits_apply_to_it_without_a_reload(cage: Bed) -> None:
    unit = f"systemd-nspawn@{MACHINE}.service"

    cage.run(
        ["systemctl", "set-property", "--runtime", unit, "MemoryMax=512M", "CPUQuota=50%", "TasksMax=200"]
    )

    asked = ["systemctl", "show", unit, "-p", "MemoryMax,CPUQuotaPerSecUSec,TasksMax"]
    assert sorted(cage.run(asked).stdout.split()) == [
        "CPUQuotaPerSecUSec=500ms",
        "MemoryMax=536870912",
        "TasksMax=200",
    ]

"""Two machines from what nspawn.py renders and images.py prepares: what root can do in one, and what not.

Everything is tried as root of the machine, outside the fence of the harness's unit: whoever runs in the
machine can get there.
"""

import platform
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hive_core.host import nspawn

from .bed import Bed

ALICE, BOB = 0x3B8A0000, 0x3B8B0000
BEGIN = {"bash -s": "echo begun", "python3 -": "print('begun', flush=True)"}
START = Path(__file__).with_name("start_cage.py")
PYTHON = "/opt/hyperhive/bin/python3"


def start(
    bed: Bed, agent: str, uid: int, *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return bed.run(
        [PYTHON, "-I", "-", agent, str(uid), *options], input=START.read_text(), timeout_s=60, check=check
    )


def stop(bed: Bed, agent: str) -> None:
    bed.run(["systemctl", "stop", nspawn.unit_name(f"h-{agent}")], timeout_s=60)


@pytest.fixture(scope="module")
def machines(bed: Bed) -> Iterator[Bed]:
    """The bed with the machines of alice and bob in it, both from one image."""
    bed.run(["ln", "-sfn", "/srv/guest", "/var/lib/machines/debian"])
    bed.run(["mkdir", "-p", "/run/hyperhive"])
    for agent, uid in (("alice", ALICE), ("bob", BOB)):
        start(bed, agent, uid)
    yield bed
    for agent in ("alice", "bob"):
        stop(bed, agent)
    bed.run(["bash", "-c", "rm -rf /var/lib/machines/{debian,h-*,.hive} /run/systemd/nspawn/h-*"])
    bed.run(["bash", "-c", "rm -rf /run/systemd/system/systemd-nspawn@h-*.service.d /run/hyperhive"])
    bed.run(
        [
            "bash",
            "-c",
            "rm -rf /var/lib/hyperhive/{agents,configs}; systemctl daemon-reload; systemctl reset-failed",
        ]
    )


def attempt(
    bed: Bed, script: str, *, agent: str = "alice", shell: str = "bash -s"
) -> subprocess.CompletedProcess[str]:
    """Run *script* as root of the machine, and be sure that it was run whatever came of it."""
    argv = ["systemd-run", "-M", f"h-{agent}", "--pipe", "--wait", "-q", "--collect", *shell.split()]
    done = bed.run(argv, input=f"{BEGIN[shell]}\n{script}", check=False)
    assert done.stdout.startswith("begun\n"), done
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.removeprefix("begun\n"), done.stderr
    )


def inside(bed: Bed, script: str, *, agent: str = "alice", shell: str = "bash -s") -> str:
    done = attempt(bed, script, agent=agent, shell=shell)
    assert done.returncode == 0, done
    return done.stdout.strip()


def leader(bed: Bed, agent: str) -> int:
    return int(bed.run(["machinectl", "show", f"h-{agent}", "-p", "Leader", "--value"]).stdout)


def test_two_machines_run_from_one_image_under_users_of_their_own(machines: Bed) -> None:
    for agent, uid in (("alice", ALICE), ("bob", BOB)):
        mapped = machines.run(["cat", f"/proc/{leader(machines, agent)}/uid_map"]).stdout.split()
        assert mapped == ["0", str(uid), "65536"]
        assert inside(machines, "hostname", agent=agent) == agent
        assert (
            inside(machines, "systemctl is-system-running; systemctl --failed --plain -q", agent=agent)
            == "running"
        )


def test_files_of_the_image_belong_to_root_and_are_changed_for_one_machine_only(machines: Bed) -> None:
    assert inside(machines, "stat -c %u:%g /usr/bin/bash /etc/passwd /root /") == "\n".join(["0:0"] * 4)

    inside(machines, "rm /usr/bin/wall; echo mine > /etc/issue; mkdir /workspace /usr/local/mine")

    seen = inside(
        machines, "ls -d /usr/bin/wall /workspace /usr/local/mine 2> /dev/null; cat /etc/issue", agent="bob"
    )
    assert seen.splitlines()[0] == "/usr/bin/wall"
    assert "mine" not in seen
    assert machines.path("/srv/guest/usr/bin/wall").exists()
    assert not machines.path("/srv/guest/usr/local/mine").exists()


def test_init_has_the_kept_capabilities_and_a_filter(machines: Bed) -> None:
    status = machines.run(["cat", f"/proc/{leader(machines, 'alice')}/status"]).stdout

    assert f"CapBnd:\t{nspawn.kept_mask():016x}" in status
    assert "Seccomp:\t2" in status


def test_the_harness_has_less_and_cannot_get_more(machines: Bed) -> None:
    status = inside(machines, "cat /proc/$(systemctl show hive-agent -p MainPID --value)/status")

    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["CapBnd"], 16) == nspawn.kept_mask() & ~(1 << nspawn.KEPT["SYS_ADMIN"])
    assert fields["NoNewPrivs"] == "1"


def test_what_the_harness_says_is_in_the_hosts_journal_of_the_machine(machines: Bed) -> None:
    assert "Harness started" in machines.journal(nspawn.unit_name("h-alice"))


def test_there_is_no_network_but_a_loopback_that_works(machines: Bed) -> None:
    assert (
        inside(machines, "ls /sys/class/net; ip -br -4 addr")
        == "lo\nlo               UNKNOWN        127.0.0.1/8"
    )


SOCKETS = """
import socket
for family in range(1, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind).close()
        except OSError:
            continue
        print(family, int(kind))
"""


def test_the_only_sockets_are_of_unix_inet_and_netlink(machines: Bed) -> None:
    made = {
        tuple(map(int, line.split())) for line in inside(machines, SOCKETS, shell="python3 -").splitlines()
    }

    # No vsock, no packets, no alg, no bluetooth, no raw sockets of inet.
    assert {family for family, _ in made} == {1, 2, 10, 16}
    assert {kind for family, kind in made if family in {2, 10}} == {1, 2}


CALLS = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for word in sys.argv[1:]:
    number = int(word)
    libc.syscall(ctypes.c_long(number), *(ctypes.c_long(0) for _ in range(6)))
    print(number, os.strerror(ctypes.get_errno()))
"""
DENIED = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "bpf": 321,
    "userfaultfd": 323,
    "perf_event_open": 298,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "open_by_handle_at": 304,
    "fanotify_init": 300,
    "pidfd_getfd": 438,
    "vmsplice": 278,
    "quotactl": 179,
    "syslog": 103,
    "acct": 163,
    "init_module": 175,
    "kexec_load": 246,
    "iopl": 172,
    "settimeofday": 164,
    "swapon": 167,
    "reboot": 169,
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86-64's")
def test_the_kernels_rarely_used_parts_cannot_be_called(machines: Bed) -> None:
    words = " ".join(map(str, DENIED.values()))
    said = inside(machines, f"python3 - {words} <<'EOF'\n{CALLS}\nEOF")

    answers = dict(line.split(" ", 1) for line in said.splitlines())
    permitted = {
        name
        for name, number in DENIED.items()
        if answers[str(number)] not in {"Operation not permitted", "Function not implemented"}
    }
    assert permitted == set()


CLONE = """
import ctypes, errno, os, platform, signal
libc = ctypes.CDLL(None, use_errno=True)
NEWUSER = 0x10000000
assert libc.unshare(NEWUSER) == -1 and ctypes.get_errno() == errno.ENOSPC, "unshare"
numbers = {"x86_64": 56, "aarch64": 220}
pid = libc.syscall(numbers[platform.machine()], NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
assert pid == -1 and ctypes.get_errno() == errno.ENOSPC, "clone"
arguments = (ctypes.c_uint64 * 8)(NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
pid = libc.syscall(435, arguments, ctypes.sizeof(arguments))
if pid == 0:
    os._exit(0)
assert pid == -1 and ctypes.get_errno() == errno.ENOSPC, "clone3"
"""


def test_no_user_namespace_can_be_made_however_one_asks(machines: Bed) -> None:
    inside(machines, CLONE, shell="python3 -")


def test_the_seal_cannot_be_broken_from_inside(machines: Bed) -> None:
    tried = attempt(
        machines, "mount -o remount,rw,bind /proc/sys; echo 9 > /proc/sys/user/max_user_namespaces"
    )

    assert tried.returncode != 0
    assert inside(machines, "cat /proc/sys/user/max_{user_namespaces,inotify_instances}") == "0\n256"
    assert (
        int(machines.run(["cat", "/proc/sys/user/max_user_namespaces"]).stdout) > 0
    )  # the host's is the host's


@pytest.mark.parametrize(
    "script",
    [
        "mknod /x b 254 0",
        "mknod /dev/x c 1 1",
        "mount -t ext4 /dev/vda /mnt",
        "mount -t devtmpfs d /mnt",
        "mount -t debugfs d /mnt",
        "mount -o remount,rw,bind /.image",
        "mount -o remount,rw,bind /run/hive",
        "mount -o remount,rw,bind /opt/hyperhive",
        "mount -o remount,rw,bind /agents/alice/config",
        "umount /usr",
        "umount -l /run/hive",
        "touch /.image/etc/x",
        "touch /run/hive/x",
        "rm /run/hive/environment",
        "touch /opt/hyperhive/x",
        "touch /agents/alice/config/x",
        "chown 0:0 /run/hive",
        "ip link add d0 type dummy",
        "ip addr add 192.0.2.1/24 dev lo",
        "ls /agents/bob",
        "ls /var/lib/hyperhive",
        "ls /var/lib/machines/debian",
        "echo core > /proc/sys/kernel/core_pattern",
        "umount /proc/kmsg; mount -o remount,rw,bind /proc/sys; mount -t proc p /mnt; echo b > /mnt/sysrq-trigger",
        "umount /proc/kmsg; mount -t proc p /mnt; head -c1 /mnt/kcore",
        "test -e /dev/net/tun || test -e /dev/fuse || test -e /dev/kvm || test -e /dev/vda",
        "cat /dev/kmsg",
        "date -s 2020-01-01 > /dev/null && test $(date +%Y) = 2020",
        "ulimit -n 2000000",
        "nice -n -5 true 2>&1 | grep -q . || exit 0; exit 1",
    ],
)
def test_root_of_a_machine_cannot(machines: Bed, script: str) -> None:
    assert attempt(machines, script).returncode != 0


def test_what_an_agent_writes_belongs_to_its_machine(machines: Bed) -> None:
    inside(
        machines, "cd /agents/alice/state; touch a; cp /usr/bin/bash b; chmod 4755 b; touch /root/.claude/c"
    )
    inside(machines, "touch /agents/alice/state/d; chown 1000:1000 /agents/alice/state/d")

    own = machines.path("/var/lib/hyperhive/agents/alice")
    assert {path.name: path.stat().st_uid for path in (own / "state").glob("?")} == {
        "a": ALICE,
        "b": ALICE,
        "d": ALICE + 1000,
    }
    assert (own / "claude/c").stat().st_uid == ALICE
    # Nobody on the host but root gets as far as the setuid program.
    assert stat.S_IMODE(machines.path("/var/lib/hyperhive/agents").stat().st_mode) == 0o700
    assert stat.S_IMODE(machines.path("/var/lib/machines/.hive").stat().st_mode) == 0o700


def test_tmp_is_memory_and_nothing_in_it_is_setuid(machines: Bed) -> None:
    kind, options = inside(machines, "findmnt -no FSTYPE,OPTIONS /tmp | tail -1").split()
    assert kind == "tmpfs"
    assert {"rw", "nosuid", "nodev"} <= set(options.split(","))
    assert inside(machines, "stat -c %a /tmp") == "1777"


def test_a_new_start_is_a_new_root_with_the_same_id_and_the_old_state(machines: Bed) -> None:
    machine_id = inside(machines, "cat /etc/machine-id")
    inside(machines, "touch /etc/planted /planted /usr/bin/planted /agents/alice/state/kept")

    stop(machines, "alice")
    start(machines, "alice", ALICE)

    assert inside(machines, "ls -d /etc/planted /planted /usr/bin/planted 2> /dev/null || true") == ""
    assert inside(machines, "cat /etc/machine-id") == machine_id
    inside(machines, "test -e /agents/alice/state/kept")
    assert inside(machines, "cat /etc/machine-id", agent="bob") != machine_id


def test_a_reboot_inside_is_an_end(machines: Bed) -> None:
    unit = nspawn.unit_name("h-alice")
    attempt(machines, "systemctl reboot --no-block")

    wait = f"for _ in $(seq 100); do systemctl is-active -q {unit} || break; sleep 0.1; done"
    machines.run(["bash", "-c", wait], timeout_s=20)

    shown = machines.run(
        ["systemctl", "show", unit, "-p", "ActiveState", "-p", "Result", "-p", "NRestarts"]
    ).stdout
    start(machines, "alice", ALICE)
    assert sorted(shown.split()) == ["ActiveState=inactive", "NRestarts=0", "Result=success"]


def test_a_machine_that_is_not_as_declared_does_not_start(machines: Bed) -> None:
    done = start(machines, "carol", BOB + 65536, "debian", str(BOB), check=False)

    assert done.returncode != 0
    said = machines.journal(nspawn.unit_name("h-carol"))
    assert f"cannot seal the machine: its uids are mapped as 0 {BOB + 65536} 65536, not to {BOB}" in said
    assert machines.run(["machinectl", "show", "h-carol"], check=False).returncode != 0


def test_an_image_whose_owners_cannot_be_mapped_starts_nothing(machines: Bed) -> None:
    machines.run(["ln", "-sfn", "/", "/var/lib/machines/host"])  # the bed's own root, an overlay

    done = start(machines, "carol", BOB + 65536, "host", check=False)

    machines.run(["rm", "/var/lib/machines/host"])
    assert done.returncode != 0
    assert "Failed to map ids for bind mount" in machines.journal(nspawn.unit_name("h-carol"))

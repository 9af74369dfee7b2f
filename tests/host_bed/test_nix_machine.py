"""A machine of the kind `nix`: an empty root, the store, and a closure whose init makes the rest of it.

There is no Nix here.  The closure is made by hand, out of the guest tree: it has what NixOS has where the hive
looks, and its init does what NixOS's stage 2 does.
"""

import os
import stat
from collections.abc import Iterator

import pytest

from hive_core.host import nspawn

from .bed import open_bed
from .hive_kit import CONFIG, HiveHost, wait_until

STORE = "/nix/store"
TREE = f"{STORE}/{'0' * 32}-tree"
BUSYBOX = f"{STORE}/{'1' * 32}-busybox"
HARNESS = f"{STORE}/{'2' * 32}-hyperhive"
ONE, TWO, BAD, NO_INIT, MISSING = (f"{STORE}/{char * 32}-nixos-system-test" for char in "abcdf")

INIT = f"""\
#!{BUSYBOX}/sh
# The root has nothing but empty directories, and binds.
set -eu
export PATH={BUSYBOX}
toplevel=$(dirname "$0")
rm -rf /usr
for name in usr bin sbin lib lib64; do
    [ ! -e {TREE}/$name ] || ln -sfn {TREE}/$name /$name
done
mkdir -p /var /opt /srv /mnt /nix/var/nix/gcroots
cp -a {TREE}/var/. /var/
cp -a {TREE}/etc/. "$toplevel/etc/." /etc/
ln -sfn "$toplevel" /run/booted-system
ln -sfn /run/booted-system /nix/var/nix/gcroots/booted-system
export PATH=/usr/sbin:/usr/bin
exec /usr/lib/systemd/systemd systemd.show_status=error
"""
MAKE = f"""\
set -eu
# Where owners can be mapped: the root of a bed is an overlay.
mkdir -p /var/lib/machines/.nix /nix
mount --bind /var/lib/machines/.nix /nix
mkdir -p /nix/store /nix/var/nix/gcroots /nix/var/nix/profiles/per-agent
cp -a /srv/guest {TREE}
mkdir {BUSYBOX}
cp /bin/busybox {BUSYBOX}/busybox
for name in sh dirname rm ln mkdir cp; do ln -s busybox {BUSYBOX}/$name; done
cp -a /opt/hyperhive {HARNESS}
for toplevel in {ONE} {TWO} {BAD} {NO_INIT}; do
    mkdir -p $toplevel/etc/systemd/system/multi-user.target.wants
    echo $toplevel > $toplevel/etc/toplevel
    sed s,/opt/hyperhive,{HARNESS}, /src/hyperhive/systemd/hive-agent.service \\
        > $toplevel/etc/systemd/system/hive-agent.service
    ln -s ../hive-agent.service $toplevel/etc/systemd/system/multi-user.target.wants/
    for unit in console-getty.service getty.target; do ln -s /dev/null $toplevel/etc/systemd/system/$unit; done
done
cat > {ONE}/init
chmod 755 {ONE}/init
# As a closure with an initrd of systemd has it: its init is not for containers.
cp {ONE}/init {TWO}/prepare-root
printf '#!{BUSYBOX}/sh\\necho no etc in this closure\\nexit 1\\n' > {BAD}/init
chmod 755 {BAD}/init
cp {BAD}/init {TWO}/init
"""


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    """The host; alice runs from the closure ONE, before and after each test."""
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-nix") as bed:
        bed.install_product()
        bed.run(["sh", "-c", MAKE], input=INIT, timeout_s=60)
        host = HiveHost(bed).set_up(CONFIG + "[retention]\ngenerations = 1\n")
        assert host.hive("spawn", "alice", "--image", ONE).stdout == "alice is running\n"
        yield host


@pytest.fixture
def bob(hive: HiveHost) -> Iterator[str]:
    """The name of an agent that there is not, afterwards either."""
    yield "bob"
    if "bob" in hive.rows():
        hive.hive("destroy", "bob", "--purge", "--yes")


def pinned(hive: HiveHost) -> dict[str, str]:
    roots = hive.bed.path("/nix/var/nix/gcroots/hive")
    kept = {path.name: str(path.readlink()) for path in roots.iterdir()}
    # A hive keeps its manager: that of one test is there in the others.
    return {name: target for name, target in kept.items() if name != "manager-booted"}


def base(hive: HiveHost, agent: str) -> int:
    return int(hive.ask(cmd="machine", name=agent)["uid_base"])


def fails(hive: HiveHost, *words: str) -> str:
    done = hive.hive(*words, check=False)
    assert done.returncode != 0, done
    return done.stderr


def test_its_systemd_is_up_and_nothing_in_it_has_failed(hive: HiveHost) -> None:
    assert hive.inside("alice", "cat", "/etc/toplevel") == f"{ONE}\n"
    assert hive.inside("alice", "readlink", "/run/booted-system") == f"{ONE}\n"
    wait_until(
        lambda: hive.inside("alice", "systemctl", "is-system-running", check=False) != "starting\n", "up"
    )
    said = hive.inside("alice", "sh", "-c", "systemctl is-system-running; systemctl --failed --plain -q")
    assert said == "running\n"
    assert hive.inside("alice", "hostname") == "alice\n"


def test_its_harness_is_the_closures_and_answers(hive: HiveHost) -> None:
    hive.wait_as_wanted("alice")
    program = "cat /proc/$(systemctl show hive-agent -p MainPID --value)/cmdline"
    assert hive.inside("alice", "sh", "-c", program).startswith(f"{HARNESS}/bin/python3\0")
    since = hive.last_message()

    hive.send("alice", "say operator: from a closure")

    def answers() -> list[tuple[str, int]]:
        rows = [row for row in hive.messages(since) if row["body"] == "from a closure"]
        return [(row["sender"], row["sender_uid"]) for row in rows]

    wait_until(answers, "it is answered")
    assert answers() == [("alice", base(hive, "alice"))]


def test_a_command_inside_is_roots_there_and_its_exit_code_is_ours(hive: HiveHost) -> None:
    assert hive.inside("alice", "id", "-u") == "0\n"
    assert hive.hive("exec", "alice", "--", "sh", "-c", "exit 37", check=False).returncode == 37


def test_it_is_caged_as_a_tree_is(hive: HiveHost) -> None:
    proc = f"/proc/{hive.leader('alice')}"
    status = hive.run(["cat", f"{proc}/status"]).stdout

    assert hive.run(["cat", f"{proc}/uid_map"]).stdout.split() == ["0", str(base(hive, "alice")), "65536"]
    assert f"CapBnd:\t{nspawn.kept_mask():016x}" in status
    assert "Seccomp:\t2" in status
    assert hive.inside("alice", "ls", "/sys/class/net") == "lo\n"
    sealed = "cat /proc/sys/user/max_user_namespaces /proc/sys/user/max_inotify_instances"
    assert hive.inside("alice", "sh", "-c", sealed) == "0\n256\n"
    assert fails(hive, "exec", "alice", "--", "unshare", "--user", "true")


def test_its_root_is_its_own(hive: HiveHost) -> None:
    own = (
        "/",
        "/root",
        "/nix",
        "/etc",
        "/agents",
        "/agents/alice",
        "/agents/alice/state",
        "/tmp",
        "/nix/store",
    )
    assert hive.inside("alice", "stat", "-c", "%u:%g %n", *own) == "".join(f"0:0 {path}\n" for path in own)
    hive.inside("alice", "touch", "/root/x", "/nix/x", "/x")


@pytest.mark.parametrize(
    "script",
    [
        f"touch {STORE}/x",
        f"touch {ONE}/x",
        f"rm {ONE}/init",
        f"mount -o remount,rw,bind {STORE}",
        f"umount {STORE}",
        "touch /usr/bin/x",
        "touch /run/hive/x",
        "rm /run/hive/environment",
        "mount -o remount,rw,bind /run/hive",
        "touch /agents/alice/config/x",
        "ls /var/lib/hyperhive",
        "mknod /x c 1 1",
    ],
)
def test_root_of_it_cannot(hive: HiveHost, script: str) -> None:
    done = hive.hive("exec", "alice", "--", "sh", "-c", f"echo begun; {script}", check=False)

    assert done.returncode != 0
    assert done.stdout == "begun\n"


def test_the_files_of_the_store_belong_to_root_and_what_an_agent_writes_to_its_machine(
    hive: HiveHost,
) -> None:
    assert hive.inside("alice", "stat", "-L", "-c", "%u:%g", ONE, TREE, "/bin/sh") == "0:0\n" * 3

    script = "cd /agents/alice/state; cp /bin/sh s; chmod 4755 s; touch /root/.claude/c"
    hive.inside("alice", "sh", "-c", script)

    own = hive.bed.path("/var/lib/hyperhive/agents/alice")
    setuid = (own / "state/s").stat()
    assert (setuid.st_uid, stat.S_IMODE(setuid.st_mode)) == (base(hive, "alice"), 0o4755)
    assert (own / "claude/c").stat().st_uid == base(hive, "alice")


def test_it_starts_anew_with_the_same_id_and_its_state(hive: HiveHost) -> None:
    machine_id = hive.inside("alice", "cat", "/etc/machine-id")
    hive.inside("alice", "touch", "/planted", "/etc/planted", "/agents/alice/state/kept")

    hive.hive("restart", "alice")

    assert hive.inside("alice", "cat", "/etc/machine-id") == machine_id
    assert fails(hive, "exec", "alice", "--", "ls", "/planted")
    assert fails(hive, "exec", "alice", "--", "ls", "/etc/planted")
    hive.inside("alice", "test", "-e", "/agents/alice/state/kept")


def test_a_stop_is_a_power_off_for_it(hive: HiveHost) -> None:
    hive.hive("stop", "alice")

    assert (hive.unit("alice", "ActiveState"), hive.unit("alice", "Result")) == ("inactive", "success")
    said = hive.bed.journal(nspawn.unit_name("h-alice"), lines=10)
    hive.hive("start", "alice")
    assert "Powering off." in said
    assert "alice-booted" in pinned(hive)


def test_a_power_off_inside_ends_it_and_the_daemon_starts_it_anew(hive: HiveHost) -> None:
    hive.wait_as_wanted("alice")
    before = hive.unit("alice", "MainPID")

    hive.hive("exec", "alice", "--", "systemctl", "poweroff", "--no-block", check=False)

    wait_until(lambda: hive.unit("alice", "MainPID") not in {before, "0"}, "it is started anew")
    hive.wait_as_wanted("alice")


def test_one_that_fails_before_its_systemd_says_so(hive: HiveHost, bob: str) -> None:
    said = fails(hive, "spawn", bob, "--image", BAD)

    assert "cannot start bob: its machine did not come up: no etc in this closure" in said


def test_old_generations_go_but_for_the_current_and_the_booted_one(hive: HiveHost) -> None:
    profile = hive.bed.path("/nix/var/nix/profiles/per-agent/alice")
    profile.mkdir()
    for number, closure in enumerate((ONE, TWO, TWO, TWO), 1):
        (profile / f"system-{number}-link").symlink_to(closure)
    (profile / "system").symlink_to("system-3-link")

    hive.hive("vacuum")

    links = {path.name for path in profile.iterdir()}
    assert links == {"system", "system-1-link", "system-3-link", "system-4-link"}


def test_a_tree_and_a_closure_live_in_one_hive(hive: HiveHost, bob: str) -> None:
    hive.hive("spawn", bob, "--image", "debian")
    hive.wait_as_wanted("alice", bob)
    since = hive.last_message()

    hive.send("alice", "say bob: say operator: through both")

    wait_until(lambda: "through both" in [row["body"] for row in hive.messages(since)], "it came through")
    assert pinned(hive) == {"alice-booted": ONE}


def test_one_with_a_network_gets_its_address(hive: HiveHost, bob: str) -> None:
    hive.hive("spawn", bob, "--image", ONE, "--network", "veth")

    hive.wait_as_wanted(bob)
    (address,) = hive.ask(cmd="machine", name=bob)["addresses"]
    assert address in hive.inside(bob, "ip", "-br", "-4", "addr")


def test_the_manager_runs_from_one_too(hive: HiveHost) -> None:
    hive.hive("spawn", "manager", "--image", ONE)
    try:
        hive.wait_as_wanted("manager")
        hive.inside("manager", "touch", "/state/x", "/agents/alice/config/x")
    finally:
        hive.hive("stop", "manager")
    hive.bed.path("/var/lib/hyperhive/configs/alice/config/x").unlink()


def test_nothing_is_stopped_for_a_closure_that_is_gone(hive: HiveHost, bob: str) -> None:
    hive.hive("spawn", bob, "--image", TWO)
    hive.run(["mv", TWO, f"{TWO}-moved"])

    said = fails(hive, "rebuild", bob)

    hive.run(["mv", f"{TWO}-moved", TWO])
    assert f"{TWO} is not there or is no NixOS closure" in said
    assert hive.inside(bob, "cat", "/etc/toplevel") == f"{TWO}\n"


def test_its_closure_is_kept_from_the_collector_until_it_is_destroyed(hive: HiveHost, bob: str) -> None:
    hive.hive("spawn", bob, "--image", TWO)

    assert hive.inside(bob, "cat", "/etc/toplevel") == f"{TWO}\n"
    assert pinned(hive) == {"alice-booted": ONE, "bob-booted": TWO}
    hive.hive("destroy", bob, "--yes")
    assert pinned(hive) == {"alice-booted": ONE}
    hive.hive("spawn", bob, "--image", "debian")
    assert pinned(hive) == {"alice-booted": ONE}


def test_what_is_no_closure_is_refused_with_a_sentence(hive: HiveHost, bob: str) -> None:
    for image in (MISSING, NO_INIT):
        said = fails(hive, "spawn", bob, "--image", image)
        assert f"{image} is not there or is no NixOS closure: it has no init" in said
    said = fails(hive, "spawn", bob, "--image", "/nix/var/nix/profiles/per-agent/bob/system")
    assert "is neither a path of /nix/store nor the name of an image" in said
    assert bob not in hive.rows()
    assert not list(hive.bed.path("/var/lib/machines").glob("h-bob"))

"""`make install` on a plain host, and what then runs there under systemd."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from . import trees
from .bed import Bed, BedError, open_bed

MAX_EXPOSURE = 3.4
INSTALLED = (
    "/opt/hyperhive",
    "/etc/hyperhive/config.toml",
    "/etc/polkit-1/rules.d/49-hyperhive.rules",
    "/usr/local/bin/hive",
    "/usr/local/bin/hive-agent",
    "/usr/local/bin/hive-core",
    "/usr/local/lib/sysctl.d/60-hyperhive.conf",
    "/usr/local/lib/systemd/network/10-hyperhive.network",
    "/usr/local/lib/systemd/system/hive-core.service",
    "/usr/local/lib/systemd/system/hive-core.socket",
    "/usr/local/lib/systemd/system/machine-hive.slice",
    "/usr/local/lib/sysusers.d/hyperhive.conf",
    "/usr/local/lib/tmpfiles.d/hyperhive.conf",
)


def wheels() -> Path:
    """What pip needs of an index, since a bed has no network; fetched once."""
    lock = trees.ROOT / "requirements.lock"

    def fetch(tree: Path) -> None:
        trees._run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"),
            *("--require-hashes", "--python-version", trees.PYTHON, "--implementation", "cp"),
            *(f"--platform={name}" for name in trees._platforms()),
            *("--dest", str(tree), "-r", str(lock)),
        )

    return trees._built("wheels", [lock.read_text(), trees.PYTHON, platform.machine(), "1"], fetch)


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 20) -> None:
    until = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < until, f"not within {timeout_s} s: {what}"
        time.sleep(0.05)


class PlainHost:
    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.run = bed.run
        self.said = ""
        """What the first `make install` printed."""

    def make(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        environment = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/root/wheels", "PIP_CONFIG_FILE": "/dev/null"}
        return self.run(
            ["make", "-s", "-C", "/src/hyperhive", *words], timeout_s=240, check=check, env=environment
        )

    def show(self, unit: str, name: str) -> str:
        return self.run(["systemctl", "show", "-p", name, "--value", unit]).stdout.strip()

    def set_up(self, text: str) -> None:
        """Give hive-core.service a drop-in."""
        place = self.bed.path("/run/systemd/system/hive-core.service.d")
        place.mkdir(exist_ok=True)
        (place / "test.conf").write_text(text)
        self.run(["systemctl", "daemon-reload"])

    def files(self) -> set[str]:
        """All files outside of what a running system writes."""
        found = self.run(["find", "/etc", "/opt", "/usr", "/root", "-xdev", "-not", "-name", "*.pyc"])
        return set(found.stdout.split("\n"))


@pytest.fixture(scope="module")
def bare(worker_id: str) -> Iterator[PlainHost]:
    """A host on which nothing of ours has ever been."""
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-plain") as bed:
        bed.run(["umount", "/opt/hyperhive"])
        bed.run(["rmdir", "/opt/hyperhive"])
        target = bed.path("/root/wheels")
        target.mkdir()
        for wheel in wheels().iterdir():
            (target / wheel.name).write_bytes(wheel.read_bytes())
        yield PlainHost(bed)


@pytest.fixture(scope="module")
def files_before(bare: PlainHost) -> set[str]:
    return bare.files()


@pytest.fixture(scope="module")
def host(bare: PlainHost, files_before: set[str]) -> PlainHost:
    bare.said = bare.make("install").stdout
    return bare


@pytest.fixture
def serving(host: PlainHost) -> PlainHost:
    """A host whose daemon serves, with no drop-in."""
    host.set_up("")
    host.run(["systemctl", "reset-failed"])
    host.run(["systemctl", "enable", "-q", "--now", "hive-core"], timeout_s=60)
    return host


def test_it_puts_everything_in_its_place_and_says_what_to_type_next(host: PlainHost) -> None:
    assert [
        path
        for path in INSTALLED
        if not host.bed.path(path).exists() and not host.bed.path(path).is_symlink()
    ] == []
    assert host.run(["getent", "group", "hive-admin"]).returncode == 0
    words = [line.strip().split("  ")[0] for line in host.said.splitlines() if line.startswith("    ")]
    assert words == [
        "usermod -aG hive-admin NAME",
        "systemctl enable --now hive-core",
        "hive image build debian",
        "hive doctor",
    ]


def test_what_is_installed_can_be_read_by_all_and_names_no_place_where_it_was_built(host: PlainHost) -> None:
    assert host.run(["find", "/opt/hyperhive", "-not", "-perm", "-o=r"]).stdout == ""
    assert (
        host.run(["grep", "-rlE", "/src/hyperhive|hyperhive\\.new", "/opt/hyperhive"], check=False).stdout
        == ""
    )
    assert host.run(["find", "/opt/hyperhive/bin", "-name", "pip*"]).stdout == ""


def test_systemd_finds_nothing_to_complain_about(host: PlainHost) -> None:
    verified = host.run(["systemd-analyze", "verify", "--man=no", "hive-core.service", "hive-core.socket"])

    assert verified.stderr == ""


def test_the_daemon_is_exposed_no_more_than_promised(host: PlainHost) -> None:
    host.set_up("")
    threshold = f"--threshold={MAX_EXPOSURE * 10:.0f}"

    judged = host.run(["systemd-analyze", "security", "--no-pager", threshold, "hive-core.service"])

    print(judged.stdout.splitlines()[-1])


def test_the_daemon_serves_operators_over_the_socket_of_systemd(serving: PlainHost) -> None:
    socket = serving.bed.path("/run/hyperhive/host.sock")

    assert serving.show("hive-core", "ActiveState") == "active"
    assert json.loads(serving.run(["hive", "ls", "--json"]).stdout) == []
    before = socket.stat().st_ino
    serving.run(["systemctl", "restart", "hive-core"])
    assert socket.stat().st_ino == before


def test_only_root_and_the_group_may_use_the_socket(serving: PlainHost) -> None:
    serving.run(["useradd", "-G", "hive-admin", "ada"], check=False)
    serving.run(["useradd", "eve"], check=False)

    assert (
        serving.run(["setpriv", "--reuid=ada", "--regid=ada", "--init-groups", "hive", "ls"]).returncode == 0
    )
    refused = serving.run(
        ["setpriv", "--reuid=eve", "--regid=eve", "--init-groups", "hive", "ls"], check=False
    )
    assert refused.returncode == 5
    assert "hive-admin" in refused.stderr


def test_a_stopped_daemon_is_started_by_who_asks_it(serving: PlainHost) -> None:
    serving.run(["systemctl", "stop", "hive-core"])
    assert serving.show("hive-core", "ActiveState") == "inactive"

    assert json.loads(serving.run(["hive", "ls", "--json"]).stdout) == []

    assert serving.show("hive-core", "ActiveState") == "active"


def test_a_reload_takes_the_changed_configuration(serving: PlainHost) -> None:
    config = serving.bed.path("/etc/hyperhive/config.toml")
    sample = config.read_text()
    try:
        config.write_text('domain = "two.example"\n' + sample)
        serving.run(["systemctl", "reload", "hive-core"])
        wait_until(lambda: "Config reloaded changed=domain" in serving.bed.journal("hive-core"), "it is read")
    finally:
        config.write_text(sample)


def test_a_daemon_that_hangs_is_ended_and_comes_back(serving: PlainHost) -> None:
    serving.set_up("[Service]\nWatchdogSec=1\n")
    serving.run(["systemctl", "restart", "hive-core"])
    pid = serving.show("hive-core", "MainPID")
    pinged = int(serving.show("hive-core", "WatchdogTimestampMonotonic"))
    wait_until(
        lambda: int(serving.show("hive-core", "WatchdogTimestampMonotonic")) > pinged + 2_000_000,
        "it is pinged for longer than the watchdog waits",
    )
    assert serving.show("hive-core", "MainPID") == pid

    serving.run(["kill", "-STOP", pid])

    wait_until(lambda: serving.show("hive-core", "MainPID") not in {pid, "0"}, "there is another one")
    wait_until(lambda: serving.show("hive-core", "ActiveState") == "active", "it serves")
    told = serving.bed.journal("hive-core")
    assert "Watchdog timeout" in told
    assert "Fatal Python error: Aborted" in told, "where it hung is told"


def test_a_configuration_that_cannot_be_used_is_tried_once(serving: PlainHost) -> None:
    config = serving.bed.path("/etc/hyperhive/config.toml")
    sample = config.read_text()
    serving.run(["systemctl", "stop", "hive-core.socket", "hive-core.service"])
    try:
        config.write_text("log_levl = 1\n")
        with pytest.raises(BedError):
            serving.run(["systemctl", "start", "hive-core"])
    finally:
        config.write_text(sample)

    assert serving.show("hive-core", "ExecMainStatus") == "78"
    assert serving.show("hive-core", "NRestarts") == "0"
    assert "did you mean 'log_level'" in serving.bed.journal("hive-core")


@pytest.mark.parametrize(
    ("action", "machine", "user", "allowed"),
    [
        ("shell", "h-alice", "ada", True),
        ("login", "h-alice", "ada", True),
        ("shell", "hm1nd", "ada", True),
        ("shell", "hm1nd-2", "ada", False),
        ("shell", "other", "ada", False),
        ("manage-machines", "h-alice", "ada", False),
        ("host-shell", "h-alice", "ada", False),
        ("shell", "h-alice", "eve", False),
    ],
)
def test_the_group_may_enter_our_machines_and_no_others(
    host: PlainHost, action: str, machine: str, user: str, allowed: bool
) -> None:
    host.run(["useradd", "-G", "hive-admin", "ada"], check=False)
    host.run(["useradd", "eve"], check=False)
    script = (
        'setpriv --reuid="$1" --regid="$1" --init-groups sleep 30 & '
        'until [ "$(readlink /proc/$!/exe)" = /usr/bin/sleep ]; do :; done; '
        'pkcheck --action-id "org.freedesktop.machine1.$2" --process $! --detail machine "$3"; code=$?; kill $!; exit $code'
    )

    asked = host.run(["bash", "-c", script, "bash", user, action, machine], check=False)

    assert (asked.returncode == 0) is allowed, asked.stderr


def test_the_programs_run_in_a_machine_that_has_nothing_of_ours(host: PlainHost) -> None:
    argv = [
        "systemd-nspawn",
        "-q",
        "-D",
        "/srv/guest",
        "--volatile=yes",
        "--private-network",
        "--register=no",
    ]
    bound = ["--keep-unit", "--bind-ro=/opt/hyperhive", "/opt/hyperhive/bin/hive-agent", "--version"]

    said = host.run(["systemd-run", "-q", "--wait", "--pipe", "--collect", *argv, *bound], timeout_s=60)

    assert said.stdout.startswith("hive-agent ")


def test_again_it_replaces_the_programs_and_keeps_the_configuration(serving: PlainHost) -> None:
    config = serving.bed.path("/etc/hyperhive/config.toml")
    sample = config.read_text()
    config.write_text(sample + "# mine\n")
    pid = serving.show("hive-core", "MainPID")
    programs = serving.bed.path("/opt/hyperhive").stat().st_ino

    said = serving.make("install").stdout

    assert config.read_text() == sample + "# mine\n"
    config.write_text(sample)
    assert serving.bed.path("/opt/hyperhive").stat().st_ino != programs
    assert serving.bed.path("/opt/hyperhive.old").stat().st_ino == programs, "machines that run have it still"
    assert serving.show("hive-core", "MainPID") not in {pid, "0"}
    assert "hive rebuild" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["PREFIX=/usr"], "PREFIX is /usr"),
        (["PREFIX=/usr/lib"], "has something else in it"),
        (["PREFIX=/opt/a b"], "letters, digits"),
        (["PREFIX=opt/hive"], "PREFIX is opt/hive"),
        (["PYTHON=/bin/false"], "no Python 3.11"),
    ],
)
def test_it_refuses_what_would_do_harm(host: PlainHost, words: list[str], complaint: str) -> None:
    before = host.files()

    for target in ("install", "uninstall") if "PREFIX" in words[0] else ("install",):
        refused = host.make(target, *words, check=False)

        assert refused.returncode != 0
        assert f"cannot {target}: " in refused.stderr
        assert complaint in refused.stderr
    assert host.files() == before


def test_a_program_of_another_that_is_called_hive_is_not_replaced(host: PlainHost) -> None:
    link = host.bed.path("/usr/local/bin/hive")
    link.unlink()
    link.write_text("a data warehouse\n")
    try:
        refused = host.make("install", check=False)
    finally:
        text = link.read_text()
        link.unlink()
        link.symlink_to("/opt/hyperhive/bin/hive")

    assert "/usr/local/bin/hive is there and not ours" in refused.stderr
    assert text == "a data warehouse\n"


def test_below_a_destdir_it_leaves_the_host_alone(serving: PlainHost) -> None:
    before, pid = serving.files(), serving.show("hive-core", "MainPID")
    root = serving.bed.path("/var/tmp/image")

    serving.make("install", "DESTDIR=/var/tmp/image", "PREFIX=/opt/elsewhere")

    assert serving.files() == before
    assert serving.show("hive-core", "MainPID") == pid
    assert os.readlink(root / "usr/local/bin/hive") == "/opt/elsewhere/bin/hive"
    assert (root / "opt/elsewhere/bin/hive").read_text().startswith("#!/opt/elsewhere/bin/python3\n")
    unit = (root / "usr/local/lib/systemd/system/hive-core.service").read_text()
    assert "ExecStart=/opt/elsewhere/bin/hive-core serve\n" in unit
    assert serving.run(["grep", "-rl", "/var/tmp/image", "/var/tmp/image"], check=False).stdout == ""
    serving.make("uninstall", "DESTDIR=/var/tmp/image", "PREFIX=/opt/elsewhere")
    assert serving.run(["find", "/var/tmp/image", "-not", "-type", "d"]).stdout == ""


def test_uninstall_takes_away_all_of_it_and_no_state(serving: PlainHost, files_before: set[str]) -> None:
    serving.bed.path("/var/lib/hyperhive/mine").write_text("")

    said = serving.make("uninstall").stdout

    kept_by_the_system = (
        "/etc/group",
        "/etc/gshadow",
        "/etc/passwd",
        "/etc/shadow",
        "/etc/subuid",
        "/etc/subgid",
    )
    directories = {path for path in serving.files() - files_before if serving.bed.path(path).is_dir()}
    left = serving.files() - files_before - directories
    assert {path for path in left if not path.startswith(kept_by_the_system)} == set()
    # The directories that all programs of this host share stay, as any package leaves them.
    assert all(path.startswith(("/usr/local/lib/", "/usr/local/share/")) for path in directories)
    assert files_before - serving.files() == set()
    assert serving.bed.path("/var/lib/hyperhive/mine").exists()
    assert serving.bed.path("/var/lib/hyperhive/broker.sqlite").exists()
    assert "/var/lib/hyperhive" in said
    assert serving.run(["systemctl", "is-active", "hive-core.socket"], check=False).stdout == "inactive\n"

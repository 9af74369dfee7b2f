"""hive show, ls, top, limits, image, doctor: what they make of what the daemon says of machines."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hive_core.cli import programs
from hive_core.cli.commands import top
from hive_core.wire.version import VERSION

from .conftest import RunHive
from .fake_host import FakeHost
from .test_output import on_a_real_terminal

MACHINE = {
    "name": "alice",
    "isolation": "nspawn",
    "machine": "h-alice",
    "image": "debian",
    "network": "veth",
    "uid_base": 1073741824,
    "uid_count": 65536,
    "memory_max_bytes": 4 * 2**30,
    "cpu_quota_percent": 200,
    "tasks_max": 2048,
    "addresses": ["10.213.0.1", "fe80::1"],
    "declared": ["cpu"],
}


@pytest.fixture
def alice(host: FakeHost) -> FakeHost:
    host.add("alice", isolation="nspawn", machine="h-alice")
    host.answers["machine"] = MACHINE
    return host


# ── show, ls ────────────────────────────────────────────────────────────────────────────────────


def test_show_tells_of_the_machine(alice: FakeHost, hive: RunHive) -> None:
    lines = dict(line.split("\t") for line in hive("show", "alice").out.splitlines())

    assert (lines["isolation"], lines["machine"], lines["image"]) == ("nspawn", "h-alice", "debian")
    assert (lines["network"], lines["addresses"]) == ("veth", "10.213.0.1, fe80::1")
    assert lines["uids"] == "1073741824 to 1073807359"
    assert (lines["memory"], lines["cpu"], lines["tasks"]) == ("4G default", "200%", "2048 default")
    assert json.loads(hive("show", "alice", "--json").out)["uid_base"] == 1073741824


@pytest.mark.usefixtures("terminal")
def test_show_on_a_terminal_says_what_is_the_hives_default(alice: FakeHost, hive: RunHive) -> None:
    alice.rows["alice"]["needs_update"] = True

    shown = hive("show", "alice").out

    assert "4G  (the hive's default)" in shown
    assert "200%\n" in shown.replace(" ", "")
    assert "needed; hive rebuild alice applies it" in shown


def test_show_of_a_daemon_that_knows_no_machines(host: FakeHost, hive: RunHive) -> None:
    host.add("alice")
    host.refuse("machine", "invalid_argument")

    assert hive("show", "alice").code == 0


def test_ls_marks_who_needs_an_update_for_a_person(
    alice: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.rows["alice"]["needs_update"] = True

    assert hive("ls").out.split("\t")[1] == "running"
    assert "running + update" in on_a_real_terminal(alice, "ls", NO_COLOR="1")


def test_ls_shows_what_is_being_done(alice: FakeHost, hive: RunHive) -> None:
    alice.rows["alice"]["transient"] = "rebuilding"

    assert hive("ls").out.split("\t")[1] == "rebuilding"


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


def test_limits_are_shown(alice: FakeHost, hive: RunHive) -> None:
    assert hive("limits", "alice") == (0, "memory\t4G default\ncpu\t200%\ntasks\t2048 default\n", "")
    assert json.loads(hive("limits", "alice", "--json").out) == {
        "agent": "alice",
        "memory_max_bytes": 4 * 2**30,
        "cpu_quota_percent": 200,
        "tasks_max": 2048,
        "declared": ["cpu"],
    }


def test_a_daemon_that_does_not_tell_defaults_apart_is_believed(alice: FakeHost, hive: RunHive) -> None:
    alice.answers["machine"] = {key: value for key, value in MACHINE.items() if key != "declared"}

    assert hive("limits", "alice").out == "memory\t4G\ncpu\t200%\ntasks\t2048\n"


def test_a_local_agent_has_no_limits(host: FakeHost, hive: RunHive) -> None:
    host.answers["machine"] = {"name": "alice", "isolation": "none", "addresses": []}

    assert hive("limits", "alice") == (
        0,
        "",
        "alice has no limits: it runs as a plain process, not in a machine\n",
    )


def test_a_limit_that_is_refused_is_told(alice: FakeHost, hive: RunHive) -> None:
    alice.refuse("set_limits", "precondition_failed", "cannot limit alice: it has no machine")

    assert hive("limits", "alice", "--memory", "1G") == (
        4,
        "",
        "hive: cannot limit alice: it has no machine\n",
    )


# ── top ─────────────────────────────────────────────────────────────────────────────────────────


def use(monotonic_usec: int, **cpu_usec: int) -> dict[str, Any]:
    usage = [
        {"name": name, "cpu_usec": usec, "memory_bytes": 3 * 2**20, "tasks": 17}
        for name, usec in cpu_usec.items()
    ]
    return {"monotonic_usec": monotonic_usec, "usage": usage}


class Looks:
    def __init__(self, *answers: dict[str, Any]) -> None:
        self._answers: Iterator[dict[str, Any]] = iter(answers)

    def __call__(self, _request: dict[str, Any]) -> dict[str, Any]:
        return next(self._answers)


@pytest.fixture
def busy(alice: FakeHost, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    monkeypatch.setattr(top.time, "sleep", lambda _seconds: None)
    alice.add("bob", isolation="nspawn", machine="h-bob", turn_state="thinking", turn_state_since=None)
    alice.add("carol", running=False, connected=False, wanted="stopped")
    alice.answers["top"] = Looks(
        use(1_000_000, alice=5_000_000, bob=0),
        use(3_000_000, alice=5_100_000, bob=3_000_000),
        use(4_000_000, alice=5_100_000, bob=10_000),
    )
    return alice


def test_top_into_a_pipe_is_one_table_the_busiest_first(busy: FakeHost, hive: RunHive) -> None:
    busy.rows["alice"]["turn_state"] = None

    assert hive("top").out == (
        "bob\trunning\t150.0%\t200%\t3145728\t4294967296\t17\t2048\tthinking\n"
        "alice\trunning\t5.0%\t200%\t3145728\t4294967296\t17\t2048\t-\n"
        "carol\tstopped\t-\t-\t-\t-\t-\t-\t-\n"
    )


def test_top_looks_as_often_as_asked(busy: FakeHost, hive: RunHive) -> None:
    first, second = (json.loads(line) for line in hive("top", "-n", "2", "--json").out.splitlines())

    assert [row["name"] for row in first] == ["bob", "alice", "carol"]
    assert first[0]["cpu_percent"] == 150.0
    # bob's machine has been started anew: nobody knows yet what it takes.
    assert [(row["name"], row.get("cpu_percent")) for row in second] == [
        ("alice", 0.0),
        ("bob", None),
        ("carol", None),
    ]


def test_top_of_nobody(host: FakeHost, hive: RunHive) -> None:
    host.answers["top"] = use(1)

    assert hive("top", "--interval", "0.1") == (0, "", "no agents yet; make one with: hive spawn alice\n")


@pytest.mark.usefixtures("terminal")
def test_top_on_a_terminal_is_a_table(busy: FakeHost, hive: RunHive) -> None:
    lines = [line.split() for line in hive("top", "-n", "1").out.splitlines()]

    assert lines[0] == ["AGENT", "STATE", "CPU", "OF", "MEMORY", "OF", "TASKS", "OF", "TURN"]
    assert lines[1] == ["bob", "running", "150.0%", "200%", "3.0", "MiB", "4G", "17", "2048", "thinking"]


def test_top_on_a_terminal_shows_itself_again_in_place(busy: FakeHost) -> None:
    shown = on_a_real_terminal(busy, "top", "-n", "2", "--interval", "0.1")

    assert shown.count("AGENT") >= 2
    assert "\x1b[1A" in shown  # up, over what was there


# ── image ───────────────────────────────────────────────────────────────────────────────────────


def test_images_are_listed(host: FakeHost, hive: RunHive) -> None:
    rows = [{"name": "debian", "kind": "tree", "path": "/m/debian", "used_by": ["alice", "bob"]}]
    host.answers["images"] = {"images": rows}

    assert hive("image", "ls") == (0, "debian\ttree\t/m/debian\talice, bob\n", "")
    assert json.loads(hive("image", "ls", "--json").out) == rows


def test_a_hive_without_images_is_friendly(host: FakeHost, hive: RunHive) -> None:
    host.answers["images"] = {"images": []}

    assert hive("image", "ls") == (0, "", "no images yet; make one with: hive image build debian\n")


def test_an_image_in_use_is_kept(host: FakeHost, hive: RunHive) -> None:
    host.refuse("image_rm", "precondition_failed", "cannot delete image debian: alice uses it")

    assert hive("image", "rm", "debian") == (4, "", "hive: cannot delete image debian: alice uses it\n")


class Became(Exception):
    pass


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What took this process's place; what would come after it does not."""
    found: list[list[str]] = []

    def become(argv: list[str], **_more: Any) -> NoReturn:
        found.append(argv)
        raise programs.Problem(0, "gone")

    monkeypatch.setattr(programs, "become", become)
    return found


OWN = [sys.executable, "-I", "-m", "hive_core"]


def test_images_are_listed_without_a_daemon(tmp_path: Path, became: list[list[str]], hive: RunHive) -> None:
    hive("image", "ls", "--socket", str(tmp_path / "none"))

    assert became == [[*OWN, "image", "ls"]]


@pytest.mark.parametrize(
    "words",
    [
        ["add", "debian", "/tmp/debian.tar"],
        ["build", "debian"],
        ["build", "debian", "--name", "tools", "--include", "git,nodejs"],
    ],
)
def test_images_are_made_by_root_without_the_daemon(
    words: list[str], became: list[list[str]], hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    hive("image", *words)

    assert became == [[*OWN, "image", *words]]


def test_others_are_told_how_root_does_it(hive: RunHive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    assert hive("image", "add", "debian", "a b.tar") == (
        4,
        "",
        (
            "hive: cannot add an image: only root may write to the place of images\n"
            "hint: sudo hive image add debian 'a b.tar'\n"
        ),
    )


# ── doctor ──────────────────────────────────────────────────────────────────────────────────────

CHECKS = [
    {"name": "systemd", "status": "ok", "text": "version 252"},
    {"name": "cgroups", "status": "warn", "text": "v2, no memory", "mend": "cat x"},
    {
        "name": "images",
        "status": "fail",
        "text": "none\x1b[2J",
        "mend": "hive image build debian\nor add one",
    },
]


@pytest.fixture
def seen(host: FakeHost) -> FakeHost:
    host.answers = {"doctor": {"checks": CHECKS}, "status": {"software": f"hive-core {VERSION}"}}
    return host


def test_doctor_into_a_pipe_is_a_line_a_point(seen: FakeHost, hive: RunHive) -> None:
    assert hive("doctor") == (
        1,
        (
            f"ok\tthis program\thive {VERSION}, as the daemon\t-\n"
            "ok\tsystemd\tversion 252\t-\n"
            "warn\tcgroups\tv2, no memory\tcat x\n"
            "fail\timages\tnone\\x1b[2J\thive image build debian\\nor add one\n"
        ),
        "",
    )


@pytest.mark.usefixtures("terminal")
def test_doctor_on_a_terminal_says_how_to_mend_it(seen: FakeHost, hive: RunHive) -> None:
    assert hive("doctor").out == (
        f"✓ this program — hive {VERSION}, as the daemon\n"
        "✓ systemd — version 252\n"
        "! cgroups — v2, no memory\n"
        "    cat x\n"
        "✗ images — none\\x1b[2J\n"
        "    hive image build debian\n"
        "    or add one\n"
    )


def test_doctor_is_content_when_nothing_failed(seen: FakeHost, hive: RunHive) -> None:
    seen.answers["doctor"] = {"checks": CHECKS[:2]}

    result = hive("doctor", "--json")

    assert result.code == 0
    assert json.loads(result.out)[1:] == CHECKS[:2]


def test_doctor_sees_a_daemon_of_another_version(seen: FakeHost, hive: RunHive) -> None:
    seen.answers["status"] = {"software": "hive-core 0.0.1"}

    first = hive("doctor").out.splitlines()[0].split("\t")

    assert first[0] == "warn"
    assert "the daemon 0.0.1" in first[2]
    assert first[3] == "systemctl restart hive-core"


def test_beside_a_local_hive_hive_core_looks(host: FakeHost, became: list[list[str]], hive: RunHive) -> None:
    host.refuse("doctor", "precondition_failed", "cannot examine the host: this hive is a local one")

    hive("doctor")

    assert became == [[*OWN, "doctor"]]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_without_a_daemon_hive_core_looks(
    options: list[str], tmp_path: Path, became: list[list[str]], hive: RunHive
) -> None:
    result = hive("doctor", "--socket", str(tmp_path / "none"), *options)

    assert became == [[*OWN, "doctor", *options]]
    assert result.err.startswith("cannot reach the daemon at ")


def test_a_second_signal_does_not_keep_us_from_ending_what_was_started() -> None:
    """`timeout` sends one to its child and one to the whole group."""
    script = """
import os, signal
from hive_core.cli import programs
try:
    with programs.signals_raise():
        os.kill(os.getpid(), signal.SIGTERM)
except programs.Ended as ended:
    os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned up", ended.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)

    assert (done.returncode, done.stdout) == (0, "cleaned up 143\n")

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hive_core.cli import programs
from hive_core.wire.host import decode_request

from .conftest import RunHive
from .fake_host import FakeHost

ROWS: list[dict[str, Any]] = [
    {
        "what": "acked messages",
        "goes": 3,
        "stays": 4,
        "at_least": True,
        "why": "acked longer than 30 days ago go",
    },
    {"what": "waiting messages", "goes": 0, "stays": 2, "why": "not acked: never too old"},
    {"what": "events", "agent": "alice", "why": "left alone: it is \x1b[2Jleased", "trouble": True},
]
SWEEP: dict[str, Any] = {
    "number": 7, "started_at": "2026-09-07T12:34:56Z", "seconds": 1.25, "running": False, "messages": 3,
    "events": 5, "turn_stats": 0, "troubles": 0, "freed_bytes": 0, "longest_slice_seconds": 0.0021,
}  # fmt: skip
ARCHIVE: dict[str, Any] = {
    "path": "/h/state/backups/hive-20260907T123456Z.tar.gz", "kind": "hive", "size_bytes": 2048,
    "created_at": "2026-09-07T12:34:56Z", "schema": 3, "agents": ["alice", "bob"], "messages": 42,
}  # fmt: skip


def reply(rows: list[dict[str, Any]] | None = None, **sweep: Any) -> dict[str, Any]:
    return {"rows": rows or [], "sweep": SWEEP | sweep, "database_bytes": 4096, "free_bytes": 0}


def test_a_dry_run_says_what_goes_what_stays_and_why(host: FakeHost, hive: RunHive) -> None:
    host.answers["vacuum"] = {"rows": ROWS, "database_bytes": 4096, "free_bytes": 1024}

    done = hive("vacuum", "--dry-run")

    assert done.code == 0
    assert [line.split("\t") for line in done.out.splitlines()] == [
        ["acked messages", "-", "3+", "4+", "acked longer than 30 days ago go"],
        ["waiting messages", "-", "0", "2", "not acked: never too old"],
        ["events", "alice", "-", "-", "left alone: it is \\x1b[2Jleased"],
    ]
    assert "4.0 KiB, 1.0 KiB of it free" in done.err
    assert host.asked == [{"cmd": "vacuum", "dry_run": True}]


def test_a_sweep_is_waited_for(host: FakeHost, hive: RunHive) -> None:
    answers = [{"rows": [], "database_bytes": 0, "free_bytes": 0}, reply(running=True), reply()]
    host.answers["vacuum"] = lambda _request: answers.pop(0)

    done = hive("vacuum", "--json")

    assert json.loads(done.out) == SWEEP | {"rows": []}
    assert host.asked == [{"cmd": "vacuum"}, {"cmd": "vacuum"}, {"cmd": "vacuum", "number": 7}]


def test_what_was_left_alone_is_said_and_is_no_success(host: FakeHost, hive: RunHive) -> None:
    host.answers["vacuum"] = reply(ROWS[2:])
    done = hive("vacuum")
    assert done.code == 1
    assert "events of alice: left alone: it is \\x1b[2Jleased" in done.err
    assert "messages\t3\n" in done.out


@pytest.mark.parametrize(
    ("typed", "request_"),
    [
        ("vacuum --dry-run", {"cmd": "vacuum", "dry_run": True}),
        ("backup create", {"cmd": "backup_create"}),
        ("backup ls", {"cmd": "backups"}),
        ("backup verify /x.tar.gz", {"cmd": "backup_verify", "path": "/x.tar.gz"}),
        ("export alice", {"cmd": "export", "agent": "alice"}),
        ("import /x.tar.gz", {"cmd": "import", "path": "/x.tar.gz"}),
        ("import /x.tar.gz --name bob", {"cmd": "import", "path": "/x.tar.gz", "name": "bob"}),
    ],
)
def test_what_is_typed_becomes_a_request_that_the_daemon_reads(
    typed: str, request_: dict[str, Any], host: FakeHost, hive: RunHive
) -> None:
    host.answers |= {
        "vacuum": {"rows": [], "database_bytes": 0, "free_bytes": 0},
        "backups": {"archives": [ARCHIVE]},
        **{cmd: {"archive": ARCHIVE} for cmd in ("backup_create", "backup_verify", "export", "import")},
    }
    assert hive(*typed.split()).code == 0
    assert host.asked == [request_]
    decode_request(json.dumps(request_).encode())


def test_a_backup_is_copied_for_its_owner_alone(host: FakeHost, hive: RunHive, tmp_path: Path) -> None:
    made, target = tmp_path / "hive-1.tar.gz", tmp_path / "usb"
    made.write_bytes(b"packed")
    target.mkdir()
    host.answers["backup_create"] = {"archive": ARCHIVE | {"path": str(made)}}

    done = hive("backup", "create", str(target))

    copy = target / "hive-1.tar.gz"
    assert done.out == f"{copy}\n"
    assert copy.read_bytes() == b"packed"
    assert copy.stat().st_mode & 0o777 == 0o600
    again = hive("backup", "create", str(target))
    assert again.code == 1
    assert "it is complete in" in again.err


def test_a_name_alone_is_looked_for_here_and_then_among_the_backups(
    host: FakeHost, hive: RunHive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    host.answers |= {"backups": {"archives": [ARCHIVE]}, "backup_verify": {"archive": ARCHIVE}}
    name = os.path.basename(ARCHIVE["path"])
    hive("backup", "verify", name)
    assert host.asked[-1]["path"] == ARCHIVE["path"]
    (tmp_path / name).touch()
    hive("backup", "verify", name)
    assert host.asked[-1]["path"] == str(tmp_path / name)


def test_an_archive_that_is_damaged_is_no_success(host: FakeHost, hive: RunHive) -> None:
    host.answers["backup_verify"] = {"archive": ARCHIVE | {"problem": "it is damaged"}}
    done = hive("backup", "verify", "/x")
    assert done.code == 1
    assert "it is damaged" in done.err


@pytest.mark.parametrize(
    ("typed", "options"),
    [("backup restore x.tar.gz", []), ("backup restore x.tar.gz --home /h", ["--home", "/h"])],
)
def test_restore_becomes_the_program_that_does_it(
    typed: str, options: list[str], host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[str] = []

    def become(argv: list[str], **_more: Any) -> NoReturn:
        became.extend(argv)
        raise programs.Problem(0, "gone")

    monkeypatch.setattr(programs, "become", become)
    hive(*typed.split())

    assert became[-len(options) - 3 :] == ["restore", *options, "--", "x.tar.gz"]
    assert host.asked == []


@pytest.mark.parametrize("typed", ["backup ls x", "backup verify", "backup restore", "backup burn", "import"])
def test_what_makes_no_sense_is_refused_here(typed: str, host: FakeHost, hive: RunHive) -> None:
    assert hive(*typed.split()).code == 2
    assert host.asked == []


def test_backups_into_a_pipe(host: FakeHost, hive: RunHive) -> None:
    host.answers["backups"] = {"archives": [ARCHIVE, ARCHIVE | {"problem": "it is damaged"}]}
    lines = [line.split("\t") for line in hive("backup", "ls").out.splitlines()]
    assert lines[0] == ["hive", "2026-09-07T12:34:56Z", "2048", "2", "42", ARCHIVE["path"]]
    assert lines[1][-1] == "it is damaged"


def test_a_backup_can_be_read_without_a_daemon(hive: RunHive, tmp_path: Path) -> None:
    result = hive("--home", str(tmp_path / "none"), "backup", "verify", "/x.tar.gz")

    assert result.code == 5
    assert "hint: without a daemon: hive-core verify /x.tar.gz" in result.err

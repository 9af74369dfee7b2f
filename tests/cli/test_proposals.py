"""hive config, propose, request-spawn, init-config, update-inputs, revive, tombstones, purge."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hive_core.cli.commands import lifecycle, proposals

from .conftest import RunHive
from .fake_host import FakeHost

TOMBSTONE: dict[str, Any] = {
    "name": "alice",
    "destroyed_at": "2026-01-31T12:00:00Z",
    "bytes": 2048,
    "has_credentials": True,
}


@pytest.fixture
def tomb(host: FakeHost) -> FakeHost:
    host.answers["tombstones"] = {"tombstones": [TOMBSTONE]}
    return host


# ── asking ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "request_line"),
    [
        (("propose", "alice"), {"cmd": "request_apply_commit", "agent": "alice"}),
        (
            ("propose", "alice", "0123abc", "-m", "jq"),
            {"cmd": "request_apply_commit", "agent": "alice", "commit_ref": "0123abc", "description": "jq"},
        ),
        (("request-spawn", "dave"), {"cmd": "request_spawn", "name": "dave"}),
        (
            ("init-config", "dave", "-m", "to be reviewed"),
            {"cmd": "request_init_config", "name": "dave", "description": "to be reviewed"},
        ),
        (
            ("update-inputs", "nixpkgs", "hyperhive"),
            {"cmd": "request_update_meta_inputs", "inputs": ["nixpkgs", "hyperhive"]},
        ),
    ],
)
def test_a_request_prints_the_id_of_its_approval(
    hive: RunHive, host: FakeHost, argv: tuple[str, ...], request_line: dict[str, Any]
) -> None:
    host.answers[request_line["cmd"]] = {"id": 7}

    assert hive(*argv) == (0, "7\n", "")
    assert hive(*argv, "--json").out == '{"id":7}\n'
    assert [request for request in host.asked if request["cmd"] != "approvals"] == [request_line] * 2


def test_who_forgot_to_commit_is_told(hive: RunHive, host: FakeHost) -> None:
    row = {"id": 7, "kind": "apply_commit", "fetched_sha": "c" * 40, "base_sha": "b" * 40}
    host.answers |= {"request_apply_commit": {"id": 7}, "approvals": {"approvals": [row]}}
    assert hive("propose", "alice") == (0, "7\n", "")

    row["base_sha"] = "c" * 40
    result = hive("propose", "alice")

    assert (result.code, result.out) == (0, "7\n")
    assert result.err == (
        "alice runs commit cccccccccccc already; what was changed and not committed is not in it\n"
    )


@pytest.mark.usefixtures("terminal")
def test_a_person_is_told_that_it_waits(hive: RunHive, host: FakeHost) -> None:
    host.answers["request_spawn"] = {"id": 7}

    assert hive("request-spawn", "dave").err == "it waits for a decision: hive approve 7\n"


@pytest.mark.parametrize("commit", ["main", "HEAD", "-u", "0123ab", "0123abcz", "0" * 41])
def test_only_a_commit_can_be_proposed(hive: RunHive, host: FakeHost, commit: str) -> None:
    result = hive("propose", "alice", "--", commit)

    assert (result.code, host.requests) == (2, [])
    assert "a commit is 7 to 40 hex digits" in result.err


def test_config_prints_a_path_and_nothing_else(hive: RunHive, host: FakeHost) -> None:
    host.answers["config"] = {"path": "/x/configs/alice/config"}

    assert hive("config", "alice") == (0, "/x/configs/alice/config\n", "")
    assert json.loads(hive("config", "alice", "--json").out) == {
        "agent": "alice",
        "path": "/x/configs/alice/config",
    }
    assert host.asked[0] == {"cmd": "config", "name": "alice"}


def test_a_configuration_of_another_user_comes_with_a_warning(
    hive: RunHive, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.answers["config"] = {"path": str(tmp_path)}
    assert hive("config", "alice").err == ""

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for uid, says in ((1000, ""), (0, "it is root's: edit and commit there as root\n"), (4711, "run no git")):
        monkeypatch.setattr(proposals, "_owner", lambda _, uid=uid: uid)
        result = hive("config", "alice")

        assert result.out == f"{tmp_path}\n"
        assert says in result.err
        assert bool(says) == bool(result.err)


# ── tombstones ──────────────────────────────────────────────────────────────────────────────────


def test_tombstones_into_a_pipe_are_a_line_each(hive: RunHive, host: FakeHost) -> None:
    uncounted = {"name": "bob", "destroyed_at": "2026-01-31T12:00:00Z"}
    host.answers["tombstones"] = {"tombstones": [TOMBSTONE, uncounted]}

    assert hive("tombstones").out.splitlines() == [
        "alice\t2026-01-31T12:00:00Z\t2048\tlogin",
        "bob\t2026-01-31T12:00:00Z\t-\t-",
    ]


@pytest.mark.usefixtures("terminal")
def test_tombstones_on_a_terminal_have_sizes(hive: RunHive, tomb: FakeHost) -> None:
    heading, row = hive("tombstones").out.splitlines()

    assert heading.split() == ["AGENT", "DESTROYED", "SIZE", "KEPT"]
    assert row.split()[-3:] == ["2.0", "KiB", "login"]


def test_where_nothing_is_kept_that_is_said(hive: RunHive, host: FakeHost) -> None:
    host.answers["tombstones"] = {"tombstones": []}

    assert hive("tombstones") == (0, "", "nothing is kept of a destroyed agent\n")


def test_revive_asks_for_a_spawn(hive: RunHive, tomb: FakeHost) -> None:
    tomb.answers["request_spawn"] = {"id": 7}

    assert hive("revive", "alice", "-m", "after all").out == "7\n"
    assert tomb.asked[-1] == {"cmd": "request_spawn", "name": "alice", "description": "after all"}


@pytest.mark.parametrize("verb", ["revive", "purge"])
@pytest.mark.parametrize(("name", "code"), [("carol", 4), ("dave", 3), ("..", 3)])
def test_only_what_was_destroyed_can_be(
    hive: RunHive, tomb: FakeHost, verb: str, name: str, code: int
) -> None:
    tomb.add("carol")

    result = hive(verb, name)

    assert result.code == code
    assert result.err.startswith(f"hive: cannot {verb} {name}: ")
    assert [request["cmd"] for request in tomb.asked] == ["tombstones"]


def test_purge_without_a_person_needs_the_name_twice(hive: RunHive, tomb: FakeHost) -> None:
    result = hive("purge", "alice")

    assert (result.code, tomb.asked) == (2, [{"cmd": "tombstones"}])
    assert result.err.endswith("hint: say --confirm alice\n")


@pytest.mark.parametrize(("confirmed", "code"), [("alice", 0), ("alcie", 4)])
def test_a_script_says_the_name_twice(hive: RunHive, tomb: FakeHost, confirmed: str, code: int) -> None:
    result = hive("purge", "alice", "--confirm", confirmed)

    assert result.code == code
    asked = [{"cmd": "purge", "name": "alice", "confirm": "alice"}] if code == 0 else []
    assert tomb.asked[1:] == asked


def test_purge_waits_until_nothing_is_left(hive: RunHive, tomb: FakeHost) -> None:
    looks = iter([[{"name": "alice", "wanted": "purged"}], []])
    tomb.answers["agent_status"] = lambda _request: {"agent_statuses": next(looks)}

    result = hive("purge", "alice", "--confirm", "alice")

    assert (result.code, result.out) == (0, "alice is purged; nothing is kept of it\n")
    assert next(looks, None) is None


@pytest.mark.parametrize(("typed", "code"), [("alice", 0), ("y", 4)])
def test_a_person_types_the_name(
    typed: str, code: int, hive: RunHive, tomb: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "a_person_is_there", lambda: True)

    assert hive("purge", "alice", stdin=f"{typed}\n".encode()).code == code
    assert len(tomb.asked) == (2 if code == 0 else 1)

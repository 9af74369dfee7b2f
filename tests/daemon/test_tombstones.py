"""What stays of an agent that was destroyed, and how it ends."""

import json
import os

import pytest

from hive_core.wire.client import RequestFailed

from .kit import Daemon, raw_line, refusal, wait_until


@pytest.fixture
def gone(daemon: Daemon) -> Daemon:
    """A hive whose alice was destroyed."""
    daemon.start()
    daemon.spawn("alice")
    (daemon.state("alice") / "notes").write_bytes(b"x" * 100_000)
    destroy(daemon, "alice")
    return daemon


def destroy(daemon: Daemon, name: str) -> None:
    daemon.ask("destroy", name=name)
    wait_until(lambda: name not in daemon.ask("list")["agents"], f"{name} is gone")


def tombstones(daemon: Daemon) -> dict[str, dict[str, object]]:
    return {row["name"]: row for row in daemon.ask("tombstones")["tombstones"]}


def test_a_destroyed_agent_has_a_tombstone_and_a_live_one_none(gone: Daemon) -> None:
    gone.spawn("bob")

    (row,) = tombstones(gone).values()

    assert row["name"] == "alice"
    assert str(row["destroyed_at"]).endswith("Z")
    assert 100_000 < int(str(row["bytes"])) < 2**22
    assert row["has_credentials"] is False


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ('{"claudeAiOauth": {"accessToken": "a"}}', True),
        ('{"claudeAiOauth": {"refreshToken": "a"}}', True),
        ('{"claudeAiOauth": {"accessToken": ""}}', False),
        ('{"claudeAiOauth": []}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_a_login_that_is_kept_is_shown(gone: Daemon, text: str, counts: bool) -> None:
    claude = gone.home / "state/agents/alice/claude"
    (claude / ".credentials.json").write_text(text)

    assert tombstones(gone)["alice"]["has_credentials"] is counts


def test_what_an_agent_left_to_be_followed_or_waited_for_is_not(gone: Daemon) -> None:
    claude, state = gone.home / "state/agents/alice/claude", gone.state("alice")
    os.mkfifo(claude / ".credentials.json")
    (state / "all").symlink_to("/usr")
    deep = state
    for _ in range(200):
        deep = deep / "d"
        deep.mkdir()

    row = tombstones(gone)["alice"]

    assert row["has_credentials"] is False
    assert int(str(row["bytes"])) < 2**23


def test_one_that_comes_back_has_its_files_and_no_tombstone(gone: Daemon) -> None:
    gone.spawn("alice")

    assert tombstones(gone) == {}
    assert (gone.state("alice") / "notes").stat().st_size == 100_000


def test_a_purge_needs_the_name_and_leaves_nothing(gone: Daemon) -> None:
    for confirm in ("", "Alice", "alice "):
        refused = refusal(lambda confirm=confirm: gone.ask("purge", name="alice", confirm=confirm))
        assert refused.code == "invalid_argument"
        assert "confirm it with its name" in str(refused)
    for place in ("applied", "releases", "configs"):
        (gone.home / "state" / place / "alice" / "x").mkdir(parents=True)
    assert "alice" in tombstones(gone)

    gone.ask("purge", name="alice", confirm="alice")

    wait_until(lambda: tombstones(gone) == {}, "nothing is kept")
    wait_until(lambda: not gone.rows_of("select 1 from agents where name = 'alice'"), "no row is")
    for place in ("agents", "applied", "releases", "configs"):
        assert not (gone.home / "state" / place / "alice").exists()
    assert refusal(lambda: gone.ask("purge", name="alice", confirm="alice")).code == "not_found"


def test_a_live_agent_is_not_purged(gone: Daemon) -> None:
    gone.spawn("alice")

    refused = refusal(lambda: gone.ask("purge", name="alice", confirm="alice"))

    assert (refused.code, refused.reply["reason"]) == ("conflict", "exists")
    assert gone.row("alice")["running"]


@pytest.mark.parametrize("name", ["..", ".", "../alice", "alice/..", "/etc", "", "-r", "a b", "alice\0", "*"])
def test_what_is_no_name_never_reaches_the_disk(gone: Daemon, name: str) -> None:
    line = json.dumps({"cmd": "purge", "name": name, "confirm": name}).encode()

    answer = raw_line(gone.host_socket, line + b"\n")

    assert (answer["ok"], answer["code"]) == (False, "invalid_argument")
    assert (gone.state("alice") / "notes").exists()


def test_nobody_destroys_the_manager(daemon: Daemon) -> None:
    daemon.config_path.write_text("[approvals]\nmanager = true\n")
    daemon.start()
    daemon.wait_row("manager", connected=True)

    for cmd, fields in (
        ("destroy", {}),
        ("destroy", {"purge": True}),
        ("purge", {"confirm": "manager"}),
    ):
        with pytest.raises(RequestFailed) as refused:
            daemon.ask(cmd, name="manager", **fields)
        assert refused.value.code == "conflict"
    daemon.ask("kill", name="manager")
    daemon.wait_row("manager", running=False, wanted="stopped")
    daemon.stop()
    daemon.start()
    assert daemon.row("manager")["wanted"] == "stopped"

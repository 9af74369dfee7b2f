"""A lifecycle verb comes back when what was asked for is so."""

import json
from typing import Any

import pytest

from hive_core.cli.commands import lifecycle

from .conftest import RunHive
from .fake_host import FakeHost, row


class Changes:
    """A roster that becomes the next one each time it is looked at."""

    def __init__(self, *rosters: list[dict[str, Any]]) -> None:
        self._rosters = list(rosters)
        self.looks = 0

    def __call__(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.looks += 1
        roster = self._rosters.pop(0) if len(self._rosters) > 1 else self._rosters[0]
        return {"agent_statuses": roster}


ABSENT: list[dict[str, Any]] = []
STARTING = [row("alice") | {"running": False, "connected": False}]
UNCONNECTED = [row("alice") | {"connected": False}]
UP = [row("alice")]
STOPPING = [row("alice") | {"wanted": "stopped"}]
STOPPED = [row("alice") | {"wanted": "stopped", "running": False, "connected": False}]
FAILED = [row("alice") | {"running": False, "connected": False, "failed": True, "failure": "exit status 3"}]


@pytest.fixture(autouse=True)
def looks_follow_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "FIRST_LOOK_S", 0.001)
    monkeypatch.setattr(lifecycle, "SLOWEST_LOOK_S", 0.002)


@pytest.mark.parametrize("verb", ["spawn", "start"])
def test_spawn_and_start_wait_until_it_is_connected(verb: str, host: FakeHost, hive: RunHive) -> None:
    looks = host.answers["agent_status"] = Changes(ABSENT, STARTING, UNCONNECTED, UP)

    assert hive(verb, "alice") == (0, "alice is running\n", "")

    assert looks.looks == 4


def test_stop_waits_until_it_does_not_run(host: FakeHost, hive: RunHive) -> None:
    looks = host.answers["agent_status"] = Changes(UP, STOPPING, STOPPED)

    assert hive("stop", "alice") == (0, "alice is stopped\n", "")

    assert looks.looks == 3


@pytest.mark.parametrize("verb", ["restart", "rebuild"])
def test_restart_and_rebuild_wait_for_another_process(verb: str, host: FakeHost, hive: RunHive) -> None:
    anew = [row("alice") | {"pid": 4712}]
    looks = host.answers["agent_status"] = Changes(UP, UP, UP, STARTING, anew)

    assert hive(verb, "alice") == (0, "alice is running\n", "")

    assert looks.looks == 5


@pytest.mark.parametrize("doing", ["restarting", "rebuilding", "stopping"])
def test_what_is_still_being_done_is_waited_for(doing: str, host: FakeHost, hive: RunHive) -> None:
    still = [row("alice") | {"pid": 4712, "transient": doing}]
    looks = host.answers["agent_status"] = Changes(UP, still, still, [row("alice") | {"pid": 4712}])

    assert hive("rebuild", "alice") == (0, "alice is running\n", "")

    assert looks.looks == 4


def test_destroy_waits_until_it_is_gone(host: FakeHost, hive: RunHive) -> None:
    looks = host.answers["agent_status"] = Changes(UP, STOPPING, ABSENT)

    said = "alice is destroyed; a spawn takes its state up again\n"
    assert hive("destroy", "alice") == (0, said, "")

    assert looks.looks == 3


def test_no_wait_does_not_look(host: FakeHost, hive: RunHive) -> None:
    looks = host.answers["agent_status"] = Changes(STARTING)

    assert hive("spawn", "alice", "--no-wait") == (0, "alice will be running\n", "")

    assert looks.looks == 0


def test_json_shows_the_rows_as_they_are_then(host: FakeHost, hive: RunHive) -> None:
    host.answers["agent_status"] = Changes(STARTING, UP)

    assert json.loads(hive("spawn", "alice", "--json").out) == UP


@pytest.mark.parametrize(
    ("verb", "roster", "said"),
    [
        ("spawn", STARTING, "alice does not run yet"),
        ("start", UNCONNECTED, "alice runs but is not connected yet"),
        ("stop", STOPPING, "alice still runs"),
        ("destroy", UP, "alice is still there"),
        ("restart", UP, "alice has not stopped yet"),
        ("start", [STARTING[0] | {"transient": "starting"}], "alice does not run yet (starting)"),
        ("start", [UP[0] | {"transient": "rebuilding"}], "alice is rebuilding still"),
        (
            "spawn",
            [STARTING[0] | {"failure": "killed by SIGSEGV"}],
            "alice does not run yet (killed by SIGSEGV)",
        ),
    ],
)
def test_what_is_not_so_in_time_is_named(
    verb: str, roster: list[dict[str, Any]], said: str, host: FakeHost, hive: RunHive
) -> None:
    host.answers["agent_status"] = Changes(roster)

    result = hive(verb, "alice", "--timeout", "0.05")

    assert (result.code, result.out) == (6, "")
    assert result.err.startswith(f"hive: cannot wait longer than 0.05 s: {said}\nhint: ")


def test_a_graceful_stop_that_takes_long_hints_at_now(host: FakeHost, hive: RunHive) -> None:
    host.answers["agent_status"] = Changes(STOPPING)

    assert "hive stop --now" in hive("stop", "alice", "--timeout", "0.05").err
    assert "hive stop --now" not in hive("stop", "alice", "--now", "--timeout", "0.05").err


@pytest.mark.parametrize("verb", ["spawn", "start", "restart", "rebuild"])
def test_an_agent_that_failed_says_why(verb: str, host: FakeHost, hive: RunHive) -> None:
    host.answers["agent_status"] = Changes(STARTING, STARTING, FAILED)

    assert hive(verb, "alice") == (1, "", "hive: cannot start alice: exit status 3\nhint: hive logs alice\n")


def test_what_kept_a_machine_from_starting_is_said_once(host: FakeHost, hive: RunHive) -> None:
    why = "cannot start alice: there is no image yet"
    host.answers["agent_status"] = Changes([FAILED[0] | {"failure": why}])

    assert hive("start", "alice") == (
        1,
        "",
        f"hive: {why}\nhint: hive start alice, once that is mended\n",
    )


@pytest.mark.parametrize(("verb", "roster"), [("stop", FAILED), ("destroy", ABSENT)])
def test_a_failed_agent_can_be_stopped_and_destroyed(
    verb: str, roster: list[dict[str, Any]], host: FakeHost, hive: RunHive
) -> None:
    host.answers["agent_status"] = Changes(FAILED, roster)

    assert hive(verb, "alice").code == 0


def test_one_refusal_does_not_keep_the_others_from_theirs(host: FakeHost, hive: RunHive) -> None:
    host.add("alice")
    host.add("carol")

    def spawn(request: dict[str, Any]) -> dict[str, Any]:
        if request["name"] == "bob":
            return {"ok": False, "code": "conflict", "error": "cannot spawn bob: it exists already"}
        return {}

    host.answers["spawn"] = spawn

    result = hive("spawn", "alice", "bob", "carol")

    assert result == (
        7,
        "alice is running\ncarol is running\n",
        "hive: cannot spawn bob: it exists already\n",
    )


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_all_of_none_is_done_at_once(verb: str, host: FakeHost, hive: RunHive) -> None:
    assert hive(verb, "--all") == (0, "", "there are no agents\n")


def test_all_waits_for_every_agent(host: FakeHost, hive: RunHive) -> None:
    host.answers["agent_status"] = Changes([*UP, row("bob")], [*STARTING, row("bob")], [*UP, row("bob")])

    assert hive("start", "--all") == (0, "alice is running\nbob is running\n", "")


def test_the_daemon_may_go_away_in_between(host: FakeHost, hive: RunHive) -> None:
    looks = iter([{"agent_statuses": STARTING}, b"HTTP/1.1 400\n"])
    host.answers["agent_status"] = lambda _request: next(looks)

    assert hive("spawn", "alice").code == 5


# ── purge ───────────────────────────────────────────────────────────────────────────────────────


def test_purge_without_a_person_needs_yes(host: FakeHost, hive: RunHive) -> None:
    result = hive("destroy", "alice", "--purge")

    assert result == (2, "", "hive: cannot purge alice: nobody is there to ask\nhint: say --yes\n")
    assert host.requests == []


@pytest.mark.parametrize(("typed", "code"), [("alice", 0), ("alcie", 4), ("y", 4)])
def test_purge_asks_for_the_name(
    typed: str, code: int, host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "a_person_is_there", lambda: True)

    result = hive("destroy", "alice", "--purge", stdin=f"{typed}\n".encode())

    assert result.code == code
    assert host.asked == ([{"cmd": "destroy", "name": "alice", "purge": True}] if code == 0 else [])


def test_ctrl_d_at_the_question_changes_nothing(
    host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "a_person_is_there", lambda: True)

    assert hive("destroy", "alice", "--purge").code == 130
    assert host.requests == []

"""hive deploys, history, rollback."""

import json
from typing import Any

import pytest

from .conftest import RunHive
from .fake_host import FakeHost

SHA = "0123456789abcdef0123456789abcdef01234567"


def moment(second: float) -> str:
    return f"2026-01-31T12:00:{second:06.3f}Z"


DONE: dict[str, Any] = {
    "id": 9,
    "agent": "alice",
    "kind": "apply",
    "step": "done",
    "requested_at": moment(0),
    "approval_id": 7,
    "sha": SHA,
    "tag": "deployed/7",
    "started_at": moment(1),
    "finished_at": moment(16),
    "steps": [
        {"step": "queued", "at": moment(0)},
        {"step": "preparing", "at": moment(1)},
        {"step": "building", "at": moment(1.2)},
        {"step": "activating", "at": moment(13.2)},
        {"step": "done", "at": moment(16)},
    ],
}
FAILED = DONE | {"id": 10, "step": "failed", "error": "no such image: \x1bx\nsecond", "steps": []}
HISTORY = [
    {"tag": "deployed/0", "sha": SHA, "at": moment(0), "subject": "begin"},
    {"tag": "failed/6", "sha": SHA, "at": moment(1), "subject": "more", "note": "it broke"},
    {"tag": "deployed/7", "sha": SHA, "at": moment(2), "subject": "jq", "running": True},
]


def test_deploys_into_a_pipe_are_a_line_each(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = {"deploys": [DONE, FAILED]}

    result = hive("deploys", "alice", "-n", "2")

    assert host.asked == [{"cmd": "deploys", "limit": 2, "agent": "alice"}]
    steps = "preparing 0.2 s, building 12 s, activating 2.8 s"
    assert result.out.splitlines() == [
        "\t".join(["9", "alice", "apply", "done", "deployed/7", SHA, moment(0), "15 s", steps, "-"]),
        "\t".join(["10", "alice", "apply", "failed", "deployed/7", SHA, moment(0), "15 s", "-",
                   "no such image: \\x1bx\\nsecond"]),
    ]  # fmt: skip


@pytest.mark.usefixtures("terminal")
def test_deploys_on_a_terminal_say_what_took_how_long_or_went_wrong(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = {"deploys": [DONE, FAILED]}

    heading, done, failed = hive("deploys").out.splitlines()

    assert heading.split() == ["ID", "AGENT", "KIND", "STEP", "WHEN", "TOOK", "ABOUT"]
    assert done.split()[:4] == ["9", "alice", "apply", "done"]
    assert "15 s" in done
    assert "deployed/7: building 12 s" in done
    assert failed.split()[:4] == ["10", "alice", "apply", "failed"]


def test_no_deploys_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = {"deploys": []}

    assert hive("deploys") == (0, "", "no deploys yet\n")
    assert hive("deploys", "alice").err == "no deploys of alice\n"


@pytest.mark.usefixtures("terminal")
def test_following_shows_steps_and_lines(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = [
        {"deploys": [DONE | {"step": "building", "steps": DONE["steps"][:3]}]},
        {"id": 9, "lines": ["unpacking\tit", "\x1b[2J"]},
        {"deploys": [FAILED]},
    ]

    result = hive("deploys", "-f")

    assert host.asked == [{"cmd": "deploys", "limit": 5, "follow": True}]
    assert result.out.splitlines() == [
        "12:00:01  deploy 9 (apply alice deployed/7) building",
        "          │ unpacking       it",
        "          │ \\x1b[2J",
        "12:00:00  deploy 10 (apply alice deployed/7) failed",
    ]
    assert result.code == 5


def test_following_into_a_pipe_is_records(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = [{"deploys": [DONE]}, {"id": 9, "lines": ["a\tb"]}]

    lines = hive("deploys", "-f").out.splitlines()

    assert lines[0].startswith("deploy\t9\talice\tapply\tdone\tdeployed/7\t")
    assert lines[1] == "log\t9\ta\\tb"


def test_the_log_of_one(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploy_log"] = {"lines": ["one", "two\x1b"]}

    assert hive("deploys", "log", "9").out == "one\ntwo\\x1b\n"
    assert json.loads(hive("deploys", "log", "9", "-n", "5", "--json").out) == ["one", "two\x1b"]
    assert host.asked == [
        {"cmd": "deploy_log", "id": 9, "lines": 200},
        {"cmd": "deploy_log", "id": 9, "lines": 5},
    ]


def test_an_empty_log_is_said(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploy_log"] = {"lines": []}

    assert hive("deploys", "log", "9") == (0, "", "the log of deploy 9 is empty\n")


@pytest.mark.parametrize("argv", [("log", "x"), ("log", "9", "-f"), ("a", "b"), ("log", "1", "2")])
def test_what_cannot_be_meant_is_a_typing_error(hive: RunHive, host: FakeHost, argv: tuple[str, ...]) -> None:
    assert hive("deploys", *argv).code == 2
    assert host.requests == []


# ── history ─────────────────────────────────────────────────────────────────────────────────────


def test_history_into_a_pipe(hive: RunHive, host: FakeHost) -> None:
    host.answers["history"] = {"history": HISTORY}

    result = hive("history", "alice")

    assert host.asked == [{"cmd": "history", "agent": "alice", "limit": 50}]
    assert result.out.splitlines() == [
        f"deployed/0\t{SHA}\t{moment(0)}\t-\tbegin\t-",
        f"failed/6\t{SHA}\t{moment(1)}\t-\tmore\tit broke",
        f"deployed/7\t{SHA}\t{moment(2)}\trunning\tjq\t-",
    ]


@pytest.mark.usefixtures("terminal")
def test_history_on_a_terminal(hive: RunHive, host: FakeHost) -> None:
    host.answers["history"] = {"history": HISTORY}

    lines = [line.split() for line in hive("history", "alice").out.splitlines()]

    assert lines[0] == ["TAG", "COMMIT", "WHEN", "NOW", "ABOUT"]
    assert [(line[0], line[1], line[-1]) for line in lines[1:]] == [
        ("deployed/0", SHA[:12], "begin"),
        ("failed/6", SHA[:12], "broke"),
        ("deployed/7", SHA[:12], "jq"),
    ]
    assert lines[3][-2] == "running"


def test_no_history_is_said(hive: RunHive, host: FakeHost) -> None:
    host.answers["history"] = {"history": []}

    assert hive("history", "alice").err == "no history of alice: nothing was ever proposed for it\n"


# ── rollback ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "request_line"),
    [((), {}), (("deployed/4",), {"tag": "deployed/4"}), (("4",), {"tag": "deployed/4"})],
)
def test_rollback_says_where_it_goes(
    hive: RunHive, host: FakeHost, argv: tuple[str, ...], request_line: dict[str, str]
) -> None:
    host.answers["rollback"] = {"id": 11, "tag": "deployed/4"}

    assert hive("rollback", "alice", *argv) == (0, "", "alice goes back to deployed/4: deploy 11\n")
    assert host.asked == [{"cmd": "rollback", "agent": "alice"} | request_line]


@pytest.mark.parametrize("tag", ["failed/4", "main", "deployed/", "deployed/x", "٤"])
def test_only_what_was_deployed_can_be_gone_back_to(hive: RunHive, host: FakeHost, tag: str) -> None:
    result = hive("rollback", "alice", tag)

    assert (result.code, host.requests) == (2, [])
    assert "hint: hive history alice shows them" in result.err


def test_rollback_waits_for_its_own_deploy(hive: RunHive, host: FakeHost) -> None:
    host.answers["rollback"] = {"id": 11, "tag": "deployed/4"}
    own = DONE | {"id": 11, "kind": "rollback"}
    host.answers["deploys"] = lambda request: (
        [{"deploys": [FAILED]}, {"deploys": [own]}]
        if request.get("follow")
        else {"deploys": [FAILED, own | {"step": "queued"}]}
    )

    result = hive("rollback", "alice", "--wait", "--json")

    assert result.code == 0
    assert json.loads(result.out) == {"id": 11, "tag": "deployed/4", "deploy": own}


def test_a_rollback_that_failed_fails(hive: RunHive, host: FakeHost) -> None:
    host.answers["rollback"] = {"id": 10, "tag": "deployed/4"}
    host.answers["deploys"] = lambda request: [] if request.get("follow") else {"deploys": [FAILED]}

    result = hive("rollback", "alice", "--wait")

    assert result.code == 1
    assert "hint: hive deploys log 10 has all of it" in result.err


def test_an_unknown_agent_is_told_the_nearest(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")
    for cmd in ("rollback", "history", "config", "request_apply_commit"):
        host.refuse(cmd, "not_found", "cannot find alcie")

    for argv in ("rollback alcie", "history alcie", "config alcie", "propose alcie"):
        result = hive(*argv.split())
        assert (result.code, result.err.splitlines()[1]) == (3, "hint: did you mean alice?")


def test_log_without_an_id_is_no_agent_without_deploys(hive: RunHive, host: FakeHost) -> None:
    host.answers["deploys"] = {"deploys": []}

    result = hive("deploys", "log")

    assert (result.code, result.out) == (2, "")
    assert "give the id of one deploy" in result.err


def test_a_tag_that_there_is_not_is_no_unknown_agent(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")
    host.refuse("rollback", "not_found")

    assert "hint" not in hive("rollback", "alice", "deployed/99").err
    assert "did you mean alice?" in hive("rollback", "alcie").err

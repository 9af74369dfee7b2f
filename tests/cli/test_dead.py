"""hive dead, hive allow, and what hive ls, show and status say of letters and questions that wait."""

import json
from typing import Any

import pytest

from .conftest import RunHive
from .fake_host import FakeHost, message

DEAD: dict[str, Any] = message(
    12,
    "bob",
    "alice",
    "do\x1b this\nnow",
    dead_at="2026-01-31T12:05:00Z",
    dead_reason="3 turns over it failed",
    attempts=3,
)


# ── dead letters ────────────────────────────────────────────────────────────────────────────────


def test_dead_ones_into_a_pipe_are_a_line_each(hive: RunHive, host: FakeHost) -> None:
    host.answers["dead"] = {"messages": [DEAD]}

    result = hive("dead", "--agent", "alice", "-n", "5")

    assert host.asked == [{"cmd": "dead", "limit": 5, "agent": "alice"}]
    columns = ["12", "bob", "alice", "2026-01-31T12:05:00Z", "3", "3 turns over it failed"]
    assert result.out == "\t".join([*columns, "do\\x1b this\\nnow"]) + "\n"


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_they_are_a_table(hive: RunHive, host: FakeHost) -> None:
    host.answers["dead"] = {"messages": [DEAD]}

    result = hive("dead")

    headings, row = result.out.splitlines()
    assert headings.split() == ["ID", "FROM", "TO", "SINCE", "FAILED", "WHY", "TEXT"]
    assert "3 turns over it failed" in row
    assert "\x1b" not in row


def test_as_json_they_are_all_there_is(hive: RunHive, host: FakeHost) -> None:
    host.answers["dead"] = {"messages": [DEAD]}

    assert json.loads(hive("dead", "--json").out) == [DEAD]


def test_no_dead_ones_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["dead"] = {"messages": []}

    assert hive("dead") == (0, "", "no dead messages\n")


@pytest.mark.parametrize(
    ("argv", "asked", "answer", "said"),
    [
        (["retry", "12"], {"cmd": "dead_retry", "id": 12}, {"retried": 1}, "message 12 is handed out again\n"),
        (["retry", "--all"], {"cmd": "dead_retry", "all": True}, {"retried": 2}, "2 messages are handed out again\n"),
        (
            ["retry", "--all", "--agent", "alice"],
            {"cmd": "dead_retry", "all": True, "agent": "alice"},
            {"retried": 1},
            "1 message is handed out again\n",
        ),
        (["drop", "12"], {"cmd": "dead_drop", "id": 12}, {}, "message 12 is dropped\n"),
    ],
)  # fmt: skip
def test_retry_and_drop_ask_for_just_that(
    hive: RunHive, host: FakeHost, argv: list[str], asked: dict[str, Any], answer: dict[str, Any], said: str
) -> None:
    host.answers[asked["cmd"]] = answer

    assert hive("dead", *argv) == (0, "", said)
    assert host.asked == [asked]


@pytest.mark.parametrize(
    "argv",
    [
        ["retry"], ["drop"], ["--all"], ["drop", "--all"], ["retry", "1", "--all"],
        ["retry", "1", "--agent", "alice"], ["drop", "1", "--agent", "alice"], ["burn", "1"], ["retry", "x"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_asked_of_nobody(hive: RunHive, host: FakeHost, argv: list[str]) -> None:
    result = hive("dead", *argv)

    assert (result.code, result.out, host.requests) == (2, "", [])
    assert result.err.startswith("hive: cannot ")


def test_one_that_is_not_dead_is_an_error(hive: RunHive, host: FakeHost) -> None:
    host.refuse("dead_drop", "not_found", "cannot drop message 12: it is no dead message")

    result = hive("dead", "drop", "12")

    assert result.code == 3
    assert "it is no dead message" in result.err


# ── to whom an agent may write ──────────────────────────────────────────────────────────────────


def test_a_list_is_set_and_said(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")
    host.add("bob")

    result = hive("allow", "alice", "bob", "operator", "carol")

    assert host.asked == [{"cmd": "allow", "name": "alice", "recipients": ["bob", "operator", "carol"]}]
    assert result == (
        0,
        "",
        "alice may write to bob, operator, carol, manager only\nthere is no agent carol yet\n",
    )


def test_a_list_is_taken_away(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")

    result = hive("allow", "alice", "--anyone")

    assert host.asked == [{"cmd": "allow", "name": "alice", "recipients": None}]
    assert result.err == "alice may write to anyone\n"


@pytest.mark.parametrize(
    ("flags", "out"), [({}, "*\n"), ({"allowed_recipients": ["bob", "operator"]}, "bob\noperator\nmanager\n")]
)
def test_without_names_it_is_shown(hive: RunHive, host: FakeHost, flags: dict[str, Any], out: str) -> None:
    host.add("alice", **flags)

    assert hive("allow", "alice") == (0, out, "")
    assert host.asked == []


def test_names_and_anyone_together_make_no_sense(hive: RunHive, host: FakeHost) -> None:
    assert hive("allow", "alice", "bob", "--anyone").code == 2
    assert host.requests == []


@pytest.mark.usefixtures("terminal")
def test_show_tells_of_the_list_and_of_dead_ones(hive: RunHive, host: FakeHost) -> None:
    host.add("alice", allowed_recipients=["bob"], dead=2)

    lines = [" ".join(line.split()) for line in hive("show", "alice").out.splitlines()]

    assert "dead 2" in lines
    assert "may write to bob, manager only" in lines


# ── what waits ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, ""),
        (1, "1 question waits for you: hive questions\n"),
        (2, "2 questions wait for you: hive questions\n"),
    ],
)
def test_ls_on_a_terminal_tells_of_questions(hive: RunHive, host: FakeHost, count: int, said: str) -> None:
    host.add("alice")
    host.answers["status"] = {"questions": count}

    assert hive("ls").err == said


@pytest.mark.usefixtures("terminal")
def test_ls_goes_on_where_the_daemon_knows_of_no_questions(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")
    host.refuse("status", "unavailable", "cannot read")

    result = hive("ls")

    assert (result.code, result.err) == (0, "")
    assert "alice" in result.out


@pytest.mark.parametrize("argv", [["ls"], ["ls", "--json"]])
def test_ls_into_a_pipe_asks_for_the_roster_alone(hive: RunHive, host: FakeHost, argv: list[str]) -> None:
    host.add("alice", unread=3, dead=1)

    result = hive(*argv)

    assert [request["cmd"] for request in host.requests] == ["agent_status"]
    assert result.err == ""
    if argv == ["ls"]:
        assert result.out.split("\t")[3] == "3"


@pytest.mark.usefixtures("terminal")
def test_ls_on_a_terminal_marks_dead_ones(hive: RunHive, host: FakeHost) -> None:
    host.add("alice", unread=3, dead=1)

    assert "3 (1 dead)" in hive("ls").out


def test_status_counts_both(hive: RunHive, host: FakeHost) -> None:
    host.answers["status"] = {"questions": 2, "dead": 1}

    assert hive("status").out == "questions\t2\ndead\t1\n"

"""hive questions, answer, ask and reminders: what is asked of the daemon and what a person reads."""

import json
from typing import Any

import pytest

from .conftest import RunHive
from .fake_host import FakeHost

OPEN: dict[str, Any] = {
    "id": 3,
    "asker": "alice",
    "target": "operator",
    "question": "Which one?\nThe red\x1b one?",
    "options": ["red", "blue"],
    "multi": False,
    "asked_at": "2026-01-31T12:00:00Z",
}
ENDED = OPEN | {"answer": "red", "answerer": "operator", "answered_at": "2026-01-31T12:05:00Z"}


def test_open_questions_into_a_pipe_are_a_line_each(hive: RunHive, host: FakeHost) -> None:
    host.answers["questions"] = {"questions": [OPEN]}

    result = hive("questions")

    assert host.asked == [{"cmd": "questions", "all": False, "limit": 100}]
    columns = ["3", "alice", "operator", "2026-01-31T12:00:00Z", "-", "-", "Which one?\\nThe red\\x1b one?"]
    assert result.out == "\t".join([*columns, "red", "blue"]) + "\n"


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_the_options_are_numbered(hive: RunHive, host: FakeHost) -> None:
    host.answers["questions"] = {"questions": [OPEN, ENDED]}

    result = hive("questions", "--all", "-n", "2")

    assert host.asked == [{"cmd": "questions", "all": True, "limit": 2}]
    assert result.out.splitlines() == [
        "#3  2026-01-31 12:00:00  alice asks operator",
        "    Which one?",
        "    The red\\x1b one?",
        "    1. red",
        "    2. blue",
        "#3  2026-01-31 12:00:00  alice asks operator",
        "    Which one?",
        "    The red\\x1b one?",
        "    1. red",
        "    2. blue",
        "    operator: red",
    ]


def test_no_questions_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["questions"] = {"questions": []}

    assert hive("questions") == (0, "", "no open questions\n")


@pytest.mark.parametrize(
    ("argv", "request_line"),
    [
        (("3", "the", "red", "one"), {"cmd": "answer", "id": 3, "answer": "the red one"}),
        (("3", "-o", "1", "-o", "2"), {"cmd": "answer", "id": 3, "options": [1, 2]}),
        (("3", "--cancel"), {"cmd": "cancel_question", "id": 3}),
    ],
)
def test_an_answer_is_a_text_options_or_a_cancel(
    hive: RunHive, host: FakeHost, argv: tuple[str, ...], request_line: dict[str, Any]
) -> None:
    host.answers["answer"] = {"answer": "red"}

    result = hive("answer", *argv)

    assert (result.code, host.asked) == (0, [request_line])


def test_a_text_of_a_hyphen_is_read_from_stdin(hive: RunHive, host: FakeHost) -> None:
    host.answers["answer"] = {"answer": "x"}

    hive("answer", "3", "-", stdin=b"two\nlines\n")

    assert host.asked == [{"cmd": "answer", "id": 3, "answer": "two\nlines\n"}]


@pytest.mark.parametrize("argv", [("3",), ("3", "red", "-o", "1"), ("3", "red", "--cancel")])
def test_nothing_or_two_answers_at_once_are_a_typing_error(
    hive: RunHive, host: FakeHost, argv: tuple[str, ...]
) -> None:
    result = hive("answer", *argv)

    assert (result.code, host.asked) == (2, [])
    assert "give a text, --option or --cancel" in result.err


def test_an_answer_that_came_too_late_has_its_own_exit_code(hive: RunHive, host: FakeHost) -> None:
    host.refuse("answer", "conflict", "cannot answer question 3: bob ended it already")

    result = hive("answer", "3", "red")

    assert (result.code, result.err) == (7, "hive: cannot answer question 3: bob ended it already\n")


def test_ask_prints_the_id(hive: RunHive, host: FakeHost) -> None:
    host.answers["ask"] = {"id": 9}

    result = hive("ask", "alice", "shall", "we?", "-o", "yes", "-o", "no", "--multi", "--ttl", "2")

    assert result.out == "9\n"
    assert host.asked == [
        {
            "cmd": "ask",
            "agent": "alice",
            "question": "shall we?",
            "options": ["yes", "no"],
            "multi": True,
            "ttl_seconds": 120.0,
        }
    ]


def test_ask_waits_for_the_answer_and_prints_it(hive: RunHive, host: FakeHost) -> None:
    rows = iter([OPEN, OPEN, OPEN | {"answer": "red\nit is", "answerer": "alice"}])
    host.answers["ask"] = {"id": 3}
    host.answers["questions"] = lambda _request: {"questions": [next(rows)]}

    result = hive("ask", "alice", "which?", "--wait")

    assert (result.code, result.out) == (0, "red\nit is\n")
    assert host.asked[1:] == [{"cmd": "questions", "id": 3}] * 3


def test_a_question_that_nobody_answered_fails_the_waiting(hive: RunHive, host: FakeHost) -> None:
    host.answers["ask"] = {"id": 3}
    host.answers["questions"] = {"questions": [OPEN | {"answer": "[expired]", "answerer": "ttl-watchdog"}]}

    result = hive("ask", "alice", "which?", "--wait", "--json")

    assert (result.code, json.loads(result.out)["answer"]) == (1, "[expired]")
    assert "ttl-watchdog ended the question" in result.err


REMINDER: dict[str, Any] = {
    "id": 7,
    "agent": "alice",
    "message": "look\nagain",
    "due_at": "2026-01-31T12:00:00Z",
    "created_at": "2026-01-30T12:00:00Z",
}


def test_reminders_into_a_pipe_are_a_line_each(hive: RunHive, host: FakeHost) -> None:
    stuck = REMINDER | {"id": 8, "attempts": 5, "last_error": "No space left on device"}
    host.answers["reminders"] = {"reminders": [REMINDER, stuck]}

    result = hive("reminders", "--agent", "alice")

    assert host.asked == [{"cmd": "reminders", "limit": 100, "agent": "alice"}]
    assert result.out.splitlines() == [
        "7\talice\t2026-01-31T12:00:00Z\tpending\tlook\\nagain\t-",
        "8\talice\t2026-01-31T12:00:00Z\tstuck\tlook\\nagain\tNo space left on device",
    ]


@pytest.mark.parametrize(("option", "cmd"), [("--cancel", "cancel_reminder"), ("--retry", "retry_reminder")])
def test_one_reminder_is_cancelled_or_retried(hive: RunHive, host: FakeHost, option: str, cmd: str) -> None:
    assert hive("reminders", option, "7").code == 0
    assert host.asked == [{"cmd": cmd, "id": 7}]


def test_two_things_at_once_are_a_typing_error(hive: RunHive, host: FakeHost) -> None:
    assert hive("reminders", "--cancel", "7", "--retry", "8").code == 2
    assert host.asked == []

"""hive thread and hive search: what is asked of the daemon and what a person reads."""

import json

import pytest

from .conftest import RunHive
from .fake_host import FakeHost, message

FOUND = [
    message(7, "alice", "bob", "the build\nfailed"),
    message(9, "bob", "alice", "again\x1b[2J?", in_reply_to=7, delivered_at="2026-01-31T12:00:03Z"),
]


def test_a_thread_into_a_pipe_is_a_line_each(hive: RunHive, host: FakeHost) -> None:
    host.answers["thread"] = {"messages": FOUND}

    result = hive("thread", "9", "-n", "5")

    assert host.asked == [{"cmd": "thread", "id": 9, "limit": 5}]
    assert [line.split("\t")[0] for line in result.out.splitlines()] == ["7", "9"]
    assert "the build\\nfailed" in result.out
    assert "\x1b" not in result.out


@pytest.mark.usefixtures("terminal")
def test_a_thread_on_a_terminal_says_what_answers_what(hive: RunHive, host: FakeHost) -> None:
    host.answers["thread"] = {"messages": FOUND}

    lines = hive("thread", "9").out.splitlines()

    assert [line for line in lines if line.startswith("#9") and "answers #7" in line]
    assert "    failed" in lines
    assert "    again\\x1b[2J?" in lines


def test_a_message_that_is_not_there_is_said(hive: RunHive, host: FakeHost) -> None:
    host.refuse("thread", "not_found", "cannot show the thread of message 9: there is no such message")

    result = hive("thread", "9")

    assert (result.code, result.out) == (3, "")
    assert "there is no such message" in result.err


def test_what_is_searched_for_goes_over_the_wire_as_it_was_typed(hive: RunHive, host: FakeHost) -> None:
    host.add("alice")
    host.answers["search"] = {"messages": FOUND}

    result = hive("search", "build", '"exit status"', "fail*", "--agent", "alice", "-n", "3")

    request = {"cmd": "search", "text": 'build "exit status" fail*', "limit": 3, "agent": "alice"}
    assert host.asked == [request]
    assert len(result.out.splitlines()) == 2


def test_what_was_not_looked_through_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["search"] = {"messages": FOUND, "not_indexed": 12}

    result = hive("search", "build", "--json")

    assert json.loads(result.out) == FOUND
    assert "12 messages were not looked through yet" in result.err


def test_nothing_found_is_said_beside_the_output(hive: RunHive, host: FakeHost) -> None:
    host.answers["search"] = {"messages": []}

    assert hive("search", "build") == (0, "", "nothing found\n")
    assert hive("search", "build", "--json") == (0, "[]\n", "")


def test_nothing_to_search_for_is_a_typing_error(hive: RunHive, host: FakeHost) -> None:
    assert hive("search").code == 2
    assert host.asked == []

"""`hive login` talks with a person: a page out, a code in, until the agent is online."""

import json
from typing import Any

import pytest

from .conftest import RunHive
from .fake_host import FakeHost

URL = "https://login.example/oauth?state=1"


class Agent:
    """Answers as the daemon does about alice: logged in by the code 4f2a, or after so many looks."""

    def __init__(self, host: FakeHost, looks: int | None = None) -> None:
        self.row = host.add("alice", needs_login=True, status="needs_login_idle")
        self._looks = looks
        host.answers |= {
            "login_start": self._start,
            "login_code": self._code,
            "login_cancel": {"text": "login cancelled"},
            "agent_status": self._status,
        }

    def _start(self, _request: dict[str, Any]) -> dict[str, Any]:
        self.row["status"] = "needs_login_in_progress"
        return {"url": URL}

    def _code(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["code"] != "4f2a":
            return {"ok": False, "code": "precondition_failed", "error": "cannot log in: Invalid code"}
        self._online()
        return {"text": "logged in"}

    def _status(self, _request: dict[str, Any]) -> dict[str, Any]:
        if self._looks is not None:
            self._looks -= 1
            if self._looks < 0:
                self._online()
        return {"agent_statuses": [self.row]}

    def _online(self) -> None:
        self.row |= {"needs_login": False, "status": "online"}


def asked(host: FakeHost) -> list[str]:
    return [request["cmd"] for request in host.asked]


def test_a_code_brings_the_agent_online(host: FakeHost, hive: RunHive) -> None:
    Agent(host)

    result = hive("login", "alice", stdin=b"4f2a\n")

    assert (result.code, result.out) == (0, f"{URL}\n")
    assert result.err.endswith("alice is online.\n")
    assert host.asked == [
        {"cmd": "login_start", "agent": "alice"},
        {"cmd": "login_code", "agent": "alice", "code": "4f2a"},
    ]


def test_a_wrong_code_may_be_followed_by_a_right_one(host: FakeHost, hive: RunHive) -> None:
    Agent(host)

    result = hive("login", "alice", stdin=b"wrong\n4f2a\n")

    assert result.code == 0
    assert "cannot log in: Invalid code; try again" in result.err
    assert asked(host) == ["login_start", "login_code", "login_code"]


def test_a_wrong_code_that_ended_the_login_is_the_end(host: FakeHost, hive: RunHive) -> None:
    agent = Agent(host)

    def refuse(_request: dict[str, Any]) -> dict[str, Any]:
        agent.row["status"] = "needs_login_idle"
        return {"ok": False, "code": "precondition_failed", "error": "cannot log in: Invalid code"}

    host.answers["login_code"] = refuse

    result = hive("login", "alice", stdin=b"wrong\n4f2a\n")

    assert result.code == 4
    assert result.err.endswith("hive: cannot log in: Invalid code\n")


def test_a_page_that_gives_no_code_is_waited_for(
    host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hive_core.cli.commands.login.POLL_S", 0.01)
    Agent(host, looks=3)

    result = hive("login", "alice", stdin=b"\n")

    assert result.code == 0
    assert asked(host) == ["login_start"]


def test_an_agent_that_does_not_come_online_is_said_to_be_so(host: FakeHost, hive: RunHive) -> None:
    Agent(host)

    result = hive("login", "alice", "--timeout", "0.1", stdin=b"\n")

    assert result.code == 6
    assert "not online after 0.1 s" in result.err
    assert "hive login shows its page again" in result.err


def test_the_end_of_the_input_cancels_the_login(host: FakeHost, hive: RunHive) -> None:
    Agent(host)

    result = hive("login", "alice")

    assert result.code == 130
    assert asked(host) == ["login_start", "login_cancel"]


def test_ctrl_c_cancels_the_login(host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch) -> None:
    Agent(host)

    def interrupt() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("hive_core.cli.commands.login._read_code", interrupt)

    result = hive("login", "alice")

    assert result.code == 130
    assert result.err.endswith("hive: cannot log alice in: the login was cancelled\n")
    assert asked(host) == ["login_start", "login_cancel"]


def test_json_leaves_the_login_open_for_a_code(host: FakeHost, hive: RunHive) -> None:
    Agent(host)

    assert json.loads(hive("login", "alice", "--json").out) == {"agent": "alice", "url": URL}
    assert hive("login", "alice", "--code", "4f2a").out == "alice: logged in\n"
    assert asked(host) == ["login_start", "login_code"]


def test_an_address_cannot_act_on_the_terminal(host: FakeHost, hive: RunHive) -> None:
    Agent(host)
    host.answers["login_start"] = {"url": "https://a\x1b[2J"}

    assert hive("login", "alice", stdin=b"4f2a\n").out == "https://a\\x1b[2J\n"


def test_a_refusal_is_told(host: FakeHost, hive: RunHive) -> None:
    host.add("alice")
    host.refuse("login_start", "precondition_failed", "cannot log in: this provider needs no login")

    assert hive("login", "alice") == (
        4, "", "hive: cannot log in: this provider needs no login\n",
    )  # fmt: skip
    assert asked(host) == ["login_start"]


def test_help_says_how(hive: RunHive) -> None:
    assert "hive login alice --code 4f2a-99c1" in hive("login", "--help").out

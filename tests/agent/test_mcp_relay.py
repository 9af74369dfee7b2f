"""What the bridge says on both sides, without a pipe or a socket."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_agent.mcp import MAX_LINE_BYTES, MAX_OPEN_BYTES, MAX_READ_BYTES, Lines, Relay

INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


def line(message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


def call(request_id: int | str, name: str = "send", **arguments: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": arguments}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def answer(request_id: int | str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "result": {}}


class Ends:
    """A relay and its two ends."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.relay = Relay("/s", 60.0)
        self.relay.connect()
        if greeted:
            self.ask(INITIALIZE)
            self.tell(answer(0))
            self.ask(INITIALIZED)
            self.at_daemon()
            self.at_client()

    def ask(self, *messages: object, now: float = 0.0) -> None:
        self.relay.from_client(b"".join(map(line, messages)), now)

    def tell(self, *messages: object) -> None:
        self.relay.from_daemon(b"".join(map(line, messages)))

    def at_daemon(self) -> list[Any]:
        taken = [json.loads(one) for one in self.relay.to_daemon.splitlines()]
        self.relay.to_daemon.clear()
        return taken

    def at_client(self) -> list[Any]:
        taken = [json.loads(one) for one in self.relay.to_client.splitlines()]
        self.relay.to_client.clear()
        return taken

    def restart(self) -> list[Any]:
        """Let the daemon go and come back; give what it is told."""
        self.relay.disconnect(0.0)
        self.relay.connect()
        return self.at_daemon()


def test_lines_go_through_as_they_are() -> None:
    ends = Ends(greeted=False)
    for message in (INITIALIZE, INITIALIZED, {"jsonrpc": "2.0", "id": "a", "method": "ping", "new": [1]}):
        ends.relay.from_client(line(message), 0.0)
        assert bytes(ends.relay.to_daemon) == line(message)
        ends.relay.to_daemon.clear()
    spaced = b'{"jsonrpc": "2.0",   "id": "a", "result": {"\\u00e9": 1.50}}\n'
    ends.relay.from_daemon(spaced[:7])
    ends.relay.from_daemon(spaced[7:])
    assert bytes(ends.relay.to_client) == spaced


def test_each_tool_call_gets_a_key_of_its_own() -> None:
    ends, other = Ends(), Ends()
    ends.ask(call(1, body="x"), call(2, body="x"))
    other.ask(call(1, body="x"))
    keys = {told["params"]["_meta"]["hyperhive/key"] for told in ends.at_daemon() + other.at_daemon()}
    assert len(keys) == 3


def test_what_a_call_says_for_itself_is_kept() -> None:
    ends = Ends()
    asked = call(1, body="x🐝 \u2028")
    asked["params"]["_meta"] = {"progressToken": 7, "hyperhive/key": "mine"}
    ends.ask(asked)
    assert ends.at_daemon() == [asked]


@pytest.mark.parametrize(
    "params", [None, 7, [], {"name": "send", "_meta": 7}, {"name": "send", "x": float("inf")}]
)
def test_a_call_that_can_have_no_key_goes_through_as_it_is(params: object) -> None:
    ends = Ends()
    asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    ends.ask(asked)
    assert ends.at_daemon() == [asked]


def test_a_new_daemon_is_told_what_the_old_one_knew_and_asked_what_it_left_open() -> None:
    ends = Ends()
    ends.ask(call(1), call(2), call(3))
    first = ends.at_daemon()
    ends.tell(answer(2))

    told = ends.restart()

    assert [message.get("method") for message in told[:2]] == ["initialize", "notifications/initialized"]
    assert told[0]["params"] == INITIALIZE["params"]
    assert told[2:] == [first[0], first[2]]
    ends.tell(answer(told[0]["id"]), answer(1), answer(3))
    assert ends.at_client() == [answer(2), answer(1), answer(3)]
    assert [message.get("method") for message in ends.restart()] == [
        "initialize",
        "notifications/initialized",
    ]


def test_an_initialize_without_an_answer_is_asked_again_as_the_client_s_own() -> None:
    ends = Ends(greeted=False)
    ends.ask(INITIALIZE)
    ends.at_daemon()
    assert ends.restart() == [INITIALIZE]
    ends.tell(answer(0))
    assert ends.at_client() == [answer(0)]


def test_what_is_asked_while_the_daemon_is_away_is_asked_when_it_is_back() -> None:
    ends = Ends()
    ends.relay.disconnect(0.0)
    ends.ask(call(1, "whoami"), {"jsonrpc": "2.0", "method": "notifications/progress"})
    assert ends.at_daemon() == []
    ends.relay.connect()
    assert [message.get("id") for message in ends.at_daemon()][2:] == [1]


def test_half_an_answer_is_forgotten_with_its_daemon() -> None:
    ends = Ends()
    ends.ask(call(1))
    ends.relay.from_daemon(line(answer(1))[:-5])
    ends.restart()
    ends.tell(answer(1))
    assert ends.at_client() == [answer(1)]


@pytest.mark.parametrize("away", [True, False])
def test_a_cancelled_call_is_not_asked_again(away: bool) -> None:
    ends = Ends()
    ends.ask(call(1))
    if away:
        ends.relay.disconnect(0.0)
    ends.ask({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    assert len(ends.restart()) == 2


def test_calls_fail_when_the_daemon_was_away_too_long() -> None:
    ends = Ends()
    ends.ask(call(1))
    ends.relay.disconnect(100.0)
    ends.ask(call("b"), now=130.0)
    assert ends.relay.give_up(159.0) == 1.0
    assert ends.at_client() == []
    assert ends.relay.give_up(160.0) is None
    ends.ask(call(3), now=200.0)

    failed = ends.at_client()
    assert [one["id"] for one in failed] == [1, "b", 3]
    assert all(
        one["error"]["message"] == "cannot reach the daemon at /s: it was away for 60 s" for one in failed
    )
    assert len(ends.restart()) == 2


def test_why_the_daemon_lets_nobody_in_is_passed_on() -> None:
    ends = Ends()
    ends.relay.from_daemon(
        b"\x00\x00\x00\x30\x95\xa5fault\x00\xa9forbidden\xd9\x20cannot serve you: uid 7 is"
    )
    ends.relay.disconnect(0.0)
    ends.ask(call(1), now=61.0)
    (failed,) = ends.at_client()
    assert "cannot serve you: uid 7 is" in failed["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "code", "answered"),
    [
        (b"hello\n", -32700, None),
        (b"\xff\n", -32700, None),
        (b"[" * 100_000 + b"\n", -32700, None),
        (b"7\n", -32700, None),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n', -32600, None),
        (line({"jsonrpc": "2.0", "id": 1, "method": "x", "y": "z" * MAX_LINE_BYTES}), -32600, 1),
        (b"x" * (2 * MAX_READ_BYTES) + b"\n", -32700, None),
    ],
)
@pytest.mark.parametrize("greeted", [True, False])
def test_what_the_daemon_would_close_the_door_on_is_answered_here(
    greeted: bool, asked: bytes, code: int, answered: int | None
) -> None:
    ends = Ends(greeted=greeted)
    for at in range(0, len(asked), 65536):
        ends.relay.from_client(asked[at : at + 65536], 0.0)
    (error,) = ends.at_client()
    assert (error["id"], error["error"]["code"]) == (answered, code)
    assert ends.at_daemon() == []
    ends.ask(call(5))
    assert [told["id"] for told in ends.at_daemon()] == [5]


def test_a_flood_of_calls_is_not_read_to_its_end() -> None:
    ends = Ends()
    asked = 0
    while ends.relay.wants_client:
        ends.ask(call(asked, body="x" * 60_000))
        ends.relay.to_daemon.clear()
        asked += 1
    assert asked < MAX_OPEN_BYTES / 50_000
    ends.tell(*(answer(number) for number in range(asked)))
    assert ends.relay.wants_client
    assert not ends.relay.wants_daemon or len(ends.relay.to_client) < 1 << 20


@given(chunks=st.lists(st.binary(max_size=20)))
def test_lines_are_the_same_however_they_are_cut(chunks: list[bytes]) -> None:
    lines = Lines()
    whole = b"".join(chunks)
    cut = [one for chunk in chunks for one in lines.feed(chunk)]
    assert b"".join(cut) + lines.rest == whole
    assert all(one.endswith(b"\n") and one.count(b"\n") == 1 for one in cut)


@given(data=st.binary(max_size=300) | st.text(alphabet='{}[]":,0aid\n', max_size=300).map(str.encode))
def test_nothing_that_a_side_says_breaks_it(data: bytes) -> None:
    ends = Ends()
    ends.ask(call(1))
    ends.relay.from_daemon(data)
    ends.relay.from_client(data + b"\n", 0.0)
    assert "initialize" in [message.get("method") for message in ends.restart()]


# ── receipts ────────────────────────────────────────────────────────────────────────────────────


def received(request_id: int | str) -> dict[str, Any]:
    method = "notifications/hyperhive/received"
    return {"jsonrpc": "2.0", "method": method, "params": {"requestId": request_id}}


def test_the_daemon_hears_of_an_answer_to_recv_when_the_client_has_all_of_it() -> None:
    ends = Ends()
    ends.ask(call(1, "recv"), call(2, "send"))
    marks = [told["params"]["_meta"].get("hyperhive/tells") for told in ends.at_daemon()]
    assert marks == [True, None]
    ends.tell(answer(2), answer(1))
    size = len(ends.relay.to_client)

    ends.relay.passed_on(size - 1)
    assert ends.at_daemon() == []
    ends.relay.passed_on(1)

    assert ends.at_daemon() == [received(1)]
    ends.relay.passed_on(0)
    assert ends.at_daemon() == []


def test_no_other_daemon_hears_of_an_answer_than_the_one_that_gave_it() -> None:
    ends = Ends()
    ends.ask(call(1, "recv"))
    ends.tell(answer(1))
    ends.restart()

    ends.relay.passed_on(len(ends.relay.to_client))

    assert ends.at_daemon() == []


def test_a_recv_that_was_asked_again_is_confirmed_to_the_daemon_that_answered() -> None:
    ends = Ends()
    ends.ask(call("a", "recv"))
    ends.restart()
    ends.tell(answer("a"))

    ends.relay.passed_on(len(ends.relay.to_client))

    assert ends.at_daemon() == [received("a")]


def test_when_nothing_more_can_be_said_nothing_is() -> None:
    ends = Ends()
    ends.ask(call(1, "recv"))
    ends.at_daemon()
    ends.tell(answer(1))
    ends.relay.tells = False

    ends.relay.passed_on(len(ends.relay.to_client))

    assert ends.at_daemon() == []

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from hive_agent.providers.claude.pump import DONE, MAX_OPEN, Pump

from .fake_door import FakeDoor

INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


def call(number: int) -> dict[str, Any]:
    params = {"name": "send", "arguments": {}, "_meta": {"claudecode/toolUseId": f"toolu_{number}"}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


class Pumped:
    """A pump, and what claude gets from it."""

    def __init__(self, path: Path) -> None:
        self.pump = Pump(path, self._answer)
        self.answers: dict[str, dict[str, Any]] = {}
        self._changed = trio.Event()

    async def answer_to(self, control_id: str) -> dict[str, Any]:
        with trio.fail_after(10):
            while control_id not in self.answers:
                await self._changed.wait()
        return self.answers[control_id]

    async def greet(self) -> None:
        for control_id, message in (("i", INITIALIZE), ("n", INITIALIZED), ("l", LIST)):
            await self.pump.take(control_id, message)
            await self.answer_to(control_id)

    async def _answer(self, control_id: str, message: dict[str, Any]) -> None:
        self.answers[control_id] = message
        self._changed.set()
        self._changed = trio.Event()


@pytest.fixture
async def door(tmp_path: Path, nursery: trio.Nursery) -> FakeDoor:
    door = FakeDoor(tmp_path / "mcp.sock")
    await nursery.start(door.run)
    return door


@pytest.fixture
async def pumped(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Pumped]:
    pumped = Pumped(tmp_path / "mcp.sock")
    nursery.start_soon(pumped.pump.run)
    yield pumped
    nursery.cancel_scope.cancel()


async def test_the_handshake_goes_through_and_tells_when_the_tools_are_there(
    door: FakeDoor, pumped: Pumped
) -> None:
    assert not pumped.pump.listed.is_set()

    await pumped.greet()

    assert pumped.pump.listed.is_set()
    assert pumped.answers["i"]["result"]["serverInfo"]["name"] == "d"
    assert pumped.answers["n"] == DONE
    assert door.methods == ["initialize", "notifications/initialized", "tools/list"]


async def test_calls_run_side_by_side_and_find_their_way_back(door: FakeDoor, pumped: Pumped) -> None:
    await pumped.greet()

    for number in (7, 8, 9):
        await pumped.pump.take(f"c{number}", call(number))

    assert [(await pumped.answer_to(f"c{number}"))["id"] for number in (9, 8, 7)] == [9, 8, 7]


async def test_a_door_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, pumped: Pumped, nursery: trio.Nursery
) -> None:
    await pumped.pump.take("i", INITIALIZE)
    with trio.fail_after(5):
        while pumped.pump.complaint is None:
            await trio.sleep(0.01)

    await nursery.start(FakeDoor(tmp_path / "mcp.sock").run)

    assert (await pumped.answer_to("i"))["id"] == 0
    assert pumped.pump.complaint is None


async def test_an_open_call_survives_the_restart_of_the_door(
    door: FakeDoor, pumped: Pumped, nursery: trio.Nursery
) -> None:
    await pumped.greet()
    door.answer_calls = False
    await pumped.pump.take("c7", call(7))
    await door.wait_until(lambda door: door.calls())

    door.go_away()
    successor = FakeDoor(door.path)
    await nursery.start(successor.run)
    answer = await pumped.answer_to("c7")

    assert answer["result"]["content"][0]["text"] == "sent"
    assert successor.methods == ["initialize", "notifications/initialized", "tools/call"]
    assert successor.calls() == door.calls()  # with the id that the door knows it by
    assert list(pumped.answers) == ["i", "n", "l", "c7"]  # the second greeting is our own matter


async def test_what_claude_cancels_is_not_asked_again(
    door: FakeDoor, pumped: Pumped, nursery: trio.Nursery
) -> None:
    await pumped.greet()
    door.answer_calls = False
    for number in (7, 8, 9):
        await pumped.pump.take(f"c{number}", call(number))
    await door.wait_until(lambda door: len(door.calls()) == 3)
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}

    await pumped.pump.take("x", cancelled)
    pumped.pump.drop("c8")
    await door.wait_until(lambda door: door.methods.count("notifications/cancelled") == 2)
    door.go_away()
    successor = FakeDoor(door.path)
    await nursery.start(successor.run)
    await pumped.answer_to("c9")

    assert [message["id"] for message in successor.calls()] == [9]


async def test_more_calls_than_the_door_takes_are_refused_at_once(door: FakeDoor, pumped: Pumped) -> None:
    await pumped.greet()
    door.answer_calls = False
    for number in range(MAX_OPEN):
        await pumped.pump.take(f"c{number}", call(100 + number))

    await pumped.pump.take("more", call(999))
    await pumped.pump.take("again", call(100))

    assert pumped.answers["more"]["error"]["message"] == "cannot call: too many calls are open"
    assert pumped.answers["again"]["error"]["message"] == "this id is in use"


@pytest.mark.parametrize(
    "message", [None, [], "x", {}, {"method": 7}, {"jsonrpc": "2.0", "id": 4, "result": {}}]
)
async def test_what_is_no_request_is_answered_and_dropped(pumped: Pumped, message: Any) -> None:
    await pumped.pump.take("c", message)

    assert pumped.answers["c"] == DONE


async def test_garbage_from_the_door_is_the_complaint(
    tmp_path: Path, pumped: Pumped, nursery: trio.Nursery
) -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"this daemon speaks frames only\n")

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(tmp_path / "mcp.sock"))
    listening.listen()
    nursery.start_soon(trio.serve_listeners, refuse, [trio.SocketListener(listening)])

    await pumped.pump.take("i", INITIALIZE)
    with trio.fail_after(5):
        while "frames only" not in (pumped.pump.complaint or ""):
            await trio.sleep(0.01)


# ── what the model has ──────────────────────────────────────────────────────────────────────────


def recv(number: int, meta: Any = None) -> dict[str, Any]:
    params = {"name": "recv", "arguments": {}}
    params |= {} if meta is None else {"_meta": meta}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def receipts(door: FakeDoor) -> list[int]:
    told = [message for message in door.heard if message.get("method") == "notifications/hyperhive/received"]
    return [message["params"]["requestId"] for message in told]


async def test_the_door_hears_what_of_its_messages_the_model_has(door: FakeDoor, pumped: Pumped) -> None:
    await pumped.greet()
    for number in (7, 8):
        await pumped.pump.take(f"c{number}", recv(number, {"claudecode/toolUseId": f"toolu_{number}"}))
        await pumped.answer_to(f"c{number}")
    await pumped.pump.take("c9", call(9))
    await pumped.answer_to("c9")

    for tool_use in ("toolu_8", "toolu_8", "toolu_9", "toolu_77"):
        pumped.pump.seen(tool_use)
    await pumped.pump.settle()
    await door.wait_until(receipts)

    assert receipts(door) == [8]
    marks = [asked["params"]["_meta"].get("hyperhive/tells") for asked in door.calls()]
    assert marks == [True, True, None]


@pytest.mark.parametrize("meta", [None, 7, {}, {"claudecode/toolUseId": 7}])
async def test_at_the_end_it_hears_of_all_however_they_were_asked_for(
    door: FakeDoor, pumped: Pumped, meta: Any
) -> None:
    await pumped.greet()
    for number in (7, 8):
        await pumped.pump.take(f"c{number}", recv(number, meta))
        await pumped.answer_to(f"c{number}")

    await pumped.pump.seen_all()
    await door.wait_until(lambda door: len(receipts(door)) == 2)

    assert receipts(door) == [7, 8]


@pytest.mark.parametrize("how", ["result", "control", "notification"])
async def test_an_answer_that_claude_gave_up_is_handed_back(door: FakeDoor, pumped: Pumped, how: str) -> None:
    await pumped.greet()
    await pumped.pump.take("c7", recv(7, {"claudecode/toolUseId": "toolu_7"}))
    await pumped.answer_to("c7")

    match how:
        case "result":
            pumped.pump.not_seen("toolu_7")
        case "control":
            pumped.pump.drop("c7")
        case "notification":
            params = {"requestId": 7}
            message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            await pumped.pump.take("x", message)
    pumped.pump.seen("toolu_7")
    await pumped.pump.seen_all()
    await door.wait_until(lambda door: "notifications/cancelled" in door.methods)

    assert door.methods.count("notifications/cancelled") == 1
    assert door.heard[-1]["params"] == {"requestId": 7}
    assert receipts(door) == []


async def test_a_new_door_hears_nothing_of_the_answers_of_the_last_one(
    door: FakeDoor, pumped: Pumped, nursery: trio.Nursery
) -> None:
    await pumped.greet()
    await pumped.pump.take("c7", recv(7, {"claudecode/toolUseId": "toolu_7"}))
    await pumped.answer_to("c7")
    door.go_away()
    successor = FakeDoor(door.path)
    await nursery.start(successor.run)
    await pumped.pump.take("c8", call(8))
    await pumped.answer_to("c8")

    pumped.pump.seen("toolu_7")
    await pumped.pump.settle()

    assert "notifications/hyperhive/received" not in successor.methods + door.methods

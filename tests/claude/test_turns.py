"""Turns of the real claude: what the fixtures say, said by the program itself."""

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from agent.fake_door import FakeDoor
from agent.fakes import Emitted
from fake_api.install_claude import find_claude
from fake_api.server import USAGE, FakeApi

from hive_agent.config import Config
from hive_agent.providers import Outcome, TurnPrompt, TurnResult, Usage
from hive_agent.providers.claude import Claude

NO_TOOLS: Any = None
PER_CALL = USAGE["input_tokens"] + USAGE["cache_read_input_tokens"] + USAGE["cache_creation_input_tokens"]
SEND = {"tools": [{"name": "mcp__hyperhive__send", "input": {"to": "bob", "body": "hi"}}]}
LONG = {"text": "word " * 2000, "words": 1, "chunk_delay": 0.02}
STUCK = {
    "tools": [{"name": "Bash", "input": {"command": "python3 -c 'import time; time.sleep(7788)'; echo"}}]
}


class Real:
    def __init__(self, config: Config, api: FakeApi, environment: dict[str, str]) -> None:
        self.config = config
        self.api = api
        self.emitted = Emitted()
        self.provider = Claude.open(config, environment)

    async def turn(self, *steps: dict[str, Any], text: str = "hello", **prompt: Any) -> TurnResult:
        self.api.load(steps)
        with trio.fail_after(30):
            return await self.provider.run_turn(
                TurnPrompt(text=text, model="haiku", **prompt), NO_TOOLS, self.emitted
            )

    async def compact(self, *steps: dict[str, Any]) -> TurnResult:
        self.api.load(steps)
        with trio.fail_after(30):
            return await self.provider.compact("haiku", NO_TOOLS, self.emitted)

    async def wait_for(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(15):
            while not holds():
                await trio.sleep(0.01)

    def has_said(self, kind: str) -> bool:
        return any(event["type"] == kind for event in self.emitted.of("stream"))


@pytest.fixture
async def door(tmp_path: Path, nursery: trio.Nursery) -> FakeDoor:
    door = FakeDoor(tmp_path / "mcp.sock")
    await nursery.start(door.run)
    return door


@pytest.fixture
def real(api: FakeApi, environment: dict[str, str], tmp_path: Path, door: FakeDoor) -> Real:
    state = tmp_path / "state"
    state.mkdir()
    config = Config(
        socket=tmp_path / "mcp.sock",
        state=state,
        events_db=state / "e",
        model_file=state / "m",
        label="alice",
        claude_bin=str(find_claude()),
        runtime=tmp_path,
    )
    return Real(config, api, environment)


async def test_two_turns_of_one_session_with_a_tool_call(real: Real, door: FakeDoor, api: FakeApi) -> None:
    first = await real.turn(SEND, {"text": "I told bob."})
    second = await real.turn({"text": "I remember."}, text="what did you do?")

    assert first.outcome is second.outcome is Outcome.OK
    assert first.tools == {"mcp__hyperhive__send": 1}
    assert (first.last or Usage()).prompt == PER_CALL
    assert (first.total or Usage()).prompt == 2 * PER_CALL
    assert (second.total or Usage()).prompt == PER_CALL
    assert first.window == 1_000_000
    assert second.cost_usd is not None
    assert second.cost_usd < (first.cost_usd or 0)  # one call, not three
    (call,) = door.calls()
    assert call["params"]["arguments"] == {"to": "bob", "body": "hi"}
    assert call["params"]["_meta"]["claudecode/toolUseId"].startswith("toolu_")
    assert "I told bob." in api.asked[-1].words
    assert api.asked[0].agent == "alice"
    assert api.other == []  # nothing but inferences leaves the machine
    assert real.emitted.of("note") == []


async def test_only_the_tools_that_are_wanted_and_the_notes_of_the_agent(real: Real, api: FakeApi) -> None:
    (real.config.state / "CLAUDE.md").write_text("Remember the heron.")
    (real.config.state / "secret.txt").write_text("the falcon")

    await real.turn({"text": "ok"}, text="/compact and look at @secret.txt", effort="low")

    names = {tool["name"] for tool in api.asked[0].body["tools"]}
    assert {"Bash", "Read", "Edit", "Write", "mcp__hyperhive__send"} <= names
    assert not {"WebFetch", "WebSearch", "Task", "Agent", "TodoWrite", "SendMessage"} & names
    said = f"{api.asked[0].system} {api.asked[0].words}"
    assert "heron" in said
    assert "falcon" not in said
    assert "/compact and look at @secret.txt" in said
    assert api.asked[0].body["output_config"]["effort"] == "low"


async def test_a_rate_limit_and_the_recovery_from_it(real: Real) -> None:
    limited = await real.turn({"error": 429, "n": -1})
    overloaded = await real.turn({"error": 529, "n": -1})
    recovered = await real.turn({"error": 429, "retry_after": 1}, {"text": "again"})

    assert limited.outcome is overloaded.outcome is Outcome.RATE_LIMITED
    assert limited.total == Usage()
    assert recovered.ok
    notes = [note["text"] for note in real.emitted.of("note")]
    assert sum("rate limited" in note for note in notes) == 2


async def test_too_long_then_compacted_then_good_again(real: Real) -> None:
    await real.turn(SEND, {"text": "one"})
    too_long = await real.turn(
        {"error": 400, "message": "prompt is too long: 1212345 tokens > 1000000 maximum"}
    )
    compacted = await real.compact({"text": "<summary>all of it</summary>"})
    again = await real.turn({"text": "two"})

    assert too_long.outcome is Outcome.PROMPT_TOO_LONG
    assert compacted.ok
    assert 0 < (compacted.last or Usage()).prompt < PER_CALL
    assert (compacted.total or Usage()).prompt == PER_CALL  # it is not free
    assert again.ok
    assert "all of it" in real.api.asked[-1].words


async def test_a_compaction_that_fails_says_so(real: Real) -> None:
    await real.turn(SEND, {"text": "one"})
    await real.turn(SEND, {"text": "two"})

    limited = await real.compact({"error": 429, "n": -1})

    assert limited.outcome is Outcome.RATE_LIMITED
    assert (limited.note or "").startswith("cannot compact: ")


async def test_a_login_is_needed(real: Real) -> None:
    assert real.provider.is_logged_in()

    refused = await real.turn({"error": 401, "message": "invalid x-api-key", "n": -1})

    assert refused.outcome is Outcome.NEEDS_LOGIN
    assert not real.provider.is_logged_in()


async def test_a_plan_limit_tells_when_it_ends(real: Real, api: FakeApi, environment: dict[str, str]) -> None:
    subscribed = {**environment, "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-fake"}
    del subscribed["ANTHROPIC_API_KEY"]
    reset_at = int(time.time()) + 3600
    limit = "anthropic-ratelimit-unified-"
    headers = {
        f"{limit}status": "rejected",
        f"{limit}reset": reset_at,
        f"{limit}representative-claim": "five_hour",
    }

    turn = await Real(real.config, api, subscribed).turn({"error": 429, "headers": headers})

    assert turn.outcome is Outcome.RATE_LIMITED
    assert turn.reset_at == reset_at


async def test_a_session_that_is_gone_is_begun_anew(real: Real) -> None:
    (real.config.state / "hyperhive-session").write_text("00000000-0000-4000-8000-000000000000\n")

    turn = await real.turn({"text": "hello"})

    assert turn.ok
    notes = [note["text"] for note in real.emitted.of("note")]
    assert notes[-1] == "Session 00000000-0000-4000-8000-000000000000 is gone: a new one begins"


async def cancel(real: Real, step: dict[str, Any], when: Callable[[], object]) -> float:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def watch() -> None:
                await real.wait_for(when)
                nonlocal asked_at
                asked_at = trio.current_time()
                scope.cancel()

            asked_at = 0.0
            nursery.start_soon(watch)
            await real.turn(step)
    assert scope.cancelled_caught
    return trio.current_time() - asked_at


def running(pattern: str) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if re.search(pattern, line)]


async def test_an_interrupt_leaves_nothing_and_the_next_turn_works(real: Real) -> None:
    took_s = [
        await cancel(real, LONG, lambda: len(real.api.asked) == 1),
        await cancel(real, STUCK, lambda: running(r"python[0-9.]* -c import time; time.sleep\(7788\)")),
    ]

    assert max(took_s) < 2
    assert not running(r"sleep\(7788\)")
    assert real.provider.cut_off is not None
    assert real.provider.cut_off.outcome is Outcome.INTERRUPTED
    assert (real.provider.cut_off.total or Usage()).prompt == PER_CALL
    assert (await real.turn({"text": "back"})).ok


async def test_steering_reaches_the_turn_at_its_next_tool(
    real: Real, door: FakeDoor, nursery: trio.Nursery
) -> None:
    said: list[bool] = []

    async def steer() -> None:
        await real.wait_for(lambda: real.has_said("assistant"))
        said.append(await real.provider.steer("greet carol too"))

    slow = {"tools": [{"name": "Bash", "input": {"command": "python3 -c 'import time; time.sleep(1)'"}}]}
    nursery.start_soon(steer)
    turn = await real.turn(slow, {"text": "done"})

    assert turn.ok
    assert said == [True]
    assert "greet carol too" in real.api.asked[-1].words


async def test_a_command_in_the_background_begins_a_turn_that_has_its_tools(
    real: Real, door: FakeDoor
) -> None:
    command = {"command": "python3 -c 'import time; time.sleep(0.5)'", "run_in_background": True}

    turn = await real.turn(
        {"tools": [{"name": "Bash", "input": command}]}, {"text": "started"}, SEND, {"text": "reported"}
    )

    assert turn.ok
    assert turn.tools == {"Bash": 1, "mcp__hyperhive__send": 1}
    assert len(door.calls()) == 1


async def test_a_door_that_restarts_in_the_middle_of_a_call_is_not_noticed(
    real: Real, door: FakeDoor, nursery: trio.Nursery
) -> None:
    door.answer_calls = False
    successor = FakeDoor(door.path)

    async def restart() -> None:
        await door.wait_until(lambda door: door.calls())
        door.go_away()
        await nursery.start(successor.run)

    nursery.start_soon(restart)
    turn = await real.turn(SEND, {"text": "done"})

    assert turn.ok
    assert successor.calls() == door.calls()
    assert os.path.exists(door.path)

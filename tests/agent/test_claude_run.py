"""The provider with a stub in claude's place: processes, pipes, limits, sessions."""

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from hive_agent.config import Config
from hive_agent.providers import BadProvider, Outcome, TurnPrompt, TurnResult, Usage
from hive_agent.providers.claude import Claude, run
from hive_agent.providers.claude.group import open_group, sweep
from hive_agent.providers.claude.run import Run, user_line

from .fake_door import FakeDoor
from .fakes import Emitted
from .test_claude_stream import INIT, STREAMS, assistant, result

STUB = Path(__file__).parent / "stub_claude.py"
HELD: Any = None
"""Tools of the harness, which claude does not use."""


class Stubbed:
    """A provider whose claude plays scenarios, one a process."""

    def __init__(self, config: Config, tmp_path: Path) -> None:
        self.config = config
        self.tmp_path = tmp_path
        self.emitted = Emitted()
        self.scenario = tmp_path / "scenario"
        self.provider = Claude.open(config, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})

    def play(self, *steps: Any) -> None:
        self.scenario.write_text(json.dumps(steps))

    async def turn(self, *steps: Any, text: str = "hello", **prompt: Any) -> TurnResult:
        if steps:
            self.play(*steps)
        with trio.fail_after(20):
            return await self.provider.run_turn(
                TurnPrompt(text=text, model="haiku", **prompt), HELD, self.emitted
            )

    async def compact(self, *steps: Any) -> TurnResult:
        self.play(*steps)
        with trio.fail_after(20):
            return await self.provider.compact("haiku", HELD, self.emitted)

    @property
    def stdin(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(f"{self.scenario}.stdin").read_bytes().splitlines()]

    @property
    def prompts(self) -> list[dict[str, Any]]:
        return [line for line in self.stdin if line["type"] == "user"]

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(f"{self.scenario}.started").read_text().splitlines()]

    @property
    def notes(self) -> list[str]:
        return [note["text"] for note in self.emitted.of("note")]

    async def wait_for(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not holds():
                await trio.sleep(0.01)

    async def child_pid(self) -> int:
        """The process that the stub started in a session of its own."""
        place = Path(f"{self.scenario}.child")
        await self.wait_for(lambda: place.exists() and place.read_text())
        return int(place.read_text())


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
async def door(config: Config, nursery: trio.Nursery) -> FakeDoor:
    door = FakeDoor(config.socket)
    await nursery.start(door.run)
    return door


@pytest.fixture
def stub_config(tmp_path: Path) -> Config:
    state = tmp_path / "state"
    state.mkdir()
    binary = tmp_path / "claude"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -I {STUB} {tmp_path}/scenario "$@"\n')
    binary.chmod(0o755)
    return Config(
        socket=tmp_path / "mcp.sock",
        state=state,
        events_db=state / "e",
        model_file=state / "m",
        label="alice",
        claude_bin=str(binary),
        runtime=tmp_path,
    )


@pytest.fixture
def stubbed(stub_config: Config, tmp_path: Path, door: FakeDoor) -> Stubbed:
    return Stubbed(stub_config, tmp_path)


def replay(name: str) -> list[str]:
    return ["replay", str(STREAMS / f"{name}.jsonl")]


GOOD = ["handshake", "prompt", ["print", INIT], ["print", assistant()], ["print", result()], "eof"]


# ── a turn ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_goes_through(stubbed: Stubbed, door: FakeDoor) -> None:
    steps = ["handshake", "prompt", ["print", INIT], ["print", assistant()], ["call", "send", {"to": "bob"}]]

    turn = await stubbed.turn(*steps, ["print", result()], "eof")

    assert turn == TurnResult(outcome=Outcome.OK, last=Usage(input=5), total=Usage(input=5))
    assert [event["type"] for event in stubbed.emitted.of("stream")] == ["system", "assistant", "result"]
    assert door.calls()[0]["params"]["arguments"] == {"to": "bob"}
    assert stubbed.notes == []


def result_of(tool_use: str, **more: Any) -> list[Any]:
    content = [{"type": "tool_result", "tool_use_id": tool_use, "content": "x", **more}]
    return ["print", {"type": "user", "message": {"role": "user", "content": content}}]


RECV_TOOL_USE = "toolu_104"
RECEIVED = "notifications/hyperhive/received"


async def test_a_message_is_received_when_claude_shows_it_in_its_conversation(
    stubbed: Stubbed, door: FakeDoor
) -> None:
    steps = ["handshake", "prompt", ["print", INIT], ["call", "recv", {}], result_of(RECV_TOOL_USE)]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubbed.turn, *steps, ["sleep", 60])
        await door.wait_until(lambda door: RECEIVED in door.methods)
        nursery.cancel_scope.cancel()

    (told,) = [message for message in door.heard if message["method"] == RECEIVED]
    assert told["params"]["requestId"] == door.calls()[0]["id"]


async def test_a_message_that_claude_never_shows_is_received_when_its_turn_ends_well(
    stubbed: Stubbed, door: FakeDoor
) -> None:
    await stubbed.turn(
        *["handshake", "prompt", ["print", INIT], ["call", "recv", {}], ["print", result()], "eof"]
    )

    await door.wait_until(lambda door: RECEIVED in door.methods)


async def test_a_message_is_handed_back_when_claude_tells_the_model_that_its_recv_failed(
    stubbed: Stubbed, door: FakeDoor
) -> None:
    timed_out = result_of(RECV_TOOL_USE, is_error=True)

    await stubbed.turn(
        *["handshake", "prompt", ["print", INIT], ["call", "recv", {}], timed_out],
        *[["print", assistant()], ["print", result()], "eof"],
    )
    await door.wait_until(lambda door: "notifications/cancelled" in door.methods)

    assert RECEIVED not in door.methods


async def test_a_message_that_came_with_the_interrupt_is_not_received(
    stubbed: Stubbed, door: FakeDoor
) -> None:
    steps = ["handshake", "prompt", ["print", INIT], ["call", "recv", {}]]
    rejected = result_of(RECV_TOOL_USE, is_error=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stubbed.turn, *steps, "interrupt", rejected, ["print", result(is_error=True)])
        await door.wait_until(lambda door: door.calls())
        await stubbed.wait_for(lambda: "mcp_response" in str(stubbed.stdin[-1]))
        nursery.cancel_scope.cancel()

    assert RECEIVED not in door.methods


async def test_the_task_is_read_anew_for_each_turn_and_a_missing_one_is_a_note(
    stub_config: Config, tmp_path: Path, door: FakeDoor
) -> None:
    task = tmp_path / "prompt.md"
    stubbed = Stubbed(replace(stub_config, prompt_file=task), tmp_path)
    task.write_text("Build it.")
    await stubbed.turn(*GOOD)
    task.write_text("Test it.")
    await stubbed.turn(*GOOD)
    task.unlink()
    turn = await stubbed.turn(*GOOD)

    ends = [start["system_prompt"].partition("# Your task\n\n")[2] for start in stubbed.starts]
    assert ends == ["Build it.\n", "Test it.\n", ""]
    assert stubbed.notes == [f"The task is left out: {task}: No such file or directory"]
    assert turn.ok


async def test_a_compaction_is_told_the_same_as_the_turns(
    stub_config: Config, tmp_path: Path, door: FakeDoor
) -> None:
    task = tmp_path / "prompt.md"
    task.write_text("Build it.")
    stubbed = Stubbed(replace(stub_config, prompt_file=task, label="manager"), tmp_path)
    await stubbed.turn(*ending(SESSION))
    await stubbed.compact(*ending(SESSION))

    turn, compaction = [start["system_prompt"] for start in stubbed.starts]
    assert turn == compaction
    assert "# You are the manager" in turn


async def test_a_prompt_is_never_carried_out_as_a_command(stubbed: Stubbed) -> None:
    await stubbed.turn(*GOOD, text="/compact @/etc/passwd")

    (prompt,) = stubbed.prompts
    assert prompt["client_composed"] is True
    assert prompt["message"] == {"role": "user", "content": "/compact @/etc/passwd"}


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("multi-tool", Outcome.OK),
        ("hooks", Outcome.OK),
        ("thinking", Outcome.OK),
        ("api-429-exhausted", Outcome.RATE_LIMITED),
        ("plan-limit", Outcome.RATE_LIMITED),
        ("prompt-too-long", Outcome.PROMPT_TOO_LONG),
        ("not-logged-in", Outcome.NEEDS_LOGIN),
        ("credit-low", Outcome.FAILED),
        ("sigint-bash", Outcome.INTERRUPTED),
        ("background", Outcome.OK),
    ],
)
async def test_a_recording_is_played_as_a_turn(
    stubbed: Stubbed, name: str, outcome: Outcome, tmp_path: Path
) -> None:
    # The recordings were made with another name of the server.
    recorded = (STREAMS / f"{name}.jsonl").read_text().replace('"name":"hive"', '"name":"hyperhive"')
    (tmp_path / "recorded").write_text(recorded)

    turn = await stubbed.turn("handshake", "prompt", ["replay", str(tmp_path / "recorded")], "eof")

    assert turn.outcome is outcome
    shown = [json.loads(line) for line in recorded.splitlines() if '"type":"control_' not in line]
    assert stubbed.emitted.of("stream") == shown


async def test_lines_of_stderr_are_notes_and_long_ones_are_cut(stubbed: Stubbed) -> None:
    await stubbed.turn(["stderr", "careful"], ["stderr", "x" * 9000], ["stderr", "oh"], *GOOD)

    assert stubbed.emitted.of("note") == [
        {"text": "careful", "origin": "stderr"},
        {"text": "(a line longer than 4096 bytes)", "origin": "stderr"},
        {"text": "oh", "origin": "stderr"},
    ]


async def test_a_flood_on_stderr_is_cut_off(stubbed: Stubbed) -> None:
    await stubbed.turn(["stderr", "no\n" * 5000], *GOOD)

    assert len(stubbed.notes) == run.MAX_STDERR_LINES + 1
    assert stubbed.notes[-1] == "More on stderr is left out"


async def test_garbage_and_endless_lines_on_stdout_are_notes(
    stubbed: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "MAX_STDOUT_LINE_BYTES", 10_000)
    odd = [
        ["print", "no json"],
        ["print", {"type": "assistant", "x": "y" * 20_000}],
        ["print", {"type": "new"}],
    ]

    turn = await stubbed.turn("handshake", "prompt", *odd, *GOOD[2:])

    assert turn.ok
    assert stubbed.notes == ["Not understood: no json", "Left out: a line longer than 10000 bytes"]
    assert stubbed.emitted.of("stream")[0] == {"type": "new"}


async def test_an_end_without_a_result_quotes_the_last_words(stubbed: Stubbed) -> None:
    turn = await stubbed.turn("handshake", ["stderr", "Error: no such thing"], ["exit", 1])

    assert turn.outcome is Outcome.FAILED
    assert turn.note == "claude ended without a result: exit status 1: Error: no such thing"


@pytest.mark.parametrize("words", ["API Error: 429 too many", 'x {"type":"rate_limit_error"}'])
async def test_an_end_without_a_result_after_a_limit_on_stderr_is_a_limit(
    stubbed: Stubbed, words: str
) -> None:
    turn = await stubbed.turn("handshake", ["stderr", words], ["stderr", "at line 4290"], ["exit", 1])

    assert turn.outcome is Outcome.RATE_LIMITED
    assert turn.note == f"claude ended without a result: exit status 1: {words}"


async def test_a_limit_on_stderr_does_not_spoil_a_good_turn(stubbed: Stubbed) -> None:
    assert (await stubbed.turn(["stderr", "429"], *GOOD)).ok


async def test_a_claude_that_cannot_be_started_fails_the_turn(stubbed: Stubbed) -> None:
    Path(stubbed.config.claude_bin or "").write_text("#!/nonexistent/interpreter\n")

    turn = await stubbed.turn(*GOOD)

    assert turn.outcome is Outcome.FAILED
    assert (turn.note or "").endswith("No such file or directory")


def test_a_missing_claude_is_told_at_the_start(stub_config: Config) -> None:
    with pytest.raises(BadProvider, match="there is no program claude on PATH"):
        Claude.open(Config(**{**fields_of(stub_config), "claude_bin": None}), {"PATH": "/nonexistent"})
    with pytest.raises(BadProvider, match=r"there is no program /gone/claude$"):
        Claude.open(Config(**{**fields_of(stub_config), "claude_bin": "/gone/claude"}), {})


def fields_of(config: Config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


# ── MCP ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", ["failed", "pending"])
async def test_a_turn_without_the_hives_tools_is_stopped(stubbed: Stubbed, status: str) -> None:
    init = {**INIT, "mcp_servers": [{"name": "hyperhive", "status": status}]}

    turn = await stubbed.turn("handshake", "prompt", ["print", init], ["sleep", 30])

    assert turn.outcome is Outcome.FAILED
    assert turn.note == f"the hive's MCP server is not connected: {status}"


async def test_no_prompt_is_given_before_the_tools_are_there(
    stubbed: Stubbed, door: FakeDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "START_S", 0.5)
    door.go_away()
    await trio.testing.wait_all_tasks_blocked()
    door.path.unlink()

    turn = await stubbed.turn(*GOOD)

    assert turn.outcome is Outcome.FAILED
    assert (turn.note or "").startswith("the hive's MCP server is not connected: ")
    assert "No such file" in (turn.note or "")
    assert stubbed.prompts == []


async def test_another_server_that_fails_is_only_a_note(stubbed: Stubbed) -> None:
    servers = [*INIT["mcp_servers"], {"name": "matrix", "status": "failed"}]

    turn = await stubbed.turn("handshake", "prompt", ["print", {**INIT, "mcp_servers": servers}], *GOOD[3:])

    assert turn.ok
    assert stubbed.notes == ["MCP server matrix is not connected: failed"]


async def test_what_we_do_not_serve_is_refused(stubbed: Stubbed) -> None:
    ask = {"type": "control_request", "request_id": "q", "request": {"subtype": "can_use_tool"}}

    await stubbed.turn("handshake", "prompt", ["print", INIT], ["print", ask], *GOOD[3:])

    (answer,) = [
        line["response"] for line in stubbed.stdin if line.get("response", {}).get("request_id") == "q"
    ]
    assert answer == {"subtype": "error", "request_id": "q", "error": "not supported: can_use_tool"}


# ── sessions ────────────────────────────────────────────────────────────────────────────────────

SESSION = "00000000-0000-4000-8000-0000000000c1"
OTHER = "00000000-0000-4000-8000-0000000000c2"


def resumed(start: dict[str, Any]) -> str | None:
    argv = start["argv"]
    return argv[argv.index("--resume") + 1] if "--resume" in argv else None


def ending(session: str) -> list[Any]:
    return ["handshake", "prompt", ["print", {**INIT, "session_id": session}], *GOOD[3:]]


async def test_a_session_goes_on_until_a_fresh_turn(stubbed: Stubbed, stub_config: Config) -> None:
    await stubbed.turn(*ending(SESSION))
    await stubbed.turn(*ending(SESSION))
    await stubbed.turn(*ending(OTHER), fresh=True)
    again = Stubbed(stub_config, stubbed.tmp_path)
    await again.turn(*ending(OTHER))

    assert [resumed(start) for start in stubbed.starts] == [None, SESSION, None, OTHER]
    assert (stub_config.state / "hyperhive-session").read_text() == f"{OTHER}\n"


async def test_a_session_that_is_gone_is_begun_anew_once(stubbed: Stubbed, stub_config: Config) -> None:
    session_file = stub_config.state / "hyperhive-session"
    session_file.write_text(f"{SESSION}\n")
    stubbed.play(replay("resume-unknown"), ["exit", 1])

    turn = await stubbed.turn()

    assert [resumed(start) for start in stubbed.starts] == [SESSION, None]
    assert turn.outcome is Outcome.FAILED
    assert stubbed.notes == [f"Session {SESSION} is gone: a new one begins"]
    assert not session_file.exists()


@pytest.mark.parametrize("text", ["", "--model\n", "../../etc\n", "\x00"])
async def test_a_broken_session_file_is_no_session(stubbed: Stubbed, stub_config: Config, text: str) -> None:
    (stub_config.state / "hyperhive-session").write_text(text)

    await stubbed.turn(*GOOD)

    assert resumed(stubbed.starts[0]) is None


async def test_the_cost_is_the_difference_to_the_turn_before(stubbed: Stubbed) -> None:
    def costing(total: float) -> list[Any]:
        return [*ending(SESSION)[:4], ["print", result(total_cost_usd=total)], "eof"]

    costs = [(await stubbed.turn(*costing(total))).cost_usd for total in (0.25, 0.75)]

    assert costs == [0.25, 0.5]


async def test_compacting_sends_the_command_to_the_session(stubbed: Stubbed, stub_config: Config) -> None:
    (stub_config.state / "hyperhive-session").write_text(f"{SESSION}\n")
    recorded = (
        (STREAMS / "session-4-compact.jsonl").read_text().replace('"name":"hive"', '"name":"hyperhive"')
    )
    (stubbed.tmp_path / "recorded").write_text(recorded)

    turn = await stubbed.compact("handshake", "prompt", ["replay", str(stubbed.tmp_path / "recorded")], "eof")

    assert turn.outcome is Outcome.OK
    assert turn.last == Usage(input=546)
    assert turn.note == "compacted: 7154 → 546 tokens"
    assert resumed(stubbed.starts[0]) == SESSION
    (prompt,) = stubbed.prompts
    assert prompt == {"type": "user", "message": {"role": "user", "content": "/compact"}}


async def test_there_is_nothing_to_compact_without_a_session(stubbed: Stubbed) -> None:
    assert (await stubbed.provider.compact("haiku", HELD, stubbed.emitted)).outcome is Outcome.FAILED


# ── the end of a turn ───────────────────────────────────────────────────────────────────────────


async def test_stdin_stays_open_for_what_runs_in_the_background(stubbed: Stubbed, door: FakeDoor) -> None:
    def tasks(*tasks: Any) -> list[Any]:
        return ["print", {"type": "system", "subtype": "background_tasks_changed", "tasks": tasks}]

    turn = await stubbed.turn(
        *GOOD[:3],
        tasks({"task_id": "b1"}),
        *GOOD[3:5],
        ["sleep", 0.2],
        tasks(),
        *GOOD[2:4],
        ["call", "send", {}],
        *GOOD[4:],
    )

    assert turn.ok
    assert turn.total == Usage(input=10)
    assert len(door.calls()) == 1


async def test_what_runs_in_the_background_is_not_waited_for_for_ever(
    stubbed: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "BACKGROUND_S", 0.2)
    monkeypatch.setattr(run, "EXIT_S", 0.2)
    tasks = {"type": "system", "subtype": "background_tasks_changed", "tasks": [{"task_id": "b1"}]}

    turn = await stubbed.turn(*GOOD[:3], ["print", tasks], *GOOD[3:5], ["sleep", 30])

    assert turn.ok  # the result is there
    assert stubbed.notes == [
        "Commands in the background are not waited for after 0.2 s",
        "claude does not end after its result, and is ended",
    ]


async def test_a_claude_that_says_nothing_is_given_up(
    stubbed: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SILENCE_S", 0.3)

    turn = await stubbed.turn(*GOOD[:3], ["sleep", 30])

    assert turn.outcome is Outcome.FAILED
    assert "silent" in (turn.note or "")


@pytest.mark.parametrize(("status", "seen"), [(429, [True, False]), (529, [True, False]), (500, [])])
async def test_a_turn_that_a_limit_holds_up_says_so_until_it_goes_on(
    stubbed: Stubbed, status: int, seen: list[bool]
) -> None:
    retry = {"type": "system", "subtype": "api_retry", "error_status": status, "retry_delay_ms": 10}
    told = [False]
    stubbed.provider.held_up = lambda held_up: told.append(held_up) if told[-1] != held_up else None

    turn = await stubbed.turn(*GOOD[:3], ["print", retry], ["print", retry], *GOOD[3:])

    assert turn.ok
    assert told[1:] == seen


async def test_a_retry_that_is_far_away_ends_the_turn(stubbed: Stubbed) -> None:
    retry = {"type": "system", "subtype": "api_retry", "error_status": 429, "retry_delay_ms": 3_600_000}

    turn = await stubbed.turn(*GOOD[:3], ["print", retry], ["sleep", 30])

    assert turn.outcome is Outcome.RATE_LIMITED
    assert turn.reset_at == pytest.approx(time.time() + 3600, abs=20)


async def cancel_when(stubbed: Stubbed, holds: Callable[[], object]) -> float:
    """Cancel the turn when *holds*; give the seconds until it was gone."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:

            async def cancel() -> None:
                await stubbed.wait_for(holds)
                nonlocal asked_at
                asked_at = time.monotonic()
                scope.cancel()

            asked_at = 0.0
            nursery.start_soon(cancel)
            await stubbed.turn()
    assert scope.cancelled_caught
    return time.monotonic() - asked_at


async def test_a_cancelled_turn_is_interrupted_and_its_cost_is_known(stubbed: Stubbed) -> None:
    aborted = result(is_error=True, subtype="error_during_execution", terminal_reason="aborted_streaming")
    stubbed.play(*GOOD[:4], "interrupt", ["print", aborted], "eof")

    took_s = await cancel_when(stubbed, lambda: len(stubbed.emitted.of("stream")) == 2)

    assert took_s < 1
    assert stubbed.provider.cut_off == TurnResult(
        outcome=Outcome.INTERRUPTED, note="interrupted", last=Usage(input=5), total=Usage(input=5)
    )
    assert stubbed.emitted.of("stream")[-1] == aborted


async def test_a_stubborn_claude_and_its_stray_children_are_gone_in_two_seconds(stubbed: Stubbed) -> None:
    stubbed.play("stubborn", *GOOD[:3], "child", ["sleep", 60])
    place = Path(f"{stubbed.scenario}.child")

    took_s = await cancel_when(stubbed, lambda: place.exists() and place.read_text())

    assert took_s < 2
    assert not is_running(await stubbed.child_pid())


async def test_a_turn_that_is_cancelled_before_its_prompt_leaves_nothing(stubbed: Stubbed) -> None:
    stubbed.play("stubborn", ["sleep", 60])

    took_s = await cancel_when(stubbed, lambda: Path(f"{stubbed.scenario}.started").exists())

    assert took_s < 2
    assert await sweep(f"HIVE_TURN_OF={stubbed.config.state}") == 0


async def test_what_a_killed_harness_left_is_ended_before_the_first_turn(
    stubbed: Stubbed, nursery: trio.Nursery
) -> None:
    mark = {"HIVE_TURN_OF": str(stubbed.config.state), "PATH": os.environ["PATH"]}
    left = await trio.lowlevel.open_process(["sleep", "60"], env=mark)
    spared = await trio.lowlevel.open_process(["sleep", "60"], env={**mark, "HIVE_TURN_OF": "/another"})

    await stubbed.turn(*GOOD)

    with trio.fail_after(5):
        assert await left.wait() == -9
    assert is_running(spared.pid)
    spared.kill()
    await spared.wait()


async def test_the_group_goes_with_its_leader(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/pid; read line"
    async with open_group(["sh", "-c", script], cwd=tmp_path, env={"PATH": os.environ["PATH"]}) as group:
        await group.stdin.send_all(b"go\n")
        status = await group.wait()

    assert status == 0
    pid = int((tmp_path / "pid").read_text())
    with trio.fail_after(5):
        while is_running(pid):
            await trio.sleep(0.01)


async def test_nothing_of_a_turn_stays_in_the_runtime_directory(stubbed: Stubbed) -> None:
    runtime = stubbed.tmp_path
    left = runtime / f"{stubbed.provider._prefix}abc"
    left.mkdir()
    (left / "mcp.json").touch()
    others = runtime / "hive-claude-000000000000-abc"
    others.mkdir()

    await stubbed.turn(*GOOD)

    assert list(runtime.glob("hive-claude-*")) == [others]


# ── steering ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("end", [[["exit", 0]], [["sleep", 60]]])
async def test_the_socket_that_claude_leaves_behind_is_removed(stubbed: Stubbed, end: list[Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            stubbed.turn, "handshake", "prompt", ["socket", "PID.sock", INIT], ["print", result()], *end
        )
        await stubbed.wait_for(lambda: stubbed.emitted.of("stream"))
        nursery.cancel_scope.cancel()

    assert [path.name for path in stubbed.tmp_path.glob("*.sock")] == ["mcp.sock"]


async def test_no_other_socket_is_removed(stubbed: Stubbed) -> None:
    await stubbed.turn(
        *["handshake", "prompt", ["socket", "other.sock", INIT], ["print", result()], ["exit", 0]]
    )

    assert sorted(path.name for path in stubbed.tmp_path.glob("*.sock")) == ["mcp.sock", "other.sock"]


async def test_steering_reaches_the_running_turn(stubbed: Stubbed, nursery: trio.Nursery) -> None:
    said: list[bool] = []
    stubbed.play(*GOOD[:4], "prompt", *GOOD[4:])

    async def steer() -> None:
        await stubbed.wait_for(lambda: len(stubbed.emitted.of("stream")) == 2)
        said.append(await stubbed.provider.steer("also greet bob"))

    nursery.start_soon(steer)
    turn = await stubbed.turn()

    assert turn.ok
    assert said == [True]
    line = stubbed.prompts[1]
    assert line["message"]["content"] == "also greet bob"
    assert (line["priority"], line["client_composed"]) == ("next", True)


async def test_nothing_can_be_steered_while_nothing_runs(stubbed: Stubbed) -> None:
    assert not await stubbed.provider.steer("hello?")
    await stubbed.turn(*GOOD)
    assert not await stubbed.provider.steer("hello?")


async def test_a_steer_that_is_queued_keeps_stdin_open_until_it_is_done(stub_config: Config) -> None:
    # Straight at the rule: what claude does here depends on its timing.
    emitted = Emitted()
    run_ = Run(["x"], cwd=Path("/"), env={}, door=Path("/"), emit=emitted, reading=run.TurnReading())
    run_._prompted = True
    taken = run_._steered["s1"] = trio.Event()

    for line in (INIT, lifecycle("queued"), assistant(), result()):
        await run_._take(json.dumps(line).encode())
    assert taken.is_set()
    assert not run_._stdin_closed

    for line in (lifecycle("started"), INIT, assistant(), lifecycle("completed"), result()):
        await run_._take(json.dumps(line).encode())
    assert run_._stdin_closed


def lifecycle(state: str) -> dict[str, Any]:
    return {"type": "command_lifecycle", "command_uuid": "s1", "state": state}


def test_each_prompt_has_an_id_of_its_own() -> None:
    assert user_line("a")["uuid"] != user_line("a")["uuid"]

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_agent.providers import Outcome, TurnResult, Usage
from hive_agent.providers.claude.reading import TurnReading
from hive_agent.providers.claude.stream import Assistant, Garbage, Other, Result, parse_line

from .claude_table import EXPECTED

STREAMS = Path(__file__).parent / "claude_streams"
COMPACTIONS = {
    "session-4-compact",
    "compact-nothing",
    "compact-401",
    "compact-429",
    "compact-500",
    "compact-too-long",
}
INIT = {
    "type": "system",
    "subtype": "init",
    "session_id": "s1",
    "model": "claude-haiku-5-5",
    "claude_code_version": "2.1.329",
    "mcp_servers": [{"name": "hyperhive", "status": "connected"}],
}


def lines_of(name: str) -> list[bytes]:
    return (STREAMS / f"{name}.jsonl").read_bytes().splitlines()


def take_all(reading: TurnReading, lines: list[Any]) -> list[str]:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    notes = [reading.take(parse_line(line).event) for line in encoded]
    return [note for note in notes if note is not None]


def read(*lines: Any, **options: Any) -> TurnResult:
    reading = TurnReading(**options)
    take_all(reading, list(lines))
    return reading.end("exit status 1")


def assistant(usage: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    message = {"id": "m1", "model": "claude-haiku-5-5", "content": [{"type": "text", "text": "hi"}]}
    return {"type": "assistant", "message": {**message, "usage": usage or {"input_tokens": 5}}, **more}


def result(**fields: Any) -> dict[str, Any]:
    return {"type": "result", "subtype": "success", "is_error": False, "usage": {"input_tokens": 5}, **fields}


@pytest.mark.parametrize("expected", EXPECTED, ids=lambda row: row[0])
def test_a_recorded_stream_gives_the_right_outcome_and_figures(expected: tuple[Any, ...]) -> None:
    name, outcome, ctx, prompt, output, window, cost, tools, note_count = expected
    reading = TurnReading()

    notes = take_all(reading, lines_of(name))
    end = reading.end_compaction if name.rpartition("/")[2] in COMPACTIONS else reading.end
    turn = end("exit status 1")

    assert turn.outcome == outcome
    assert (turn.last.prompt if turn.last else None) == ctx
    assert (turn.total.prompt if turn.total else None) == prompt
    assert (turn.total.output if turn.total else None) == output
    assert turn.window == window
    assert (None if turn.cost_usd is None else round(turn.cost_usd * 1e6, 1)) == cost
    assert turn.tools == tools
    assert len(notes) == note_count


def test_every_recording_stands_in_the_table() -> None:
    names = {str(path.relative_to(STREAMS))[:-6] for path in STREAMS.rglob("*.jsonl")}

    assert {row[0] for row in EXPECTED} == names


@pytest.mark.parametrize("name", [row[0] for row in EXPECTED])
def test_every_recorded_line_is_understood_and_kept_verbatim(name: str) -> None:
    for line in lines_of(name):
        parsed = parse_line(line)

        assert parsed.problem is None
        assert not isinstance(parsed.event, Garbage)
        assert parsed.payload == json.loads(line)


# ── lines ───────────────────────────────────────────────────────────────────────────────────────


def test_an_unknown_kind_is_kept_and_passed_on() -> None:
    parsed = parse_line(b'{"type":"dream","deep":{"er":[1]}}')

    assert parsed.event == Other("dream")
    assert parsed.payload == {"type": "dream", "deep": {"er": [1]}}


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[1]", b'{"type":1}', b"plain words", b"\xff\xfe", b"[" * 5000]
)
def test_what_is_no_line_becomes_a_note(line: bytes) -> None:
    parsed = parse_line(line)

    assert isinstance(parsed.event, Garbage)
    assert len(TurnReading().take(parsed.event) or "") < 300


def test_of_a_line_that_does_not_fit_the_fields_that_do_count() -> None:
    line = {**result(), "num_turns": "many", "usage": {"input_tokens": 7, "output_tokens": None}, "errors": 3}

    parsed = parse_line(json.dumps(line).encode())

    assert isinstance(parsed.event, Result)
    assert parsed.event.ok
    assert parsed.event.usage is None or parsed.event.usage.input_tokens == 7
    assert parsed.problem is not None
    assert parsed.problem.startswith("result: ")


def test_an_assistant_line_without_a_message_is_harmless() -> None:
    parsed = parse_line(b'{"type":"assistant","message":null,"parent_tool_use_id":7}')

    assert parsed.event == Assistant()
    assert TurnReading().take(parsed.event) is None


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(line: bytes) -> None:
    reading = TurnReading()
    reading.take(parse_line(line).event)
    reading.end("exit status 0")


RECORDED = [line for row in EXPECTED[::4] for line in lines_of(row[0])]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(RECORDED), st.data())
def test_no_change_of_a_recorded_line_makes_it_raise(line: bytes, data: st.DataObject) -> None:
    payload = json.loads(line)
    place = payload
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    reading = TurnReading()

    parsed = parse_line(json.dumps(payload).encode())
    reading.take(parsed.event)
    reading.end("exit status 0")
    reading.end_compaction("exit status 0")


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


def test_the_context_is_that_of_the_last_inference_and_not_the_sum() -> None:
    turn = read(
        INIT,
        assistant({"input_tokens": 10, "cache_read_input_tokens": 90}),
        assistant({"input_tokens": 20, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 100}),
        result(usage={"input_tokens": 30, "cache_read_input_tokens": 190, "output_tokens": 8}),
    )

    assert turn.last == Usage(input=20, cache_creation=5, cache_read=100)
    assert turn.total == Usage(input=30, cache_read=190, output=8)


def test_neither_subagents_nor_claudes_own_words_count_for_the_context() -> None:
    synthetic = assistant({"input_tokens": 0})
    synthetic["message"]["model"] = "<synthetic>"
    use = {"type": "tool_use", "name": "Bash", "id": "t"}
    of_subagent = assistant({"input_tokens": 999}, parent_tool_use_id="toolu_1")
    of_subagent["message"]["content"] = [use]

    turn = read(INIT, assistant({"input_tokens": 7}), of_subagent, synthetic, result())

    assert turn.last == Usage(input=7)
    assert turn.tools == {}


def test_several_results_of_one_process_add_up_and_the_last_decides() -> None:
    broken = result(is_error=True, terminal_reason="api_error", api_error_status=500, result="boom")

    turn = read(INIT, assistant(), broken, INIT, assistant(), result())

    assert turn.ok
    assert turn.total == Usage(input=10)


def test_a_turn_that_was_ended_before_its_result_is_counted_by_its_messages() -> None:
    turn = read(INIT, assistant({"input_tokens": 7}), assistant({"input_tokens": 7}))

    assert turn.outcome is Outcome.FAILED
    assert turn.total == Usage(input=7)


def test_the_window_is_that_of_the_model_that_answered() -> None:
    windows = {
        "claude-haiku-5-5": {"contextWindow": 1_000_000},
        "claude-sonnet-4-6[1m]": {"contextWindow": 200_000},
    }
    answer = assistant()
    answer["message"]["model"] = "claude-sonnet-4-6"

    assert read(INIT, answer, result(modelUsage=windows)).window == 200_000
    assert read(INIT, result(modelUsage=windows)).window == 1_000_000
    assert read(INIT, assistant(), result(modelUsage={})).window is None


def test_the_cost_of_a_resumed_session_is_the_difference() -> None:
    first = result(total_cost_usd=0.5)

    assert read(INIT, first).cost_usd == 0.5
    assert read(INIT, first, resumed=True, cost_before=0.3).cost_usd == pytest.approx(0.2)
    assert read(INIT, first, resumed=True, cost_before=0.9).cost_usd == 0.5  # it was reset
    assert read(INIT, first, resumed=True).cost_usd is None  # nobody knows
    assert read({**INIT, "claude_code_version": "2.1.197"}, first, resumed=True).cost_usd == 0.5
    assert read(INIT, first, result(total_cost_usd=0.75)).cost_usd == 0.75


# ── ends ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"terminal_reason": "blocking_limit", "result": "Prompt is too long"}, Outcome.PROMPT_TOO_LONG),
        ({"terminal_reason": "completed", "result": "Prompt is too long"}, Outcome.PROMPT_TOO_LONG),
        ({"terminal_reason": "aborted_tools"}, Outcome.INTERRUPTED),
        ({"api_error_status": 429, "result": "no"}, Outcome.RATE_LIMITED),
        ({"api_error_status": 529, "terminal_reason": "completed"}, Outcome.RATE_LIMITED),
        ({"api_error_status": 401}, Outcome.NEEDS_LOGIN),
        ({"api_error_status": 503}, Outcome.FAILED),
        ({"is_error": None, "subtype": "error_max_turns"}, Outcome.FAILED),
        ({"is_error": None, "subtype": "success"}, Outcome.OK),
        ({"is_error": False, "subtype": "success", "api_error_status": 429}, Outcome.OK),
    ],
)
def test_an_error_is_told_by_is_error_first(fields: dict[str, Any], outcome: Outcome) -> None:
    assert read(INIT, result(**{"is_error": True, **fields})).outcome is outcome


def test_a_claude_that_dies_while_it_is_told_to_wait_is_rate_limited() -> None:
    retry = {"type": "system", "subtype": "api_retry", "attempt": 3, "error_status": 529}

    assert read(INIT, retry).outcome is Outcome.RATE_LIMITED
    assert read(INIT, retry, assistant()).outcome is Outcome.FAILED


def test_words_about_rate_limits_are_no_rate_limit() -> None:
    talk = assistant()
    talk["message"]["content"] = [{"type": "text", "text": "429 rate_limit: You've hit your 5-hour limit"}]

    assert read(INIT, talk, result()).ok


def test_the_reset_of_a_plan_limit_is_told() -> None:
    limit = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "resetsAt": 1_795_221_848}}
    hit = result(is_error=True, api_error_status=429, result="You've hit your 5-hour limit · resets 12:44am")
    old = result(is_error=True, result="Claude AI usage limit reached|1795221848")

    assert read(INIT, limit, hit).reset_at == 1_795_221_848
    assert read(INIT, old).outcome is Outcome.RATE_LIMITED
    assert read(INIT, old).reset_at == 1_795_221_848
    assert read(INIT, result(is_error=True, api_error_status=429)).reset_at is None


def test_a_limit_that_overage_pays_for_is_no_limit() -> None:
    limit = {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", "isUsingOverage": True}}

    assert read(INIT, limit, assistant(), result()).ok


def test_retrying_is_over_with_the_next_real_answer() -> None:
    reading = TurnReading()
    retry = {
        "type": "system",
        "subtype": "api_retry",
        "attempt": 1,
        "error_status": 529,
        "retry_delay_ms": 600.5,
    }

    (note,) = take_all(reading, [INIT, retry])
    assert reading.retrying is not None
    assert "overloaded" in note
    take_all(reading, [assistant()])

    assert reading.retrying is None


def test_no_result_is_a_failure_that_quotes_stderr_and_an_interrupt_when_we_did_it() -> None:
    reading = TurnReading()

    assert reading.end("exit status 1", "Error: no such model").note == (
        "claude ended without a result: exit status 1: Error: no such model"
    )
    assert reading.end("killed by SIGTERM", stopped=True).outcome is Outcome.INTERRUPTED


def test_an_unknown_session_is_told_from_other_failures() -> None:
    unknown, other = TurnReading(resumed=True), TurnReading(resumed=True)
    take_all(unknown, lines_of("resume-unknown"))
    take_all(other, lines_of("api-500-exhausted"))

    assert unknown.session_is_unknown
    assert unknown.session_id is None
    assert not other.session_is_unknown

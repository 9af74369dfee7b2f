"""Streams like the recorded ones, and a little different: what they make of the badge, the state and the message.

The turn loop is the real one, in fake time; the provider reads the stream as the one of claude does.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from trio.testing import MockClock

from hive_agent.events import Emit
from hive_agent.providers import Capabilities, Outcome, TurnPrompt, TurnResult
from hive_agent.providers.claude.reading import TurnReading
from hive_agent.providers.claude.stream import MAX_STDOUT_LINE_BYTES, parse_line
from hive_agent.tools import Tools
from hive_core.wire.lines import LineDecoder, LineTooLong

from .fakes import OK, FakeLink, FakeProvider, message
from .rig import Rig
from .test_claude_stream import INIT, assistant, result

LIKE_CLAUDE = Capabilities(compact=True, sessions=True, login=True)


def synthetic(error: str, text: str) -> dict[str, Any]:
    """What claude says in the model's place when the API has refused."""
    line = assistant({"input_tokens": 0}, error=error)
    line["message"] |= {"model": "<synthetic>", "content": [{"type": "text", "text": text}]}
    return line


def refused(text: str, status: int | None = None, **more: Any) -> dict[str, Any]:
    """As claude ends such a turn: the subtype says success all the same."""
    return result(is_error=True, result=text, api_error_status=status, terminal_reason="api_error", **more)


def retry(status: int, **more: Any) -> dict[str, Any]:
    return {
        "type": "system",
        "subtype": "api_retry",
        "error_status": status,
        "attempt": 1,
        "max_retries": 2,
        **more,
    }


def limit(**info: Any) -> dict[str, Any]:
    return {"type": "rate_limit_event", "rate_limit_info": {"status": "rejected", **info}}


def stream(*lines: Any) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


class Case(NamedTuple):
    stream: bytes
    outcome: Outcome
    badges: list[str]
    states: list[str]
    asked_at: list[float]
    """When the model was asked: the first time at 0, and again as the decision was."""
    note: str | None = None
    """Words of a note, or of the turn's end, that a person sees."""


TURN = ["thinking", "idle"]
DENIED = {"tool_name": "WebFetch", "tool_use_id": "toolu_1", "tool_input": {"url": "https://x"}}
API_400 = 'API Error: 400 {"type":"error","error":{"type":"invalid_request_error","message":"%s"}}'

CASES: dict[str, Case] = {
    "kinds-of-the-future": Case(
        stream(
            {**INIT, "quantum": True},
            {"type": "dream", "deep": [1]},
            {"type": "system", "subtype": "teleported", "to": {}},
            {**assistant(), "aura": "blue"},
            {"type": "assistant", "message": {"content": [{"type": "hologram", "text": 7}], "usage": None}},
            result(subtype="success", serenity=1, stop_reason="enlightened"),
        ),
        Outcome.OK, [], TURN, [0],
    ),
    "last-line-cut": Case(
        stream(INIT, assistant()) + stream(result())[:60],
        Outcome.FAILED, [], TURN * 2, [0, 1], "claude ended without a result",
    ),
    "a-line-cut-in-the-middle": Case(
        stream(INIT, json.dumps(assistant()).encode()[:50], assistant(), result()),
        Outcome.OK, [], TURN, [0], "Not understood: {",
    ),
    "no-usage": Case(
        stream(INIT, {"type": "result", "subtype": "success", "is_error": False, "result": "done"}),
        Outcome.OK, [], TURN, [0],
    ),
    "nothing-but-a-result": Case(stream(result()), Outcome.OK, [], TURN, [0]),
    "overloaded-after-half-an-answer": Case(
        stream(
            INIT, assistant(), retry(529), synthetic("overloaded", "API Error: 529 Overloaded"),
            refused("API Error: 529 Overloaded", 529),
        ),
        Outcome.RATE_LIMITED, ["rate_limited", "online"], TURN * 2, [0, 300], "overloaded",
    ),
    "overloaded-without-a-status": Case(
        stream(INIT, assistant(), retry(529), refused("API Error: Overloaded")),
        Outcome.RATE_LIMITED, ["rate_limited", "online"], TURN * 2, [0, 300],
    ),
    "overloaded-and-then-not": Case(
        stream(INIT, assistant(), retry(529), retry(529), assistant(), result()),
        Outcome.OK, [], TURN, [0], "overloaded",
    ),
    "server-error": Case(
        stream(INIT, assistant(), retry(500), synthetic("server_error", "API Error: 500"), refused("API Error: 500", 500)),
        Outcome.FAILED, [], TURN * 2, [0, 1],
    ),
    "limit-with-a-moment": Case(
        stream(INIT, limit(resetsAt=1042, rateLimitType="seven_day"), synthetic("rate_limit", "x"), refused("x", 429)),
        Outcome.RATE_LIMITED, ["rate_limited", "online"], TURN * 2, [0, 42], "seven day limit",
    ),
    "limit-with-a-moment-in-words": Case(
        stream(INIT, limit(resetsAt="1970-01-01T00:17:22Z"), refused("You've hit your limit", 429)),
        Outcome.RATE_LIMITED, ["rate_limited", "online"], TURN * 2, [0, 42],
    ),
    "limit-with-nonsense-for-a-moment": Case(
        stream(INIT, limit(resetsAt="at dawn"), refused("You've hit your limit", 429)),
        Outcome.RATE_LIMITED, ["rate_limited", "online"], TURN * 2, [0, 300],
    ),
    "limit-that-is-near": Case(
        stream(INIT, limit(status="allowed_warning", utilization=0.91, resetsAt=1042), assistant(), result()),
        Outcome.OK, [], TURN, [0], "91% used",
    ),
    "too-long-in-the-api-s-words": Case(
        stream(INIT, refused(API_400 % "prompt is too long: 210000 tokens > 200000 maximum", 400)),
        Outcome.PROMPT_TOO_LONG, [], ["thinking", "compacting", "thinking", "idle"], [0, 0],
    ),
    "too-long-with-its-answer": Case(
        stream(
            INIT,
            refused(API_400 % "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000", 400),
        ),
        Outcome.PROMPT_TOO_LONG, [], ["thinking", "compacting", "thinking", "idle"], [0, 0],
    ),
    "too-long-elsewhere": Case(
        stream(INIT, refused("API Error: Input is too long for requested model.")),
        Outcome.PROMPT_TOO_LONG, [], ["thinking", "compacting", "thinking", "idle"], [0, 0],
    ),
    "an-error-that-says-success": Case(
        stream(INIT, refused(API_400 % "messages: text content blocks must be non-empty", 400)),
        Outcome.FAILED, [], TURN * 2, [0, 1],
    ),
    "tools-denied": Case(
        stream(
            INIT,
            {"type": "system", "subtype": "permission_denied", "tool_name": "WebFetch", "message": "not allowed"},
            assistant(),
            result(permission_denials=[DENIED]),
        ),
        Outcome.OK, [], TURN, [0], "WebFetch",
    ),
    "revoked": Case(
        stream(INIT, synthetic("authentication_failed", "OAuth token revoked"), refused("OAuth token revoked", 403)),
        Outcome.NEEDS_LOGIN, ["needs_login_idle", "online"], TURN * 2, [0, 1], "Login needed",
    ),
    "one-line-too-many-bytes": Case(
        stream(INIT, b'{"type":"user","x":"' + b"y" * MAX_STDOUT_LINE_BYTES + b'"}', assistant(), result()),
        Outcome.OK, [], TURN, [0], "Left out",
    ),
    "a-second-turn-cut-off": Case(
        stream(INIT, assistant(), result(), INIT, assistant()),
        Outcome.FAILED, [], TURN * 2, [0, 1],
    ),
}  # fmt: skip


def replaying(data: bytes, seen: list[TurnResult]) -> Callable[..., Any]:
    """Read *data* as `Run` does, which has the pipes besides."""

    async def turn(_prompt: TurnPrompt, _tools: Tools, emit: Emit) -> TurnResult:
        reading, decoder = TurnReading(), LineDecoder(MAX_STDOUT_LINE_BYTES)
        decoder.receive_data(data)
        notes: list[str | None] = []
        while True:
            try:
                line = decoder.next_line()
            except LineTooLong as error:
                notes.append(f"Left out: {error}")
                continue
            if line is None:
                break
            parsed = parse_line(line)
            if parsed.payload:
                emit("stream", parsed.payload)
            notes.append(reading.take(parsed.event))
        for note in filter(None, notes):
            emit("note", {"text": note})
        seen.append(reading.end("exit status 1"))
        return seen[-1]

    return turn


@pytest.mark.parametrize("name", CASES)
async def test_a_stream_gives_its_badge_its_state_and_its_decision(
    autojump_clock: MockClock, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    seen: list[TurnResult] = []
    provider = FakeProvider(replaying(case.stream, seen), OK, can=LIKE_CLAUDE)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    await rig.run_for(400)

    assert [result.outcome for result in seen] == [case.outcome]
    assert rig.statuses == case.badges
    assert rig.states == case.states
    assert provider.times == case.asked_at
    assert rig.acked == [7]
    assert rig.kinds[0] == case.outcome
    if case.note is not None:
        ends = [end.get("note", "") for end in rig.emitted.of("turn_end")]
        assert case.note in "\n".join([*rig.notes, *ends])


@pytest.mark.parametrize(
    ("told", "reset_at"),
    [
        (1_795_221_848, 1_795_221_848),
        (1_795_221_848_500, 1_795_221_848.5),
        ("1795221848", 1_795_221_848),
        ("2026-11-21T00:44:08Z", 1_795_221_848),
        ("2026-11-21T00:44:08", 1_795_221_848),
        ("2026-11-21T01:44:08+01:00", 1_795_221_848),
        ("soon", None),
        ("nan", None),
        (None, None),
        ([1], None),
    ],
)
def test_a_moment_is_told_in_many_ways(told: Any, reset_at: float | None) -> None:
    reading = TurnReading()
    for line in (INIT, limit(resetsAt=told), refused("You've hit your 5-hour limit", 429)):
        reading.take(parse_line(json.dumps(line).encode()).event)

    ended = reading.end("exit status 1")

    assert (ended.outcome, ended.reset_at) == (Outcome.RATE_LIMITED, reset_at)


@pytest.mark.parametrize("words", ["my prompt is too long, I think", "it exceeds the context window"])
def test_what_a_model_says_of_lengths_is_no_error(words: str) -> None:
    reading = TurnReading()
    talk = assistant()
    talk["message"]["content"] = [{"type": "text", "text": words}]
    for line in (INIT, talk, result(result=words)):
        reading.take(parse_line(json.dumps(line).encode()).event)

    assert reading.end("exit status 0").ok

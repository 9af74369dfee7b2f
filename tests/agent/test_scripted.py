import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hive_agent.config import Config
from hive_agent.providers import BadProvider, Outcome, TurnPrompt, TurnResult
from hive_agent.providers.directives import (
    Answer,
    Ask,
    Context,
    Directive,
    Fail,
    Limit,
    Logout,
    Remind,
    Say,
    Sleep,
    Task,
    TooLong,
    parse_directives,
)
from hive_agent.providers.scripted import Scripted, render_digest
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused

from .fakes import OK, Emitted, FakeTools, message

NO_CAROL = Refused(ErrorCode.NOT_FOUND, "cannot send:\nno agent is named carol")


class Played:
    def __init__(self, provider: Scripted | None = None, refused: dict[str, Refused] | None = None) -> None:
        self.provider = provider or Scripted()
        self.tools = FakeTools(refused)
        self.emitted = Emitted()

    async def turn(self, message: wire.Message) -> TurnResult:
        prompt = TurnPrompt(text="", message=message, unread=0, model="scripted")
        return await self.provider.run_turn(prompt, self.tools, self.emitted)  # type: ignore[arg-type]

    @property
    def sent(self) -> list[tuple[str, str, int | None]]:
        return self.tools.sent

    @property
    def content(self) -> list[dict[str, Any]]:
        return [part for event in self.emitted.of("stream") for part in event["message"]["content"]]


# ── directives ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "directives"),
    [
        ("say bob: hello there", [Say("bob", "hello there")]),
        ("  say bob :hello\r\n", [Say("bob", "hello")]),
        ("Say operator: a: b", [Say("operator", "a: b")]),
        ("say *: all hands", [Say("*", "all hands")]),
        ("say Bob_1: hi", [Say("Bob_1", "hi")]),
        ("ask operator: may I?", [Ask("may I?")]),
        ("sleep 2", [Sleep(2.0)]),
        ("sleep 0.5s", [Sleep(0.5)]),
        ("sleep 999999", [Sleep(300.0)]),
        ("fail", [Fail("told to fail")]),
        ("fail: no disk", [Fail("no disk")]),
        ("fail:", [Fail("told to fail")]),
        ("say bob: one\nchatter\n\nsleep 1\nfail", [Say("bob", "one"), Sleep(1.0), Fail("told to fail")]),
        ("limit 5", [Limit(5.0)]),
        ("limit 0.5s", [Limit(0.5)]),
        ("limit 999999", [Limit(300.0)]),
        ("Toolong", [TooLong()]),
        ("logout", [Logout()]),
        ("context 160000", [Context(160_000)]),
        ("context matters", []),
        ("task", [Task()]),
        ("task force", []),
        ("limit", []),
        ("say bob:", []),
        ("say it again: please", []),
        ("sleep well", []),
        ("sleep -1", []),
        ("sleep 1e9", []),
        ("failure is no option", []),
        ("please say bob: hello", []),
        ("ask bob: may I?", [Ask("may I?", "bob")]),
        ("Ask bob: which one? | red | the blue one |", [Ask("which one?", "bob", ("red", "the blue one"))]),
        ("ask bob: | red", []),
        ("answer: red", [Answer("red")]),
        ("Answer 7 : a: b", [Answer("a: b", 7)]),
        ("answer me: now", []),
        ("remind 5: look at the build", [Remind(5.0, "look at the build")]),
        ("remind 0.5 s: say bob: hi", [Remind(0.5, "say bob: hi")]),
        ("remind me: to look", []),
        ("remind 5:", []),
        ("", []),
    ],
)
def test_directives_are_whole_lines(body: str, directives: list[Directive]) -> None:
    assert parse_directives(body) == directives


async def test_directives_are_carried_out_in_order_and_reported_to_the_sender(
    autojump_clock: MockClock,
) -> None:
    played = Played()

    result = await played.turn(message(7, "say bob: one two three\nsleep 2\nask operator: may I?\nsay *: hi"))

    assert result == OK
    assert trio.current_time() == 2
    report = "done: told bob 3 words; slept 2 s; asked the operator 2 words; told everyone 1 word"
    assert played.sent == [
        ("bob", "one two three", None),
        ("*", "hi", None),
        ("operator", report, 7),
    ]
    assert played.tools.asked == [("operator", "may I?", ())]


async def test_a_failing_line_ends_the_turn_and_answers_nobody() -> None:
    played = Played()

    result = await played.turn(message(7, "say bob: one\nfail: no disk\nsay bob: two"))

    assert result == TurnResult(outcome=Outcome.FAILED, note="no disk")
    assert played.sent == [("bob", "one", None)]


async def test_a_refused_send_is_told_to_the_sender_and_does_not_fail_the_turn() -> None:
    played = Played(refused={"carol": NO_CAROL})

    result = await played.turn(message(7, "say carol: hi\nsay bob: hi"))

    problem = "could not tell carol: cannot send: no agent is named carol"
    assert result == TurnResult(outcome=Outcome.OK, note=problem)
    assert played.sent[-1] == ("operator", f"done: {problem}; told bob 1 word", 7)


async def test_a_limit_is_met_once() -> None:
    played = Played()

    limited = await played.turn(message(7, "limit 5\nsay bob: hi"))
    assert limited.outcome is Outcome.RATE_LIMITED
    assert limited.reset_at is not None
    assert abs(limited.reset_at - time.time() - 5) < 1
    assert played.sent == []

    assert (await played.turn(message(7, "limit 5\nsay bob: hi", redelivered=True))).ok
    assert played.sent[0] == ("bob", "hi", None)


async def test_a_conversation_is_too_long_until_it_is_compacted() -> None:
    played = Played()
    tools: Any = played.tools

    outcomes = [(await played.turn(message(7, "toolong"))).outcome for _ in range(2)]
    compacted = await played.provider.compact("scripted", tools, played.emitted)
    outcomes.append((await played.turn(message(7, "toolong"))).outcome)
    outcomes.append((await played.turn(message(8, "toolong"))).outcome)

    assert compacted.last is not None
    too_long = Outcome.PROMPT_TOO_LONG
    assert outcomes == [too_long, too_long, Outcome.OK, too_long]


async def test_a_logout_lasts_until_somebody_takes_the_file_away(config: Config, tmp_path: Path) -> None:
    played = Played(Scripted.open(config))
    assert played.provider.is_logged_in()

    result = await played.turn(message(7, "logout"))

    assert result.outcome is Outcome.NEEDS_LOGIN
    assert not played.provider.is_logged_in()
    (tmp_path / "scripted-logged-out").unlink()
    assert played.provider.is_logged_in()
    assert (await played.turn(message(7, "logout", redelivered=True))).ok


async def test_a_context_is_told_as_figures() -> None:
    result = await Played().turn(message(7, "context 160000"))

    assert result.ok
    assert result.last is not None
    assert result.last.prompt == 160_000
    assert result.window == 200_000


async def test_a_task_is_said_as_the_file_has_it_now(config: Config, tmp_path: Path) -> None:
    task = tmp_path / "prompt.md"
    task.write_text("Build\nit.\n")
    played = Played(Scripted.open(replace(config, prompt_file=task)))

    await played.turn(message(7, "task"))
    task.unlink()
    result = await played.turn(message(8, "task"))

    digest = hashlib.sha256(b"Build\nit.\n").hexdigest()[:8]
    assert played.sent[0] == ("operator", f'done: my task: "Build it." (sha256 {digest})', 7)
    assert played.sent[1] == ("operator", 'done: my task: "" (sha256 e3b0c442)', 8)
    (note,) = played.emitted.of("note")
    assert note == {"text": f"The task is left out: {task}: No such file or directory", "origin": "harness"}
    assert result.ok


def asked(question: str, *options: str, sender: str = "system") -> wire.Message:
    """Give the message that tells of a question with id 5."""
    event = {"event": "question_asked", "id": 5, "asker": "bob", "question": question}
    return message(7, json.dumps(event | {"options": options, "multi": False}), sender)


@pytest.mark.parametrize(
    ("question", "options", "answers"),
    [
        ("which one?", ("red", "blue"), [(5, "red")]),
        ("how far are you?", (), [(5, "read 4 words")]),
        ("which one?\nanswer: blue", ("red", "blue"), [(5, "blue")]),
        ("answer 4: an older one", (), [(4, "an older one"), (5, "read 5 words")]),
        ("fail: no idea", ("red",), []),
    ],
)
async def test_a_question_is_answered_as_it_says_or_with_its_first_option(
    question: str, options: tuple[str, ...], answers: list[tuple[int, str]]
) -> None:
    played = Played()

    await played.turn(asked(question, *options))

    assert played.tools.answered == answers
    assert played.sent == []


async def test_a_question_s_other_lines_are_carried_out() -> None:
    played = Played()

    await played.turn(asked("say carol: hi\nask operator: may I? | yes | no"))

    assert played.sent == [("carol", "hi", None)]
    assert played.tools.asked == [("operator", "may I?", ("yes", "no"))]
    assert played.tools.answered == [(5, "read 11 words")]


async def test_only_the_daemon_tells_of_questions() -> None:
    played = Played()

    await played.turn(asked("which one?", "red", sender="bob"))

    assert played.tools.answered == []


async def test_a_reminder_is_set_and_what_it_says_is_done_when_it_comes() -> None:
    played = Played()

    await played.turn(message(7, "remind 5: say bob: now"))
    await played.turn(message(8, "say bob: now", "reminder"))

    assert played.tools.reminders == [("say bob: now", 5.0)]
    assert played.sent == [("operator", "done: set a reminder in 5 s", 7), ("bob", "now", None)]


# ── answers ─────────────────────────────────────────────────────────────────────────────────────


async def test_plain_text_is_answered_with_a_digest() -> None:
    played = Played()

    await played.turn(message(7, "please count the words of this sentence"))

    digest = 'read 7 words from operator: "please count the words of this sentence" (sha256 {})'
    assert played.sent == [("operator", digest.format("64ecf0f0"), 7)]


def test_a_digest_is_one_short_line_whatever_was_said() -> None:
    digest = render_digest(message(1, "very long\nlines " * 3000, "bob"))

    assert len(digest) < 150
    assert "\n" not in digest
    assert digest.startswith('read 9000 words from bob: "very long lines very')


@pytest.mark.parametrize(
    ("sender", "fields", "answered"),
    [
        ("operator", {}, True),
        ("operator", {"in_reply_to": 3}, True),
        ("operator", {"broadcast": True}, False),
        ("bob", {}, True),
        ("bob", {"in_reply_to": 3}, False),
        ("bob", {"broadcast": True}, False),
        ("manager", {}, True),
        ("system", {}, False),
        ("reminder", {}, False),
        ("self", {}, False),
        ("mail from bob", {}, False),
    ],
)
@pytest.mark.parametrize("body", ["hello", "say bob: hello"])
async def test_only_who_waits_for_an_answer_gets_one(
    sender: str, fields: dict[str, Any], answered: bool, body: str
) -> None:
    played = Played()

    result = await played.turn(message(7, body, sender, **fields))

    assert result.ok
    assert [to for to, _, in_reply_to in played.sent if in_reply_to == 7] == [sender] * answered


async def test_what_is_not_answered_is_noted() -> None:
    played = Played()

    await played.turn(message(7, "hello", "bob", in_reply_to=3))

    assert played.content[0]["text"].startswith('noted: read 1 word from bob: "hello"')


async def test_a_sender_that_cannot_be_answered_is_a_note_and_no_failure() -> None:
    played = Played(refused={"ci": Refused(ErrorCode.NOT_FOUND, "cannot send: no agent is named ci")})

    result = await played.turn(message(7, "build 5 is red", "ci"))

    assert result == TurnResult(
        outcome=Outcome.OK, note="could not answer ci: cannot send: no agent is named ci"
    )


# ── events ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_send_is_shown_as_claude_shows_the_use_of_a_tool() -> None:
    played = Played(refused={"carol": NO_CAROL})

    await played.turn(message(7, "say bob: hi\nsay carol: hi"))

    use, result, refused_use, refusal = played.emitted.of("stream")[:4]
    assert use == {
        "type": "assistant",
        "message": {
            "role": "assistant",
            "content": [
                {
                    "type": "tool_use",
                    "id": "toolu_7_1",
                    "name": "mcp__hyperhive__send",
                    "input": {"to": "bob", "body": "hi"},
                }
            ],
        },
    }
    assert result["type"] == "user"
    assert result["message"]["content"] == [
        {
            "type": "tool_result",
            "tool_use_id": "toolu_7_1",
            "content": [{"type": "text", "text": "sent as message 41"}],
        }
    ]
    assert refused_use["message"]["content"][0]["id"] == "toolu_7_2"
    assert refusal["message"]["content"][0]["is_error"] is True


async def test_a_turn_ends_with_words() -> None:
    played = Played()

    await played.turn(message(7, "hello"))

    assert [part["type"] for part in played.content] == ["tool_use", "tool_result", "text"]


# ── scripts ─────────────────────────────────────────────────────────────────────────────────────


def open_script(config: Config, tmp_path: Path, script: Any) -> Scripted:
    path = tmp_path / "script.json"
    path.write_text(script if isinstance(script, str) else json.dumps(script))
    return Scripted.open(replace(config, script=path))


async def test_a_script_is_played_turn_by_turn_and_then_the_directives_count(
    config: Config, tmp_path: Path, autojump_clock: MockClock
) -> None:
    said = {"type": "assistant", "message": {"content": [{"type": "text", "text": "hm"}]}}
    steps = [
        {"delay": 0.5, "stream": said},
        {"note": "half way"},
        {"send": {"to": "bob", "body": "x"}},
        {"delay": 2},
    ]
    script = {"turns": [{"events": steps}, {"events": [{"error": "boom"}, {"note": "never"}]}, {"ok": False}]}
    played = Played(open_script(config, tmp_path, script))

    results = [await played.turn(message(7, "say bob: hello")) for _ in range(4)]

    assert trio.current_time() == 2.5
    assert results == [
        OK,
        TurnResult(outcome=Outcome.FAILED, note="boom"),
        TurnResult(outcome=Outcome.FAILED),
        OK,
    ]
    assert played.emitted.events[:2] == [
        ("stream", said),
        ("note", {"text": "half way", "origin": "stderr"}),
    ]
    assert played.sent[:2] == [("bob", "x", None), ("bob", "hello", None)]


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("{", "truncated"),
        ({"turn": []}, "turn"),
        ({"turns": [{"events": [{"sleep": 1}]}]}, r"unknown field `sleep`.*\$\.turns\[0\]\.events\[0\]"),
        ({"turns": [{"events": [{"delay": -1}]}]}, r">= 0"),
        ({"turns": [{"events": [{"note": "a", "error": "b"}]}]}, "one of stream, note, send, error"),
        ({"turns": [{"events": [{"send": {"to": "bob"}}]}]}, "missing required field `body`"),
        ('{"turns": ' * 5000, "turns"),
    ],
)
def test_a_bad_script_is_refused_with_the_place(
    config: Config, tmp_path: Path, script: Any, complaint: str
) -> None:
    with pytest.raises(BadProvider, match=f"(?i){complaint}"):
        open_script(config, tmp_path, script)


def test_a_missing_script_is_refused_by_name(config: Config, tmp_path: Path) -> None:
    with pytest.raises(BadProvider, match=r"nowhere\.json: No such file"):
        Scripted.open(replace(config, script=tmp_path / "nowhere.json"))

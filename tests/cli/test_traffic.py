from typing import Any

import pytest

from hive_core.cli.traffic import Traffic

from .conftest import RunHive
from .fake_host import FakeHost, message, row


def event(kind: str, payload: Any, at: str = "2026-01-31T12:00:00Z") -> dict[str, Any]:
    return {"agent": "alice", "event": {"id": 1, "ts": at, "kind": kind, "payload": payload}}


def says(*content: Any, role: str = "assistant") -> dict[str, Any]:
    return event("stream", {"type": role, "message": {"role": role, "content": list(content)}})


SEND = {"type": "tool_use", "name": "mcp__hyperhive__send", "input": {"to": "bob", "body": "hi"}}
BASH = {"type": "tool_use", "name": "Bash", "input": {"command": "ls -la", "timeout": 3}}


@pytest.mark.parametrize(
    ("item", "lines"),
    [
        (
            {"message": message(4, "operator", "alice", "say bob: hello")},
            ["12:00:04  operator → alice    say bob: hello"],
        ),
        (
            event("turn_start", {"from": "operator", "body": "x", "unread": 2, "message_id": 4}),
            ["12:00:00  alice    ▶ turn starts (from operator, 2 more waiting)"],
        ),
        (says({"type": "text", "text": "I count."}), ["12:00:00  alice    │ I count."]),
        (says(SEND), ["12:00:00  alice    ⚙ send → bob"]),
        (says(BASH), ["12:00:00  alice    ⚙ Bash: ls -la"]),
        (says({"type": "tool_use", "name": "Wait"}), ["12:00:00  alice    ⚙ Wait"]),
        (
            says({"type": "text", "text": "a"}, SEND),
            ["12:00:00  alice    │ a", "12:00:00  alice    ⚙ send → bob"],
        ),
        (says({"type": "tool_result", "content": "secret"}, role="user"), []),
        (says({"type": "text", "text": "  \n"}), []),
        (event("stream", {"type": "system", "subtype": "init"}), []),
        (event("stream", {"type": "result", "result": "done"}), []),
        (event("note", {"text": "hello"}), ["12:00:00  alice    · hello"]),
        (event("status_changed", {"status": "online"}), ["12:00:00  alice    · status: online"]),
        (event("model_changed", {"model": "opus"}), ["12:00:00  alice    · model: opus"]),
        (event("turn_state_changed", {"state": "idle"}), []),
        (event("of_tomorrow", {}), ["12:00:00  alice    · of_tomorrow"]),
        (event("turn_end", {"ok": True, "message_id": 4}), ["12:00:00  alice    ■ turn ends, ok"]),
        (
            event("turn_end", {"ok": False, "note": "no\x1b luck"}),
            ["12:00:00  alice    ■ turn ends, failed, no\\x1b luck"],
        ),
        ({}, []),
    ],
)
def test_each_item_as_its_line(item: dict[str, Any], lines: list[str]) -> None:
    assert Traffic().render(item) == lines


def test_the_time_a_turn_took_is_told() -> None:
    traffic = Traffic()
    traffic.render(event("turn_start", {"from": "operator"}, "2026-01-31T12:00:00.100Z"))

    assert traffic.render(event("turn_end", {"ok": True}, "2026-01-31T12:00:00.300Z")) == [
        "12:00:00  alice    ■ turn ends, ok, 0.2 s"
    ]


@pytest.mark.parametrize(
    "payload",
    [None, [], "text", 7, {}, {"type": "assistant"}, {"type": "assistant", "message": []},
     {"type": "assistant", "message": {"content": 3}}, {"type": "assistant", "message": {"content": [3, None]}},
     {"type": "assistant", "message": {"content": [{"type": "tool_use", "input": "x"}]}}],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", ["turn_start", "turn_end", "stream", "note", "status_changed", "model_changed"]
)
def test_no_payload_is_an_error(kind: str, payload: object) -> None:
    assert len(Traffic().render(event(kind, payload))) <= 1


# ── states ──────────────────────────────────────────────────────────────────────────────────────


def shown_states(traffic: Traffic, *rows: dict[str, Any]) -> list[str]:
    return [line[10:] for row in rows for line in traffic.render({"agent_statuses": [row]})]


def test_only_another_state_is_shown() -> None:
    traffic = Traffic()
    traffic.know([row("alice")])
    down = row("alice") | {"running": False, "connected": False}

    assert shown_states(
        traffic,
        row("alice") | {"turn_state": "thinking"},
        down,
        row("alice") | {"connected": False},
        row("alice"),
        row("alice") | {"paused": True},
        row("alice") | {"wanted": "stopped"},
        down | {"wanted": "stopped"},
        down | {"failed": True, "failure": "exit status 3\n"},
    ) == [
        "alice    ● running",
        "alice    ● paused",
        "alice    ● stopped",
        "alice    ● failed: exit status 3\\n",
    ]


def test_an_agent_that_was_not_there_appears() -> None:
    assert shown_states(Traffic(), row("carol")) == ["carol    ● running"]


# ── layout ──────────────────────────────────────────────────────────────────────────────────────

LONG = message(1, "alice", "bob", "first line\nsecond\n\x1b[31mthird\n")


def test_a_long_text_is_cut_to_the_width() -> None:
    assert Traffic(columns=60).render({"message": LONG}) == [
        "12:00:01  alice    → bob      first line … (+2 lines)"
    ]
    long_line = LONG | {"body": "word " * 40}
    (line,) = Traffic(columns=60).render({"message": long_line})
    assert len(line) == 60
    assert line.endswith("…")


def test_full_shows_every_line_below_the_first() -> None:
    assert Traffic(columns=60, full=True).render({"message": LONG}) == [
        "12:00:01  alice    → bob      first line",
        "                              second",
        "                              \\x1b[31mthird",
    ]


def test_into_a_pipe_a_text_is_one_whole_line() -> None:
    assert Traffic().render({"message": LONG}) == [
        "12:00:01  alice    → bob      first line\\nsecond\\n\\x1b[31mthird\\n"
    ]


def test_the_columns_widen_with_the_names() -> None:
    traffic = Traffic()
    traffic.know([row("a-long-agent-name")])

    assert traffic.render({"message": message(1, "bob", "alice", "hi")}) == [
        "12:00:01  bob               → alice             hi"
    ]


# ── hive watch ──────────────────────────────────────────────────────────────────────────────────


def test_watch_shows_what_comes(host: FakeHost, hive: RunHive) -> None:
    host.add("alice")
    host.answers["watch"] = [
        {"agent_statuses": [row("alice")]},
        {"message": message(1, "operator", "alice", "hi")},
        event("turn_start", {"from": "operator", "unread": 0}),
    ]

    assert hive("watch").out == (
        "12:00:01  operator → alice    hi\n12:00:00  alice    ▶ turn starts (from operator, 0 more waiting)\n"
    )


def test_watch_as_json_is_the_items(host: FakeHost, hive: RunHive) -> None:
    host.answers["watch"] = [{"agent": "alice", "event": {"id": 1}}, {"agent_statuses": []}]

    assert hive("watch", "--json").out == '{"agent":"alice","event":{"id":1}}\n{"agent_statuses":[]}\n'


def test_figures_are_not_traffic_and_an_effort_is() -> None:
    traffic = Traffic()

    figures = {"ts": "2026-01-31T12:00:00Z", "kind": "token_usage_changed", "payload": {"ctx": 5}}
    effort = {"ts": "2026-01-31T12:00:00Z", "kind": "effort_changed", "payload": {"effort": None}}

    assert traffic.render({"agent": "alice", "event": figures}) == []
    assert traffic.render({"agent": "alice", "event": effort})[0].endswith("alice    · effort: default")

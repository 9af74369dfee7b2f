"""The same answers in their three dresses: on a terminal, into a pipe, as JSON."""

import json
import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from hive_core.cli import output

from .conftest import RunHive
from .fake_host import FakeHost, message

HOSTILE = "ok\x1b[2J\u202e\nsecond\tline\r"


@pytest.fixture
def two_agents(host: FakeHost) -> FakeHost:
    host.add("alice", status_text="counting words", unread=3, turn_state="thinking")
    host.add("bob", running=False, connected=False, wanted="stopped", active_model="", turn_state=None)
    return host


# ── ls, show, status ────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal")
def test_ls_on_a_terminal_is_a_table(two_agents: FakeHost, hive: RunHive) -> None:
    two_agents.rows["alice"]["turn_state_since"] = "2999-01-01T00:00:00Z"

    result = hive("ls")

    assert [line.rstrip() for line in result.out.splitlines()] == [
        "AGENT  STATE    TURN           UNREAD  MODEL     ISOLATION  STATUS",
        "alice  running  thinking 0 ms  3       scripted  none       counting words",
        "bob    stopped  -              0       -         none       -",
    ]


def test_ls_into_a_pipe_is_columns_between_tabs(two_agents: FakeHost, hive: RunHive) -> None:
    two_agents.rows["alice"]["turn_state_since"] = "2999-01-01T00:00:00Z"

    assert hive("ls").out == (
        "alice\trunning\tthinking 0 ms\t3\tscripted\tnone\tcounting words\nbob\tstopped\t-\t0\t-\tnone\t-\n"
    )


def test_ls_as_json_is_the_rows(two_agents: FakeHost, hive: RunHive) -> None:
    assert json.loads(hive("ls", "--json").out) == list(two_agents.rows.values())


def test_an_empty_hive_is_friendly_and_its_output_empty(host: FakeHost, hive: RunHive) -> None:
    assert hive("ls") == (0, "", "no agents yet; make one with: hive spawn alice\n")
    assert hive("ls", "--json") == (0, "[]\n", "")


def test_an_agent_that_runs_and_is_not_connected_says_so_in_place_of_a_turn(
    host: FakeHost, hive: RunHive
) -> None:
    host.add("alice", connected=False)

    assert hive("ls").out.split("\t")[1:3] == ["running", "not connected"]


def test_show_says_why_an_agent_failed(host: FakeHost, hive: RunHive) -> None:
    host.add("alice", running=False, failed=True, failure="exit status 3\x1b[0m", connected=False)

    lines = dict(line.split("\t") for line in hive("show", "alice").out.splitlines())

    assert lines["state"] == "failed"
    assert lines["failure"] == "exit status 3\\x1b[0m"
    assert lines["harness"] == "not connected"


def test_show_says_how_full_the_context_is(host: FakeHost, hive: RunHive) -> None:
    host.add("alice", ctx_tokens=150_000, window_tokens=200_000, effort="high", status="rate_limited")

    lines = dict(line.split("\t") for line in hive("show", "alice").out.splitlines())

    assert lines["context"] == "150000 of 200000 tokens (75%)"
    assert (lines["effort"], lines["state"]) == ("high", "rate_limited")


@pytest.mark.usefixtures("terminal")
def test_show_on_a_terminal_leaves_out_what_is_empty(host: FakeHost, hive: RunHive) -> None:
    host.add("alice")

    shown = hive("show", "alice").out

    assert "agent      alice" in shown
    assert "failure" not in shown


HEALTH = {
    "software": "hive-core 0.1.0",
    "mode": "local",
    "home": "/h",
    "pid": 12,
    "started_at": "2026-01-31T12:00:00Z",
    "uptime_seconds": 7500.5,
    "agents": 2,
    "running": 1,
    "failed": 0,
    "unread": 3,
    "messages": 1200,
    "schema": 1,
    "database_bytes": 40960,
    "store": "ok",
    "connections": 4,
    "rss_bytes": 36700160,
}


def test_status_into_a_pipe_is_every_field_as_it_came(host: FakeHost, hive: RunHive) -> None:
    host.answers["status"] = HEALTH

    assert hive("status").out == "".join(f"{key}\t{value}\n" for key, value in HEALTH.items())
    assert json.loads(hive("status", "--json").out) == HEALTH


@pytest.mark.usefixtures("terminal")
def test_status_on_a_terminal_has_human_units(host: FakeHost, hive: RunHive) -> None:
    host.answers["status"] = HEALTH

    lines = hive("status").out.splitlines()

    shown = {line[:12].rstrip(): line[12:].strip() for line in lines}
    assert shown["uptime"] == "2 h 5 min"
    assert shown["database"] == "40.0 KiB"
    assert shown["memory"] == "35.0 MiB"
    assert shown["started"] == "2026-01-31 12:00:00"
    assert "socket" in shown


# ── messages ────────────────────────────────────────────────────────────────────────────────────

LETTERS = [
    message(1, "operator", "alice", "one\ntwo", delivered_at="2026-01-31T12:00:01Z", acked_at="2026-01-31T12:00:02Z"),
    message(2, "alice", "bob", HOSTILE, in_reply_to=1, redelivered=True, delivered_at="2026-01-31T12:00:03Z"),
    message(3, "bob", "operator", "done"),
]  # fmt: skip


@pytest.mark.parametrize("typed", ["messages", "inbox", "why 3"])
def test_messages_into_a_pipe_are_one_line_each(typed: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = {cmd: {"messages": LETTERS} for cmd in ("messages", "inbox", "why")}

    assert hive(*typed.split()).out == (
        "1\t2026-01-31T12:00:01Z\toperator\talice\tdone\t-\tone\\ntwo\n"
        "2\t2026-01-31T12:00:02Z\talice\tbob\tleased\t1\tok\\x1b[2J\\u202e\\nsecond\\tline\\r\n"
        "3\t2026-01-31T12:00:03Z\tbob\toperator\t-\t-\tdone\n"
    )


@pytest.mark.usefixtures("terminal")
def test_messages_on_a_terminal_show_their_lines_indented(host: FakeHost, hive: RunHive) -> None:
    host.answers["messages"] = {"messages": LETTERS}

    assert hive("messages").out == (
        "#1  2026-01-31 12:00:01  operator → alice  done\n"
        "    one\n"
        "    two\n"
        "#2  2026-01-31 12:00:02  alice → bob  answers #1  leased  redelivered\n"
        "    ok\\x1b[2J\\u202e\n"
        "    second\tline\\r\n"
        "#3  2026-01-31 12:00:03  bob → operator\n"
        "    done\n"
    )


@pytest.mark.usefixtures("terminal")
def test_why_on_a_terminal_is_a_tree(host: FakeHost, hive: RunHive) -> None:
    host.answers["why"] = {"messages": LETTERS}

    assert hive("why", "3").out == (
        "#1  2026-01-31 12:00:01  operator → alice  done\n"
        "   one\n"
        "   two\n"
        "└─ #2  2026-01-31 12:00:02  alice → bob  answers #1  leased  redelivered\n"
        "      ok\\x1b[2J\\u202e\n"
        "      second\tline\\r\n"
        "   └─ #3  2026-01-31 12:00:03  bob → operator\n"
        "         done\n"
    )


def test_json_is_whole_and_plain_ascii(host: FakeHost, hive: RunHive) -> None:
    host.answers["messages"] = {"messages": [message(1, "a", "b", HOSTILE + "\x7f\x9bä")]}

    out = hive("messages", "--json").out

    assert out.isascii()
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)[0]["body"] == HOSTILE + "\x7f\x9bä"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("inbox", "nothing has been sent to you yet\n"),
        ("inbox bob", "nothing waits for bob\n"),
        ("messages", "no messages\n"),
        ("events bob", "no events of bob\n"),
        ("logs bob", "the log of bob is empty\n"),
    ],
)
def test_nothing_is_said_beside_the_output(typed: str, said: str, host: FakeHost, hive: RunHive) -> None:
    host.answers = {"inbox": {"messages": []}, "messages": {"messages": []}}
    host.answers |= {"events": {"events": []}, "logs": {"lines": []}}

    assert hive(*typed.split()) == (0, "", said)


# ── events, logs ────────────────────────────────────────────────────────────────────────────────

EVENTS: list[dict[str, Any]] = [
    {"id": 1, "ts": "2026-01-31T12:00:00Z", "kind": "turn_start", "payload": {"from": "operator"}},
    {
        "id": 2,
        "ts": "2026-01-31T12:00:01Z",
        "kind": "stream",
        "payload": {
            "type": "assistant",
            "message": {"content": [{"type": "text", "text": HOSTILE + "x" * 80}]},
        },
    },
]


def test_events_into_a_pipe(host: FakeHost, hive: RunHive) -> None:
    host.answers["events"] = {"events": EVENTS}

    first, second = hive("events", "alice").out.splitlines()

    assert first == '1\t2026-01-31T12:00:00Z\tturn_start\t{"from":"operator"}'
    assert json.loads(second.split("\t")[3]) == EVENTS[1]["payload"]
    assert second.replace("\t", "").isprintable()


@pytest.mark.usefixtures("terminal")
def test_events_on_a_terminal_say_what_was_said(host: FakeHost, hive: RunHive) -> None:
    host.answers["events"] = {"events": EVENTS}

    assert hive("events", "alice").out.splitlines() == [
        '#1  2026-01-31 12:00:00  turn_start          {"from": "operator"}',
        "#2  2026-01-31 12:00:01  stream              │ ok\\x1b[2J\\u202e second line xxxx…",
    ]


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_logs_are_lines(options: list[str], host: FakeHost, hive: RunHive) -> None:
    lines = ["plain", "a\tb", "\x1b[31mred"]
    host.answers["logs"] = [{"lines": lines[:1]}, {"lines": lines[1:]}] if options else {"lines": lines}

    assert hive("logs", "alice", *options).out == "plain\na       b\n\\x1b[31mred\n"
    as_json = hive("logs", "alice", *options, "--json").out.splitlines()
    assert [json.loads(line) for line in as_json] == (
        [{"line": line} for line in lines] if options else [lines]
    )


# ── one agent ───────────────────────────────────────────────────────────────────────────────────


def test_what_the_harness_says_is_shown(host: FakeHost, hive: RunHive) -> None:
    host.answers = {
        cmd: {"text": "cancelled turn 7\x07"} for cmd in ("cancel_turn", "new_session", "set_model")
    }

    for typed in ("cancel alice", "new-session alice", "model alice opus"):
        assert hive(*typed.split()) == (0, "alice: cancelled turn 7\\x07\n", "")
    assert json.loads(hive("cancel", "alice", "--json").out) == {
        "agent": "alice",
        "text": "cancelled turn 7\x07",
    }


def test_without_words_of_the_harness_there_are_ours(host: FakeHost, hive: RunHive) -> None:
    assert hive("cancel", "alice").out == "the turn of alice is cancelled\n"
    assert hive("new-session", "alice").out == "alice begins its next turn afresh\n"
    assert hive("model", "alice", "opus").out == "alice uses opus from its next turn on\n"
    assert hive("model", "alice", "opus", "--json").out == '{"agent":"alice","model":"opus"}\n'


def test_the_model_is_shown(host: FakeHost, hive: RunHive) -> None:
    host.add("alice", active_model="opus")
    host.add("bob", active_model="")

    assert hive("model", "alice") == (0, "opus\n", "")
    assert hive("model", "alice", "--json") == (0, '{"agent":"alice","model":"opus"}\n', "")
    assert hive("model", "bob") == (0, "", "bob has not said which model it uses\n")


# ── colours ─────────────────────────────────────────────────────────────────────────────────────


def on_a_real_terminal(host: FakeHost, *argv: str, **env: str) -> str:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen:
        subprocess.run(
            [sys.executable, "-m", "hive_core.cli", "--socket", str(host.path), *argv],
            stdout=follower, stderr=follower, check=False, timeout=10,
            env=os.environ | {"COLUMNS": "80"} | env,
        )  # fmt: skip
        os.close(follower)
        shown = b""
        try:
            while part := screen.read(4096):
                shown += part
        except OSError:  # how a pty says that its other end is closed
            pass
    return shown.decode()


@pytest.mark.parametrize("typed", ["ls", "show alice", "messages", "status"])
def test_colours_are_for_terminals_that_want_them(typed: str, host: FakeHost) -> None:
    host.add("alice", status_text=HOSTILE)
    host.answers = {"messages": {"messages": LETTERS}, "status": HEALTH}

    coloured = on_a_real_terminal(host, *typed.split())
    plain = on_a_real_terminal(host, *typed.split(), NO_COLOR="1", COLUMNS="80")

    assert "\x1b[" in coloured
    assert "\x1b[2J" not in coloured
    assert "\x1b[3" not in plain


def test_text_is_cut_by_the_columns_it_takes() -> None:
    assert output.shorten("abcdefghij", 10) == "abcdefghij"
    assert output.shorten("abcdefghijk", 10) == "abcdefghi…"
    assert output.shorten("世界世界世界", 10) == "世界世界 …"
    assert output.cells("世界") == 4
    assert output.pad("世", 4) == "世  "


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("terminal")
def test_only_the_last_column_of_a_table_gives_way(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("ID", "WHAT", "TEXT"), [(7, "update_meta_inputs", "word " * 40)])

    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "WHAT", "TEXT"]
    assert row.startswith("7   update_meta_inputs  word word ")
    assert row.endswith("…")
    assert output.cells(row) <= 80

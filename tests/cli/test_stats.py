import json

import pytest

from .conftest import RunHive
from .fake_host import NO_STATS, FakeHost

STATS = NO_STATS | {
    "turns": 12,
    "ok_turns": 11,
    "ok_rate": 0.9167,
    "compactions": 1,
    "p50_seconds": 12.5,
    "p95_seconds": 190.0,
    "tokens": {"input": 1234, "output": 567, "cache_read": 8_900_000, "cache_creation": 4},
    "cost_usd": 1.25,
    "ctx_max": 151_000,
    "tool_calls": 40,
    "tools": [{"name": "Bash", "count": 30}, {"name": "Read\x1b[2J", "count": 10}],
    "wake_from": [{"name": "operator", "count": 8}, {"name": "bob", "count": 4}],
    "results": [{"name": "ok", "count": 11}, {"name": "rate_limited", "count": 1}],
    "models": [{"name": "opus", "count": 12}],
}


def test_stats_into_a_pipe_are_key_and_value(host: FakeHost, hive: RunHive) -> None:
    host.answers["stats"] = STATS

    lines = dict(line.split("\t") for line in hive("stats", "alice").out.splitlines())

    assert lines == {
        "agent": "alice",
        "window": "24h",
        "turns": "12",
        "ok": "91.7%",
        "p50": "12.5",
        "p95": "190",
        "compactions": "1",
        "input tokens": "1234",
        "output tokens": "567",
        "cache read tokens": "8900000",
        "cache creation tokens": "4",
        "cost": "$1.2500",
        "fullest context": "151000",
        "results": "ok 11, rate_limited 1",
        "woken by": "operator 8, bob 4",
        "models": "opus 12",
        "tool calls": "40",
        "tools": "Bash 30, Read\\x1b[2J 10",
    }


@pytest.mark.usefixtures("terminal")
def test_stats_on_a_terminal_are_for_a_person(host: FakeHost, hive: RunHive) -> None:
    host.answers["stats"] = STATS

    shown = hive("stats", "alice", "--window", "7d").out

    assert "p95                    3 min" in shown
    assert "cache read tokens      8 900 000" in shown


def test_stats_as_json_are_all_there_is(host: FakeHost, hive: RunHive) -> None:
    host.answers["stats"] = STATS

    found = json.loads(hive("stats", "alice", "--window", "30d", "--json").out)

    assert found == {"agent": "alice", "window": "30d"} | STATS


def test_no_turns_are_said_to_be_none(host: FakeHost, hive: RunHive) -> None:
    host.answers["stats"] = NO_STATS

    assert hive("stats", "alice") == (0, "", "no turns of alice in the last 24h\n")

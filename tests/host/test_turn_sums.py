"""An agent's turn stats, summed up in the child: whatever the file holds, an answer of bounded size or none."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from hive_agent.providers import Outcome, TurnResult, Usage
from hive_agent.turn_stats import COMPACTED, TurnBegin, TurnRow, TurnStats
from hive_core.host import agent_files
from hive_core.host.agent_files import TurnSums
from hive_core.host.process import CommandError
from hive_core.host.turn_sums import percentile_s

FILE = "hyperhive-turn-stats.sqlite"


def record(directory: Path, *turns: dict[str, Any]) -> None:
    stats = TurnStats(directory / FILE)
    for number, turn in enumerate(turns):
        fields = {
            "started_at": 1000.0 + number,
            "duration_s": 1.0,
            "model": "opus",
            "wake_from": "operator",
            "kind": "ok",
            "result": TurnResult(outcome=Outcome.OK),
        }
        stats.record(TurnRow(**(fields | turn)))
    stats.close()


def strange(directory: Path, **values: str) -> None:
    """A file with one row whose columns are these SQL expressions."""
    with closing(sqlite3.connect(directory / FILE)) as db, db:
        db.execute(f"create table turn_stats (id integer primary key, started_at, {', '.join(values)})")
        db.execute(f"insert into turn_stats values (1, 5.0, {', '.join(values.values())})")


async def test_turns_are_summed_up(tmp_path: Path) -> None:
    big = TurnResult(
        outcome=Outcome.OK,
        last=Usage(input=5, cache_read=100, cache_creation=20, output=9),
        total=Usage(input=10, output=20, cache_read=300, cache_creation=40),
        cost_usd=0.25,
        tools={"Bash": 3, "Read": 1},
    )
    small = TurnResult(outcome=Outcome.FAILED, total=Usage(input=1), cost_usd=0.5, tools={"Bash": 1})
    record(
        tmp_path,
        {"result": big, "duration_s": 10.0},
        {"result": small, "kind": "failed", "wake_from": "bob", "duration_s": 20.0},
        {"model": "haiku", "duration_s": 30.0},
        {"result": TurnResult(outcome=Outcome.OK, cost_usd=1.0), "kind": COMPACTED, "duration_s": 99.0},
    )

    assert await agent_files.read_stats(tmp_path, since=0) == TurnSums(
        turns=3,
        ok_turns=2,
        compactions=1,
        p50_seconds=20.0,
        p95_seconds=30.0,
        input_tokens=11,
        output_tokens=20,
        cache_read_tokens=300,
        cache_creation_tokens=40,
        cost_usd=1.75,
        ctx_max=125,
        tool_calls=5,
        tools=[("Bash", 4), ("Read", 1)],
        wake_from=[("operator", 2), ("bob", 1)],
        results=[("ok", 2), ("failed", 1)],
        models=[("opus", 2), ("haiku", 1)],
    )


async def test_a_turn_that_runs_is_not_counted_yet_and_one_that_was_killed_is(tmp_path: Path) -> None:
    begin = TurnBegin(started_at=1000.0, model="opus", wake_from="bob")
    stats = TurnStats(tmp_path / FILE)
    stats.begin(begin)

    assert (await agent_files.read_stats(tmp_path, since=0)).turns == 0

    stats.close()
    TurnStats(tmp_path / FILE).close()
    killed = await agent_files.read_stats(tmp_path, since=0)
    assert (killed.turns, killed.ok_turns, killed.results) == (1, 0, [("killed", 1)])
    assert killed.p50_seconds is None


async def test_only_turns_that_began_since_then_count(tmp_path: Path) -> None:
    record(tmp_path, {}, {}, {})

    assert (await agent_files.read_stats(tmp_path, since=1001)).turns == 2
    assert (await agent_files.read_stats(tmp_path, since=2000)) == TurnSums(cost_usd=0.0)


@pytest.mark.parametrize(
    ("durations", "share", "seconds"),
    [
        ([], 0.5, None),
        ([7], 0.5, 0.007),
        ([7], 0.95, 0.007),
        ([1000, 2000], 0.5, 1.0),
        (list(range(1000, 101_000, 1000)), 0.5, 50.0),
        (list(range(1000, 101_000, 1000)), 0.95, 95.0),
    ],
)
def test_percentiles(durations: list[int], share: float, seconds: float | None) -> None:
    assert percentile_s(durations, share) == seconds


async def test_no_file_and_no_turns_are_nothing(tmp_path: Path) -> None:
    assert await agent_files.read_stats(tmp_path, since=0) == TurnSums()
    record(tmp_path)
    assert await agent_files.read_stats(tmp_path, since=0) == TurnSums()


async def test_a_file_of_an_older_version_is_read(tmp_path: Path) -> None:
    strange(tmp_path, duration_ms="1500", result_kind="'ok'")

    found = await agent_files.read_stats(tmp_path, since=0)

    assert (found.turns, found.ok_turns, found.p50_seconds, found.cost_usd) == (1, 1, 1.5, 0.0)


@pytest.mark.parametrize(
    "value", ["null", "'text'", "x'00ff'", "-5", "1e400", "9223372036854775807", "1e300", "''"]
)
async def test_a_strange_value_is_nought_or_bounded(tmp_path: Path, value: str) -> None:
    names = (
        "duration_ms",
        "model",
        "wake_from",
        "result_kind",
        "input_tokens",
        "cost_usd",
        "tool_call_count",
    )
    strange(tmp_path, **dict.fromkeys(names, value))

    found = await agent_files.read_stats(tmp_path, since=0)

    assert found.turns == 1
    assert 0 <= found.input_tokens <= 2**53


@pytest.mark.parametrize(
    "breakdown",
    ["not json", "[1]", '{"Bash": "x"}', '{"Bash": -1}', "[" * 50_000, '{"a": NaN}', '{"\\ud800": 1}'],
)
async def test_a_strange_breakdown_counts_nothing_or_little(tmp_path: Path, breakdown: str) -> None:
    strange(tmp_path, tool_call_breakdown_json=f"'{breakdown}'")

    found = await agent_files.read_stats(tmp_path, since=0)

    assert found.tools in ([], [("?", 1)])


async def test_an_answer_is_bounded_whatever_the_names(tmp_path: Path) -> None:
    tools = {f"{'x' * 200}{number}": 1 for number in range(90)}
    turns = [
        {"wake_from": "y" * 500 + str(number), "result": TurnResult(outcome=Outcome.OK, tools=tools)}
        for number in range(200)
    ]
    record(tmp_path, *turns)

    found = await agent_files.read_stats(tmp_path, since=0)

    assert len(found.wake_from) <= 20
    assert all(len(name) <= 64 for name, _ in [*found.wake_from, *found.tools])


async def test_another_table_is_nothing(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute("create table turn_stats (id)")

    assert await agent_files.read_stats(tmp_path, since=0) == TurnSums()


async def test_a_view_that_never_ends_is_cut_off(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
        db.execute(
            "create view turn_stats as with recursive n(started_at) as"
            " (select 1 union all select started_at + 1 from n) select * from n"
        )

    with trio.fail_after(15), pytest.raises((CommandError, trio.TooSlowError)):
        await agent_files.read_stats(tmp_path, since=1e300)


@pytest.mark.parametrize("trap", ["fifo", "link", "garbage", "directory"])
async def test_a_trap_is_refused(tmp_path: Path, trap: str) -> None:
    path = tmp_path / FILE
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "link":
        path.symlink_to("/etc/passwd")
    elif trap == "garbage":
        path.write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    else:
        path.mkdir()

    with trio.fail_after(8), pytest.raises(CommandError, match="cannot read hyperhive-turn-stats"):
        await agent_files.read_stats(tmp_path, since=0)

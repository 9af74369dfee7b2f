import json
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from hive_agent.providers import Outcome, TurnResult, Usage
from hive_agent.turn_stats import COLUMNS, HOLD_OFF_S, LeftOpen, Seed, TurnBegin, TurnRow, TurnStats

FULL = TurnResult(
    outcome=Outcome.OK,
    note="n" * 600,
    last=Usage(input=1, output=2, cache_read=3, cache_creation=4),
    total=Usage(input=10, output=20, cache_read=30, cache_creation=40),
    window=200_000,
    cost_usd=0.25,
    tools={"Bash": 2, "mcp__hyperhive__send": 1},
)

OpenStats = Callable[..., TurnStats]


@pytest.fixture
def open_stats() -> Iterator[OpenStats]:
    with ExitStack() as stack:

        def open_stats(path: Path, **options: Any) -> TurnStats:
            stats = TurnStats(path, **options)
            stack.callback(stats.close)
            return stats

        yield open_stats


def row(result: TurnResult = FULL, **changed: Any) -> TurnRow:
    fields = {
        "started_at": 1000.5,
        "duration_s": 12.25,
        "model": "opus",
        "wake_from": "bob",
        "kind": result.outcome.value,
        "message_id": 7,
    }
    return TurnRow(result=result, **(fields | changed))


def rows(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return [dict(found) for found in db.execute("SELECT * FROM turn_stats ORDER BY id")]


def test_a_turn_is_a_row_with_all_there_is_to_know(tmp_path: Path, open_stats: OpenStats) -> None:
    open_stats(tmp_path / "s").record(row())

    (found,) = rows(tmp_path / "s")
    assert json.loads(found.pop("tool_call_breakdown_json")) == {"Bash": 2, "mcp__hyperhive__send": 1}
    assert found == {
        "id": 1,
        "started_at": 1000.5,
        "ended_at": 1012.75,
        "duration_ms": 12250,
        "model": "opus",
        "wake_from": "bob",
        "result_kind": "ok",
        "note": "n" * 500,
        "input_tokens": 10,
        "output_tokens": 20,
        "cache_read_input_tokens": 30,
        "cache_creation_input_tokens": 40,
        "last_input_tokens": 1,
        "last_output_tokens": 2,
        "last_cache_read_input_tokens": 3,
        "last_cache_creation_input_tokens": 4,
        "tool_call_count": 3,
        "open_threads_count": 0,
        "open_reminders_count": 0,
        "cost_usd": 0.25,
        "context_window_tokens": 200_000,
        "message_id": 7,
    }


def test_what_is_left_open_is_in_the_row(tmp_path: Path, open_stats: OpenStats) -> None:
    open_stats(tmp_path / "s").record(row(left_open=LeftOpen(threads=3, reminders=2)))

    (found,) = rows(tmp_path / "s")
    assert (found["open_threads_count"], found["open_reminders_count"]) == (3, 2)


def test_what_nobody_told_is_null_and_not_nought(tmp_path: Path, open_stats: OpenStats) -> None:
    open_stats(tmp_path / "s").record(row(TurnResult(outcome=Outcome.FAILED)))

    (found,) = rows(tmp_path / "s")
    assert found["result_kind"] == "failed"
    assert (found["input_tokens"], found["last_input_tokens"], found["cost_usd"]) == (None, None, None)


def test_the_file_is_private_and_in_wal_mode(tmp_path: Path, open_stats: OpenStats) -> None:
    open_stats(tmp_path / "s").record(row())

    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_of_an_older_version_gets_the_columns_that_it_lacks(
    tmp_path: Path, open_stats: OpenStats
) -> None:
    with closing(sqlite3.connect(tmp_path / "s")) as db, db:
        db.execute(
            "CREATE TABLE turn_stats (id INTEGER PRIMARY KEY, started_at INTEGER, model TEXT, gone TEXT)"
        )
        db.execute("INSERT INTO turn_stats VALUES (1, 5, 'haiku', 'x')")

    open_stats(tmp_path / "s").record(row())
    open_stats(tmp_path / "s").record(row())

    old, new, _ = rows(tmp_path / "s")
    assert (old["started_at"], old["gone"], old["cost_usd"]) == (5, "x", None)
    assert (new["model"], new["cost_usd"]) == ("opus", 0.25)
    assert old.keys() == COLUMNS.keys() | {"id", "gone"}


def test_a_column_that_cannot_be_added_is_done_without(
    tmp_path: Path, open_stats: OpenStats, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "s")) as db, db:
        db.execute("CREATE TABLE real_stats (id INTEGER PRIMARY KEY, started_at REAL)")
        db.execute("CREATE VIEW turn_stats AS SELECT * FROM real_stats")
        db.execute(
            "CREATE TRIGGER t INSTEAD OF INSERT ON turn_stats BEGIN"
            " INSERT INTO real_stats (started_at) VALUES (NEW.started_at); END"
        )

    open_stats(tmp_path / "s").record(row())

    assert [found["started_at"] for found in rows(tmp_path / "s")] == [1000.5]
    assert "lack the column" in caplog.text


def test_the_last_turn_that_told_its_figures_seeds_the_next_harness(
    tmp_path: Path, open_stats: OpenStats
) -> None:
    stats = open_stats(tmp_path / "s")
    assert stats.latest() is None

    stats.record(row())
    stats.record(row(TurnResult(outcome=Outcome.FAILED)))

    seed = Seed(ended_at=1012.75, ctx=8, model="opus", window=200_000)
    assert open_stats(tmp_path / "s").latest() == seed


@pytest.mark.parametrize("value", ["'lots'", "x'00ff'"])
def test_a_seed_that_makes_no_sense_is_none(tmp_path: Path, open_stats: OpenStats, value: str) -> None:
    open_stats(tmp_path / "s").record(row())
    with closing(sqlite3.connect(tmp_path / "s")) as db, db:
        db.execute(f"UPDATE turn_stats SET last_cache_read_input_tokens = {value}")

    assert open_stats(tmp_path / "s").latest() is None


@pytest.mark.parametrize("content", [b"no database" * 100, None])
def test_without_a_file_nothing_is_kept_and_nothing_fails(
    tmp_path: Path, open_stats: OpenStats, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)

    stats = open_stats(path)
    stats.record(row())

    assert stats.latest() is None
    assert "not kept" in caplog.text


def test_a_locked_file_costs_one_turn_its_row_and_is_left_alone_for_a_while(
    tmp_path: Path, open_stats: OpenStats, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    stats = open_stats(tmp_path / "s", clock=lambda: now[0])
    with closing(sqlite3.connect(tmp_path / "s")) as other:
        other.execute("BEGIN IMMEDIATE")
        stats.record(row())
        stats.record(row())
        other.rollback()
    assert caplog.text.count("missing in the stats") == 1

    stats.record(row())
    now[0] = HOLD_OFF_S
    stats.record(row())

    assert len(rows(tmp_path / "s")) == 1


def test_words_and_numbers_that_do_not_fit_fail_nothing(tmp_path: Path, open_stats: OpenStats) -> None:
    stats = open_stats(tmp_path / "s", clock=lambda: 0.0)

    stats.record(row(TurnResult(outcome=Outcome.OK, note="\ud800")))
    stats.record(row(TurnResult(outcome=Outcome.OK, total=Usage(input=2**80))))


# ── turns that were cut off by a kill ───────────────────────────────────────────────────────────

BEGIN = TurnBegin(started_at=1000.5, model="opus", wake_from="bob", message_id=7)


def test_a_turn_that_ends_completes_the_row_it_began(tmp_path: Path, open_stats: OpenStats) -> None:
    stats = open_stats(tmp_path / "s")

    stats.begin(BEGIN)
    (begun,) = rows(tmp_path / "s")
    stats.record(row())
    stats.record(row())

    assert (begun["result_kind"], begun["wake_from"], begun["ended_at"]) == ("running", "bob", None)
    assert [(found["id"], found["result_kind"]) for found in rows(tmp_path / "s")] == [(1, "ok"), (2, "ok")]


def test_a_turn_is_begun_once_however_often_it_is_said(tmp_path: Path, open_stats: OpenStats) -> None:
    stats = open_stats(tmp_path / "s")

    stats.begin(BEGIN)
    stats.begin(BEGIN)

    assert len(rows(tmp_path / "s")) == 1


def test_a_turn_whose_harness_is_gone_was_killed(tmp_path: Path, open_stats: OpenStats) -> None:
    open_stats(tmp_path / "s").begin(BEGIN)

    stats = open_stats(tmp_path / "s")

    (found,) = rows(tmp_path / "s")
    assert (found["result_kind"], found["duration_ms"], found["message_id"]) == ("killed", None, 7)
    assert stats.latest() is None


def test_a_row_that_was_pruned_meanwhile_is_written_again(tmp_path: Path, open_stats: OpenStats) -> None:
    stats = open_stats(tmp_path / "s")
    stats.begin(BEGIN)
    with closing(sqlite3.connect(tmp_path / "s")) as db:
        db.execute("DELETE FROM turn_stats")
        db.commit()

    stats.record(row())

    assert [found["result_kind"] for found in rows(tmp_path / "s")] == ["ok"]

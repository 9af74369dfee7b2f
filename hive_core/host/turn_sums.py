"""Sums up an agent's turn stats, in the child of agent_files: every value in the file may be anything."""

import json
import math
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

STATS_FILE: Final = "hyperhive-turn-stats.sqlite"
MAX_ROWS: Final = 200_000
"""A turn every 13 seconds for 30 days; of more than that the newest are taken."""
MAX_SUM: Final = 2**53
MAX_NAMES: Final = 20
"""Shown of each kind, and MAX_KEPT counted."""
MAX_KEPT: Final = 1000
MAX_NAME_CHARS: Final = 64
MAX_BREAKDOWN_CHARS: Final = 16 * 2**10
COLUMNS: Final = (
    *("duration_ms", "model", "wake_from", "result_kind", "input_tokens", "output_tokens"),
    *("cache_read_input_tokens", "cache_creation_input_tokens", "last_input_tokens"),
    *("last_cache_read_input_tokens", "last_cache_creation_input_tokens"),
    *("tool_call_count", "tool_call_breakdown_json", "cost_usd"),
)


def sum_up(
    directory: Path, since: float, open_file: Callable[[Path], sqlite3.Connection | None]
) -> dict[str, Any]:
    """Give the figures of agent_files.TurnSums for the turns that began at *since* or later."""
    db = open_file(directory / STATS_FILE)
    if db is None:
        return {}
    there = {str(column[1]) for column in db.execute("pragma table_info(turn_stats)")}
    if "started_at" not in there:
        return {}
    wanted = ", ".join(name if name in there else f"null as {name}" for name in COLUMNS)
    rows = db.execute(
        f"select {wanted} from turn_stats"  # noqa: S608 - names of ours alone
        " where started_at >= ? order by started_at desc limit ?",
        (since, MAX_ROWS),
    )
    sums = _Sums()
    for values in rows:
        sums.add(dict(zip(COLUMNS, values, strict=True)))
    return sums.figures()


class _Sums:
    def __init__(self) -> None:
        self._totals: Counter[str] = Counter()
        self._cost_usd = 0.0
        self._durations_ms: list[int] = []
        self._tools: Counter[str] = Counter()
        self._wake_from: Counter[str] = Counter()
        self._results: Counter[str] = Counter()
        self._models: Counter[str] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        for kind in ("input", "output", "cache_read", "cache_creation"):
            column = f"{kind}_tokens" if "cache" not in kind else f"{kind}_input_tokens"
            self._totals[f"{kind}_tokens"] += _count(row[column])
        self._cost_usd += _amount(row["cost_usd"])
        ctx = sum(
            _count(row[f"last_{kind}_tokens"])
            for kind in ("input", "cache_read_input", "cache_creation_input")
        )
        self._totals["ctx_max"] = max(self._totals["ctx_max"], ctx)
        result = _name(row["result_kind"])
        if result == "running":
            return  # it is counted when it has ended
        if result.startswith("compact"):
            self._totals["compactions"] += 1
            return
        self._totals["turns"] += 1
        self._totals["ok_turns"] += result == "ok"
        self._totals["tool_calls"] += _count(row["tool_call_count"])
        if row["duration_ms"] is not None:  # of one that was killed nobody knows
            self._durations_ms.append(_count(row["duration_ms"]))
        _tally(self._results, result)
        _tally(self._wake_from, _name(row["wake_from"]))
        _tally(self._models, _name(row["model"]))
        for tool, calls in _breakdown(row["tool_call_breakdown_json"]).items():
            _tally(self._tools, _name(tool), _count(calls))

    def figures(self) -> dict[str, Any]:
        durations = sorted(self._durations_ms)
        return {
            **{name: min(total, MAX_SUM) for name, total in self._totals.items()},
            "cost_usd": min(self._cost_usd, 1e15),
            "p50_seconds": percentile_s(durations, 0.5),
            "p95_seconds": percentile_s(durations, 0.95),
            "tools": _most(self._tools),
            "wake_from": _most(self._wake_from),
            "results": _most(self._results),
            "models": _most(self._models),
        }


def percentile_s(sorted_ms: list[int], share: float) -> float | None:
    """Give the smallest duration, in seconds, that *share* of them do not exceed."""
    if not sorted_ms:
        return None
    return sorted_ms[max(0, math.ceil(share * len(sorted_ms)) - 1)] / 1000


def _tally(counter: Counter[str], name: str, count: int = 1) -> None:
    if count and (name in counter or len(counter) < MAX_KEPT):
        counter[name] += count


def _most(counter: Counter[str]) -> list[tuple[str, int]]:
    ranked = sorted(counter.items(), key=lambda item: (-item[1], item[0]))
    return [(name, min(count, MAX_SUM)) for name, count in ranked[:MAX_NAMES]]


def _count(value: object) -> int:
    return int(_amount(value))


def _amount(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return min(max(value, 0), MAX_SUM)


def _name(value: object) -> str:
    text = value if isinstance(value, str) and value else "?"
    return text[:MAX_NAME_CHARS].encode(errors="replace").decode()


def _breakdown(value: object) -> dict[str, object]:
    if not isinstance(value, str) or len(value) > MAX_BREAKDOWN_CHARS:
        return {}
    try:
        tools = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return tools if isinstance(tools, dict) else {}

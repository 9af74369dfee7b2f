"""What was measured, the targets it is held against, and how both are shown."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.load import Result

MARGIN = 0.2
"""How far the median may be beside its target before --check fails: rounds differ by that much."""

Round = Mapping[str, float]
"""The figures of one round by name."""


@dataclass
class Figures:
    """The figures of all rounds, in the order in which they were first taken."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    client_bound: set[str] = field(default_factory=set)

    def begin_round(self) -> None:
        self.rounds.append({})

    def add(self, name: str, value: float) -> None:
        self.rounds[-1][name] = value

    def add_result(self, name: str, unit: str, result: Result) -> None:
        """Note a run of the load: its rate in *unit* per second, and its latencies."""
        self.add(f"{name}: {unit}/s", result.rate)
        self.add(f"{name}: p50 µs", result.p50_us)
        self.add(f"{name}: p99 µs", result.p99_us)
        if result.client_bound:
            self.client_bound.add(name)

    def median(self, name: str) -> float:
        return statistics.median(values) if (values := self.values(name)) else 0.0

    def values(self, name: str) -> list[float]:
        return [figures[name] for figures in self.rounds if name in figures]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name for figures in self.rounds for name in figures))


@dataclass(frozen=True)
class Target:
    """A ratio of figures of one round, and the bound that it has to keep."""

    name: str
    ratio: Callable[[Round], float]
    bound: float
    at_least: bool

    def holds(self, value: float, margin: float = 0.0) -> bool:
        if self.at_least:
            return value >= self.bound * (1 - margin)
        return value <= self.bound * (1 + margin)


@dataclass(frozen=True)
class Verdict:
    target: Target
    median: float
    worst: float

    @property
    def met(self) -> bool:
        return self.target.holds(self.median)

    @property
    def far_off(self) -> bool:
        return not self.target.holds(self.median, MARGIN)


TARGETS = (
    Target(
        "durable sends/s, 64 senders ÷ raw syncs/s",
        lambda r: r["ours, sends, 64: sends/s"] / r["limit, disk: syncs/s"],
        3.0,
        at_least=True,
    ),
    Target(
        "the same, all to one inbox",
        lambda r: r["ours, sends to one, 64: sends/s"] / r["limit, disk: syncs/s"],
        3.0,
        at_least=True,
    ),
    Target(
        "send p50, 1 sender ÷ (sync p50 + echo p50)",
        lambda r: r["ours, sends, 1: p50 µs"] / (r["limit, disk: p50 µs"] + r["limit, echo, 1: p50 µs"]),
        2.0,
        at_least=False,
    ),
    Target(
        "send→recv p50, 1 agent ÷ (sync p50 + 2 × echo p50)",
        lambda r: r["ours, ring, 1: p50 µs"] / (r["limit, disk: p50 µs"] + 2 * r["limit, echo, 1: p50 µs"]),
        2.0,
        at_least=False,
    ),
    Target(
        "send→recv p99, 64 agents ÷ echo p99, 64 clients",
        lambda r: r["ours, ring, 64: p99 µs"] / r["limit, echo, 64: p99 µs"],
        40.0,
        at_least=False,
    ),
    Target(
        "messages/s, 64 agents ÷ stand-in",
        lambda r: r["ours, ring, 64: messages/s"] / r["stand-in, ring, 64: messages/s"],
        8.0,
        at_least=True,
    ),
    Target(
        "send→recv p99, 64 agents ÷ stand-in",
        lambda r: r["ours, ring, 64: p99 µs"] / r["stand-in, ring, 64: p99 µs"],
        0.2,
        at_least=False,
    ),
    Target(
        "messages/s, 1 agent ÷ stand-in",
        lambda r: r["ours, ring, 1: messages/s"] / r["stand-in, ring, 1: messages/s"],
        1.3,
        at_least=True,
    ),
    Target(
        "daemon RSS MiB, 200 agents wait in recv",
        lambda r: r["ours, 200 agents: RSS MiB"],
        60.0,
        at_least=False,
    ),
    Target(
        "exec → ready with 200 agents ÷ bare Python",
        lambda r: r["ours, 200 agents: ready ms"] / r["start, bare Python: ms"],
        30.0,
        at_least=False,
    ),
    Target(
        "hive send ÷ bare Python",
        lambda r: r["start, hive send: ms"] / r["start, bare Python: ms"],
        6.0,
        at_least=False,
    ),
    Target(
        "hive-agent mcp, exec → greeted ÷ bare Python",
        lambda r: r["start, hive-agent mcp: ms"] / r["start, bare Python: ms"],
        3.0,
        at_least=False,
    ),
)


def judge(figures: Figures) -> list[Verdict]:
    """Hold the rounds against the targets whose figures were taken."""
    verdicts: list[Verdict] = []
    for target in TARGETS:
        ratios: list[float] = []
        for one_round in figures.rounds:
            try:
                ratios.append(target.ratio(one_round))
            except KeyError:
                continue
        if ratios:
            worst = min(ratios) if target.at_least else max(ratios)
            verdicts.append(Verdict(target, statistics.median(ratios), worst))
    return verdicts


def render(figures: Figures, verdicts: Sequence[Verdict]) -> str:
    """Two tables: the figures, and the ratios with their verdicts."""
    runs: dict[str, dict[str, str]] = {}
    for name in figures.names:
        run, _, column = name.rpartition(": ")
        value = figures.median(name)
        if column.endswith("/s"):
            runs.setdefault(run, {})["rate"] = f"{value:,.0f} {column}"
        else:
            runs.setdefault(run, {})[column] = f"{value:,.1f}" if value < 100 else f"{value:,.0f}"
    rows = [["", "rate", "p50 µs", "p99 µs", "more"]]
    for run, columns in runs.items():
        more = [
            f"{name} {text}" for name, text in columns.items() if name not in {"rate", "p50 µs", "p99 µs"}
        ]
        if run in figures.client_bound:
            more.append("client-bound")
        rows.append([run, *(columns.get(name, "") for name in ("rate", "p50 µs", "p99 µs")), ", ".join(more)])
    ratios = [["ratio, within one round", "median", "worst", "target", ""]]
    for verdict in verdicts:
        sign = "≥" if verdict.target.at_least else "≤"
        ratios.append(
            [
                verdict.target.name,
                f"{verdict.median:.2f}",
                f"{verdict.worst:.2f}",
                f"{sign} {verdict.target.bound:g}",
                "met" if verdict.met else "MISSED",
            ]
        )
    return f"{_table(rows)}\n\n{_table(ratios)}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for number, row in enumerate(rows):
        cells = [
            text.ljust(width) if place in {0, len(row) - 1} else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("─" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)

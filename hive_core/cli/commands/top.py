"""hive top."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, command
from hive_core.cli.commands.limits import size
from hive_core.cli.hive import Hive, Row
from hive_core.cli.problems import Problem
from hive_core.cli.states import STYLE, state_of

FIRST_LOOK_S: Final = 0.5
"""From the first to the second look: a share of processor time needs two."""

_HEADINGS: Final = ("AGENT", "STATE", "CPU", "OF", "MEMORY", "OF", "TASKS", "OF", "TURN")


@command(
    "top",
    examples="""
    hive top
    hive top -n 1
    hive top --interval 5
    hive top --json | jq -r '.[] | select(.cpu_percent > 100) | .name'
    """,
)
@click.option("-n", "rounds", type=click.IntRange(1), metavar="N", help="How often to look; then it ends.")
@click.option(
    "--interval", "interval_s", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True,
    metavar="SECONDS", help="From one look to the next.",
)  # fmt: skip
def top(settings: Settings, rounds: int | None, interval_s: float) -> None:
    """Show what the agents' machines use.

    Columns: agent, state, processor time (100% is one processor) and its limit, memory and its limit,
    processes and threads and their limit, turn and for how long. On a terminal it stays, until Ctrl-C; into
    a pipe it is one table, and with -n as many.
    """
    hive = settings.hive()
    live = output.on_terminal() and not settings.as_json
    if rounds is None and not live:
        rounds = 1
    looks = _looks(hive, rounds, interval_s)
    if settings.as_json:
        for rows in looks:
            output.dump_line(rows) if rounds != 1 else output.dump(rows)
    elif live and rounds != 1:
        _show_live(looks)
    else:
        for rows in looks:
            if rows:
                output.table(_HEADINGS, [_columns(row) for row in rows], _style)
                output.flush()
            else:
                output.note("no agents yet; make one with: hive spawn alice")


def _looks(hive: Hive, rounds: int | None, interval_s: float) -> Iterator[list[Row]]:
    """Give every agent's row with its use, as often as asked, busiest first."""
    limits: dict[str, Row] = {}
    earlier = hive.ask({"cmd": "top"})
    wait_s = min(FIRST_LOOK_S, interval_s)
    while rounds is None or rounds > 0:
        time.sleep(wait_s)
        wait_s = interval_s
        later, roster = hive.ask({"cmd": "top"}), hive.roster()
        running = {row["name"] for row in later["usage"]}
        for name in running - limits.keys():
            # It may have gone since; its limits are then nobody's business.
            with suppress(Problem):
                limits[name] = hive.ask({"cmd": "machine", "name": name})
        yield _rows(earlier, later, roster, limits)
        earlier = later
        rounds = None if rounds is None else rounds - 1


def _rows(earlier: Row, later: Row, roster: dict[str, Row], limits: dict[str, Row]) -> list[Row]:
    before = {row["name"]: row["cpu_usec"] for row in earlier["usage"]}
    now = {row["name"]: row for row in later["usage"]}
    took_usec = later["monotonic_usec"] - earlier["monotonic_usec"]
    rows = []
    for name, agent in roster.items():
        row: Row = {"name": name, "state": state_of(agent)}
        if agent.get("running") and agent.get("connected") and agent.get("turn_state"):
            row |= {key: agent[key] for key in ("turn_state", "turn_state_since") if key in agent}
        if used := now.get(name):
            row["cpu_percent"] = _percent(before.get(name), used["cpu_usec"], took_usec)
            # A host without the controller counts nothing.
            row["memory_bytes"], row["tasks"] = used["memory_bytes"] or None, used["tasks"] or None
            for key in ("cpu_quota_percent", "memory_max_bytes", "tasks_max"):
                row[key] = limits.get(name, {}).get(key)
        rows.append({key: value for key, value in row.items() if value is not None})
    return sorted(rows, key=lambda row: (-row.get("cpu_percent", -1.0), row["name"]))


def _percent(before: int | None, after: int, took_usec: int) -> float | None:
    """Give the share of one processor; None for a machine that started in between."""
    if before is None or after < before or took_usec <= 0:
        return None
    return round((after - before) / took_usec * 100, 1)


def _columns(row: Row) -> tuple[Any, ...]:
    terminal = output.on_terminal()
    cpu, memory, most = row.get("cpu_percent"), row.get("memory_bytes"), row.get("memory_max_bytes")
    quota = row.get("cpu_quota_percent")
    return (
        row["name"],
        row["state"],
        None if cpu is None else f"{cpu:.1f}%",
        None if quota is None else f"{quota}%",
        human.size(memory) if terminal and memory is not None else memory,
        size(most) if terminal and most is not None else most,
        row.get("tasks"),
        row.get("tasks_max"),
        _turn(row),
    )


def _turn(row: Row) -> str | None:
    from datetime import datetime

    if "turn_state" not in row:
        return None
    since = human.age(row.get("turn_state_since"), datetime.now().astimezone())
    return f"{row['turn_state']} {since}".strip()


def _show_live(looks: Iterator[list[Row]]) -> None:
    from rich.live import Live

    with Live(console=output.console(), auto_refresh=False, transient=False) as screen:
        for rows in looks:
            screen.update(output.grid(_HEADINGS, [_columns(row) for row in rows], _style), refresh=True)


def _style(heading: str, cell: str) -> str:
    if heading == "AGENT":
        return "bold"
    if heading == "STATE":
        return STYLE.get(cell, "")
    return "dim" if heading == "OF" else ""

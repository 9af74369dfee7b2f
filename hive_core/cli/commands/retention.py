"""hive vacuum."""

from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, command
from hive_core.cli.hive import Deadline, Hive
from hive_core.cli.problems import FAILED, Problem
from hive_core.cli.safe import visible

COUNT_S = 60.0
"""A plan asks a child of each agent."""


@command("vacuum", examples="hive vacuum --dry-run\nhive vacuum\nhive vacuum --json | jq .messages")
@click.option("--dry-run", is_flag=True, help="Change nothing; show what would go, what stays and why.")
def vacuum(settings: Settings, dry_run: bool) -> None:
    """Delete what is old, or show what that is.

    It happens every hour by itself. How long things are kept is in the daemon's configuration, [retention].
    What is not acked, questions and approvals are never too old. Columns with --dry-run: what, whose, how
    many go, how many stay (a + where counting was broken off), why.
    """
    hive = settings.hive()
    if dry_run:
        _show_plan(settings, hive)
    else:
        _sweep(settings, hive)


def _show_plan(settings: Settings, hive: Hive) -> None:
    timeout_s = max(settings.timeout_s, COUNT_S)
    reply = hive.ask({"cmd": "vacuum", "dry_run": True}, timeout_s=timeout_s)
    if settings.as_json:
        output.dump({key: value for key, value in reply.items() if key != "sweep"})
        return
    headings = ("WHAT", "WHOSE", "GOES", "STAYS", "WHY")
    rows = [
        (row["what"], row.get("agent"), _count(row, "goes"), _count(row, "stays"), row["why"])
        for row in reply["rows"]
    ]
    output.table(headings, rows, _style)
    output.note(
        f"the database has {human.size(reply['database_bytes'])}, "
        f"{human.size(reply['free_bytes'])} of it free for new rows"
    )


def _sweep(settings: Settings, hive: Hive) -> None:
    told = Deadline(2.0)
    reply = hive.ask({"cmd": "vacuum"})
    while reply.get("sweep") is None or reply["sweep"]["running"]:
        sweep = reply.get("sweep")
        if sweep is not None and told.left_s() < 0:
            output.note(f"deleted so far: {sweep['messages']} messages, {sweep['events']} events")
            told = Deadline(2.0)
        request: dict[str, Any] = {"cmd": "vacuum"}
        if sweep is not None:
            request["number"] = sweep["number"]
        reply = hive.ask(request)
    sweep = reply["sweep"]
    if settings.as_json:
        output.dump(sweep | {"rows": reply["rows"]})
    else:
        output.facts(
            [
                ("messages", sweep["messages"]),
                ("events", sweep["events"]),
                ("turn stats", sweep["turn_stats"]),
                ("generations", sweep.get("generations", 0)),
                ("freed", human.size(sweep["freed_bytes"]) if sweep["freed_bytes"] else None),
                ("took", f"{sweep['seconds']:.1f} s"),
                ("longest slice", f"{sweep['longest_slice_seconds'] * 1000:.1f} ms"),
            ]
        )
        for row in reply["rows"]:
            whose = f" of {visible(row['agent'])}" if "agent" in row else ""
            output.note(f"{visible(row['what'])}{whose}: {visible(row['why'])}")
    if reply["rows"]:
        raise Problem(FAILED, f"cannot sweep all: {len(reply['rows'])} left alone")


def _count(row: dict[str, Any], key: str) -> str | None:
    if key not in row:
        return None
    more = row.get("at_least") and row[key]
    return f"{row[key]}{'+' if more else ''}"


def _style(heading: str, cell: str) -> str:
    if heading == "GOES" and cell not in {"0", output.NOTHING}:
        return "yellow"
    return "red" if heading == "WHY" and cell.startswith("left alone") else ""

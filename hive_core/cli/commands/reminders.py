"""hive reminders."""

from datetime import datetime
from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_names, command, rows_option
from hive_core.cli.problems import USAGE, Problem

STUCK_AT = 5
"""Failed deliveries from which on a reminder waits for the operator."""


@command(
    "reminders",
    examples="""
    hive reminders
    hive reminders --agent alice
    hive reminders --cancel 12
    hive reminders --retry 7
    """,
)
@click.option("--agent", metavar="AGENT", shell_complete=agent_names, help="Only those of this agent.")
@click.option("--cancel", "cancelled", type=int, metavar="ID", help="Delete a reminder.")
@click.option(
    "--retry", "retried", type=int, metavar="ID", help="Try one again that failed too often to be delivered."
)
@rows_option(100, "reminders")
def reminders(
    settings: Settings, agent: str | None, cancelled: int | None, retried: int | None, limit: int
) -> None:
    """Show what agents left for themselves.

    The next one first. Columns: id, agent, when it comes, its state (pending, failing, stuck), the text,
    and what went wrong. One that is stuck could not be delivered five times.
    """
    hive = settings.hive()
    if sum(value is not None for value in (agent, cancelled, retried)) > 1:
        raise Problem(USAGE, "cannot go on: give --agent, --cancel or --retry, and one of them")
    if cancelled is not None:
        hive.ask({"cmd": "cancel_reminder", "id": cancelled})
        output.note(f"reminder {cancelled} is cancelled")
        return
    if retried is not None:
        hive.ask({"cmd": "retry_reminder", "id": retried})
        output.note(f"reminder {retried} is tried again")
        return
    request: dict[str, Any] = {"cmd": "reminders", "limit": limit}
    if agent is not None:
        request["agent"] = agent
    rows = hive.ask(request, agents=[agent] if agent else [])["reminders"]
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note("no reminders")
    else:
        now = datetime.now().astimezone()
        output.table(
            ("ID", "AGENT", "COMES", "STATE", "TEXT", "TROUBLE"), [_columns(row, now) for row in rows], _style
        )


def _columns(row: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    comes = human.moment(row["due_at"], now) if output.on_terminal() else row["due_at"]
    return row["id"], row["agent"], comes, _state(row), row["message"], row.get("last_error")


def _state(row: dict[str, Any]) -> str:
    attempts = int(row.get("attempts", 0))
    return "stuck" if attempts >= STUCK_AT else "failing" if attempts else "pending"


def _style(heading: str, cell: str) -> str:
    return {"stuck": "red", "failing": "yellow"}.get(cell, "") if heading == "STATE" else ""

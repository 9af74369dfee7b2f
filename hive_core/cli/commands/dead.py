"""hive dead."""

from datetime import datetime
from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_names, command, rows_option
from hive_core.cli.problems import USAGE, Problem


@command(
    "dead",
    examples="""
    hive dead
    hive dead --agent alice
    hive dead retry 12
    hive dead retry --all --agent alice
    hive dead drop 12
    """,
)
@click.argument("action", metavar="[retry|drop]", required=False, type=click.Choice(["retry", "drop"]))
@click.argument("message_id", metavar="[ID]", required=False, type=int)
@click.option("--agent", metavar="AGENT", shell_complete=agent_names, help="Only those to this agent.")
@click.option("--all", "everything", is_flag=True, help="With retry: every one there is.")
@rows_option(100, "messages")
def dead(
    settings: Settings,
    action: str | None,
    message_id: int | None,
    agent: str | None,
    everything: bool,
    limit: int,
) -> None:
    """Show messages that are handed out no more.

    Their agents failed over them too often. retry hands one out again, as if nothing had happened; drop
    gives it up. Columns: id, who wrote it, to whom, since when it is dead, failed turns, why, the text.
    """
    if action is None:
        if everything:
            raise Problem(USAGE, "cannot go on: --all is for retry")
        _show(settings, agent, limit)
        return
    if action == "drop" and (message_id is None or everything or agent is not None):
        raise Problem(USAGE, "cannot drop: give the id of one message")
    if action == "retry" and ((message_id is None) != everything or (agent is not None and not everything)):
        raise Problem(USAGE, "cannot retry: give the id of one message, or --all")
    hive = settings.hive()
    if action == "drop":
        hive.ask({"cmd": "dead_drop", "id": message_id})
        said, count = f"message {message_id} is dropped", 1
    elif everything:
        request: dict[str, Any] = {"cmd": "dead_retry", "all": True}
        count = int(hive.ask(request | ({"agent": agent} if agent else {}))["retried"])
        said = "1 message is handed out again" if count == 1 else f"{count} messages are handed out again"
    else:
        hive.ask({"cmd": "dead_retry", "id": message_id})
        said, count = f"message {message_id} is handed out again", 1
    if settings.as_json:
        output.dump({"id": message_id, "count": count})
    else:
        output.note(said)


def _show(settings: Settings, agent: str | None, limit: int) -> None:
    request: dict[str, Any] = {"cmd": "dead", "limit": limit}
    if agent is not None:
        request["agent"] = agent
    rows = settings.hive().ask(request)["messages"]
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note("no dead messages")
    else:
        now = datetime.now().astimezone()
        headings = ("ID", "FROM", "TO", "SINCE", "FAILED", "WHY", "TEXT")
        output.table(headings, [_columns(row, now) for row in rows], _style)


def _columns(row: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    since = human.moment(row["dead_at"], now) if output.on_terminal() else row["dead_at"]
    return (
        row["id"],
        row["sender"],
        row["recipient"],
        since,
        row.get("attempts", 0),
        row.get("dead_reason"),
        row["body"],
    )


def _style(heading: str, _cell: str) -> str:
    return {"ID": "yellow", "TO": "bold", "WHY": "red"}.get(heading, "")

"""hive events, hive logs."""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command, rows_option
from hive_core.cli.safe import visible
from hive_core.cli.traffic import spoken

_follow = click.option("-f", "--follow", is_flag=True, help="Stay and show what comes; Ctrl-C ends it.")


@command(
    "events",
    examples="""
    hive events alice
    hive events alice -f --kind turn_start --kind turn_end
    hive events alice --after 1200 --json
    """,
)
@agent_argument()
@_follow
@click.option("--after", type=int, metavar="ID", help="Only events with a higher id.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only this kind; may be repeated.")
@rows_option(50, "events")
def events(
    settings: Settings, agent: str, follow: bool, after: int | None, kinds: tuple[str, ...], limit: int
) -> None:
    """Show what an agent did, event by event.

    Oldest first: id, time, kind, payload. Kinds are turn_start, stream, note, turn_end, status_changed,
    model_changed, effort_changed, token_usage_changed, turn_state_changed.
    """
    request: dict[str, Any] = {"cmd": "events", "agent": agent, "limit": limit}
    if after is not None:
        request["after"] = after
    if kinds:
        request["kinds"] = list(kinds)
    if follow:
        for item in settings.hive().follow(request | {"follow": True}, agents=[agent]):
            for row in item.get("events", []):
                if settings.as_json:
                    output.dump_line(row)
                else:
                    _show_events([row])
        return
    rows = settings.hive().ask(request, agents=[agent])["events"]
    if settings.as_json:
        output.dump(rows)
    elif rows:
        _show_events(rows)
    else:
        output.note(f"no events of {agent}")


@command("logs", examples="hive logs alice\nhive logs alice -n 1000 | grep -i error\nhive logs alice -f")
@agent_argument()
@_follow
@rows_option(100, "lines")
def logs(settings: Settings, agent: str, follow: bool, limit: int) -> None:
    """Show the end of an agent's log."""
    request: dict[str, Any] = {"cmd": "logs", "agent": agent, "lines": limit}
    if follow:
        for item in settings.hive().follow(request | {"follow": True}, agents=[agent]):
            for line in item.get("lines", []):
                if settings.as_json:
                    output.dump_line({"line": line})
                else:
                    _show_log_line(line)
        return
    lines = settings.hive().ask(request, agents=[agent])["lines"]
    if settings.as_json:
        output.dump(lines)
        return
    for line in lines:
        _show_log_line(line)
    if not lines:
        output.note(f"the log of {agent} is empty")


def _show_events(rows: Iterable[dict[str, Any]]) -> None:
    terminal = output.on_terminal()
    now = datetime.now().astimezone()
    for row in rows:
        # Escaped as JSON does it, so that nothing in it can act on a terminal.
        payload = output.encode(row.get("payload", {}))
        if not terminal:
            output.record([row.get("id"), row.get("ts"), row.get("kind"), payload])
            continue
        lead = f"#{row.get('id')}  {human.moment(row.get('ts'), now)}  {visible(row.get('kind', '')):<18}  "
        readable = _readable(row)
        output.say(output.paint(lead, "dim") + output.shorten(readable, output.width() - len(lead)))
    output.flush()


def _readable(row: dict[str, Any]) -> str:
    """What an assistant says and does as words, everything else as JSON; one line."""
    payload = row.get("payload", {})
    if row.get("kind") == "stream" and isinstance(payload, dict):
        said = "  ".join(f"{mark} {text}" for mark, text, _ in spoken(payload))
        if said:
            return visible(" ".join(said.split()))
    return visible(json.dumps(payload, ensure_ascii=False))


def _show_log_line(line: str) -> None:
    output.say(visible(line.expandtabs()))
    output.flush()

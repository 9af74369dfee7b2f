"""hive ls, hive show, hive status."""

from contextlib import suppress
from datetime import datetime
from typing import Any

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.commands.allow import said
from hive_core.cli.commands.limits import limit_pairs
from hive_core.cli.hive import Row
from hive_core.cli.problems import Problem
from hive_core.cli.states import RUNNING, STYLE, state_of

_HEADINGS = ("AGENT", "STATE", "TURN", "UNREAD", "MODEL", "ISOLATION", "STATUS")
_UPDATE = " + update"
NOT_CONNECTED = "not connected"


@command(
    "ls", examples="hive ls\nhive ls --json | jq -r '.[] | select(.failed) | .name'\nhive ls | cut -f 1,2"
)
def ls(settings: Settings) -> None:
    """List the agents and what they do.

    Columns: agent, state, turn and for how long ("not connected" where the harness does not answer), unread
    messages, model, isolation, and what the agent says of itself. A state is one of failed, needs_login,
    paused, rate_limited, starting, stopping, restarting, rebuilding, destroying, stopped, running. Isolation
    is nspawn for an agent in a machine of its own, none for a plain process. On a terminal, "+ update" marks
    an agent that `hive rebuild` would change.
    """
    rows = list(settings.hive().roster().values())
    if settings.as_json:
        output.dump(rows)
    elif rows:
        now = datetime.now().astimezone()
        output.table(_HEADINGS, [_columns(row, now) for row in rows], _style)
    else:
        output.note("no agents yet; make one with: hive spawn alice")
    if output.on_terminal() and not settings.as_json:
        _tell_of_what_waits(settings)


@command("show", examples="hive show alice\nhive show alice --json | jq .pid")
@agent_argument()
def show(settings: Settings, agent: str) -> None:
    """Show everything about one agent."""
    hive = settings.hive()
    row = hive.row(agent)
    machine: Row = {}
    with suppress(Problem):  # a daemon of before there were machines, or the agent is gone since
        machine = hive.ask({"cmd": "machine", "name": agent})
    if settings.as_json:
        output.dump(row | {key: value for key, value in machine.items() if key not in row})
        return
    now = datetime.now().astimezone()
    pairs: list[tuple[str, Any]] = [
        ("agent", row["name"]),
        ("state", state_of(row)),
        ("wanted", row.get("wanted")),
        ("failure", row.get("failure")),
        ("harness", "connected" if row.get("connected") else "not connected"),
        ("turn", _turn(row, now)),
        ("unread", row.get("unread", 0)),
        ("dead", row.get("dead")),
        (
            "may write to",
            said(row["allowed_recipients"]) if "allowed_recipients" in row else None,
        ),
        ("model", row.get("active_model")),
        ("effort", row.get("effort")),
        ("context", _context(row)),
        ("provider", row.get("provider")),
        ("isolation", row.get("isolation")),
        ("declared in", machine.get("declared_in")),
        ("machine", row.get("machine") or machine.get("machine")),
        ("image", machine.get("image")),
        ("network", machine.get("network")),
        ("addresses", ", ".join(machine.get("addresses", ()))),
        ("uids", _uids(machine)),
        *limit_pairs(machine),
        ("pid", row.get("pid")),
        ("status", row.get("status_text")),
        ("status set", _ago(row.get("status_set_at"), now)),
        ("parent", row.get("parent")),
        ("deployed", row.get("deployed_sha")),
        ("update", f"needed; hive rebuild {agent} applies it" if row.get("needs_update") else None),
        ("reminders", row.get("pending_reminders") or None),
        ("url", row.get("url")),
    ]
    output.facts(pairs, lambda key, text: STYLE.get(text, "") if key == "state" else "")


@command("status", examples="hive status\nhive status --json | jq .store")
def status(settings: Settings) -> None:
    """Show the daemon's health."""
    hive = settings.hive()
    health = hive.ask({"cmd": "status"})
    if settings.as_json:
        output.dump(health)
        return
    shown: dict[str, Any] = dict(health)
    if sweep := health.get("vacuum"):
        shown["vacuum"] = (
            f"{sweep['messages']} messages, {sweep['events']} events, {sweep['turn_stats']} turn stats"
            f" at {sweep['started_at']}" + (f", {sweep['troubles']} left alone" if sweep["troubles"] else "")
        )
    if output.on_terminal():
        shown["uptime_seconds"] = human.duration(float(health.get("uptime_seconds", 0)))
        for key in ("database_bytes", "rss_bytes"):
            shown[key] = human.size(float(health.get(key, 0)))
        if when := human.parse_time(health.get("started_at")):
            shown["started_at"] = when.strftime("%Y-%m-%d %H:%M:%S")
        shown["socket"] = hive.path
        names = {
            "uptime_seconds": "uptime",
            "database_bytes": "database",
            "rss_bytes": "memory",
            "started_at": "started",
        }
        shown = {names.get(key, key): value for key, value in shown.items()}
    output.facts(list(shown.items()), _health_style)
    if output.on_terminal():
        _tell(health, "approval", "pending")


def _columns(row: dict[str, Any], now: datetime) -> tuple[Any, ...]:
    return (
        row["name"],
        state_of(row) + (_UPDATE if row.get("needs_update") and output.on_terminal() else ""),
        _turn(row, now) or (NOT_CONNECTED if _lacks_harness(row) else None),
        _unread(row),
        row.get("active_model"),
        row.get("isolation"),
        row.get("status_text"),
    )


def _uids(machine: Row) -> str | None:
    first, count = machine.get("uid_base"), machine.get("uid_count", 1)
    return None if first is None else f"{first} to {first + count - 1}"


def _tell_of_what_waits(settings: Settings) -> None:
    try:
        health = settings.hive().ask({"cmd": "status"})
    except Problem:
        return  # the roster is what was asked for, and it is there
    _tell(health, "question", "questions")
    _tell(health, "approval", "pending")


def _tell(health: Row, noun: str, verb: str) -> None:
    """Say how many of *noun* wait, and with which command they are seen."""
    if count := int(health.get(f"{noun}s", 0)):
        waits = f"1 {noun} waits" if count == 1 else f"{count} {noun}s wait"
        output.note(f"{waits} for you: hive {verb}")


def _unread(row: dict[str, Any]) -> object:
    unread = row.get("unread", 0)
    # In a pipe it is a number, whatever happens.
    return f"{unread} ({row['dead']} dead)" if row.get("dead") and output.on_terminal() else unread


def _lacks_harness(row: dict[str, Any]) -> bool:
    """Whether the machine runs, and nobody in it talks to the daemon."""
    return state_of(row) == RUNNING and not row.get("connected", True)


def _turn(row: dict[str, Any], now: datetime) -> str | None:
    if not row.get("running") or not row.get("connected") or not row.get("turn_state"):
        return None
    since = human.age(row.get("turn_state_since"), now)
    return f"{row['turn_state']} {since}".strip()


def _context(row: dict[str, Any]) -> str | None:
    tokens, window = row.get("ctx_tokens"), row.get("window_tokens")
    if tokens is None or not window:
        return None
    return f"{tokens} of {window} tokens ({tokens / window:.0%})"


def _ago(rfc3339: object, now: datetime) -> str | None:
    return f"{human.age(rfc3339, now)} ago" if rfc3339 else None


def _style(heading: str, cell: str) -> str:
    if heading == "AGENT":
        return "bold"
    if heading == "STATE":
        return STYLE.get(cell.removesuffix(_UPDATE), "")
    if heading == "UNREAD" and cell not in {"0", output.NOTHING}:
        return "yellow"
    return ""


def _health_style(key: str, text: str) -> str:
    if key == "store":
        return "green" if text == "ok" else "red"
    return "red" if key in {"failed", "dead"} and text != "0" else ""

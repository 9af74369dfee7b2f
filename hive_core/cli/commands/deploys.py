"""hive deploys, history, rollback."""

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

import click

from hive_core.cli import card, deploying, human, output
from hive_core.cli.app import (
    Settings,
    agent_argument,
    agent_names,
    command,
    deploy_ids,
    deployed_tags,
    either,
    rows_option,
)
from hive_core.cli.problems import USAGE, Problem
from hive_core.cli.safe import visible

Row = dict[str, Any]

FIRST_OF_MANY: Final = 5
"""Deploys that are shown before those that come."""
SLOW_S: Final = 1.0
"""Steps that took less are not worth a word on a terminal."""


@command(
    "deploys",
    examples="""
    hive deploys
    hive deploys alice -n 5
    hive deploys -f
    hive deploys log 9
    hive deploys log 9 -n 1000 | grep -i error
    """,
)
@click.argument(
    "words", metavar="[AGENT | log ID]", nargs=-1, shell_complete=either(agent_names, "log", deploy_ids)
)
@click.option("-f", "--follow", is_flag=True, help="Stay and show what comes; Ctrl-C ends it.")
@click.option(
    "-n", "limit", type=click.IntRange(1, 1000), metavar="N",
    help="How many deploys (20; with -f 5), or lines of the log (200).",
)  # fmt: skip
def deploys(settings: Settings, words: tuple[str, ...], follow: bool, limit: int | None) -> None:
    """Show what is being deployed and was, or the log of one.

    Oldest first. Columns: id, agent, kind, step, tag, commit, when it was asked for, how long it took, how
    long each step did, what went wrong. The steps are queued, preparing, building, activating, finalizing,
    done; or aborting, failed: then what ran before runs again.
    """
    if len(words) == 2 and words[0] == "log":
        if follow or not words[1].isdecimal():
            raise Problem(USAGE, "cannot show the log: give the id of one deploy", "hive deploys lists them")
        _show_log(settings, int(words[1]), limit or 200)
        return
    if len(words) > 1:
        raise Problem(USAGE, "cannot show deploys: give one agent, or log and one id")
    request: Row = {"cmd": "deploys", "limit": limit or (FIRST_OF_MANY if follow else 20)}
    if words:
        request["agent"] = words[0]
    if follow:
        _follow(settings, request | {"follow": True}, words)
        return
    rows = settings.hive().ask(request, agents=words)["deploys"]
    if words == ("log",) and not rows:  # an agent may be called so
        raise Problem(USAGE, "cannot show the log: give the id of one deploy", "hive deploys lists them")
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note(f"no deploys of {words[0]}" if words else "no deploys yet")
    elif output.on_terminal():
        _show(rows)
    else:
        for row in rows:
            output.record(_columns(row))


def _follow(settings: Settings, request: Row, agents: Sequence[str]) -> None:
    for item in settings.hive().follow(request, agents=agents):
        if settings.as_json:
            output.dump_line(item)
            continue
        for row in item.get("deploys", ()):
            if output.on_terminal():
                deploying.show_step(row)
            else:
                output.record(["deploy", *_columns(row)])
        if output.on_terminal():
            deploying.show_lines(item.get("lines", ()))
        else:
            for line in item.get("lines", ()):
                output.record(["log", item.get("id"), line])
        output.flush()


def _show_log(settings: Settings, deploy_id: int, limit: int) -> None:
    lines = settings.hive().ask({"cmd": "deploy_log", "id": deploy_id, "lines": limit})["lines"]
    if settings.as_json:
        output.dump(lines)
        return
    for line in lines:
        output.say(visible(line.expandtabs()))
    if not lines:
        output.note(f"the log of deploy {deploy_id} is empty")


@command("history", examples="hive history alice\nhive history alice --json | jq -r '.[].tag'")
@agent_argument()
@rows_option(50, "tags")
def history(settings: Settings, agent: str, limit: int) -> None:
    """Show what was proposed and deployed for an agent.

    The tags of its configurations, the newest last: proposal, approved, building, then deployed, failed or
    denied, with the number of the approval. Columns: tag, commit, when, "running" for what runs, the first
    line of the commit, and why it failed or was denied.
    """
    request = {"cmd": "history", "agent": agent, "limit": limit}
    rows = settings.hive().ask(request, agents=[agent])["history"]
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note(f"no history of {visible(agent)}: nothing was ever proposed for it")
    else:
        _show_history(rows)


def _show_history(rows: Sequence[Row]) -> None:
    if not output.on_terminal():
        for row in rows:
            running = "running" if row.get("running") else None
            output.record([row["tag"], row["sha"], row["at"], running, row["subject"], row.get("note")])
        return
    now = datetime.now().astimezone()
    shown = [
        (
            row["tag"],
            card.sha(row["sha"]),
            f"{human.age(row['at'], now)} ago",
            "running" if row.get("running") else None,
            row.get("note") or row["subject"],
        )
        for row in rows
    ]
    output.table(("TAG", "COMMIT", "WHEN", "NOW", "ABOUT"), shown, _tag_style)


@command(
    "rollback", examples="hive rollback alice\nhive rollback alice deployed/4\nhive rollback alice --wait"
)
@agent_argument()
@click.argument("tag", metavar="[TAG]", required=False, shell_complete=deployed_tags)
@click.option("--wait", is_flag=True, help="Show the deploy until it ends; fail when it does.")
def rollback(settings: Settings, agent: str, tag: str | None, wait: bool) -> None:
    """Go back to what ran before.

    Without TAG, to the last that was deployed and is not what runs now; with it, deployed/4 or 4, to that.
    It is a deploy like any other, but of something that ran already; it needs no approval.
    """
    request: Row = {"cmd": "rollback", "agent": agent}
    if tag is not None:
        number = tag.removeprefix("deployed/")
        if not number.isdecimal() or not number.isascii():
            raise Problem(
                USAGE,
                f"cannot roll back to {tag!r}: what was deployed has tags such as deployed/4",
                f"hive history {agent} shows them",
            )
        request["tag"] = f"deployed/{number}"
    hive = settings.hive()
    rows: list[Row] = []
    with ExitStack() as stack:
        items = stack.enter_context(hive.following(dict(deploying.FOLLOW))) if wait else iter(())
        reply = hive.ask(request, agents=[agent])
        if not settings.as_json:
            output.note(f"{agent} goes back to {reply['tag']}: deploy {reply['id']}")
        if wait:
            aloud = output.on_terminal() and not settings.as_json
            rows = deploying.Waiting(hive, items, aloud=aloud).wait("id", [int(reply["id"])])
    if settings.as_json:
        output.dump(reply | ({"deploy": rows[0]} if rows else {}))
    if problem := deploying.failure(rows):
        raise problem


_HEADINGS = ("ID", "AGENT", "KIND", "STEP", "WHEN", "TOOK", "ABOUT")


def _show(rows: Sequence[Row]) -> None:
    now = datetime.now().astimezone()
    shown = []
    for row in rows:
        id_, agent, kind, step, tag, _, when, took, _, error = _columns(row)
        slow = ", ".join(_steps(row.get("steps", ()), least_s=SLOW_S))
        about = ": ".join(str(word) for word in (tag, slow) if word)
        shown.append((id_, agent, kind, step, f"{human.age(when, now)} ago", took, error or about))
    output.table(_HEADINGS, shown, _style)


def _columns(row: Row) -> tuple[object, ...]:
    return (
        row["id"],
        row["agent"],
        row["kind"],
        row["step"],
        row.get("tag"),
        row.get("sha"),
        row["requested_at"],
        _took(row),
        ", ".join(_steps(row.get("steps", ()))),
        row.get("error"),
    )


def _steps(steps: Sequence[Row], *, least_s: float = 0) -> list[str]:
    """How long each one took that is over, if that was *least_s*: `building 12 s`."""
    times = [(step["step"], _seconds(step["at"], following["at"])) for step, following in pairwise(steps)]
    return [
        f"{name} {human.duration(took_s)}"
        for name, took_s in times
        if took_s is not None and took_s >= least_s and name != "queued"
    ]


def _took(row: Row) -> str | None:
    took_s = _seconds(row.get("started_at"), row.get("finished_at"))
    return None if took_s is None else human.duration(took_s)


def _seconds(begin: object, end: object) -> float | None:
    began, ended = human.parse_time(begin), human.parse_time(end)
    return max(0.0, (ended - began).total_seconds()) if began and ended else None


def _style(heading: str, cell: str) -> str:
    match heading:
        case "ID":
            return "yellow"
        case "AGENT":
            return "bold"
        case "STEP":
            return deploying.STYLE.get(cell, "cyan")
    return ""


def _tag_style(heading: str, cell: str) -> str:
    if heading == "TAG":
        return {"deployed": "green", "failed": "red", "denied": "red"}.get(cell.partition("/")[0], "")
    return "green" if heading == "NOW" else ""

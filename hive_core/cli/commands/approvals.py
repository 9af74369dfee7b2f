"""hive pending, approvals, approve, deny, withdraw."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import click

from hive_core.cli import card, deploying, human, output, problems
from hive_core.cli.app import Settings, agent_names, approval_ids, command, either, rows_option
from hive_core.cli.hive import Hive
from hive_core.cli.problems import Problem

Row = dict[str, Any]


@command("pending", examples="hive pending\nhive pending --json | jq -r '.[].id'\nhive pending | cut -f 1,2")
def pending(settings: Settings) -> None:
    """Show what waits for your decision.

    Oldest first. Columns: id, agent, kind, state, who asks, when, the commit, when it expires, what who
    asks says. Look at one before you decide: hive approvals show ID.
    """
    rows = settings.hive().ask({"cmd": "pending"})["approvals"]
    # The original answers with decided ones too.
    _show(settings, [row for row in rows if row["status"] == "pending"], "nothing waits for your decision")


@command(
    "approvals",
    examples="""
    hive approvals
    hive approvals alice -n 5
    hive approvals show 7
    hive approvals show 7 --diff
    hive approvals show 7 --diff --base previous | less
    """,
)
@click.argument(
    "words", metavar="[AGENT | show ID]", nargs=-1, shell_complete=either(agent_names, "show", approval_ids)
)  # fmt: skip
@rows_option(50, "approvals")
@click.option("--diff", is_flag=True, help="With show: also what differs in the files.")
@click.option(
    "--base", type=click.Choice(list(card.COMPARED)),
    help="With show: compare with what runs (the default), was approved last, or was proposed before.",
)  # fmt: skip
def approvals(settings: Settings, words: tuple[str, ...], limit: int, diff: bool, base: str | None) -> None:
    """Show approvals, or all about one of them.

    The newest ones, decided or not, the oldest of them first; columns as those of hive pending. With show,
    all that one would change: the daemon computes it from the commit, whatever who asks says of it. The
    gravest comes first.
    """
    if len(words) == 2 and words[0] == "show":
        base = base or "running"
        reply = settings.hive().ask({"cmd": "approval", "id": _number(words[1]), "base": base, "diff": diff})
        if settings.as_json:
            output.dump(reply)
        else:
            card.show(reply, base=base)
        return
    if len(words) > 1 or diff or base:
        raise Problem(problems.USAGE, "cannot show approvals: give one agent, or show and one id")
    request: Row = {"cmd": "approvals", "limit": limit}
    if words:
        request["agent"] = words[0]
    rows = settings.hive().ask(request, agents=words)["approvals"]
    if words == ("show",) and not rows:  # an agent may be called so
        raise Problem(problems.USAGE, "cannot show an approval: give its id", "hive pending lists them")
    _show(settings, rows, f"no approvals of {words[0]}" if words else "no approvals yet")


@command(
    "approve",
    examples="""
    hive approve 7
    hive approve 7 --wait
    hive approve 7 8 --yes
    """,
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=int, shell_complete=approval_ids)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait", is_flag=True, help="Show the deploy until it ends; fail when it does.")
def approve(settings: Settings, ids: tuple[int, ...], yes: bool, wait: bool) -> None:
    """Approve what was asked for.

    Shows what would be different, and asks. Only what was shown is approved: if the agent or the request is
    another one by then, it is refused. What was approved is deployed by the daemon, one after the other;
    hive deploys shows it.
    """
    asks = not yes
    if asks and (settings.as_json or not a_person_is_there()):
        raise Problem(
            problems.USAGE,
            "cannot approve: nobody is there to ask",
            f"say --yes, after hive approvals show {ids[0]}",
        )
    hive, exit_code = settings.hive(), problems.OK
    approved: list[Row] = []
    with ExitStack() as stack:
        # Accepted before anything is approved: what comes of it cannot be missed.
        items = stack.enter_context(hive.following(dict(deploying.FOLLOW))) if wait else iter(())

        def one(approval_id: int) -> None:
            row = _approve(hive, approval_id, asks=asks)
            approved.append(row)
            if not settings.as_json:
                output.note(f"approval {row['id']} is approved" + ("" if wait else "; see hive deploys"))

        exit_code = _each(ids, one)
        rows: list[Row] = []
        if wait and approved:
            aloud = output.on_terminal() and not settings.as_json
            waiting = deploying.Waiting(hive, items, aloud=aloud)
            rows = waiting.wait("approval_id", [row["id"] for row in approved])
    if settings.as_json:
        deploys = {row["approval_id"]: {"deploy": row} for row in rows}
        output.dump([row | deploys.get(row["id"], {}) for row in approved])
    elif not output.on_terminal():
        for row in rows:
            output.record([row["approval_id"], row["id"], row["agent"], row["step"], row.get("error")])
    if problem := deploying.failure(rows):
        raise problem
    if exit_code != problems.OK:
        raise click.exceptions.Exit(exit_code)


def _approve(hive: Hive, approval_id: int, *, asks: bool) -> Row:
    """Give the row that was approved.

    Raises:
        Problem: it was not.
    """
    reply = hive.ask({"cmd": "approval", "id": approval_id})
    row: Row = reply["approval"]
    if asks and row["status"] == "pending":
        card.show(reply)
        if not click.confirm(f"Approve {approval_id}?", err=True):
            raise Problem(problems.REFUSED, f"cannot approve {approval_id}: you said no; it still waits")
    request: Row = {"cmd": "approve", "id": approval_id}
    if "digest" in row:
        request["digest"] = row["digest"]
    hive.ask(request)
    return row | {"status": "approved"}


@command(
    "deny", examples='hive deny 7 -m "curl is not needed for that"\nhive deny 7 8 -m "not before the release"'
)
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=int, shell_complete=approval_ids)
@click.option("-m", "why", metavar="WHY", help="Who asked is told, and it is kept.")
def deny(settings: Settings, ids: tuple[int, ...], why: str | None) -> None:
    """Deny what was asked for."""
    note = {} if why is None else {"note": why}
    _do(settings, ids, lambda approval_id: {"cmd": "deny", "id": approval_id} | note, "denied")


@command("withdraw", examples="hive withdraw 7")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=int, shell_complete=approval_ids)
def withdraw(settings: Settings, ids: tuple[int, ...]) -> None:
    """Take back what waits for a decision.

    It is for what you asked for yourself; who else asked is told as if it had changed its mind.
    """
    _do(settings, ids, lambda approval_id: {"cmd": "cancel_approval", "id": approval_id}, "withdrawn")


def _do(settings: Settings, ids: Sequence[int], request: Callable[[int], Row], done: str) -> None:
    hive, ended = settings.hive(), []

    def one(approval_id: int) -> None:
        hive.ask(request(approval_id))
        ended.append(approval_id)
        if not settings.as_json:
            output.note(f"approval {approval_id} is {done}")

    exit_code = _each(ids, one)
    if settings.as_json:
        output.dump([{"id": approval_id} for approval_id in ended])
    if exit_code != problems.OK:
        raise click.exceptions.Exit(exit_code)


def _each(ids: Sequence[int], do: Callable[[int], None]) -> int:
    """Do it for each; a no for one of them is reported at once and does not keep the others from theirs."""
    exit_code = problems.OK
    for approval_id in dict.fromkeys(ids):
        try:
            do(approval_id)
        except Problem as problem:
            if problem.exit_code in {problems.UNREACHABLE, problems.TIMED_OUT}:
                raise
            exit_code = problems.report(problem)
    return exit_code


def a_person_is_there() -> bool:
    """Whether somebody reads what is written here, and types what is read."""
    return sys.stdin.isatty() and output.on_terminal()


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Problem(
            problems.USAGE, f"cannot show {text!r}: that is no id of an approval", "hive pending lists them"
        ) from None


_HEADINGS = ("ID", "AGENT", "KIND", "STATE", "BY", "WHEN", "SAYS")


def _show(settings: Settings, rows: Sequence[Row], nothing: str) -> None:
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note(nothing)
    elif not output.on_terminal():
        for row in rows:
            output.record(
                [row["id"], row["agent"], row["kind"], card.status(row), row.get("proposer"),
                 row["requested_at"], row.get("fetched_sha") or row.get("commit_ref"), row.get("expires_at"),
                 row.get("description")]
            )  # fmt: skip
    else:
        now = datetime.now().astimezone()
        output.table(_HEADINGS, [_columns(row, now) for row in rows], _style)


def _columns(row: Row, now: datetime) -> tuple[object, ...]:
    return (
        row["id"],
        row["agent"],
        row["kind"],
        card.status(row),
        row.get("proposer"),
        f"{human.age(row['requested_at'], now)} ago",
        (row.get("note") if row["status"] == "failed" else None)
        or row.get("description")
        or card.inputs(row)
        or row.get("note"),
    )


_STYLE = {"pending": "yellow", "deploying": "cyan", "approved": "green", "denied": "red", "failed": "red"}


def _style(heading: str, cell: str) -> str:
    match heading:
        case "ID":
            return "yellow"
        case "AGENT":
            return "bold"
        case "STATE":
            return _STYLE.get(cell, "dim")
    return ""

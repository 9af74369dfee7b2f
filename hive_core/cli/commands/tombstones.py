"""hive tombstones, revive, purge."""

from datetime import datetime
from typing import Any

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, command, tombstone_names
from hive_core.cli.commands.lifecycle import confirm, wait_until_gone
from hive_core.cli.commands.proposals import ask_for
from hive_core.cli.hive import Hive
from hive_core.cli.problems import NOT_FOUND, REFUSED, Problem
from hive_core.cli.safe import visible


@command("tombstones", examples="hive tombstones\nhive tombstones --json | jq -r '.[].name'")
def tombstones(settings: Settings) -> None:
    """Show destroyed agents whose state is kept.

    Columns: name, when it was destroyed, what its files take, and "login" when a login is kept with them.
    """
    rows = settings.hive().ask({"cmd": "tombstones"})["tombstones"]
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note("nothing is kept of a destroyed agent")
    else:
        now, terminal = datetime.now().astimezone(), output.on_terminal()
        output.table(
            ("AGENT", "DESTROYED", "SIZE", "KEPT"),
            [_columns(row, now, terminal) for row in rows],
            lambda heading, _cell: "bold" if heading == "AGENT" else "",
        )


def _columns(row: dict[str, Any], now: datetime, terminal: bool) -> tuple[object, ...]:
    bytes_ = row.get("bytes")
    when = row["destroyed_at"]
    return (
        row["name"],
        f"{human.age(when, now)} ago" if terminal else when,
        human.size(bytes_) if terminal and bytes_ is not None else bytes_,
        "login" if row.get("has_credentials") else None,
    )


@command("revive", examples='hive revive alice\nhive revive alice -m "we need it after all"')
@click.argument("name", metavar="AGENT", shell_complete=tombstone_names)
@click.option("-m", "text", metavar="TEXT", help="What it is for; shown to who decides.")
def revive(settings: Settings, name: str, text: str | None) -> None:
    """Ask for the return of a destroyed agent.

    With its files, its login and its configuration. hive spawn does it without an approval. Prints the id of
    the approval.
    """
    _check_kept(settings.hive(), name, "revive")
    ask_for(settings, {"cmd": "request_spawn", "name": name}, text)


@command("purge", examples="hive purge alice\nhive purge alice --confirm alice")
@click.argument("name", metavar="AGENT", shell_complete=tombstone_names)
@click.option("--confirm", "confirmed", metavar="AGENT", help="Its name once more, for scripts: do not ask.")
def purge(settings: Settings, name: str, confirmed: str | None) -> None:
    """Delete what is kept of a destroyed agent.

    Its files, its login and its configurations. There is no way back; asks to type the name. An agent that
    is there is destroyed first: hive destroy AGENT, or hive destroy AGENT --purge for both. Waits until all
    of it is deleted.
    """
    hive = settings.hive()
    _check_kept(hive, name, "purge")
    if confirmed is None:
        confirm(name, f"say --confirm {name}")
    elif confirmed != name:
        raise Problem(REFUSED, f"cannot purge {name}: --confirm is not its name; nothing was changed")
    hive.ask({"cmd": "purge", "name": name, "confirm": name})
    wait_until_gone(hive, name)
    if settings.as_json:
        output.dump({"name": name})
    else:
        output.say(f"{visible(name)} is purged; nothing is kept of it")


def _check_kept(hive: Hive, name: str, verb: str) -> None:
    kept = [row["name"] for row in hive.ask({"cmd": "tombstones"})["tombstones"]]
    if name in kept:
        return
    if name in hive.roster():
        raise Problem(
            REFUSED, f"cannot {verb} {name}: it was not destroyed", f"hive destroy {name} does that"
        )
    raise Problem(
        NOT_FOUND,
        f"cannot {verb} {name}: nothing is kept of such an agent",
        "hive tombstones shows of which something is",
    )

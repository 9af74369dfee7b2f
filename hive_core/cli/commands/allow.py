"""hive allow."""

from typing import Any

import click

from hive_core.cli import output
from hive_core.cli.app import Settings, agent_argument, agent_names, command
from hive_core.cli.problems import USAGE, Problem
from hive_core.cli.safe import visible

ALWAYS = "manager"
"""Who is allowed without being listed."""


@command(
    "allow",
    examples="""
    hive allow alice
    hive allow alice bob carol
    hive allow alice bob operator
    hive allow alice --anyone
    """,
)
@agent_argument()
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=agent_names)
@click.option("--anyone", is_flag=True, help="Let it write to anyone again.")
def allow(settings: Settings, agent: str, names: tuple[str, ...], anyone: bool) -> None:
    """Show or set to whom an agent may write.

    The list takes effect at once and replaces the one before. The manager is always allowed; operator, that
    is you, only when listed. A broadcast goes to those on the list. Without names the list is printed, a
    name a line; * is anyone.
    """
    if anyone and names:
        raise Problem(USAGE, "cannot allow: give names or --anyone, and one of them")
    hive = settings.hive()
    if not names and not anyone:
        listed = hive.row(agent).get("allowed_recipients")
        if settings.as_json:
            output.dump({"agent": agent, "allowed_recipients": listed})
            return
        for name in ["*"] if listed is None else dict.fromkeys([*listed, ALWAYS]):
            output.say(visible(name))
        return
    wanted: list[str] | None = list(names) or None
    hive.ask({"cmd": "allow", "name": agent, "recipients": wanted}, agents=[agent])
    if settings.as_json:
        output.dump({"agent": agent, "allowed_recipients": wanted})
        return
    output.note(f"{agent} may write to {said(wanted)}")
    strangers = _strangers(hive.roster(), names)
    if strangers:
        output.note(f"there is no agent {', '.join(map(visible, strangers))} yet")


def said(listed: list[str] | None) -> str:
    """Give the list in words."""
    if listed is None:
        return "anyone"
    return ", ".join(map(visible, dict.fromkeys([*listed, ALWAYS]))) + " only"


def _strangers(roster: dict[str, dict[str, Any]], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name not in roster and name not in {ALWAYS, "operator"}]

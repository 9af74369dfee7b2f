"""hive config, propose, request-spawn, init-config, update-inputs."""

import os
import re
from pathlib import Path
from typing import Any, Final

import click

from hive_core.cli import card, output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.hive import Hive
from hive_core.cli.problems import USAGE, Problem
from hive_core.cli.safe import visible

_COMMIT: Final = re.compile(r"[0-9a-f]{7,40}\Z")

NEWEST: Final = 20
"""Approvals among which one that was just asked for is looked for."""

_why = click.option("-m", "text", metavar="TEXT", help="What it is for; shown to who decides.")


@command("config", examples='hive config alice\ncd "$(hive config alice)"')
@agent_argument()
def config(settings: Settings, agent: str) -> None:
    """Print where an agent's configuration can be edited.

    That is a git repository with an agent.toml; one is made when there is none. Nothing of it holds until a
    commit was proposed, with hive propose, and approved.
    """
    path = settings.hive().ask({"cmd": "config", "name": agent}, agents=[agent])["path"]
    if settings.as_json:
        output.dump({"agent": agent, "path": path})
    else:
        output.say(visible(path))
        uid = _owner(path)
        if uid == 0 and os.geteuid() != 0:  # there is no manager
            output.note("it is root's: edit and commit there as root")
        elif uid not in {None, os.geteuid()}:
            # Git would do, as us, what that user has put into its config.
            inside = f"/agents/{visible(agent)}/config"
            output.note(f"it is the manager's: run no git in it here, but in hive shell manager, {inside}")


def _owner(path: str) -> int | None:
    try:
        return Path(path).stat().st_uid
    except OSError:
        return None


@command(
    "propose",
    examples="""
    hive propose alice
    hive propose alice 3f2c1ab -m "jq, for the reports"
    """,
)
@agent_argument()
@click.argument("commit", metavar="[COMMIT]", required=False)
@_why
def propose(settings: Settings, agent: str, commit: str | None, text: str | None) -> None:
    """Ask for the deploy of a commit.

    COMMIT is 7 to 40 hex digits; without it, the newest commit of what is checked out in hive config AGENT.
    It is fetched now: what is changed there afterwards changes nothing. Prints the id of the approval.
    """
    request: dict[str, Any] = {"cmd": "request_apply_commit", "agent": agent}
    if commit is not None:
        if not _COMMIT.match(commit):
            raise Problem(
                USAGE,
                f"cannot propose {commit!r}: a commit is 7 to 40 hex digits",
                "a branch could be moved after its approval; git rev-parse says which commit it is at",
            )
        request["commit_ref"] = commit
    approval_id = ask_for(settings, request, text, agents=[agent])
    if not settings.as_json:
        _say_if_it_runs(settings.hive(), agent, approval_id)


def _say_if_it_runs(hive: Hive, agent: str, approval_id: int) -> None:
    """Tell who has forgotten to commit; a commit that runs may be wanted once more, so it is no error."""
    rows = hive.ask({"cmd": "approvals", "agent": agent, "limit": NEWEST}).get("approvals", ())
    row: dict[str, Any] = next((row for row in rows if row["id"] == approval_id), {})
    if card.runs_already(row):
        output.note(
            f"{visible(agent)} runs commit {card.sha(row['fetched_sha'])} already;"
            " what was changed and not committed is not in it"
        )


@command("request-spawn", examples='hive request-spawn dave -m "reads the logs"')
@click.argument("name")
@_why
def request_spawn(settings: Settings, name: str, text: str | None) -> None:
    """Ask for a new agent.

    It gets what is proposed for it already, else a configuration from a template. Of an agent that was
    destroyed the kept state is taken up. hive spawn creates one without an approval. Prints the id of the
    approval.
    """
    ask_for(settings, {"cmd": "request_spawn", "name": name}, text)


@command("init-config", examples='hive init-config dave\nhive init-config dave -m "to be reviewed first"')
@click.argument("name")
@_why
def init_config(settings: Settings, name: str, text: str | None) -> None:
    """Ask for a configuration to begin with.

    For an agent that is to be created only when its configuration was edited and looked at: then
    hive request-spawn. Prints the id of the approval.
    """
    ask_for(settings, {"cmd": "request_init_config", "name": name}, text)


@command("update-inputs", examples="hive update-inputs nixpkgs\nhive update-inputs nixpkgs hyperhive")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@_why
def update_inputs(settings: Settings, inputs: tuple[str, ...], text: str | None) -> None:
    """Ask for newer inputs of the hive's flake.

    Every agent that they change is then built anew. Only where agents are built by nix. Prints the id of the
    approval.
    """
    ask_for(settings, {"cmd": "request_update_meta_inputs", "inputs": list(inputs)}, text)


def ask_for(
    settings: Settings, request: dict[str, Any], text: str | None, *, agents: list[str] | None = None
) -> int:
    """Send a request for an approval; print its id and give it."""
    if text is not None:
        request = request | {"description": text}
    approval_id = int(settings.hive().ask(request, agents=agents or [])["id"])
    if settings.as_json:
        output.dump({"id": approval_id})
    else:
        output.say(str(approval_id))
        if output.on_terminal():
            output.note(f"it waits for a decision: hive approve {approval_id}")
    return approval_id

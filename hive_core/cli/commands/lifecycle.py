"""hive spawn, start, stop, restart, rebuild, pause, resume, destroy.

The daemon answers when the wish is on disk.  These commands then look at the roster until it holds.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from hive_core.cli import output, problems
from hive_core.cli.app import Settings, agent_argument, command, image_names
from hive_core.cli.hive import Deadline, Hive, Row
from hive_core.cli.problems import Problem
from hive_core.cli.safe import visible
from hive_core.cli.states import STARTING

FIRST_LOOK_S: Final = 0.02
SLOWEST_LOOK_S: Final = 0.25
LAST_LOOK_S: Final = 1.0
NO_REASON: Final = "it failed, no reason given"
"""What an answer may take that was asked for just before the time is up."""

Lacks = Callable[[Row | None], str | None]
"""Says what is still not so, or None when the wish holds."""

_no_wait = click.option("--no-wait", is_flag=True, help="Return when the wish is recorded.")
_all = click.option("--all", "everyone", is_flag=True, help="All agents.")


@command(
    "spawn",
    examples="""
    hive spawn alice
    hive spawn alice bob carol
    hive spawn alice --image debian --network veth --memory 8G --cpu 400%
    hive spawn alice --no-wait
    """,
)
@click.argument("agents", metavar="NAME...", nargs=-1, required=True)
@click.option("--image", metavar="IMAGE", shell_complete=image_names, help="What `hive image ls` shows.")
@click.option(
    "--network", type=click.Choice(["none", "veth"]), help="Only a loopback, or a link to the host."
)
@click.option("--memory", metavar="SIZE", help="The most memory, such as 512M or 4G.")
@click.option("--cpu", metavar="PERCENT", help="The most processor time; 200% is two processors.")
@click.option("--tasks", type=int, metavar="N", help="The most processes and threads.")
@_no_wait
def spawn(settings: Settings, agents: tuple[str, ...], no_wait: bool, **shape: str | int | None) -> None:
    """Create agents and start them.

    A name is a-z, 0-9 and -, at most 63 characters. Waits until the agents run and are connected. What is
    not said of their machines is as the hive's configuration says, also later when that changes.
    """
    hive, tasks = settings.hive(), _Tasks()
    said = {key: value for key, value in shape.items() if value is not None}
    for agent in agents:
        tasks.do(agent, hive, {"cmd": "spawn", "name": agent} | said)
    _finish(settings, hive, tasks, _up, "running", no_wait=no_wait)


@command("start", examples="hive start alice\nhive start --all --timeout 60")
@agent_argument(nargs=-1)
@_all
@_no_wait
def start(settings: Settings, agents: tuple[str, ...], everyone: bool, no_wait: bool) -> None:
    """Start agents.

    One that had failed gets another chance. Waits until the agents run and are connected.
    """
    hive, tasks = settings.hive(), _Tasks()
    hive.ask({"cmd": "start", "scope": _scope(agents, everyone)}, agents=agents)
    tasks.recorded = list(hive.roster()) if everyone else list(dict.fromkeys(agents))
    _finish(settings, hive, tasks, _up, "running", no_wait=no_wait)


@command("stop", examples="hive stop alice\nhive stop alice --now\nhive stop --all")
@agent_argument(nargs=-1)
@_all
@click.option("--now", is_flag=True, help="Do not let a running turn end first.")
@_no_wait
def stop(settings: Settings, agents: tuple[str, ...], everyone: bool, now: bool, no_wait: bool) -> None:
    """Stop agents after their running turn.

    Their messages wait for them. Waits until the agents have stopped.
    """
    hive, tasks = settings.hive(), _Tasks()
    hive.ask({"cmd": "stop", "scope": _scope(agents, everyone), "graceful": not now}, agents=agents)
    tasks.recorded = list(hive.roster()) if everyone else list(dict.fromkeys(agents))
    hint = None if now else "a running turn may end first; hive stop --now does not let it"
    _finish(settings, hive, tasks, _down, "stopped", no_wait=no_wait, hint=hint)


@command("restart", examples="hive restart alice\nhive restart alice bob")
@agent_argument(nargs=-1, required=True)
@_no_wait
def restart(settings: Settings, agents: tuple[str, ...], no_wait: bool) -> None:
    """Stop agents and start them again.

    Waits until the agents run anew and are connected.
    """
    _run_anew(settings, "restart", agents, no_wait=no_wait)


@command(
    "rebuild", examples="hive rebuild alice\nhive ls --json | jq -r '.[] | select(.needs_update) | .name'"
)
@agent_argument(nargs=-1, required=True)
@_no_wait
def rebuild(settings: Settings, agents: tuple[str, ...], no_wait: bool) -> None:
    """Stop agents and start them as they are declared now.

    That is how an agent that needs an update gets it: its image, its limits and all else is applied anew.
    Waits until the agents run anew and are connected.
    """
    _run_anew(settings, "rebuild", agents, no_wait=no_wait)


def _run_anew(settings: Settings, verb: str, agents: Sequence[str], *, no_wait: bool) -> None:
    hive, tasks = settings.hive(), _Tasks()
    before = hive.roster()
    pids = {name: row["pid"] for name, row in before.items() if row.get("running") and "pid" in row}
    for agent in agents:
        tasks.do(agent, hive, {"cmd": verb, "name": agent})

    def lacks(row: Row | None) -> str | None:
        if row and row.get("running") and "pid" in row and row["pid"] == pids.get(row["name"]):
            return "has not stopped yet"
        return _up(row)

    _finish(settings, hive, tasks, lacks, "running", no_wait=no_wait)


@command("pause", examples="hive pause alice")
@agent_argument(nargs=-1, required=True)
def pause(settings: Settings, agents: tuple[str, ...]) -> None:
    """Hand out no message to agents.

    Their running turn goes on; what is sent to them waits.
    """
    _set_paused(settings, agents, True, "paused")


@command("resume", examples="hive resume alice")
@agent_argument(nargs=-1, required=True)
def resume(settings: Settings, agents: tuple[str, ...]) -> None:
    """Hand out messages to paused agents again."""
    _set_paused(settings, agents, False, "no longer paused")


@command(
    "destroy", examples="hive destroy alice\nhive destroy alice --purge\nhive destroy alice bob --purge --yes"
)
@agent_argument(nargs=-1, required=True)
@click.option("--purge", is_flag=True, help="Delete the state too; asks to type the name.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_no_wait
def destroy(settings: Settings, agents: tuple[str, ...], purge: bool, yes: bool, no_wait: bool) -> None:
    """Stop agents and forget them, but keep their state.

    A spawn of the same name takes the state up again; with --purge there is nothing left to take up. What is
    kept is in hive tombstones.
    """
    if purge and not yes:
        for agent in agents:
            confirm(agent, "say --yes")
    hive, tasks = settings.hive(), _Tasks()
    for agent in agents:
        tasks.do(agent, hive, {"cmd": "destroy", "name": agent, "purge": purge})
    done = "destroyed with its state" if purge else "destroyed; a spawn takes its state up again"
    _finish(settings, hive, tasks, _gone, done, no_wait=no_wait)


class _Tasks:
    """The agents for which the wish is recorded, and how it went for the last of the others."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.exit_code = problems.OK

    def do(self, agent: str, hive: Hive, request: dict[str, Any]) -> None:
        """Ask; a no for one agent is reported at once and does not keep the others from theirs."""
        known = [] if request["cmd"] == "spawn" else [agent]
        try:
            hive.ask(request, agents=known)
        except Problem as problem:
            if problem.exit_code in {problems.UNREACHABLE, problems.TIMED_OUT}:
                raise
            self.exit_code = problems.report(problem)
        else:
            self.recorded.append(agent)


def _bare(agent: str, reason: str) -> str:
    """Give *reason* without what is said before it already."""
    return reason.removeprefix(f"cannot start {agent}: ")


def _up(row: Row | None) -> str | None:
    if row is None:
        return "is not there"
    doing = row.get("transient")
    if not row.get("running"):
        why = row.get("failure") or doing
        return f"does not run yet ({why})" if why else "does not run yet"
    if doing and doing != STARTING:
        return f"is {doing} still"
    # A roster without the key is the original's: there is nothing more to wait for.
    return None if row.get("connected", True) else "runs but is not connected yet"


def _down(row: Row | None) -> str | None:
    return "still runs" if row and row.get("running") else None


def _gone(row: Row | None) -> str | None:
    return "is still there" if row else None


def _finish(
    settings: Settings,
    hive: Hive,
    tasks: _Tasks,
    lacks: Lacks,
    done: str,
    *,
    no_wait: bool,
    hint: str | None = None,
) -> None:
    """Wait until the wish holds for all it was recorded for, say so, and say what went wrong."""
    roster: dict[str, Row] = {}
    if no_wait:
        if settings.as_json and tasks.recorded:
            roster = hive.roster()
    elif tasks.recorded:
        roster = _wait(hive, tasks.recorded, lacks, hint)
    if settings.as_json:
        output.dump([roster.get(name, {"name": name}) for name in tasks.recorded])
    else:
        for name in tasks.recorded:
            output.say(f"{visible(name)} {'will be' if no_wait else 'is'} {done}")
        if not tasks.recorded and tasks.exit_code == problems.OK:
            output.note("there are no agents")
    if tasks.exit_code != problems.OK:
        raise click.exceptions.Exit(tasks.exit_code)


def _wait(hive: Hive, agents: Sequence[str], lacks: Lacks, hint: str | None) -> dict[str, Row]:
    """Look at the roster until the wish holds for all *agents*, and give it.

    Raises:
        Problem: FAILED when one of them failed for good, TIMED_OUT when the time is up.
    """
    deadline = Deadline(hive.timeout_s)
    pause_s = FIRST_LOOK_S
    while True:
        roster = hive.roster(timeout_s=max(deadline.left_s(), LAST_LOOK_S))
        missing = {name: what for name in agents if (what := lacks(roster.get(name)))}
        if not missing:
            return roster
        failed = [name for name in missing if roster.get(name, {}).get("failed")]
        if failed and lacks not in {_down, _gone}:
            reasons = {name: str(roster[name].get("failure", NO_REASON)) for name in failed}
            said = "; ".join(f"{name}: {_bare(name, reason)}" for name, reason in reasons.items())
            # A machine that never was has no log.
            was_refused = all(_bare(name, reason) != reason for name, reason in reasons.items())
            then = f"hive start {' '.join(failed)}, once that is mended" if was_refused else None
            raise Problem(problems.FAILED, f"cannot start {said}", then or f"hive logs {failed[0]}")
        if deadline.left_s() <= pause_s:
            still = "; ".join(f"{name} {what}" for name, what in missing.items())
            raise Problem(
                problems.TIMED_OUT,
                f"cannot wait longer than {deadline.seconds:g} s: {still}",
                hint or f"the wish is recorded; hive show {next(iter(missing))} tells how it goes",
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, SLOWEST_LOOK_S)


def wait_until_gone(hive: Hive, agent: str) -> None:
    """Look at the roster until *agent* is not in it.

    Raises:
        Problem: TIMED_OUT, when the time is up.
    """
    _wait(hive, [agent], _gone, None)


def _scope(agents: Sequence[str], everyone: bool) -> dict[str, Any]:
    if everyone == bool(agents):
        raise click.UsageError("name the agents, or say --all")
    return {"all": True} if everyone else {"agent_names": list(agents)}


def _set_paused(settings: Settings, agents: Sequence[str], paused: bool, done: str) -> None:
    hive, tasks = settings.hive(), _Tasks()
    for agent in agents:
        tasks.do(agent, hive, {"cmd": "set_paused", "name": agent, "paused": paused})
    _finish(settings, hive, tasks, lambda _row: None, done, no_wait=False)


def a_person_is_there() -> bool:
    return sys.stdin.isatty()


def confirm(agent: str, otherwise: str) -> None:
    """Let a person type the name of what is to be deleted.

    Raises:
        Problem: nobody is there, then *otherwise* is what to do; or it was another name.
    """
    if not a_person_is_there():
        raise Problem(problems.USAGE, f"cannot purge {agent}: nobody is there to ask", otherwise)
    click.echo(
        f"This deletes all that {visible(agent)} has: its files, its history, its declaration.", err=True
    )
    typed = click.prompt("Type its name to go on", err=True)
    if typed.strip() != agent:
        raise Problem(problems.REFUSED, f"cannot purge {agent}: that is not its name; nothing was changed")

"""hive login."""

import sys
import time
from contextlib import suppress
from typing import Any, Final

import click

from hive_core.cli import output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.hive import Deadline, Hive
from hive_core.cli.problems import INTERRUPTED, TIMED_OUT, Problem
from hive_core.cli.safe import visible
from hive_core.cli.states import NEEDS_LOGIN

REQUEST_TIMEOUT_S: Final = 60.0
"""The daemon gives the login program 45 s for an answer."""
POLL_S: Final = 0.3


@command(
    "login",
    examples="""
    hive login alice
    hive login alice --code 4f2a-99c1
    hive login alice --cancel
    hive login alice --json | jq -r .url
    """,
)
@agent_argument()
@click.option("--code", metavar="CODE", help="Give an open login its code, and ask nothing.")
@click.option("--cancel", is_flag=True, help="End an open login.")
def login(settings: Settings, agent: str, code: str | None, cancel: bool) -> None:
    """Log an agent in to its model's provider.

    Shows the page to open, asks for the code that it gives you, and waits until the agent is online; Ctrl-C
    ends the login. With --json it prints the page and leaves the login open for --code. Each agent has a
    login of its own: they cannot be shared.
    """
    if cancel and code is not None:
        raise click.UsageError("--code and --cancel exclude each other")
    hive = settings.hive()
    if cancel:
        reply = _ask(hive, "login_cancel", agent)
        _say(settings, {"agent": agent} | reply, f"the login of {agent} is cancelled")
    elif code is not None:
        reply = _ask(hive, "login_code", agent, code=code)
        _say(settings, {"agent": agent} | reply, f"{agent} is logged in")
    elif settings.as_json:
        output.dump({"agent": agent} | _ask(hive, "login_start", agent))
    else:
        _log_in(hive, agent)


def _log_in(hive: Hive, agent: str) -> None:
    try:
        output.say(visible(_ask(hive, "login_start", agent)["url"]))
        output.flush()
        output.note(f"Open this page and log {visible(agent)} in.")
        while True:
            code = _read_code()
            if not code:  # the page may have told the program without a code
                break
            try:
                _ask(hive, "login_code", agent, code=code)
            except Problem as problem:
                if not _is_open(hive, agent):
                    raise
                output.note(f"{visible(problem.text)}; try again")
            else:
                break
        _wait_online(hive, agent)
    except (KeyboardInterrupt, EOFError):
        _give_up(hive, agent)
        raise Problem(INTERRUPTED, f"cannot log {agent} in: the login was cancelled") from None
    output.note(f"{visible(agent)} is online.")


def _read_code() -> str:
    sys.stderr.write("Code (or Enter, if the page gave none): ")
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


def _wait_online(hive: Hive, agent: str) -> None:
    deadline = Deadline(hive.timeout_s)
    while hive.row(agent).get(NEEDS_LOGIN):
        if deadline.left_s() <= 0:
            raise Problem(
                TIMED_OUT,
                f"cannot log {agent} in: it is not online after {hive.timeout_s:g} s",
                "the login stays open for ten minutes; hive login shows its page again",
            )
        time.sleep(POLL_S)


def _is_open(hive: Hive, agent: str) -> bool:
    return hive.row(agent).get("status") == "needs_login_in_progress"


def _give_up(hive: Hive, agent: str) -> None:
    with suppress(Problem):  # it may have ended by itself
        _ask(hive, "login_cancel", agent)


def _ask(hive: Hive, cmd: str, agent: str, **more: Any) -> dict[str, Any]:
    timeout_s = max(REQUEST_TIMEOUT_S, hive.timeout_s)
    return hive.ask({"cmd": cmd, "agent": agent} | more, agents=[agent], timeout_s=timeout_s)


def _say(settings: Settings, document: dict[str, Any], otherwise: str) -> None:
    if settings.as_json:
        output.dump(document)
    else:
        text = document.get("text")
        output.say(f"{visible(document['agent'])}: {visible(text)}" if text else visible(otherwise))

"""hive shell, hive exec: into an agent's machine."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from hive_core.cli import programs, terminal
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.hive import Row
from hive_core.cli.problems import FAILED, REFUSED, USAGE, Problem
from hive_core.cli.states import state_of

COMMAND_NOT_FOUND: Final = 127
"""As a shell says it, and as the one in a machine does."""
_MANAGER: Final = "manager"
_ENTER: Final = (
    "if [ -r /etc/set-environment ]; then . /etc/set-environment; fi; "  # where NixOS keeps its PATH
    'while [ "$1" != -- ]; do export "$1"; shift; done; shift; '  # over what the agent has of that name
    'cd -- "$1" {otherwise}; shift; '
    # To systemd an end by one of these signals is a success; to a shell it is 128 and the signal.
    'trap : HUP INT QUIT TERM; (exec "$@")'
)
"""What runs in the machine: its own shell finds the command, and says so when there is none."""


class _ExecCommand(click.Command):
    """Wants -- before the command, so that no option of that one is taken for ours."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ours = args[: args.index("--")] if "--" in args else args
        if "--" not in args and not ctx.resilient_parsing and not {"-h", "--help"} & {*ours}:
            raise click.UsageError("say -- before the command, as in: hive exec alice -- ls -la", ctx)
        return super().parse_args(ctx, args)


@command("shell", examples="hive shell alice")
@agent_argument()
def shell(settings: Settings, agent: str) -> None:
    """Open a shell in an agent's machine.

    You are root there, and see what the agent sees. Of a local agent, which has no machine, it is a shell of
    your own in the agent's state directory, with its environment.
    """
    row = _running(settings, agent, "open a shell in")
    if machine := _machine(row):
        if not sys.stdin.isatty():  # machinectl would wait for ever
            raise Problem(
                REFUSED,
                f"cannot open a shell in {agent}: the standard input is no terminal",
                f"run a command with: hive exec {agent} -- COMMAND",
            )
        programs.become(["machinectl", "--quiet", "shell", f"root@{machine}"])
    program = os.environ.get("SHELL") or "/bin/sh"
    programs.become([program], env=_local_environment(row), cwd=_local_directory(row))


@command(
    "exec",
    cls=_ExecCommand,
    examples="""
    hive exec alice -- ls -la
    hive exec alice -w /tmp -- sh -c 'echo $HOME; exit 3'
    tar c src | hive exec alice -- tar x
    hive exec alice -e LANG=C -- python3
    """,
)
@agent_argument()
@click.argument("words", metavar="-- COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-w", "--workdir", metavar="DIR", help="Where it runs, seen from the agent's state directory.")
@click.option("-e", "--env", "variables", metavar="NAME=VALUE", multiple=True, help="May be repeated.")
def exec_(
    settings: Settings, agent: str, words: tuple[str, ...], workdir: str | None, variables: tuple[str, ...]
) -> None:
    """Run a command in an agent's machine.

    It runs as root there, with the agent's environment. What it reads and writes passes through, on a
    terminal with one of its own, and its exit code is ours. Of a local agent, which has no machine, it runs
    as you in the agent's state directory. On a host with machines this is for root.
    """
    for variable in variables:
        name, given, _ = variable.partition("=")
        if not given or not name.isidentifier() or not name.isascii():
            raise Problem(USAGE, f"cannot run it: {variable!r} is not NAME=VALUE")
    row = _running(settings, agent, "run a command in")
    machine = _machine(row)
    if machine is None:
        own = dict(variable.split("=", 1) for variable in variables)
        place = os.path.join(_local_directory(row), workdir or "")  # noqa: PTH118
        _become_local(words, _local_environment(row) | own, place)
    if os.geteuid() != 0:
        again = ["sudo", "hive", "exec", agent, *(("-w", workdir) if workdir else ())]
        again += [part for variable in variables for part in ("-e", variable)]
        raise Problem(
            REFUSED,
            f"cannot run a command in {agent}: only root may run one in a machine",
            shlex.join([*again, "--", *words]),
        )
    _run_in_machine(machine, agent, words, workdir, variables)


def _run_in_machine(
    machine: str, agent: str, words: tuple[str, ...], workdir: str | None, variables: tuple[str, ...]
) -> None:
    unit = f"hive-exec-{os.getpid()}-{os.urandom(4).hex()}.service"
    state = "/state" if agent == _MANAGER else f"/agents/{agent}/state"
    place = os.path.join(state, workdir or "")  # noqa: PTH118 - it is a path over there
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    enter = _ENTER.format(otherwise="|| exit" if workdir else "2>/dev/null")
    over_there = ("/bin/sh", "-c", enter, "hive", *variables, "--", place, *words)
    argv = [
        *("systemd-run", f"--machine={machine}", "--quiet", "--wait", "--collect", f"--unit={unit}"),
        *("--pipe", "--property=EnvironmentFile=-/run/hive/environment", "--property=TimeoutStopSec=5"),
        # With --uid=0 systemd would set these, and also want to own a terminal that is not the machine's.
        *("--setenv=HOME=/root", "--setenv=USER=root", "--setenv=LOGNAME=root"),
        "--",
        # systemd replaces $NAME in what it starts, before any shell sees it.
        *(word.replace("$", "$$") for word in over_there),
    ]
    if interactive and (term := os.environ.get("TERM")):
        argv.insert(1, f"--setenv=TERM={term}")
    try:
        with programs.signals_raise():
            code = terminal.relay(argv) if interactive else programs.relay(argv)
            if code >= 128:  # a signal to our whole group may have ended systemd-run alone
                _stop_unit(machine, unit)
    except (KeyboardInterrupt, OSError, programs.Ended) as ended:
        _stop_unit(machine, unit)
        if isinstance(ended, programs.Ended):
            raise click.exceptions.Exit(ended.exit_code) from None
        raise
    raise click.exceptions.Exit(code)


def _stop_unit(machine: str, unit: str) -> None:
    """End what outlives the systemd-run that started it."""
    import subprocess
    from contextlib import suppress

    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ["systemctl", f"--machine={machine}", "--quiet", "--no-block", "stop", unit],  # noqa: S607 - as root
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            timeout=5, check=False, start_new_session=True,
        )  # fmt: skip


def _running(settings: Settings, agent: str, what: str) -> Row:
    row = settings.hive().row(agent)
    if row.get("running"):
        return row
    state = state_of(row)
    why = f": {row['failure']}" if row.get("failed") and row.get("failure") else ""
    hint = "hive show " if state in {"starting", "restarting", "rebuilding"} else "start it with: hive start "
    raise Problem(REFUSED, f"cannot {what} {agent}: it is {state}{why}", hint + agent)


def _machine(row: Row) -> str | None:
    if row.get("isolation", "none") == "none":
        return None
    machine: Any = row.get("machine")
    if not machine:
        raise Problem(FAILED, f"cannot enter {row['name']}: the daemon does not say which machine it is in")
    return str(machine)


def _local_directory(row: Row) -> str:
    return f"/proc/{row.get('pid')}/cwd"


def _local_environment(row: Row) -> dict[str, str]:
    """Give ours, with what the agent's harness was started with."""
    try:
        text = Path(f"/proc/{row.get('pid')}/environ").read_bytes()
    except OSError as error:
        raise Problem(
            REFUSED,
            f"cannot look at the process of {row['name']}: {error.strerror}",
            "only who runs the local hive can do that",
        ) from None
    pairs = (os.fsdecode(pair).partition("=") for pair in text.split(b"\0") if pair)
    return dict(os.environ) | {name: value for name, _, value in pairs}


def _become_local(words: tuple[str, ...], env: dict[str, str], cwd: str) -> NoReturn:
    if shutil.which(words[0], path=env.get("PATH")) is None:
        raise Problem(COMMAND_NOT_FOUND, f"cannot run {words[0]}: it is not on PATH")
    programs.become(words, env=env, cwd=cwd)

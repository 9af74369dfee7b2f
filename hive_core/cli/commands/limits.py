"""hive limits."""

from typing import Any, Final

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.hive import Row
from hive_core.cli.safe import visible

DEFAULT: Final = "default"


@command(
    "limits",
    examples="""
    hive limits alice
    hive limits alice --memory 8G --cpu 400%
    hive limits alice --tasks default
    """,
)
@agent_argument()
@click.option("--memory", metavar="SIZE", help='The most memory: 512M, 4G, or "default".')
@click.option(
    "--cpu", metavar="PERCENT", help='The most processor time: 200% is two processors; or "default".'
)
@click.option("--tasks", metavar="N", help='The most processes and threads, or "default".')
def limits(settings: Settings, agent: str, memory: str | None, cpu: str | None, tasks: str | None) -> None:
    """Show or set what an agent may use.

    A new limit holds at once, also for a machine that runs, and from then on. "default" leaves it to the
    hive's configuration again.
    """
    hive = settings.hive()
    said: dict[str, Any] = {"memory": memory, "cpu": cpu, "tasks": tasks}
    wanted = {name: _value(name, text) for name, text in said.items() if text is not None}
    if wanted:
        hive.ask({"cmd": "set_limits", "name": agent} | wanted, agents=[agent])
    machine = hive.ask({"cmd": "machine", "name": agent}, agents=[agent])
    if settings.as_json:
        output.dump({"agent": agent} | {key: machine.get(key) for key in (*_KEYS.values(), "declared")})
    elif pairs := limit_pairs(machine):
        output.facts(pairs)
    else:
        output.note(f"{visible(agent)} has no limits: it runs as a plain process, not in a machine")


_KEYS: Final = {"memory": "memory_max_bytes", "cpu": "cpu_quota_percent", "tasks": "tasks_max"}


def limit_pairs(machine: Row) -> list[tuple[str, str]]:
    """Give name and value of each limit that *machine*, the daemon's account of one, has."""
    declared = machine.get("declared")
    pairs = []
    for name, key in _KEYS.items():
        if (value := machine.get(key)) is None:
            continue
        text = {"memory": size(value), "cpu": f"{value}%", "tasks": str(value)}[name]
        if declared is not None and name not in declared:
            text += "  (the hive's default)" if output.on_terminal() else f" {DEFAULT}"
        pairs.append((name, text))
    return pairs


def size(count: int) -> str:
    """A limit as it is written where that is exact, such as 4G, or else as a person reads it."""
    for unit, bytes_each in (("T", 2**40), ("G", 2**30), ("M", 2**20), ("K", 2**10)):
        if count and count % bytes_each == 0:
            return f"{count // bytes_each}{unit}"
    return human.size(count)


def _value(name: str, text: str) -> str | int | None:
    if text == DEFAULT:
        return None
    if name != "tasks":
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number", param_hint="--tasks") from None

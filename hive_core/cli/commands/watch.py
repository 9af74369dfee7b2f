"""hive watch."""

from typing import Any

import click

from hive_core.cli import output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.traffic import Traffic


@command(
    "watch",
    examples="hive watch\nhive watch alice bob\nhive watch --full\nhive watch --json | jq .message.body",
)
@agent_argument(nargs=-1)
@click.option("--full", is_flag=True, help="Show long texts whole.")
def watch(settings: Settings, agents: tuple[str, ...], full: bool) -> None:
    """Follow the live traffic of the whole hive.

    \b
    Messages, turns, and agents that start, stop or fail, until Ctrl-C.
      → a message   ▶ a turn starts   │ what the agent says
      ⚙ a tool it uses   ■ the turn ends   ● another state
    """
    request: dict[str, Any] = {"cmd": "watch"}
    if agents:
        request["agents"] = list(agents)
    hive = settings.hive()
    traffic = Traffic(columns=output.width() if output.on_terminal() else None, full=full)
    if not settings.as_json:
        traffic.know(hive.roster().values())
    for item in hive.follow(request, agents=agents):
        if settings.as_json:
            output.dump_line(item)
            continue
        for line in traffic.render(item):
            output.say(line)
        output.flush()

"""hive model, effort, new-session, compact, cancel: what the harness of one agent carries out."""

import click

from hive_core.cli import output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.safe import visible


@command("model", examples="hive model alice\nhive model alice claude-opus-4-5")
@agent_argument()
@click.argument("model_name", metavar="[MODEL]", required=False)
def model(settings: Settings, agent: str, model_name: str | None) -> None:
    """Show or set the model an agent uses.

    A new model is used from the next turn on, and remembered.
    """
    hive = settings.hive()
    if model_name is not None:
        reply = hive.ask({"cmd": "set_model", "agent": agent, "model": model_name}, agents=[agent])
        _say(
            settings,
            {"agent": agent, "model": model_name} | reply,
            f"{agent} uses {model_name} from its next turn on",
        )
        return
    used = hive.row(agent).get("active_model")
    if settings.as_json:
        output.dump({"agent": agent, "model": used})
    elif used:
        output.say(visible(used))
    else:
        output.note(f"{agent} has not said which model it uses")


@command("effort", examples="hive effort alice\nhive effort alice high\nhive effort alice default")
@agent_argument()
@click.argument("level", metavar="[LEVEL]", required=False)
def effort(settings: Settings, agent: str, level: str | None) -> None:
    """Show or set how hard an agent's model thinks.

    The levels are the provider's; a wrong one is answered with the list. A new one is used from the next
    turn on, and remembered; "default" leaves it to the provider again.
    """
    hive = settings.hive()
    if level is not None:
        reply = hive.ask({"cmd": "set_effort", "agent": agent, "effort": level}, agents=[agent])
        _say(
            settings,
            {"agent": agent, "effort": level} | reply,
            f"{agent} thinks with effort {level} from its next turn on",
        )
        return
    used = hive.row(agent).get("effort")
    if settings.as_json:
        output.dump({"agent": agent, "effort": used})
    else:
        output.say(visible(used or "default"))


@command("compact", examples="hive compact alice")
@agent_argument()
def compact(settings: Settings, agent: str) -> None:
    """Shorten an agent's conversation to a summary.

    That happens by itself before its model's context is full; a running turn ends first. `hive events`
    shows when it is done.
    """
    reply = settings.hive().ask({"cmd": "compact", "agent": agent}, agents=[agent])
    _say(settings, {"agent": agent} | reply, f"{agent} shortens its conversation")


@command("new-session", examples="hive new-session alice")
@agent_argument()
def new_session(settings: Settings, agent: str) -> None:
    """Let an agent begin its next turn afresh.

    It forgets the conversation so far, once; its files and its messages stay.
    """
    reply = settings.hive().ask({"cmd": "new_session", "agent": agent}, agents=[agent])
    _say(settings, {"agent": agent} | reply, f"{agent} begins its next turn afresh")


@command("cancel", examples="hive cancel alice")
@agent_argument()
def cancel(settings: Settings, agent: str) -> None:
    """Interrupt an agent's running turn."""
    reply = settings.hive().ask({"cmd": "cancel_turn", "agent": agent}, agents=[agent])
    _say(settings, {"agent": agent} | reply, f"the turn of {agent} is cancelled")


def _say(settings: Settings, document: dict[str, object], otherwise: str) -> None:
    if settings.as_json:
        output.dump(document)
    else:
        text = document.get("text")
        output.say(f"{visible(document['agent'])}: {visible(text)}" if text else visible(otherwise))

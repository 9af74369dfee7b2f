"""hive send, inbox, messages, why, thread, search."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click

from hive_core.cli import human, output, quick
from hive_core.cli.app import Settings, agent_argument, agent_names, command, rows_option
from hive_core.cli.safe import visible


@command(
    "send",
    examples="""
    hive send alice say bob: please count the words
    hive send alice "it's done?" --reply-to 17
    git diff | hive send reviewer -
    hive send '*' the build is green
    hive send alice --key nightly-2026-01-31 begin the nightly run
    hive send alice -- "- a text that begins with a hyphen"
    """,
)
@click.argument("to", shell_complete=agent_names)
@click.argument("text", nargs=-1, required=True)
@click.option("--reply-to", type=int, metavar="ID", help="The message that this one answers.")
@click.option(
    "--key", metavar="KEY", help="A repeat with the same key sends nothing and prints the first id."
)
def send(settings: Settings, to: str, text: tuple[str, ...], reply_to: int | None, key: str | None) -> None:
    """Send a message to an agent.

    TO is an agent, or * for all of them. Several words are joined; a TEXT of - is read from stdin.
    Prints the id of the message: it is on disk then, and will be delivered even if the power fails.
    """
    quick.deliver(
        to=to, words=text, reply_to=reply_to, key=key, as_json=settings.as_json,
        socket=settings.socket, home=settings.home, timeout_s=settings.timeout_s,
    )  # fmt: skip


@command("inbox", examples="hive inbox\nhive inbox alice\nhive inbox --json | jq -r '.[-1].body'")
@agent_argument(default="operator")
@rows_option(100, "messages")
def inbox(settings: Settings, agent: str, limit: int) -> None:
    """Show what was sent to you, or what waits for an agent.

    Without AGENT, the newest messages to you, the operator; of an agent, those it has not finished.
    Oldest first. Looking takes nothing away.
    """
    rows = settings.hive().ask({"cmd": "inbox", "agent": agent, "limit": limit}, agents=[agent])["messages"]
    _show(
        settings,
        rows,
        "nothing has been sent to you yet" if agent == "operator" else f"nothing waits for {agent}",
    )


@command("messages", examples="hive messages -n 10\nhive messages --since 120 | grep alice")
@click.option("--since", type=int, metavar="ID", help="Only messages with a higher id.")
@rows_option(50, "messages")
def messages(settings: Settings, since: int | None, limit: int) -> None:
    """Show the newest messages of the hive.

    Oldest first. Into a pipe: id, time, sender, recipient, state (waiting, leased, done; of a message
    to you nothing), the id that is answered, text.
    """
    request: dict[str, Any] = {"cmd": "messages", "limit": limit}
    if since is not None:
        request["since"] = since
    _show(settings, settings.hive().ask(request)["messages"], "no messages")


@command("why", examples="hive why 42\nhive why 42 --json | jq -r '.[0].sender'")
@click.argument("message_id", metavar="ID", type=int)
def why(settings: Settings, message_id: int) -> None:
    """Show which messages led to a message.

    A message that an agent sent while it worked on another was caused by that one. The first cause
    comes first, the message you asked about last.
    """
    rows = settings.hive().ask({"cmd": "why", "id": message_id})["messages"]
    if settings.as_json or not output.on_terminal():
        _show(settings, rows, "no messages")
        return
    now = datetime.now().astimezone()
    for depth, row in enumerate(rows):
        lead = "   " * (depth - 1) + "└─ " if depth else ""
        output.say(lead + _headline(row, now))
        for line in _body(row):
            output.say("   " * depth + "   " + line)


@command("thread", examples="hive thread 42\nhive thread 42 --json | jq -r '.[].sender'")
@click.argument("message_id", metavar="ID", type=int)
@rows_option(100, "messages")
def thread(settings: Settings, message_id: int, limit: int) -> None:
    """Show the thread that a message is in.

    A message that answers another is in its thread. Oldest first.
    """
    rows = settings.hive().ask({"cmd": "thread", "id": message_id, "limit": limit})["messages"]
    _show(settings, rows, "no messages")


@command(
    "search",
    examples="""
    hive search build failed
    hive search '"exit status 1"' --agent alice
    hive search 'deploy*' -n 5
    """,
)
@click.argument("words", metavar="TEXT", nargs=-1, required=True)
@click.option(
    "--agent", metavar="AGENT", shell_complete=agent_names, help="Only what this agent sent or got."
)
@rows_option(50, "messages")
def search(settings: Settings, words: tuple[str, ...], agent: str | None, limit: int) -> None:
    """Find messages by their words.

    The newest with all the words of TEXT, oldest first. Words in double quotes stand together; a word that
    ends with * is the beginning of one.
    """
    request: dict[str, Any] = {"cmd": "search", "text": " ".join(words), "limit": limit}
    if agent is not None:
        request["agent"] = agent
    reply = settings.hive().ask(request, agents=[agent] if agent else [])
    _show(settings, reply["messages"], "nothing found")
    if "not_indexed" in reply:
        output.note(f"{reply['not_indexed']} messages were not looked through yet; search again in a while")


def _show(settings: Settings, rows: Sequence[dict[str, Any]], nothing: str) -> None:
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note(nothing)
    elif not output.on_terminal():
        for row in rows:
            output.record(
                [row["id"], row.get("sent_at"), row.get("sender"), row.get("recipient"), _state(row),
                 row.get("in_reply_to"), row.get("body")]
            )  # fmt: skip
    else:
        now = datetime.now().astimezone()
        for row in rows:
            output.say(_headline(row, now))
            for line in _body(row):
                output.say("    " + line)


def _state(row: dict[str, Any]) -> str:
    if row.get("recipient") == "operator":
        return ""  # a person takes no lease and acks nothing
    if row.get("acked_at"):
        return "done"
    return "leased" if row.get("delivered_at") else "waiting"


def _headline(row: dict[str, Any], now: datetime) -> str:
    sender, recipient = visible(row.get("sender", "")), visible(row.get("recipient", ""))
    extra = ""
    if row.get("in_reply_to") is not None:
        extra += f"  answers #{row['in_reply_to']}"
    if state := _state(row):
        extra += f"  {state}"
    if row.get("redelivered"):
        extra += "  redelivered"
    number = output.paint(f"#{row['id']}", "yellow")
    when = output.paint(human.moment(row.get("sent_at"), now), "dim")
    parties = f"{output.paint(sender, 'bold')} → {output.paint(recipient, 'bold')}"
    return f"{number}  {when}  {parties}{output.paint(extra, 'dim')}"


def _body(row: dict[str, Any]) -> list[str]:
    return visible(row.get("body", ""), multiline=True).split("\n")

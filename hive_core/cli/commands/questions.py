"""hive questions, hive answer, hive ask."""

import sys
import time
from datetime import datetime
from typing import Any, Final

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command, rows_option
from hive_core.cli.hive import Hive
from hive_core.cli.problems import FAILED, USAGE, Problem
from hive_core.cli.safe import visible

SLOWEST_LOOK_S: Final = 1.0
"""How late an answer may be seen."""


@command(
    "questions",
    examples="hive questions\nhive questions --all -n 20\nhive questions --json | jq -r '.[0].options[]'",
)
@click.option("--all", "everything", is_flag=True, help="Also those that have been answered.")
@rows_option(100, "questions")
def questions(settings: Settings, everything: bool, limit: int) -> None:
    """Show the questions that nobody has answered.

    Those that agents ask you, and those they ask each other: you may answer any of them. Oldest first.
    Columns: id, who asks, who is asked, when, how long there is to answer, the answer, the question
    and its options.
    """
    rows = settings.hive().ask({"cmd": "questions", "all": everything, "limit": limit})["questions"]
    if settings.as_json:
        output.dump(rows)
    elif not rows:
        output.note("no questions yet" if everything else "no open questions")
    elif output.on_terminal():
        _show(rows)
    else:
        for row in rows:
            output.record(
                [row["id"], row["asker"], row["target"], row["asked_at"], row.get("deadline_at"),
                 row.get("answer"), row["question"], *row["options"]]
            )  # fmt: skip


@command(
    "answer", examples="hive answer 3 use the red one\nhive answer 3 --option 2\nhive answer 3 -o 1 -o 4"
)
@click.argument("question_id", metavar="ID", type=int)
@click.argument("text", nargs=-1)
@click.option(
    "-o", "--option", "options", type=click.IntRange(1), multiple=True, metavar="N",
    help="Choose the Nth option; more than one where the question allows it.",
)  # fmt: skip
@click.option("--cancel", is_flag=True, help="Answer nothing, and tell who asked so.")
def answer(
    settings: Settings, question_id: int, text: tuple[str, ...], options: tuple[int, ...], cancel: bool
) -> None:
    """Answer a question.

    The options are advice: any TEXT will do; a TEXT of - is read from stdin. The answer goes to who asked.
    """
    if sum(map(bool, (text, options, cancel))) != 1:
        raise Problem(USAGE, "cannot answer: give a text, --option or --cancel, and one of them")
    hive = settings.hive()
    if cancel:
        hive.ask({"cmd": "cancel_question", "id": question_id})
        said = ""
    elif options:
        said = hive.ask({"cmd": "answer", "id": question_id, "options": list(options)})["answer"]
    else:
        words = sys.stdin.read() if text == ("-",) else " ".join(text)
        said = hive.ask({"cmd": "answer", "id": question_id, "answer": words})["answer"]
    if settings.as_json:
        output.dump({"id": question_id, "answer": said})
    elif cancel:
        output.note(f"question {question_id} is cancelled")
    else:
        output.note(f"question {question_id} is answered: {visible(said)}")


@command(
    "ask",
    examples="""
    hive ask alice which branch are you on?
    hive ask alice "shall we ship?" -o yes -o no --wait
    hive ask alice "how far are you?" --ttl 10 --wait --json
    """,
)
@agent_argument()
@click.argument("words", metavar="QUESTION", nargs=-1, required=True)
@click.option("-o", "--option", "options", multiple=True, metavar="TEXT", help="An answer to choose from.")
@click.option("--multi", is_flag=True, help="Several options may be chosen.")
@click.option(
    "--ttl", "minutes", type=click.FloatRange(0, 360, min_open=True), metavar="MINUTES",
    help="After this time, at most 360, the answer is [expired].",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the answer and print it.")
def ask(
    settings: Settings,
    agent: str,
    words: tuple[str, ...],
    options: tuple[str, ...],
    multi: bool,
    minutes: float | None,
    wait: bool,
) -> None:
    """Ask an agent a question.

    Prints the id of the question; the answer comes into your inbox. With --wait it is waited for, without
    limit but --ttl's, and printed instead; Ctrl-C leaves the question open.
    """
    request: dict[str, Any] = {"cmd": "ask", "agent": agent, "question": " ".join(words)}
    if options:
        request |= {"options": list(options), "multi": multi}
    if minutes is not None:
        request["ttl_seconds"] = minutes * 60
    hive = settings.hive()
    question_id = int(hive.ask(request, agents=[agent])["id"])
    if not wait:
        if settings.as_json:
            output.dump({"id": question_id})
        else:
            output.say(str(question_id))
        return
    row = _wait(hive, question_id)
    if settings.as_json:
        output.dump(row)
    else:
        output.say(visible(row["answer"], multiline=True))
    if row.get("answerer") != agent:
        raise Problem(FAILED, f"cannot give {agent}'s answer: {row.get('answerer')} ended the question")


def _wait(hive: Hive, question_id: int) -> dict[str, Any]:
    look_s = 0.1
    while True:
        row: dict[str, Any] = hive.ask({"cmd": "questions", "id": question_id})["questions"][0]
        if "answer" in row:
            return row
        time.sleep(look_s)
        look_s = min(look_s * 1.5, SLOWEST_LOOK_S)


def _show(rows: list[dict[str, Any]]) -> None:
    now = datetime.now().astimezone()
    for row in rows:
        number = output.paint(f"#{row['id']}", "yellow")
        asker, target = (
            output.paint(visible(row["asker"]), "bold"),
            output.paint(visible(row["target"]), "bold"),
        )
        said = f"{number}  {human.moment(row['asked_at'], now)}  {asker} asks {target}"
        deadline = human.parse_time(row.get("deadline_at"))
        if deadline and "answer" not in row:
            left_s = (deadline - now).total_seconds()
            said += output.paint(f"  {human.duration(max(left_s, 0))} left", "red")
        output.say(said)
        for line in visible(row["question"], multiline=True).split("\n"):
            output.say("    " + line)
        for option_number, option in enumerate(row["options"], start=1):
            output.say(output.paint(f"    {option_number}. ", "dim") + visible(option))
        if "answer" in row:
            answerer = output.paint(visible(row.get("answerer", "")), "bold")
            output.say(f"    {answerer}: " + visible(row["answer"]))

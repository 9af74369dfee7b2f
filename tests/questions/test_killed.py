"""kill -9 at every statement of what reminders and questions do: nothing is doubled and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LEAST_STATEMENTS = 25
"""Of the shortest deed: opening the database takes some twenty."""


def outcomes(deed: str, directory: Path) -> list[dict[str, Any]]:
    """Give what there was after each death and a restart."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), deed, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > LEAST_STATEMENTS
    assert all(outcome["check"] == [["ok"]] for outcome in found)
    return found


def told(outcome: dict[str, Any], event: str) -> list[tuple[str, int, str | None]]:
    """Who was told of which question, and what the answer was."""
    return sorted(
        (recipient, body["id"], body.get("answer"))
        for sender, recipient, text in outcome["messages"]
        if sender == "system" and (body := json.loads(text))["event"] == event
    )


def test_what_is_due_comes_once(tmp_path: Path) -> None:
    for outcome in outcomes("deliver", tmp_path):
        reminded = sorted((to, body) for sender, to, body in outcome["messages"] if sender == "reminder")
        assert reminded == [
            ("alice", "Your reminder 3 is in the file a.md (5 bytes)."),
            ("alice", "short"),
            ("bob", "Your reminder 2 is in the file reminders/2.md (5000 bytes)."),
        ]
        assert outcome["reminders"] == []
        answers = [("alice", 1, "[expired]"), ("alice", 3, "[expired]"), ("bob", 2, "[expired]")]
        assert told(outcome, "question_answered") == answers
        assert {answerer for _, _, answerer in outcome["questions"]} == {"ttl-watchdog"}


def test_a_reminder_is_kept_once_and_cancelled_once(tmp_path: Path) -> None:
    for outcome in outcomes("remind", tmp_path):
        assert outcome["reminders"] == ["xxxxxxxxx", "named", "new"]


def test_a_question_is_asked_once(tmp_path: Path) -> None:
    for outcome in outcomes("ask", tmp_path):
        assert len(outcome["questions"]) == 4
        assert told(outcome, "question_asked") == [("alice", 2, None), ("alice", 4, None), ("bob", 1, None)]


def test_an_answer_and_a_cancel_are_told_once(tmp_path: Path) -> None:
    for outcome in outcomes("answer", tmp_path):
        assert told(outcome, "question_answered") == [("alice", 1, "red"), ("bob", 2, "[cancelled by bob]")]
        assert [answer for _, answer, _ in outcome["questions"]] == ["red", "[cancelled by bob]", None]


def test_a_purge_ends_what_it_ends_once(tmp_path: Path) -> None:
    for outcome in outcomes("purge", tmp_path):
        assert told(outcome, "question_answered") == [("alice", 1, "[bob was purged]")]
        assert outcome["reminders"] == ["short", "named"]

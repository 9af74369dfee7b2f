"""kill -9 at every statement and git command: rows, letters, queue and tags agree afterwards."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LEAST_DEATHS = 5
"""Of the shortest deed."""

pytestmark = pytest.mark.timeout(240)


def outcomes(deed: str, directory: Path) -> list[dict[str, Any]]:
    """Give what there was after each death and a restart."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), deed, str(directory)],
        capture_output=True,
        text=True,
        timeout=220,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > LEAST_DEATHS
    print(f"{deed}: killed {len(found) - 1} times")
    assert all(outcome["check"] == [["ok"]] for outcome in found)
    return found


def statuses(outcome: dict[str, Any]) -> list[str]:
    return [status for _, status, *_ in outcome["approvals"]]


def told(outcome: dict[str, Any]) -> list[tuple[int, str]]:
    return [(event["id"], event["status"]) for event in outcome["letters"]]


def test_a_configuration_is_planted_once(tmp_path: Path) -> None:
    for outcome in outcomes("plant", tmp_path):
        sha = dict(outcome["deployed"])["carol"]
        assert {tag: at for tag, (at, _) in outcome["carol"].items()} == {
            "proposal/0": sha,
            "deployed/0": sha,
        }
        assert outcome["carol main"] == sha


def test_a_commit_is_taken_in_or_its_request_has_failed(tmp_path: Path) -> None:
    ended = set()
    for outcome in outcomes("submit", tmp_path):
        assert len(outcome["approvals"]) == 2
        _, status, finished, sha, tag, note = outcome["approvals"][1]
        ended.add(status)
        if status == "pending":
            assert (outcome["bob"]["proposal/2"][0], tag, finished) == (sha, "proposal/2", 0)
            assert told(outcome) == []
        else:
            assert (status, sha, finished) == ("failed", None, 1)
            assert note == "the daemon ended while it was taken in; ask again"
            assert told(outcome) == [(2, "failed")]
    assert ended == {"pending", "failed"}


def test_what_is_approved_is_in_the_queue_once(tmp_path: Path) -> None:
    for outcome in outcomes("approve", tmp_path):
        assert statuses(outcome) == ["approved"]
        assert outcome["deploys"] == [[1, outcome["approvals"][0][3]]]


def test_what_is_denied_is_told_once_and_tagged(tmp_path: Path) -> None:
    for outcome in outcomes("deny", tmp_path):
        assert statuses(outcome) == ["denied"]
        assert outcome["deploys"] == []
        assert told(outcome) == [(1, "denied")]
        assert outcome["bob"]["denied/1"] == [outcome["approvals"][0][3], "no"]
        assert outcome["approvals"][0][4] == "denied/1"


def test_what_waits_about_a_destroyed_agent_fails_once(tmp_path: Path) -> None:
    for outcome in outcomes("destroy", tmp_path):
        assert statuses(outcome) == ["failed"]
        assert told(outcome) == [(1, "failed")]
        assert outcome["bob"]["failed/1"][1] == "agent destroyed"

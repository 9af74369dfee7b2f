"""The official client lists and calls every tool, over the bare socket and over the bridge."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hive_core.handlers.deps import Role
from hive_core.serve.mcp_tools import tools_for

from .conftest import Daemon

pytest.importorskip("mcp")


@pytest.mark.parametrize("how", ["socket", "bridge"])
def test_the_official_client_does_all_that_can_be_done(shared: Daemon, how: str) -> None:
    script = Path(__file__).with_name("sdk_client.py")
    done = subprocess.run(
        [sys.executable, str(script), how, str(shared.path())], capture_output=True, text=True, timeout=50
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["server"], seen["protocol"]) == ("hyperhive", "2025-11-25")
    assert "You are the agent alice" in seen["instructions"]
    assert seen["tools"] == list(tools_for(Role.AGENT))
    assert seen["whoami"]["data"]["name"] == "alice"
    assert seen["set_status"]["text"] == "Done."
    assert seen["get_logs"]["data"] == {"lines": []}
    assert not seen["send"]["error"]
    assert seen["refused"] == {"error": True, "text": "cannot send: no agent is named 'nobody'", "data": None}
    assert seen["empty"]["text"] == "(empty)"
    assert seen["parked"]["data"]["messages"][0]["body"] == "to myself"
    # What was given up took nothing, so the turn that was asked for is there to be taken.
    assert seen["given_up"] is True
    assert seen["after"]["data"]["messages"][0]["sender"] == "self"
    assert [(row["kind"], row["text"]) for row in seen["threads"]["data"]["threads"]] == [
        ("question", "Which one?"),
        ("reminder", "look again"),
    ]
    assert seen["cancel question"]["text"] == seen["cancel reminder"]["text"] == "Cancelled."
    told = json.loads(seen["told"]["data"]["messages"][0]["body"])
    assert told["answer"] == "[cancelled by alice]"
    assert seen["answer"]["error"]
    bodies = [row["body"] for row in shared.inbox("bob")]
    assert bodies[0] == "from the SDK"
    assert json.loads(bodies[1])["event"] == "question_asked"
    assert len(bodies) == 2

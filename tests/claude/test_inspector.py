"""The official MCP inspector lists and calls every tool, over the bare socket and over the bridge."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon.kit import Daemon, home_of
from fake_api.install_claude import find_inspector

from hive_core.handlers.deps import Role
from hive_core.serve.mcp_tools import TOOLS, tools_for

INSPECTOR = find_inspector()
pytestmark = pytest.mark.skipif(
    INSPECTOR is None, reason="no inspector: run tests/fake_api/install_claude.py"
)

# What `socat STDIO UNIX-CONNECT:…` does, which is not everywhere.
BARE = """
import os, socket, sys, threading
with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    def send():
        while data := os.read(0, 65536):
            peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
    threading.Thread(target=send, daemon=True).start()
    while data := peer.recv(65536):
        os.write(1, data)
"""
Inspect = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def hive() -> Iterator[Daemon]:
    with home_of(Daemon()) as hive:
        yield hive.add_stopped("manager", "alice", "bob").start()


def inspector_on(path: Path, home: Path, *, bridge: bool) -> Inspect:
    """Give what runs the inspector with arguments as on its command line, and gives what it prints."""
    server = [sys.executable, "-c", BARE, str(path)]
    if bridge:
        server = [sys.executable, "-m", "hive_agent", "mcp", "--socket", str(path)]

    def run(method: str, *arguments: str, status: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [*(INSPECTOR or []), "--cli", *server, "--method", method, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == status, done.stderr
        printed: dict[str, Any] = json.loads(done.stdout)
        return printed

    return run


@pytest.fixture(params=["socket", "bridge"])
def inspect(request: pytest.FixtureRequest, hive: Daemon, tmp_path: Path) -> Inspect:
    """Runs the inspector as alice."""
    return inspector_on(hive.agent_socket("alice"), tmp_path, bridge=request.param == "bridge")


def tool(inspect: Inspect, name: str, status: int = 0, **arguments: object) -> dict[str, Any]:
    pairs = [f"--tool-arg={key}={value}" for key, value in arguments.items()]
    return inspect("tools/call", "--tool-name", name, *pairs, status=status)


def test_it_greets_us_and_finds_nothing_wrong_with_our_schemas(inspect: Inspect) -> None:
    greeting = inspect("initialize")
    listed = inspect("tools/list", "--strict")

    assert (greeting["serverInfo"]["name"], greeting["protocolVersion"]) == ("hyperhive", "2025-11-25")
    assert "You are the agent alice" in greeting["instructions"]
    assert [entry["name"] for entry in listed["tools"]] == list(tools_for(Role.AGENT))


def test_it_finds_nothing_wrong_with_what_the_manager_has_beside(hive: Daemon, tmp_path: Path) -> None:
    inspect = inspector_on(hive.agent_socket("manager"), tmp_path, bridge=False)

    listed = inspect("tools/list", "--strict")

    assert [entry["name"] for entry in listed["tools"]] == [entry.name for entry in TOOLS]
    assert tool(inspect, "list_agents")["structuredContent"]["agents"]


def test_it_calls_every_tool(inspect: Inspect, hive: Daemon) -> None:
    answers = {
        "whoami": tool(inspect, "whoami"),
        "set_status": tool(inspect, "set_status", text="inspected"),
        "get_logs": tool(inspect, "get_logs", lines=3),
        "send": tool(inspect, "send", to="bob", body="from the inspector"),
        "request_next_turn": tool(inspect, "request_next_turn"),
        "recv": tool(inspect, "recv", wait_seconds=1, max=5),
    }
    with hive.client() as client:
        of_us = client.ask({"cmd": "ask", "agent": "alice", "question": "ready?"})["id"]
    asked = tool(inspect, "ask", to="bob", question="which one?")
    reminded = tool(inspect, "remind", message="tea", delay_seconds=3600)
    answers |= {
        "ask": asked,
        "remind": reminded,
        "get_open_threads": tool(inspect, "get_open_threads"),
        "cancel_thread": tool(inspect, "cancel_thread", kind="question", id=asked["structuredContent"]["id"]),
        "answer": tool(inspect, "answer", id=of_us, answer="yes"),
    }
    tool(inspect, "cancel_thread", kind="reminder", id=reminded["structuredContent"]["id"])
    told = tool(inspect, "recv", wait_seconds=1, max=5)["structuredContent"]["messages"]
    refused = tool(inspect, "send", status=5, to="nobody", body="x")

    assert answers.keys() == tools_for(Role.AGENT).keys()
    assert answers["whoami"]["structuredContent"]["name"] == "alice"
    assert answers["set_status"]["content"][0]["text"] == "Done."
    assert answers["get_logs"]["structuredContent"] == {"lines": []}
    assert hive.message(answers["send"]["structuredContent"]["id"])["body"] == "from the inspector"
    threads = answers["get_open_threads"]["structuredContent"]["threads"]
    assert [(thread["kind"], thread["text"]) for thread in threads] == [
        *(("question", "ready?"), ("question", "which one?"), ("reminder", "tea")),
    ]
    (own,) = answers["recv"]["structuredContent"]["messages"]
    assert (own["id"], own["sender"]) == (answers["request_next_turn"]["structuredContent"]["id"], "self")
    events = [json.loads(message["body"]) for message in told]
    assert [(event["event"], event["id"]) for event in events] == [
        ("question_asked", of_us),
        ("question_answered", asked["structuredContent"]["id"]),
    ]
    assert refused["isError"] is True
    assert refused["content"][0]["text"] == "cannot send: no agent is named 'nobody'"

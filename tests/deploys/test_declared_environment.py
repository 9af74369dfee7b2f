"""What agent.toml declares of variables and MCP servers reaches what the model runs, and nothing else does."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon.kit import Daemon, home_of, wait_until

from .hive import Hive

STUB = Path(__file__).parents[1] / "agent" / "stub_claude.py"

DECLARED = """
provider = "claude"
[environment]
STAGE = "two"
ANTHROPIC_BASE_URL = "http://127.0.0.1:1"
[mcp_servers.notes]
command = "notes"
args = ["--all"]
env = { TOKEN = "t", LANGUAGE = "de" }
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A claude that ends at once, and what it was started with."""
    place = tmp_path / "scenario"
    place.write_text(json.dumps([["exit", 1]]))
    binary = tmp_path / "claude"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -I {STUB} {place} "$@"\n')
    binary.chmod(0o755)
    return place


@pytest.fixture
def hive(scenario: Path) -> Iterator[Hive]:
    with home_of(Daemon()) as daemon:
        told = {
            "HIVE_CLAUDE_BIN": str(scenario.with_name("claude")),
            "ANTHROPIC_API_KEY": "k",
            "HTTP_PROXY": "http://p",
            "HIVE_DEFAULT_EFFORT": "low",
        }
        yield Hive(daemon.start(told))


def started(scenario: Path) -> dict[str, Any]:
    file = Path(f"{scenario}.started")
    text = wait_until(lambda: file.exists() and "\n" in file.read_text() and file.read_text(), "a turn", 30)
    found: dict[str, Any] = json.loads(str(text).splitlines()[0])
    return found


def test_what_is_declared_is_there_in_a_turn(hive: Hive, scenario: Path) -> None:
    hive.daemon.spawn("alice")
    assert hive.deploy("alice", agent_toml=DECLARED)["step"] == "done"
    hive.daemon.ask("send", to="alice", body="begin")

    found = started(scenario)

    environment = found["env"]
    assert environment.items() >= {"STAGE": "two", "HTTP_PROXY": "http://p"}.items()
    assert environment["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:1"
    assert environment.keys().isdisjoint({"HIVE_PASS_ON", "HIVE_EXTRA_MCP", "HIVE_DEFAULT_EFFORT", "TOKEN"})
    server = found["mcp"]["mcpServers"]["notes"]
    assert server == {"command": "notes", "args": ["--all"], "env": {"TOKEN": "t", "LANGUAGE": "de"}}
    allowed = found["argv"][found["argv"].index("--allowedTools") + 1]
    assert "mcp__notes" in allowed.split(",")

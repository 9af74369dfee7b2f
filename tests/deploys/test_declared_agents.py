"""What the host's configuration says of an agent wins over what is deployed of it, and the card says so."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon.kit import Daemon, home_of, refusal, wait_until

from .hive import Hive

DECLARED = """
[agents.alice]
recipients = ["bob"]
[agents.alice.environment]
STAGE = "host"
[agents.bob]
"""
ASKED = """
recipients = ["bob", "operator"]
[environment]
STAGE = "repository"
OTHER = "repository"
"""


@pytest.fixture
def hive() -> Iterator[Hive]:
    with home_of(Daemon()) as daemon:
        daemon.config_path.write_text(DECLARED)
        daemon.start()
        wait_until(lambda: daemon.ask("list")["agents"] == ["alice", "bob"], "they are there")
        daemon.wait_row("alice", connected=True)
        yield Hive(daemon)


def environment(hive: Hive) -> dict[str, str]:
    row = hive.daemon.wait_row("alice", connected=True, transient=None)
    raw = Path(f"/proc/{row['pid']}/environ").read_bytes()
    found = dict(line.decode().split("=", 1) for line in raw.split(b"\0") if line)
    return {name: found[name] for name in ("STAGE", "OTHER") if name in found}


def test_a_deploy_moves_nothing_that_the_host_says(hive: Hive) -> None:
    number = hive.propose("alice", agent_toml=ASKED)

    card = hive.daemon.ask("approval", id=number)
    texts = [one["text"] for one in card["consequences"] if one["kind"] == "declared"]
    assert texts == [
        'recipients: the host\'s configuration says ["bob"], and wins',
        'environment.STAGE: the host\'s configuration says "host", and wins',
    ]
    kinds = {one["kind"] for one in card["consequences"]}
    assert "recipients" not in kinds
    assert card["restart"] == "restart"
    hive.approve(number)
    assert hive.wait_deploy(approval_id=number)["step"] == "done"

    assert environment(hive) == {"STAGE": "host", "OTHER": "repository"}
    assert hive.daemon.row("alice")["allowed_recipients"] == ["bob", "manager"]


def test_what_only_the_host_decides_restarts_nobody(hive: Hive) -> None:
    pid = hive.daemon.row("alice")["pid"]

    number = hive.propose("alice", agent_toml='[environment]\nSTAGE = "repository"\n')
    assert hive.daemon.ask("approval", id=number)["restart"] == "none"
    hive.approve(number)

    assert hive.wait_deploy(approval_id=number)["step"] == "done"
    assert hive.daemon.row("alice")["pid"] == pid


def test_what_the_host_says_no_more_is_as_it_was_deployed(hive: Hive) -> None:
    assert hive.deploy("alice", agent_toml=ASKED)["step"] == "done"

    hive.daemon.config_path.write_text("[agents.alice]\n[agents.bob]\n")
    os.kill(hive.daemon.pid, signal.SIGHUP)
    wait_until(lambda: "Agent is as declared agent=alice" in hive.daemon.log, "alice is changed")

    assert environment(hive) == {"STAGE": "repository", "OTHER": "repository"}
    assert hive.daemon.row("alice")["allowed_recipients"] == ["bob", "manager", "operator"]


def test_nobody_asks_for_one_that_comes_by_itself(hive: Hive) -> None:
    failed = refusal(lambda: hive.daemon.ask("request_spawn", name="bob"))
    assert failed.reply["reason"] == "exists"

    hive.daemon.config_path.write_text(DECLARED + "[agents.operator]\n")
    os.kill(hive.daemon.pid, signal.SIGHUP)
    wait_until(lambda: "agents.operator: 'operator' is reserved" in hive.daemon.log, "the key is named")
    assert hive.daemon.ask("list")["agents"] == ["alice", "bob"]

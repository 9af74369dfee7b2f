"""Agents that the configuration declares: they come, change and go with it, and nobody else is touched."""

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from .kit import AgentClient, Daemon, Fault, refusal, tail, wait_until

QUICK = """
[machines]
restart_delay_s = 0.05
restart_limit = 3
stop_grace_s = 0.5
"""
TWO = """
[agents.alice.environment]
STAGE = "one"
[agents.bob]
"""
NOT_SO = '[agents.alice]\nprovider = "nonsense"\n'


def configure(daemon: Daemon, agents: str) -> None:
    daemon.config_path.write_text(QUICK + agents)


def reload(daemon: Daemon, agents: str) -> None:
    """Write another configuration, and have it read."""
    configure(daemon, agents)
    seen = daemon.log.count("Config reloaded")
    os.kill(daemon.pid, signal.SIGHUP)
    wait_until(lambda: daemon.log.count("Config reloaded") > seen, "the configuration is read again")


def as_declared(daemon: Daemon, changes: int) -> None:
    def is_so() -> bool:
        return daemon.log.count("Agent is as declared") >= changes

    wait_until(is_so, f"{changes} agents were changed\n{tail(daemon.log, 20)}", 30)


def pids(daemon: Daemon, *names: str) -> dict[str, int]:
    return {name: daemon.wait_row(name, connected=True, transient=None)["pid"] for name in names}


def environment(daemon: Daemon, name: str) -> dict[str, str]:
    raw = Path(f"/proc/{daemon.row(name)['pid']}/environ").read_bytes()
    return dict(line.decode().split("=", 1) for line in raw.split(b"\0") if line)


def names(daemon: Daemon) -> list[str]:
    found: list[str] = daemon.ask("list")["agents"]
    return found


def told(daemon: Daemon) -> list[dict[str, Any]]:
    bodies = [row["body"] for row in daemon.messages() if row["recipient"] == "operator"]
    events = [json.loads(body) for body in bodies if body.startswith("{")]
    return [event for event in events if event["event"] == "declaration_failed"]


@pytest.fixture
def hive(daemon: Daemon) -> Daemon:
    """One with two declared agents and one that is not."""
    configure(daemon, TWO)
    daemon.start()
    daemon.spawn("carol")
    pids(daemon, "alice", "bob")
    return daemon


def test_they_are_there_and_talk_to_each_other(hive: Daemon) -> None:
    hive.send("alice", "say bob: hello from a file")

    wait_until(lambda: any("hello from a file" in row["body"] for row in hive.messages()[1:]), "bob hears it")
    assert environment(hive, "alice")["STAGE"] == "one"
    assert "STAGE" not in environment(hive, "bob")
    shown = {name: hive.ask("machine", name=name).get("declared_in") for name in names(hive)}
    assert shown == {"alice": str(hive.config_path), "bob": str(hive.config_path), "carol": None}


def test_only_what_changed_is_started_anew_and_only_if_it_must(hive: Daemon) -> None:
    before = pids(hive, "alice", "bob", "carol")

    reload(hive, TWO)
    reload(hive, TWO + '[harness]\nmodel = "another"\n[approvals]\nexpire_hours = 1\n')
    reload(hive, TWO.replace("[agents.bob]", '[agents.bob]\nrecipients = ["alice"]\nlimits.memory = "1G"'))
    as_declared(hive, 1)
    assert pids(hive, "alice", "bob", "carol") == before
    assert hive.row("bob")["allowed_recipients"] == ["alice", "manager"]
    with hive.agent("bob") as bob, pytest.raises(Fault, match="bob may write to alice, manager only"):
        bob.call("send", to="carol", body="psst")

    reload(hive, TWO.replace('"one"', '"two"'))
    as_declared(hive, 3)
    after = pids(hive, "alice", "bob", "carol")
    assert after["alice"] != before["alice"]
    assert {**after, "alice": 0} == {**before, "alice": 0}
    assert environment(hive, "alice")["STAGE"] == "two"
    assert "allowed_recipients" not in hive.row("bob")
    said = [row for row in hive.messages() if row["sender"] == "system"]
    assert [row["recipient"] for row in said if "host's configuration says" in row["body"]] == ["alice"]


def test_a_daemon_that_starts_again_touches_nobody(hive: Daemon) -> None:
    before = pids(hive, "alice", "bob", "carol")

    hive.stop()
    hive.start()
    assert pids(hive, "alice", "bob", "carol") == before

    hive.kill()
    configure(hive, TWO.replace("[agents.bob]", '[agents.bob]\nmodel = "small"'))
    hive.start()
    as_declared(hive, 1)
    after = pids(hive, "alice", "bob", "carol")
    assert after["bob"] != before["bob"]
    assert {**after, "bob": 0} == {**before, "bob": 0}


def test_what_is_taken_out_goes_and_comes_again_with_its_state(hive: Daemon) -> None:
    reload(hive, "[agents.alice.environment]\nSTAGE = 'one'\n[agents.dave]\nauto_start = false\n")
    wait_until(lambda: names(hive) == ["alice", "carol", "dave"], "bob is gone and dave is there")
    assert hive.state("bob").is_dir()
    assert hive.wait_row("dave", running=False, wanted="stopped")["failed"] is False
    events = len(hive.ask("events", agent="alice", limit=1000)["events"])

    reload(hive, TWO)
    wait_until(lambda: names(hive) == ["alice", "bob", "carol"], "bob is there again")
    pids(hive, "alice", "bob", "carol")
    assert len(hive.ask("events", agent="bob", limit=1000)["events"]) >= 3
    assert len(hive.ask("events", agent="alice", limit=1000)["events"]) >= events


def test_one_that_was_there_is_taken_over_as_it_is(hive: Daemon) -> None:
    before = pids(hive, "alice", "bob", "carol")

    reload(hive, TWO + "[agents.carol]\n")
    as_declared(hive, 1)
    assert pids(hive, "alice", "bob", "carol") == before
    assert refusal(lambda: hive.ask("destroy", name="carol")).reply["reason"] == "declared"


def test_what_the_file_says_no_verb_changes(hive: Daemon) -> None:
    reload(hive, TWO.replace("[agents.bob]", '[agents.bob]\nrecipients = []\nlimits.memory = "1G"'))
    as_declared(hive, 1)

    def refused(cmd: str, **fields: Any) -> str:
        failed = refusal(lambda: hive.ask(cmd, **fields))
        assert (failed.code, failed.reply.get("reason")) == ("conflict", "declared"), failed
        return str(failed)

    assert str(hive.config_path) in refused("destroy", name="bob")
    assert "agents.bob.limits.memory" in refused("set_limits", name="bob", memory="4G")
    assert "agents.bob.recipients" in refused("allow", name="bob", recipients=["alice"])
    hive.ask("allow", name="alice", recipients=["bob"])

    hive.ask("stop", scope={"agent_names": ["bob"]})
    hive.wait_row("bob", running=False, wanted="stopped")
    hive.stop()
    hive.start()
    assert hive.row("bob")["wanted"] == "stopped"
    assert hive.row("bob")["allowed_recipients"] == ["manager"]
    assert hive.row("alice")["allowed_recipients"] == ["bob"]

    reload(hive, TWO + "auto_start = false\n")
    as_declared(hive, 1)
    reload(hive, TWO)
    wait_until(lambda: hive.row("bob")["connected"], "bob is wanted again")


def test_one_that_does_not_come_up_goes_back_and_a_person_is_told(hive: Daemon) -> None:
    before = pids(hive, "bob", "carol")
    reload(hive, NOT_SO + TWO.replace("alice.", "alice.").replace('"one"', '"two"'))
    wait_until(lambda: told(hive), "the operator is told", 30)

    (event,) = told(hive)
    assert (event["event"], event["agent"]) == ("declaration_failed", "alice")
    assert "is as before" in event["note"]
    alice = pids(hive, "alice")
    assert environment(hive, "alice")["STAGE"] == "one"
    assert hive.wait_row("alice", needs_update=True)["provider"] == "scripted"
    assert pids(hive, "bob", "carol") == before

    hive.stop()
    hive.start()
    assert pids(hive, "alice", "bob", "carol") == alice | before  # it is not tried again
    assert len(told(hive)) == 1

    hive.ask("rebuild", name="alice")
    wait_until(lambda: len(told(hive)) == 2, "it was tried again", 30)

    reload(hive, TWO.replace('"one"', '"three"'))
    as_declared(hive, 1)
    pids(hive, "alice")
    assert environment(hive, "alice")["STAGE"] == "three"
    hive.wait_row("alice", needs_update=False)


def test_a_turn_ends_before_its_machine_does(hive: Daemon) -> None:
    first = pids(hive, "alice")["alice"]
    asked = hive.send("alice", "sleep 2")
    hive.wait_row("alice", turn_state="thinking")

    reload(hive, TWO.replace('"one"', '"two"'))
    as_declared(hive, 1)

    assert pids(hive, "alice")["alice"] != first
    done = hive.message(asked)
    assert "acked_at" in done
    assert "redelivered" not in done


def test_without_a_file_or_with_a_wrong_one_nobody_goes(hive: Daemon) -> None:
    before = pids(hive, "alice", "bob", "carol")

    configure(hive, "[agents.alice]\nnetwerk = 'veth'\n")
    os.kill(hive.pid, signal.SIGHUP)
    wait_until(lambda: "agents.alice.netwerk" in hive.log, "the key is named")
    configure(hive, "[agents.alice.limits]\nmemory = '1M'\n")
    os.kill(hive.pid, signal.SIGHUP)
    wait_until(lambda: "agents.alice.limits.memory: " in hive.log, "the key is named")
    assert pids(hive, "alice", "bob", "carol") == before

    hive.stop()
    hive.config_path.unlink()
    hive.start()
    assert pids(hive, "alice", "bob", "carol") == before
    hive.ask("destroy", name="bob")
    wait_until(lambda: names(hive) == ["alice", "carol"], "bob is gone")


def test_a_daemon_that_is_killed_in_the_middle_is_followed_by_one_that_ends_it(hive: Daemon) -> None:
    for stage, late_s in (("two", 0.0), ("three", 0.02), ("four", 0.2)):
        configure(hive, TWO.replace('"one"', f'"{stage}"'))
        os.kill(hive.pid, signal.SIGHUP)
        with AgentClient(hive.agent_socket("bob")) as bob:
            bob.recv(wait_seconds=late_s)
        hive.kill()
        hive.start()

        def is_so(stage: str = stage) -> bool:
            row = hive.row("alice")
            return bool(row["connected"]) and environment(hive, "alice")["STAGE"] == stage

        wait_until(is_so, f"alice is at stage {stage}", 30)


def test_secrets_and_servers_of_the_host_reach_it(daemon: Daemon, tmp_path: Path) -> None:
    key, secrets = tmp_path / "key", tmp_path / "secrets.env"
    key.write_text("k1")
    link = tmp_path / "link"
    link.symlink_to(key)
    secrets.write_text("TOKEN=t\nSTAGE=secret\n")
    declared = f"""
[agents.alice]
environment_file = "{secrets}"
environment = {{ STAGE = "one", PLAIN = "p" }}
credentials = {{ api-key = "{link}", other = "{key}" }}
mcp_servers.notes = {{ command = "notes", args = ["--all"] }}
"""
    configure(daemon, declared)
    daemon.start()
    pids(daemon, "alice")

    found = environment(daemon, "alice")
    assert found.items() >= {"TOKEN": "t", "STAGE": "secret", "PLAIN": "p"}.items()
    assert found["HIVE_PASS_ON"].split() == ["CREDENTIALS_DIRECTORY", "PLAIN"]
    assert json.loads(Path(found["HIVE_EXTRA_MCP"]).read_text())["notes"]["args"] == ["--all"]
    place = Path(found["CREDENTIALS_DIRECTORY"])
    assert {path.name: path.read_text() for path in place.iterdir()} == {"api-key": "k1", "other": "k1"}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (place, *place.iterdir())}
    assert modes == {0o500, 0o400}

    first = pids(daemon, "alice")
    key.write_text("k2")
    reload(daemon, declared.replace(f', other = "{key}"', ""))
    as_declared(daemon, 1)
    assert {path.name: path.read_text() for path in place.iterdir()} == {"api-key": "k2"}
    assert pids(daemon, "alice") == first

    daemon.ask("stop", scope={"agent_names": ["alice"]})
    daemon.wait_row("alice", running=False)
    assert not place.exists()

    key.unlink()
    daemon.ask("start", scope={"agent_names": ["alice"]})
    wait_until(lambda: daemon.row("alice").get("failure"), "it does not start")
    assert "agents.alice.credentials.api-key" in daemon.row("alice")["failure"]

"""Agents that come, run, crash, stay and go; and the daemon round them that does so too."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from hive_core.wire.client import RequestFailed, Unreachable

from .kit import SOAK_S, AgentClient, Daemon, by, processes_with, refusal, wait_until

IMPATIENT = """
[machines]
restart_delay_s = 0.05
restart_limit = 3
stop_grace_s = 0.5
"""


def test_an_agent_is_spawned_stopped_started_restarted_destroyed_and_revived(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    first = daemon.row("alice")["pid"]
    assert daemon.harnesses("alice") == [first]
    assert refusal(lambda: daemon.ask("spawn", name="alice")).code == "conflict"

    daemon.ask("stop", scope={"agent_names": ["alice"]})
    stopped = daemon.wait_row("alice", running=False, wanted="stopped", pid=None)
    assert (stopped["failed"], "failure" in stopped) == (False, False)
    assert daemon.harnesses("alice") == []
    waiting = daemon.send("alice", "for later")

    daemon.ask("start", scope={"agent_names": ["alice"]})
    daemon.wait_row("alice", connected=True)
    wait_until(lambda: "acked_at" in daemon.message(waiting), "the message is worked on")

    second = daemon.row("alice")["pid"]
    daemon.ask("restart", name="alice")
    wait_until(lambda: daemon.row("alice").get("pid", second) != second, "another harness runs")
    daemon.wait_row("alice", connected=True)

    daemon.ask("destroy", name="alice")
    wait_until(lambda: daemon.ask("list")["agents"] == [], "alice is gone")
    assert daemon.harnesses("alice") == []
    assert not daemon.agent_socket("alice").exists()
    assert refusal(lambda: daemon.send("alice", "anybody there?")).code == "not_found"
    assert (daemon.home / "state" / "agents" / "alice" / "state").is_dir()

    daemon.spawn("alice")
    assert len(daemon.ask("events", agent="alice", limit=1000)["events"]) > 3
    daemon.ask("destroy", name="alice", purge=True)
    wait_until(lambda: daemon.ask("list")["agents"] == [], "alice is gone")
    assert not (daemon.home / "state" / "agents" / "alice").exists()
    daemon.spawn("alice")
    assert message_texts(daemon.ask("inbox", agent="alice")) == []


def test_messages_wait_for_an_agent_that_comes_back(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    message_id = daemon.send("a", "are you there?")
    daemon.ask("destroy", name="a")
    wait_until(lambda: daemon.ask("list")["agents"] == [], "a is gone")
    daemon.ask("spawn", name="a")

    wait_until(lambda: "acked_at" in daemon.message(message_id), "the message is worked on")


def test_wishes_survive_the_daemon_however_it_ends(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("runs", "stops", "rests")
    daemon.ask("stop", scope={"agent_names": ["stops"]})
    daemon.ask("set_paused", name="rests", paused=True)
    daemon.wait_row("stops", running=False)

    for end in (daemon.kill, daemon.stop):
        end()
        daemon.start()
        daemon.wait_row("runs", running=True, wanted="running", connected=True, paused=False)
        daemon.wait_row("stops", running=False, wanted="stopped")
        daemon.wait_row("rests", running=True, paused=True)
    assert len(daemon.harnesses()) == 2


def test_a_destroyed_agent_stays_destroyed_though_the_daemon_was_killed(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("gone", "purged")
    for name in ("gone", "purged"):
        for pid in daemon.harnesses(name):
            os.kill(pid, signal.SIGSTOP)  # so that ending it takes longer than the daemon lives
    daemon.ask("destroy", name="gone")
    daemon.ask("destroy", name="purged", purge=True)
    daemon.kill()
    daemon.config_path.write_text(IMPATIENT)
    daemon.start()

    wait_until(lambda: daemon.ask("list")["agents"] == [], "both are gone")
    wait_until(lambda: daemon.harnesses() == [], "and their harnesses too")
    base = daemon.home / "state" / "agents"
    wait_until(lambda: not (base / "purged").exists(), "what was purged is deleted")
    assert (base / "gone").exists()


# ── crashes of harnesses ────────────────────────────────────────────────────────────────────────


def test_a_killed_harness_is_started_again(daemon: Daemon) -> None:
    daemon.config_path.write_text(IMPATIENT)
    daemon.start()
    daemon.spawn("a")
    pid = daemon.row("a")["pid"]

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: daemon.row("a").get("pid", pid) != pid, "another harness runs")
    row = daemon.wait_row("a", connected=True)
    assert row["failed"] is False
    assert "killed by SIGKILL" in daemon.log


def test_a_harness_that_ends_at_once_fails_after_bounded_tries_and_start_tries_again(daemon: Daemon) -> None:
    daemon.config_path.write_text(IMPATIENT + '[harness]\nprovider = "nonsense"\n')
    daemon.start()
    daemon.ask("spawn", name="a")

    row = daemon.wait_row("a", failed=True)
    assert row["running"] is False
    assert row["wanted"] == "running"
    assert row["failure"] == "exit status 1"
    assert daemon.ask("status")["failed"] == 1
    starts = daemon.log.count("Machine started")
    assert starts == 3
    assert any("nonsense" in line for line in daemon.ask("logs", agent="a")["lines"])
    time.sleep(0.5)
    assert daemon.log.count("Machine started") == starts

    daemon.config_path.write_text(IMPATIENT)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "Config reloaded" in daemon.log, "the new config is read")
    daemon.ask("start", scope={"agent_names": ["a"]})
    row = daemon.wait_row("a", running=True, connected=True, failed=False)
    assert "failure" not in row


def test_an_agent_whose_directory_cannot_be_made_harms_nobody_else(daemon: Daemon) -> None:
    daemon.start()
    (daemon.home / "state" / "agents").mkdir(exist_ok=True)
    (daemon.home / "state" / "agents" / "bad").write_text("in the way")

    failed = refusal(lambda: daemon.ask("spawn", name="bad"))

    assert failed.code == "unavailable"
    assert daemon.ask("list")["agents"] == []
    daemon.spawn("good")
    daemon.kill()
    (daemon.home / "run" / "agents" / "good" / "mcp.sock").unlink()
    daemon.start()
    daemon.wait_row("good", connected=True)


def test_a_state_directory_that_is_lost_costs_one_agent_and_not_the_daemon(daemon: Daemon) -> None:
    daemon.config_path.write_text(IMPATIENT)
    daemon.add_stopped("bad", "good")
    (daemon.home / "state" / "agents").mkdir()
    (daemon.home / "state" / "agents" / "bad").write_text("in the way")
    daemon.start()

    daemon.ask("start", scope={"all": True})

    daemon.wait_row("good", connected=True)
    row = daemon.wait_row("bad", failed=True)
    assert "cannot be started" in row["failure"]
    (daemon.home / "state" / "agents" / "bad").unlink()
    daemon.ask("start", scope={"agent_names": ["bad"]})
    daemon.wait_row("bad", connected=True)


def test_a_harness_that_ignores_sigterm_is_killed_after_the_grace(daemon: Daemon) -> None:
    daemon.config_path.write_text("[machines]\nstop_grace_s = 0.5\n")
    daemon.start()
    daemon.spawn("a")
    os.kill(daemon.row("a")["pid"], signal.SIGSTOP)

    daemon.ask("stop", scope={"agent_names": ["a"]})

    daemon.wait_row("a", running=False)
    assert "does not stop, killing it" in daemon.log
    assert daemon.harnesses() == []


def test_a_graceful_stop_lets_the_running_turn_end(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    running = daemon.send("a", "sleep 1")
    waiting = daemon.send("a", "not now")
    daemon.wait_row("a", turn_state="thinking")

    daemon.ask("stop", scope={"agent_names": ["a"]}, graceful=True)

    assert daemon.row("a")["running"] is True
    daemon.wait_row("a", running=False)
    assert "acked_at" in daemon.message(running)
    assert "acked_at" not in daemon.message(waiting)


def test_an_impatient_stop_overtakes_a_graceful_one(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    message_id = daemon.send("a", "sleep 100")
    daemon.wait_row("a", turn_state="thinking")
    daemon.ask("stop", scope={"agent_names": ["a"]}, graceful=True)
    time.sleep(0.2)

    daemon.ask("stop", scope={"agent_names": ["a"]})

    daemon.wait_row("a", running=False)
    assert "acked_at" not in daemon.message(message_id)


# ── the daemon's own end ────────────────────────────────────────────────────────────────────────


def test_sigterm_ends_the_daemon_and_leaves_the_harnesses(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a", "b")
    pids = sorted(daemon.harnesses())

    began = time.monotonic()
    assert daemon.stop(signal.SIGTERM) == 0

    assert time.monotonic() - began < 5
    assert not [
        path
        for path in daemon.home.rglob("*-wal")
        if path.parent.name == "state" and path.parent.parent == daemon.home
    ]
    assert sorted(daemon.harnesses()) == pids
    daemon.start()
    for name in ("a", "b"):
        daemon.wait_row(name, connected=True)
    assert sorted(row["pid"] for row in daemon.ask("agent_status")["agent_statuses"]) == pids


def test_sigint_ends_the_harnesses_too(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a", "b")

    assert daemon.stop(signal.SIGINT) == 0

    assert daemon.harnesses() == []
    daemon.start()
    daemon.wait_row("a", connected=True, wanted="running")


def test_a_message_accepted_before_a_clean_end_comes_once_and_unflagged(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    ids = [daemon.send("a", f"number {number}") for number in range(3)]
    with daemon.agent("a") as agent:
        assert by("id", agent.recv()) == ids[:1]
    assert daemon.stop() == 0
    daemon.start()

    with daemon.agent("a") as agent:
        got = agent.recv(max=32)

    assert by("id", got) == ids
    assert [message.get("redelivered", False) for message in got] == [True, False, False]


def test_after_a_kill_everything_unacked_comes_again_flagged(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    ids = [daemon.send("a", f"number {number}") for number in range(4)]
    with daemon.agent("a") as agent:
        agent.recv(max=2)
        agent.call("ack_turn", ids=ids[:1])
        wait_until(lambda: "acked_at" in daemon.message(ids[0]), "the ack is on disk")
        agent.recv()
    daemon.kill()
    daemon.start()

    with daemon.agent("a") as agent:
        got = agent.recv(max=32)

    assert by("id", got) == ids[1:]
    assert all(message["redelivered"] for message in got)


def test_spawning_while_the_daemon_stops_does_not_hold_it_up(daemon: Daemon) -> None:
    daemon.start()
    clients = [daemon.client() for _ in range(12)]

    def spawn(number: int) -> None:
        try:
            for attempt in range(50):
                clients[number].ask({"cmd": "spawn", "name": f"a{number}-{attempt}"})
        except (RequestFailed, Unreachable):
            pass

    threads = [threading.Thread(target=spawn, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: "Agent spawned" in daemon.log, "agents are being spawned")

    assert daemon.stop(limit_s=8) == 0

    for thread in threads:
        thread.join(10)
    for client in clients:
        client.close()


def test_opposite_wishes_at_once_end_in_one_of_them(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()

    def wish(cmd: str, fields: dict[str, Any]) -> None:
        for _ in range(20):
            try:
                daemon.ask(cmd, **fields)
            except RequestFailed as failed:
                assert failed.code in {"not_found", "conflict"}, failed.reply

    scope = {"scope": {"agent_names": ["a"]}}
    wishes: list[tuple[str, dict[str, Any]]] = [
        ("set_paused", {"name": "a", "paused": True}),
        ("set_paused", {"name": "a", "paused": False}),
        ("stop", scope),
        ("stop", scope),
        ("destroy", {"name": "a"}),
    ]
    threads = [threading.Thread(target=wish, args=one) for one in wishes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert daemon.ask("list")["agents"] == []
    assert daemon.rows_of("select wanted from agents") == [("gone",)]


def test_who_connects_first_to_a_new_daemon_can_write_to_everybody(daemon: Daemon) -> None:
    names = [f"a{number:02}" for number in range(60)]
    daemon.add_stopped(*names).start()
    daemon.kill()
    daemon.agent_socket(names[0]).unlink()
    daemon.launch()

    def first() -> AgentClient | None:
        try:
            return daemon.agent(names[0])
        except OSError:
            return None

    with wait_until(first, "the first socket is there", every_s=0) as agent:
        assert agent.call("send", to=names[-1], body="are you there?")["id"] == 1
        agent.call("send", to="*", body="is anybody there?")

    daemon.wait_ready()
    assert len(daemon.rows_of("select id from messages where broadcast")) == len(names) - 1


# ── one harness per agent ───────────────────────────────────────────────────────────────────────


def test_a_harness_outlives_a_killed_daemon_and_is_adopted(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("a")
    pid = daemon.row("a")["pid"]
    message_id = daemon.send("a", "sleep 1")
    daemon.wait_row("a", turn_state="thinking")

    daemon.kill()
    daemon.start()

    row = daemon.wait_row("a", connected=True)
    assert row["pid"] == pid
    assert daemon.harnesses("a") == [pid]
    wait_until(lambda: "acked_at" in daemon.message(message_id), "the turn is acked at the new daemon")
    assert "adopted" in daemon.log


@pytest.mark.parametrize("delay_s", [0.0, 0.1])
def test_a_harness_that_was_being_started_when_the_daemon_died_is_not_started_twice(
    daemon: Daemon, delay_s: float
) -> None:
    daemon.start()
    daemon.ask("spawn", name="a")
    time.sleep(delay_s)
    daemon.kill()
    daemon.start()

    def is_settled() -> bool:
        pids = daemon.harnesses("a")
        row = daemon.row("a")
        return len(pids) == 1 and row.get("pid") == pids[0] and row["connected"]

    wait_until(is_settled, "one harness is left, and it is the one that is seen")
    message_id = daemon.send("a", "hello")
    wait_until(lambda: "acked_at" in daemon.message(message_id), "it works")
    assert len(processes_with(str(daemon.home / "run" / "agents" / "a"))) == 1


@pytest.mark.skipif(not SOAK_S, reason="waits for the supervisor to look again: set HIVE_SOAK_SECONDS")
def test_a_harness_that_wakes_up_after_it_was_stopped_is_stopped(daemon: Daemon) -> None:
    daemon.start()
    daemon.ask("spawn", name="a")
    (pid,) = wait_until(lambda: daemon.harnesses("a"), "it is being started", every_s=0)
    os.kill(pid, signal.SIGSTOP)
    daemon.ask("stop", scope={"agent_names": ["a"]})
    daemon.kill()
    daemon.start()
    assert daemon.row("a")["running"] is False
    os.kill(pid, signal.SIGCONT)

    wait_until(lambda: not daemon.harnesses("a"), "nothing runs", 25)


def message_texts(reply: dict[str, Any]) -> list[str]:
    return by("body", reply["messages"])

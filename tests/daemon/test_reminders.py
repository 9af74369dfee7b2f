"""Reminders in a real hive: they wake turns, come after a downtime, and their files are written by a child."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from .kit import Daemon, processes_with, seeded, wait_until

DEATHS = 30


def came(daemon: Daemon, name: str) -> list[str]:
    """What reminders have said to *name* so far, in order."""
    rows = daemon.messages()
    return [row["body"] for row in rows if (row["sender"], row["recipient"]) == ("reminder", name)]


def pending(daemon: Daemon) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = daemon.ask("reminders", limit=1000)["reminders"]
    return rows


def test_a_reminder_wakes_a_turn_that_does_what_it_says(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice", "bob")

    daemon.wait_acked(daemon.send("alice", "remind 0.5: say bob: it is time"))

    wait_until(lambda: came(daemon, "alice") == ["say bob: it is time"], "it comes")
    wait_until(lambda: [row for row in daemon.messages() if row["body"] == "it is time"], "it is done")
    starts = [row["payload"]["from"] for row in daemon.events("alice", "turn_start")]
    assert starts[:2] == ["operator", "reminder"]
    assert pending(daemon) == []


def test_what_became_due_while_the_daemon_was_down_comes_at_its_start_and_once(daemon: Daemon) -> None:
    daemon.add_stopped("alice").start()
    with daemon.agent("alice") as alice:
        for number in range(3):
            alice.call("remind", message=f"number {number}", delay_seconds=0.3 + number / 100)
        alice.call("remind", message="later", delay_seconds=3600)
    daemon.kill()
    time.sleep(0.5)
    daemon.start()

    wait_until(lambda: len(came(daemon, "alice")) == 3, "they come")
    daemon.kill()
    daemon.start()
    time.sleep(0.3)
    assert came(daemon, "alice") == ["number 0", "number 1", "number 2"]
    assert [row["message"] for row in pending(daemon)] == ["later"]


def test_a_long_text_is_in_a_file_before_its_message_is_there(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    text = "€" * 5000
    with daemon.mcp("alice") as alice:
        reminder_id = alice.tool("remind", message=text, delay_seconds=0)["structuredContent"]["id"]
        alice.tool("remind", message="short", delay_seconds=0, file_path="notes/todo.md")

    wait_until(lambda: len(came(daemon, "alice")) == 2, "they come")

    spilled = daemon.state("alice") / f"reminders/{reminder_id}.md"
    named = daemon.state("alice") / "notes/todo.md"
    assert spilled.read_text() == text
    assert named.read_text() == "short"
    assert [path.stat().st_mode & 0o777 for path in (spilled, named)] == [0o600, 0o600]
    assert f"is in the file {spilled} (15000 bytes)" in came(daemon, "alice")[0]
    assert str(named) in came(daemon, "alice")[1]


@pytest.mark.parametrize("trap", ["link to a directory", "link to a file", "a directory", "a fifo"])
def test_a_file_is_never_written_outside_the_state_directory(daemon: Daemon, trap: str) -> None:
    daemon.add_stopped("alice").start()
    state, elsewhere = daemon.state("alice"), daemon.base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "todo.md").write_text("untouched")
    notes = state / "notes"
    if trap == "link to a directory":
        notes.symlink_to(elsewhere)
    else:
        notes.mkdir()
        if trap == "link to a file":
            (notes / "todo.md").symlink_to(elsewhere / "todo.md")
        elif trap == "a directory":
            (notes / "todo.md").mkdir()
        else:
            os.mkfifo(notes / "todo.md")
    with daemon.agent("alice") as alice:
        alice.call("remind", message="mine", delay_seconds=0, file_path="notes/todo.md")
        alice.call("remind", message="plain", delay_seconds=0.01)

    wait_until(lambda: "plain" in came(daemon, "alice"), "the other one comes")
    refused = trap in {"link to a directory", "a directory"}
    if refused:
        (row,) = wait_until(lambda: [r for r in pending(daemon) if r.get("attempts")], "it is tried")
        assert row["last_error"].startswith("cannot write notes/todo.md: ")
    else:
        wait_until(lambda: len(came(daemon, "alice")) == 2, "it comes")
        assert (notes / "todo.md").read_text() == "mine"
    assert (elsewhere / "todo.md").read_text() == "untouched"
    assert [path.name for path in elsewhere.iterdir()] == ["todo.md"]

    if refused:
        notes.rename(state / "old") if trap == "a directory" else notes.unlink()
        daemon.ask("retry_reminder", id=row["id"])
        wait_until(lambda: len(came(daemon, "alice")) == 2, "it comes after all")
        assert (state / "notes/todo.md").read_text() == "mine"


def test_a_reminder_to_one_that_is_paused_or_stopped_waits_in_its_inbox(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    daemon.ask("set_paused", name="alice", paused=True)
    with daemon.mcp("alice") as alice:
        alice.tool("remind", message="say operator: awake", delay_seconds=0)
    wait_until(lambda: daemon.row("alice")["unread"] == 1, "it waits")

    daemon.ask("set_paused", name="alice", paused=False)

    wait_until(lambda: [row for row in daemon.messages() if row["body"] == "awake"], "it is read")


@pytest.mark.timeout(300)
def test_a_daemon_that_dies_while_reminders_fire_doubles_and_loses_none(daemon: Daemon) -> None:
    chance = seeded("kills round reminders")
    daemon.add_stopped("alice", "bob").start()
    kept: dict[str, list[str]] = {"alice": [], "bob": []}
    for number in range(DEATHS):
        for name, texts in kept.items():
            with daemon.agent(name) as agent:
                for part in range(3):
                    # Every third one takes a child that writes a file.
                    text = f"{number}.{part} " + "x" * (5000 if part == 2 else 1)
                    path = {"file_path": f"{number}.md"} if part == 2 else {}
                    agent.call("remind", message=text, delay_seconds=chance.uniform(0, 0.2), **path)
                    texts.append(text)
        time.sleep(chance.uniform(0, 0.25))
        daemon.kill()
        daemon.start()
    wait_until(lambda: not pending(daemon), "all have come", 60)

    for name, texts in kept.items():
        found = came(daemon, name)
        assert len(found) == len(texts) == 3 * DEATHS
        assert sorted(body for body in found if not body.startswith("Your reminder")) == sorted(
            text for text in texts if len(text) < 5000
        )
        named = [path for path in daemon.state(name).glob("*.md") if path.name[0].isdigit()]
        assert sorted(path.read_text() for path in named) == sorted(
            text for text in texts if len(text) > 5000
        )
        # What a child that was killed in mid-write left behind would stay for ever.
        assert not list(daemon.state(name).glob(".hive-*"))


def test_a_child_that_hangs_is_ended_and_the_reminder_tried_again(daemon: Daemon) -> None:
    daemon.add_stopped("alice").start()
    stop = threading.Event()
    stopped: list[int] = []

    def halt_children() -> None:
        while not stop.is_set() and not stopped:
            for pid in processes_with("agent_upkeep_worker"):
                if str(daemon.state("alice")).encode() in _argv(pid):
                    os.kill(pid, signal.SIGSTOP)
                    stopped.append(pid)
            time.sleep(0.001)

    halting = threading.Thread(target=halt_children)
    halting.start()
    try:
        with daemon.agent("alice") as alice:
            alice.call("remind", message="mine", delay_seconds=0, file_path="a.md")
        wait_until(lambda: came(daemon, "alice"), "it comes after all", 40)
    finally:
        stop.set()
        halting.join()
    if stopped:
        assert "it takes too long" in daemon.log
    assert (daemon.state("alice") / "a.md").read_text() == "mine"


def _argv(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""

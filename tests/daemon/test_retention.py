"""The sweep and the backups of a daemon that runs."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .kit import Daemon, by, refusal, run_core, wait_until

YEAR_S = 365 * 86400


@pytest.fixture
def other() -> Iterator[Daemon]:
    daemon = Daemon()
    try:
        yield daemon
        daemon.check_log()
    finally:
        daemon.clean_up()


def swept(daemon: Daemon) -> dict[str, Any]:
    request: dict[str, Any] = {}
    while True:
        reply = daemon.ask("vacuum", **request)
        if "sweep" in reply:
            if not reply["sweep"]["running"]:
                return reply
            request = {"number": reply["sweep"]["number"]}


def make_old(daemon: Daemon, *ids: int) -> None:
    """A year passes for some messages, while no daemon runs."""
    with closing(sqlite3.connect(daemon.database)) as db:
        for message_id in ids:
            db.execute(
                "update messages set sent_at = sent_at - ?1, delivered_at = delivered_at - ?1,"
                " acked_at = acked_at - ?1 where id = ?2",
                (YEAR_S, message_id),
            )
        db.commit()


def test_what_was_acked_long_ago_goes_and_why_copes(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob").start()
    daemon.send("alice", "first")
    with daemon.agent("alice") as alice:
        (first,) = alice.recv()
        reply = alice.call("send", to="bob", body="so", in_reply_to=first["id"])["id"]
        alice.call("ack_turn")
    daemon.send("alice", "never taken")
    assert daemon.stop() == 0
    make_old(daemon, 1, 2, 3)
    daemon.start()

    plan = {row["what"]: row for row in daemon.ask("vacuum", dry_run=True)["rows"]}
    before = by("id", daemon.messages())
    done = swept(daemon)

    assert before == [1, 2, 3] or before == [2, 3]  # the sweep at the start may have been quicker
    assert plan["waiting messages"]["stays"] == 2
    assert by("id", daemon.messages()) == [2, 3]
    assert done["rows"] == []
    assert by("id", daemon.ask("why", id=reply)["messages"]) == [reply]
    with daemon.agent("bob") as bob:
        assert bob.recv()[0]["in_reply_to"] == 1
    assert daemon.send("alice", "next") == 4
    assert daemon.ask("status")["vacuum"]["number"] >= 1


def test_the_sweep_at_the_start_needs_nobody_to_ask(daemon: Daemon) -> None:
    daemon.add_stopped("alice").start()
    daemon.send("alice", "first")
    with daemon.agent("alice") as alice:
        alice.recv()
        alice.call("ack_turn")
    assert daemon.stop() == 0
    make_old(daemon, 1)
    daemon.start()
    wait_until(lambda: "Vacuum done messages=1" in daemon.log, "the sweep deletes it", 15)
    assert daemon.messages() == []


def test_a_trap_of_one_agent_costs_a_line_and_the_files_of_the_other_are_swept(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob")
    paths = [daemon.home / "state" / "agents" / name / "state" for name in ("alice", "bob")]
    for path in paths:
        path.mkdir(parents=True)
    os.mkfifo(paths[0] / "hyperhive-events.sqlite")
    with closing(sqlite3.connect(paths[1] / "hyperhive-events.sqlite")) as db:
        db.execute("create table events (id integer primary key, ts real, kind text, payload_json text)")
        db.execute("insert into events values (1, 1.0, 'note', '{}')")
        db.commit()
    daemon.start()

    done = swept(daemon)

    (row,) = done["rows"]
    assert (row["agent"], row["what"], row["trouble"]) == ("alice", "events", True)
    assert "not a regular file" in row["why"]
    assert daemon.log.count("File left alone agent=alice") <= 2
    with closing(sqlite3.connect(paths[1] / "hyperhive-events.sqlite")) as db:
        assert db.execute("select count(*) from events").fetchone() == (0,)


def test_a_restored_hive_goes_on_where_it_was(daemon: Daemon, other: Daemon, tmp_path: Path) -> None:
    daemon.add_stopped("alice", "bob").start()
    for number in range(1, 6):
        daemon.send("alice", f"text {number}")
    question = daemon.ask("ask", agent="alice", question="which?")["id"]
    with daemon.agent("alice") as alice:
        assert by("id", alice.recv(max=2)) == [1, 2]
        alice.call("ack_turn")
        assert by("id", alice.recv()) == [3]
        archive = Path(daemon.ask("backup_create")["archive"]["path"])
    before = daemon.messages()

    assert daemon.ask("backup_verify", path=str(archive))["archive"].get("problem") is None
    done = run_core("restore", str(archive), "--home", str(other.home))
    assert done.returncode == 0, done.stderr
    other.start()

    after = other.messages()
    assert by("id", after) == by("id", before)
    for old, new in zip(before, after, strict=True):
        same = {"id", "sender", "recipient", "body", "sent_at", "thread_id", "acked_at"}
        assert {key: old.get(key) for key in same} == {key: new.get(key) for key in same}
    assert by("id", other.ask("questions")["questions"]) == [question]
    with other.agent("alice") as alice:
        found = alice.recv(max=32)
    assert [(message["id"], message["redelivered"]) for message in found][:1] == [(3, True)]
    assert by("id", found)[1:3] == [4, 5]
    assert other.send("bob", "on") == max(by("id", before)) + 1
    assert run_core("restore", str(archive), "--home", str(other.home)).returncode == 1


def test_an_exported_agent_lives_on_in_another_hive(daemon: Daemon, other: Daemon) -> None:
    daemon.add_stopped("alice").start()
    daemon.send("alice", "for later")
    notes = daemon.home / "state" / "agents" / "alice" / "state" / "notes.md"
    notes.parent.mkdir(parents=True, exist_ok=True)
    notes.write_text("mine")
    archive = daemon.ask("export", agent="alice")["archive"]["path"]
    other.start()

    assert other.ask("import", path=archive)["archive"]["agents"] == ["alice"]
    assert refusal(lambda: other.ask("import", path=archive)).code in {"conflict", "invalid_argument"}

    other.ask("spawn", name="alice")
    assert (other.home / "state" / "agents" / "alice" / "state" / "notes.md").read_text() == "mine"
    wait_until(
        lambda: [row for row in other.messages() if row["body"] == "for later" and "acked_at" in row],
        "alice takes what waited for her",
    )


def test_the_command_line_of_all_that(daemon: Daemon, tmp_path: Path) -> None:
    daemon.add_stopped("alice").start()

    def hive(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hive_core.cli", "--home", str(daemon.home), *argv],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "acked messages\t-\t0\t0\tacked longer than 30 days ago go" in hive("vacuum", "--dry-run")
    assert hive("vacuum").startswith("messages\t0\n")
    made = hive("backup", "create", str(tmp_path)).strip()
    assert Path(made).parent == tmp_path
    hive("backup", "verify", made)
    assert len(hive("backup", "ls").splitlines()) == 1

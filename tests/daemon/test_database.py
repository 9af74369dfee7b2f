"""Files that are not ours, files of the future, and a disk that is full."""

import resource
import sqlite3
from pathlib import Path

import pytest

from hive_core.store.schema import APPLICATION_ID

from .kit import Daemon, by, refusal, run_core, wait_until


def _refused(home: Path) -> str:
    done = run_core("serve", "--local", "--home", str(home))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"hive-core: cannot open {home}/state/broker.sqlite: ")
    return last


def _file(home: Path) -> Path:
    path = home / "state" / "broker.sqlite"
    path.parent.mkdir(parents=True)
    return path


def test_a_database_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = _file(tmp_path)
    with sqlite3.connect(path) as db:
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        db.execute("pragma user_version = 999")
        db.execute("create table messages (id integer primary key, from_the_future text)")
    db.close()
    before = path.read_bytes()

    said = _refused(tmp_path)

    assert "newer hyperhive (schema 999" in said
    assert "update hyperhive" in said
    with sqlite3.connect(path) as db:
        assert db.execute("select sql from sqlite_schema").fetchall() == [
            ("CREATE TABLE messages (id integer primary key, from_the_future text)",)
        ]
    db.close()
    assert len(before) == path.stat().st_size


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = _file(tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("create table bookmarks (url text)")
        db.execute("insert into bookmarks values ('x')")
    db.close()

    assert "it is not the database of a hive" in _refused(tmp_path)

    with sqlite3.connect(path) as db:
        assert db.execute("select name from sqlite_schema").fetchall() == [("bookmarks",)]
    db.close()


@pytest.mark.parametrize("content", [b"this is no database, " * 500, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = _file(tmp_path)
    path.write_bytes(content)

    _refused(tmp_path)

    assert path.read_bytes() == content


def test_a_directory_or_nothing_readable_in_its_place_is_refused(tmp_path: Path) -> None:
    _file(tmp_path).mkdir()

    _refused(tmp_path)


def test_a_damaged_database_of_ours_ends_in_a_sentence(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    for _ in range(200):
        daemon.send("a", "x" * 1000)
    assert daemon.stop() == 0
    content = bytearray(daemon.database.read_bytes())
    content[4096:40960] = b"\xa5" * (40960 - 4096)
    daemon.database.write_bytes(content)

    done = run_core("serve", "--local", "--home", str(daemon.home))

    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"hive-core: cannot serve {daemon.home}: cannot ")


def test_a_database_of_the_original_is_taken_up(daemon: Daemon) -> None:
    path = _file(daemon.home)
    with sqlite3.connect(path) as db:
        db.execute(
            "create table messages (id integer primary key autoincrement, sender text not null,"
            " recipient text not null, body text not null, sent_at integer not null, delivered_at integer)"
        )
        db.execute("insert into messages values (7, 'bob', 'alice', 'old and waiting', 1747000000, null)")
        db.execute("insert into messages values (8, 'bob', 'alice', 'old and done', 1747000000, 1747000001)")
    db.close()

    daemon.start()
    daemon.ask("spawn", name="alice")

    wait_until(lambda: "acked_at" in daemon.message(7), "alice works on it")
    assert daemon.message(8)["acked_at"] == "2025-05-11T21:46:41.000Z"
    assert daemon.send("alice", "new") > 8


# ── a full disk ─────────────────────────────────────────────────────────────────────────────────


def _let_files_grow(daemon: Daemon, size_bytes: int) -> None:
    _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (size_bytes, hard))


def _fill(daemon: Daemon) -> str:
    """Send until the disk takes no more, and give what is said then."""
    with daemon.client() as client:
        for _ in range(500):
            try:
                client.ask({"cmd": "send", "to": "a", "body": "x" * 30_000})
            except Exception as error:
                return str(error)
    raise AssertionError("the disk is never full")


def test_a_full_disk_refuses_messages_and_loses_none(daemon: Daemon) -> None:
    daemon.add_stopped("a", "b").start()
    accepted = [daemon.send("a", "before")]
    with daemon.agent("a") as agent, daemon.agent("b") as other:
        assert by("id", agent.recv()) == accepted
        _let_files_grow(daemon, 400_000)

        assert "cannot store" in _fill(daemon)
        assert agent.call("ack_turn") == {"acked": 1}
        assert refusal(lambda: daemon.send("b", "y" * 60_000)).code == "unavailable"
        status = daemon.ask("status")
        assert status["store"] != "ok"
        assert other.call("whoami")["name"] == "b"

        _let_files_grow(daemon, resource.RLIM_INFINITY)
        after = daemon.send("a", "after")
        wait_until(lambda: "acked_at" in daemon.message(accepted[0]), "the ack was kept")
        stored = by("id", daemon.messages())
        got: list[int] = []
        while messages := agent.recv(max=32):
            got += by("id", messages)

    assert stored[-1] == after
    assert got == stored[1:]
    assert daemon.ask("status")["store"] == "ok"
    assert daemon.stop() == 0


def test_the_daemon_ends_in_time_though_the_disk_is_full(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    message_id = daemon.send("a", "before")
    with daemon.agent("a") as agent:
        _let_files_grow(daemon, 400_000)
        _fill(daemon)
        _let_files_grow(daemon, 4096)
        assert by("id", agent.recv()) == [message_id]
        daemon.stop(limit_s=8)
    daemon.start()

    with daemon.agent("a") as agent:
        (message,) = agent.recv()
    assert message["id"] == message_id
    assert message["redelivered"] is True

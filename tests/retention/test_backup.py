"""What is put aside comes back to the row, and what cannot be used is said to be so."""

import gzip
import io
import json
import os
import stat
import tarfile
from contextlib import closing
from pathlib import Path

import apsw
import msgspec
import pytest
import trio

from hive_core import backup
from hive_core.backup import Archive, Backups, restore
from hive_core.domain.cage import Network
from hive_core.host.archive import BadArchive
from hive_core.host.sockets import AlreadyServed, only_daemon
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.store import agents, mailbox, moving
from hive_core.store.copy import copy_database, give_back_space
from hive_core.store.schema import SchemaError, migrate
from hive_core.wire.errors import ErrorCode, Refused

TABLES = ("messages", "approvals", "operator_questions", "reminders", "agents", "daemon", "sqlite_sequence")


def layout_at(home: Path) -> Layout:
    return Layout(home, home / "run", home / "state")


def a_hive(home: Path) -> Layout:
    layout = layout_at(home)
    layout.make()
    db = apsw.Connection(str(layout.database))
    db.execute("pragma journal_mode = wal").fetchall()
    migrate(db, str(layout.database))
    with db:
        for number in range(1, 301):
            db.execute(
                "insert into messages (sender, recipient, body, sent_at, acked_at) values ('bob', 'alice', ?, ?, ?)",
                (f"text {number}", number, None if number % 3 else number),
            )
        db.execute("insert into operator_questions (asker, question, asked_at) values ('alice', 'why?', 1)")
        db.execute("insert into reminders (agent, message, due_at, created_at) values ('alice', 'tea', 9, 1)")
        db.execute(
            "insert into agents (name, wanted, created_at) values ('alice', 'stopped', 1), ('bob', 'gone', 1)"
        )
        db.execute("delete from messages where id = 300")
    db.close()
    for name in ("alice", "bob"):
        layout.agent(name).make()
        (layout.agent(name).state / "notes.md").write_text(f"of {name}")
        (layout.agent(name).claude / "login").write_text(name)
    (layout.state / "repos").mkdir()
    (layout.state / "repos" / "HEAD").write_text("ref")
    (layout.state / "repos" / "run").write_text("script")
    (layout.state / "repos" / "run").chmod(0o755)
    return layout


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(apsw.Connection(str(path))) as db:
        return {table: db.execute(f"select * from {table} order by 1").fetchall() for table in TABLES}


async def ours(_agent: str) -> int | None:
    return None


def backups_of(layout: Layout) -> Backups:
    async def named() -> list[str]:
        return ["alice", "bob"]

    async def uid_of(_agent: str) -> None:
        return None

    repositories = Repositories(layout, isolated=False)
    return Backups(layout, repositories, agents=named, uid_of=uid_of, wall_clock=lambda: 1_000_000.0)


def opened(archive: Archive) -> Archive:
    with archive.path.open("rb") as file:
        return backup.verify(archive.path, file)


async def test_a_restored_hive_is_the_same_to_the_row(tmp_path: Path) -> None:
    layout, other = a_hive(tmp_path / "h"), layout_at(tmp_path / "other")
    before = rows(layout.database)

    made = await backups_of(layout).create()
    await restore(other, made.path)

    assert rows(other.database) == before
    assert (other.agent("alice").state / "notes.md").read_text() == "of alice"
    assert (other.agent("bob").claude / "login").read_text() == "bob"
    assert (other.state / "repos" / "HEAD").read_text() == "ref"
    assert (other.state / "repos" / "run").stat().st_mode & 0o777 == 0o755
    assert {path.name for path in other.state.iterdir()} == {"agents", "broker.sqlite", "repos"}
    assert other.home.stat().st_mode & 0o777 == 0o700
    assert made.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (layout.state / "backups").iterdir()] == [made.path.name]


async def test_a_copy_is_of_one_moment_while_others_write(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    stop = trio.Event()
    pairs = 0

    def write() -> None:
        nonlocal pairs
        with closing(apsw.Connection(str(layout.database))) as db:
            db.set_busy_timeout(10_000)
            while not stop.is_set():
                db.execute("begin immediate")
                for _ in range(2):
                    db.execute(
                        "insert into messages (sender, recipient, body, sent_at) values ('b', 'pair', ?, 1)",
                        ("x" * 900,),
                    )
                db.execute("commit")
                pairs += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, write)
        await trio.sleep(0.2)
        try:
            for number in range(3):
                await trio.to_thread.run_sync(copy_database, layout.database, tmp_path / f"copy{number}")
        finally:
            stop.set()
    assert pairs > 10
    for number in range(3):
        with closing(apsw.Connection(str(tmp_path / f"copy{number}"))) as db:
            ((count,),) = db.execute("select count(*) from messages where recipient = 'pair'").fetchall()
            assert int(str(count)) % 2 == 0
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)


async def test_all_that_was_made_is_listed(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    backups = backups_of(layout)
    assert await backups.all() == []
    first, second = await backups.create(), await backups.create()
    (layout.state / "backups" / "junk.tar.gz").write_bytes(b"junk")

    found = {one.path: one for one in await backups.all()}

    assert found[first.path].manifest == first.manifest
    assert first.path != second.path
    assert first.manifest is not None
    assert (first.manifest.messages, first.manifest.agents) == (299, ["alice", "bob"])
    assert found[layout.state / "backups" / "junk.tar.gz"].problem is not None


async def test_a_whole_archive_is_found_whole(tmp_path: Path) -> None:
    backups = backups_of(a_hive(tmp_path / "h"))
    made = await backups.create()
    assert (await backups.verify(made.path, peer_uid=0)).problem is None


async def test_one_changed_byte_anywhere_is_found(tmp_path: Path) -> None:
    made = await backups_of(a_hive(tmp_path / "h")).create()
    whole = made.path.read_bytes()
    for at in range(20, len(whole) - 1, max(1, len(whole) // 40)):
        made.path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        if opened(made).problem is None:  # deflate may take the same text from another place
            assert gzip.decompress(made.path.read_bytes()) == gzip.decompress(whole), f"byte {at}"
    made.path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in (opened(made).problem or "")


def rewritten(path: Path, change: dict[str, object], *, more: str | None = None) -> Path:
    """The same archive with another manifest, or with an entry more."""
    other = path.with_name("other.tar.gz")
    with (
        tarfile.open(path) as old,
        gzip.open(other, "wb") as packed,
        tarfile.open(fileobj=packed, mode="w") as new,
    ):
        for info in old:
            held = old.extractfile(info)
            assert held is not None
            text = held.read()
            if info.name == "manifest.json":
                text = json.dumps(json.loads(text) | change).encode()
                info.size = len(text)
            new.addfile(info, io.BytesIO(text))
        if more is not None:
            new.addfile(tarfile.TarInfo(more))
    return other


async def test_one_of_a_newer_hyperhive_is_refused(tmp_path: Path) -> None:
    made = await backups_of(a_hive(tmp_path / "h")).create()
    target = layout_at(tmp_path / "other")
    with pytest.raises(SchemaError, match=r"newer hyperhive \(schema 999"):
        await restore(target, rewritten(made.path, {"schema": 999}))
    with pytest.raises(BadArchive, match="newer hyperhive"):
        await restore(target, rewritten(made.path, {"format": 2}))
    assert not target.state.exists()


async def test_what_the_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    made = await backups_of(a_hive(tmp_path / "h")).create()
    target = layout_at(tmp_path / "other")
    for name in ("../../escaped", "more"):
        with pytest.raises(BadArchive, match="not what the manifest says"):
            await restore(target, rewritten(made.path, {}, more=name))
    for parts in (
        {"../x": {"sha256": "0" * 64, "size_bytes": 0}},
        {"/etc/x": {"sha256": "0" * 64, "size_bytes": 0}},
    ):
        with pytest.raises(BadArchive, match="manifest"):
            await restore(target, rewritten(made.path, {"parts": parts}))
    assert not target.state.exists()
    assert not (tmp_path / "escaped").exists()


async def test_nothing_is_restored_over_a_hive_or_under_a_daemon(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    made = await backups_of(layout).create()
    with pytest.raises(FileExistsError, match="is not empty"):
        await restore(layout, made.path)
    other = layout_at(tmp_path / "other")
    other.make()
    with only_daemon(other.run), pytest.raises(AlreadyServed):
        await restore(other, made.path)
    with only_daemon(other.state), pytest.raises(AlreadyServed):
        await restore(other, made.path)
    await restore(other, made.path)
    assert len(rows(other.database)["messages"]) == 299


async def test_a_restore_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = await backups_of(a_hive(tmp_path / "h")).create()
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:-200])
    other = layout_at(tmp_path / "other")
    with pytest.raises(BadArchive):
        await restore(other, made.path)
    assert sorted(path.name for path in other.home.iterdir()) == ["run"]


async def test_a_backup_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    (layout.agent("alice").base / "state" / "notes.md").unlink()
    (layout.agent("alice").base / "state").rmdir()
    (layout.agent("alice").base / "state").symlink_to(tmp_path)
    with pytest.raises(Refused) as refused:
        await backups_of(layout).create()
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert list((layout.state / "backups").iterdir()) == []


async def test_only_ones_own_files_and_backups_are_read(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    backups = backups_of(layout)
    made = await backups.create()
    secret = tmp_path / "secret"
    secret.write_text("x")
    stranger = 54321

    assert (await backups.verify(made.path, peer_uid=stranger)).problem is None
    with pytest.raises(Refused, match="not your file"):
        await backups.verify(secret, peer_uid=stranger)
    (tmp_path / "link").symlink_to(made.path)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "fifo", "nothing"):
        with pytest.raises(Refused), trio.fail_after(5):
            await backups.verify(tmp_path / name, peer_uid=0)


# ── one agent ───────────────────────────────────────────────────────────────────────────────────


async def test_an_agent_goes_to_another_hive_with_what_waits_for_it(tmp_path: Path) -> None:
    here, there = a_hive(tmp_path / "h"), a_hive(tmp_path / "other")
    db = apsw.Connection(str(here.database))
    db.execute("update agents set network = 'veth', memory_max_bytes = 1000 where name = 'alice'")
    luggage = moving.pack_rows(db, "alice")
    db.close()

    made = await backups_of(here).export("alice", msgspec.json.encode(luggage), len(luggage.messages))

    async def take_rows(agent: str, uid_base: int | None, text: bytes) -> None:
        db = apsw.Connection(str(there.database))
        with db:
            moving.unpack_rows(db, agent, uid_base, moving.decode_luggage(text), 1000, 5.0)
        db.close()

    took = await backups_of(there).take_in(made.path, "carol", peer_uid=0, uid_for=ours, take_rows=take_rows)

    assert took.manifest is not None
    assert took.manifest.agents == ["carol"]
    assert (there.agent("carol").state / "notes.md").read_text() == "of alice"
    db = apsw.Connection(str(there.database))
    waiting, whole = mailbox.load_window(db, "carol", 0, [], 1000, 10**6)
    row = next(row for row in agents.all_agents(db) if row.name == "carol")
    reminders = db.execute("select message from reminders where agent = 'carol'").fetchall()
    db.close()
    assert whole
    assert [message.body for message in waiting] == [f"text {n}" for n in range(1, 300) if n % 3]
    assert all(message.redelivered for message in waiting)
    assert (row.destroyed_at, row.shape.network, row.shape.memory_max_bytes) == (5.0, Network.VETH, 1000)
    assert reminders == [("tea",)]


async def test_an_import_that_fails_leaves_nothing(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")
    backups = backups_of(layout)
    made = await backups.export("alice", b"{}", 0)

    async def refuse(agent: str, uid_base: int | None, text: bytes) -> None:
        raise Refused(ErrorCode.CONFLICT, "cannot import: no")

    with pytest.raises(Refused, match="cannot import: no"):
        await backups.take_in(made.path, "carol", peer_uid=0, uid_for=ours, take_rows=refuse)
    assert not layout.agent("carol").base.exists()
    with pytest.raises(Refused, match="files are there already"):
        await backups.take_in(made.path, None, peer_uid=0, uid_for=ours, take_rows=refuse)
    assert (layout.agent("alice").state / "notes.md").exists()
    with pytest.raises(Refused, match="whole hive"):
        await backups.take_in(
            (await backups.create()).path, "dora", peer_uid=0, uid_for=ours, take_rows=refuse
        )


@pytest.mark.parametrize("text", [b"", b"[]", b'{"messages": [{"sender": 1}]}', b"[" * 10**5])
def test_rows_that_make_no_sense_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        moving.decode_luggage(text)


# ── space ───────────────────────────────────────────────────────────────────────────────────────


def test_a_file_that_is_half_empty_is_written_anew_and_keeps_every_row(tmp_path: Path) -> None:
    path = a_hive(tmp_path / "h").database
    before = rows(path)
    with closing(apsw.Connection(str(path))) as db:
        db.executemany("insert into daemon values (?, ?)", [(f"k{n}", "x" * 3000) for n in range(1000)])
        db.execute("delete from daemon where key like 'k%'")
        db.execute("pragma wal_checkpoint(truncate)")
    size = path.stat().st_size

    assert give_back_space(path, min_free_bytes=10 * 2**20, max_live_bytes=10**9) == 0
    saved = give_back_space(path, min_free_bytes=2**20, max_live_bytes=10**9)

    assert saved > 2 * 2**20
    assert path.stat().st_size == size - saved
    assert rows(path) == before
    assert give_back_space(path, min_free_bytes=0, max_live_bytes=10**9) == 0
    assert give_back_space(tmp_path / "none", min_free_bytes=0, max_live_bytes=0) == 0


def test_a_file_that_is_none_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(b"something else")
    assert give_back_space(path, min_free_bytes=0, max_live_bytes=10**9) == 0
    assert path.read_bytes() == b"something else"


async def test_files_of_one_that_is_purged_meanwhile_are_touched_by_nobody(tmp_path: Path) -> None:
    layout = a_hive(tmp_path / "h")

    async def named() -> list[str]:
        return ["alice", "bob"]

    async def uid_of(agent: str) -> None:
        if agent == "alice":
            raise LookupError(agent)

    repositories = Repositories(layout, isolated=False)
    backups = Backups(layout, repositories, agents=named, uid_of=uid_of, wall_clock=lambda: 1_000_000.0)

    made = await backups.create()

    assert made.manifest is not None
    assert made.manifest.agents == ["bob"]
    assert not any("alice" in part for part in made.manifest.parts)
    with pytest.raises(Refused, match="cannot export alice: it was purged meanwhile"):
        await backups.export("alice", b"{}", 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_an_agent_that_is_imported_gets_users_of_its_own(tmp_path: Path) -> None:
    here, there = a_hive(tmp_path / "h"), a_hive(tmp_path / "other")
    made = await backups_of(here).export("alice", b"{}", 0)
    took: list[int | None] = []

    async def uid_for(_agent: str) -> int:
        return 0x50000000

    async def take_rows(agent: str, uid_base: int | None, text: bytes) -> None:
        took.append(uid_base)

    await backups_of(there).take_in(made.path, "carol", peer_uid=0, uid_for=uid_for, take_rows=take_rows)

    dirs = there.agent("carol")
    assert took == [0x50000000]
    assert stat.S_IMODE(dirs.base.stat().st_mode) == 0o700
    assert dirs.base.stat().st_uid == 0
    assert {path.stat().st_uid for path in (dirs.state, dirs.state / "notes.md")} == {0x50000000}

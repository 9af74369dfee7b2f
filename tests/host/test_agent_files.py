"""What an agent may have planted where its event file should be costs only its own history."""

import os
import sqlite3
import stat
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from hive_core.host import agent_files, agent_files_worker
from hive_core.host.process import CommandError

FILE = "hyperhive-events.sqlite"


def event_file(directory: Path, count: int, payload: str = '{"text": "hi"}') -> None:
    db = sqlite3.connect(directory / FILE)
    db.execute("pragma journal_mode = wal")
    db.execute("create table events (id integer primary key, ts real, kind text, payload_json text)")
    db.executemany(
        "insert into events values (?, ?, ?, ?)",
        [(n, 100.0 + n, "note" if n % 2 else "stream", payload) for n in range(1, count + 1)],
    )
    db.commit()
    db.close()


async def read(
    directory: Path, *, after: int | None = None, limit: int = 100, kinds: list[str] | None = None
) -> list[int]:
    found, _ = await agent_files.read_events(directory, after=after, limit=limit, kinds=kinds)
    return [event.id for event in found]


async def test_events_are_read_from_both_ends(tmp_path: Path) -> None:
    event_file(tmp_path, 10)
    assert await read(tmp_path, limit=3) == [8, 9, 10]
    assert await read(tmp_path, after=0, limit=3) == [1, 2, 3]
    assert await read(tmp_path, after=8) == [9, 10]
    assert await read(tmp_path, kinds=["note"], limit=2) == [7, 9]


async def test_more_is_said_when_there_is_more(tmp_path: Path) -> None:
    event_file(tmp_path, 10)
    assert (await agent_files.read_events(tmp_path, after=0, limit=9, kinds=None))[1]
    assert not (await agent_files.read_events(tmp_path, after=0, limit=10, kinds=None))[1]


async def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert await read(tmp_path) == []


async def test_an_answer_is_bounded_whatever_the_file_holds(tmp_path: Path) -> None:
    event_file(tmp_path, 200, '{"text": "' + "x" * 200_000 + '"}')
    found, more = await agent_files.read_events(tmp_path, after=0, limit=1000, kinds=None)
    assert 0 < len(found) < 200
    assert more


@pytest.mark.parametrize(
    "payload", ["not json", "[1, 2]", '{"a": NaN}', "[" * 50_000, '{"x": "' + "y" * 400_000 + '"}']
)
async def test_a_strange_payload_is_one_strange_event(tmp_path: Path, payload: str) -> None:
    event_file(tmp_path, 2, payload)
    assert await read(tmp_path) == [1, 2]


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    event_file(elsewhere, 3)
    (tmp_path / FILE).symlink_to(elsewhere / FILE)
    with pytest.raises(CommandError, match="not a regular file"):
        await read(tmp_path)


async def test_a_fifo_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    with trio.fail_after(8), pytest.raises(CommandError, match="not a regular file"):
        await read(tmp_path)


async def test_a_corrupt_file_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    with pytest.raises(CommandError, match="cannot read"):
        await read(tmp_path)


async def test_a_link_in_the_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    event_file(elsewhere, 3)
    (tmp_path / "state").symlink_to(elsewhere)
    with pytest.raises(CommandError, match=r"cannot read hyperhive-events\.sqlite"):
        await read(tmp_path / "state")
    assert await read(tmp_path / "nothing") == []


async def test_a_tree_deeper_than_any_path_is_deleted(tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    fd = os.open(doomed, os.O_RDONLY)
    for number in range(3000):
        os.mkdir("d" * 50, dir_fd=fd)
        if number % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.mkdir(".moved-1", dir_fd=fd)
        deeper = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)

    await agent_files.remove(doomed)

    assert not doomed.exists()


async def test_what_an_agent_may_have_made_is_deleted(tmp_path: Path) -> None:
    doomed = tmp_path / "doomed"
    (doomed / "locked" / "inner" / "most").mkdir(parents=True)
    (doomed / "locked" / "inner" / "most" / "file").touch()
    os.mkfifo(doomed / "locked" / "fifo")
    (doomed / "locked" / "-rf").touch()
    os.truncate(os.open(doomed / "giant", os.O_CREAT | os.O_WRONLY), 2**40)
    with open(os.fsencode(doomed) + b"/no\xffutf8\n", "w"):
        pass
    (doomed / "loop").symlink_to(doomed)
    for path in (doomed / "locked" / "inner" / "most", doomed / "locked" / "inner", doomed / "locked"):
        path.chmod(0)

    await agent_files.remove(doomed)

    assert not doomed.exists()


# ── as the agent's own user ─────────────────────────────────────────────────────────────────────

ALICE = 0x40000000
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of an agent, below one that nobody else may look into."""
    base = tmp_path / "alice"
    base.mkdir(mode=0o700)
    state_dir = base / "state"
    state_dir.mkdir(mode=0o700)
    return state_dir


def give(path: Path, uid: int = ALICE) -> None:
    for directory, names, files in os.walk(path):
        for name in (*names, *files):
            os.chown(os.path.join(directory, name), uid, uid, follow_symlinks=False)
    os.chown(path, uid, uid)


async def read_as(directory: Path, uid: int = ALICE) -> list[int]:
    found, _ = await agent_files.read_events(directory, after=None, limit=100, kinds=None, uid=uid)
    return [event.id for event in found]


@pytest.mark.root
@by_root
async def test_history_is_read_as_the_user_that_it_belongs_to(state: Path) -> None:
    event_file(state, 3)
    give(state)

    assert await read_as(state) == [1, 2, 3]
    assert (await agent_files.read_stats(state, since=0.0, uid=ALICE)).turns == 0
    with pytest.raises(CommandError, match="cannot read"):
        await read_as(state, ALICE + 65536)


@pytest.mark.root
@by_root
async def test_a_file_of_root_is_not_read_for_an_agent(state: Path) -> None:
    event_file(state, 3)
    give(state)
    os.chown(state / FILE, 0, 0)
    (state / FILE).chmod(0o600)

    with pytest.raises(CommandError, match="cannot read"):
        await read_as(state)


@pytest.mark.root
@by_root
@pytest.mark.parametrize("place", ["the file", "its journal", "its log", "its index"])
async def test_a_link_out_of_the_directory_leads_nowhere(state: Path, tmp_path: Path, place: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    event_file(victim, 3)
    before = (victim / FILE).read_bytes()
    event_file(state, 2)
    planted = {"the file": FILE, "its journal": f"{FILE}-journal", "its log": f"{FILE}-wal"}
    name = planted.get(place, f"{FILE}-shm")
    (state / name).unlink(missing_ok=True)
    (state / name).symlink_to(victim / FILE)
    give(state)

    with suppress(CommandError):
        await read_as(state)

    assert (victim / FILE).read_bytes() == before
    assert sorted(path.name for path in victim.iterdir()) == [FILE]


@pytest.mark.root
@by_root
async def test_a_forged_journal_deletes_nothing_outside(state: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    db = sqlite3.connect(state / FILE)
    db.execute("create table events (id integer primary key, ts real, kind text, payload_json text)")
    db.commit()
    db.close()
    # A hot journal that names a super-journal: SQLite that rolls it back deletes the file of that name.
    name = str(victim).encode()
    magic = bytes.fromhex("d9d505f920a163d7")
    header = magic + struct.pack(">IIIII", 0, 7, 1, 512, 4096)
    tail = struct.pack(">I", 2) + name + struct.pack(">II", len(name), sum(name)) + magic
    (state / f"{FILE}-journal").write_bytes(header.ljust(512, b"\0") + tail)
    give(state)

    with suppress(CommandError):
        await read_as(state)

    assert victim.read_text() == "precious"


@pytest.mark.root
@by_root
async def test_a_sparse_giant_and_an_index_that_shrinks_cost_nobody_but_the_agent(state: Path) -> None:
    event_file(state, 2)
    os.truncate(state / FILE, 2**40)
    give(state)
    with trio.fail_after(12), suppress(CommandError, trio.TooSlowError):
        await read_as(state)

    (state / f"{FILE}-shm").write_bytes(b"\0")
    (state / f"{FILE}-wal").write_bytes(os.urandom(5000))
    give(state)
    with trio.fail_after(12), suppress(CommandError, trio.TooSlowError):
        await read_as(state)


@pytest.mark.root
@by_root
async def test_the_files_of_all_users_of_a_machine_are_deleted(state: Path) -> None:
    for number, uid in enumerate((ALICE, ALICE + 1000, ALICE + 65534)):
        (state / f"home{number}" / "deep" / "er").mkdir(parents=True)
        (state / f"home{number}" / "deep" / "er" / "file").touch()
        give(state / f"home{number}", uid)
        for path in (state / f"home{number}" / "deep", state / f"home{number}"):
            path.chmod(0o700)
    give_top = state.parent
    os.mknod(state / "socket", 0o600 | stat.S_IFSOCK)

    await agent_files.remove(give_top)

    assert not give_top.exists()


@pytest.mark.root
@by_root
async def test_what_cannot_be_deleted_is_named_and_the_rest_is_deleted_next_time(state: Path) -> None:
    immutable = state / "kept"
    immutable.touch()
    done = subprocess.run(["chattr", "+i", immutable], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("this file system has no immutable files")
    try:
        with pytest.raises(CommandError, match="Operation not permitted; look with lsattr"):
            await agent_files.remove(state.parent)
        assert immutable.exists()
    finally:
        subprocess.run(["chattr", "-i", immutable], check=True)
    await agent_files.remove(state.parent)
    assert not state.parent.exists()


def test_more_names_than_fit_into_memory_are_deleted_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for top in range(5):
        for inner in range(5):
            (tmp_path / f"d{top}" / f"d{inner}" / "deep").mkdir(parents=True)
            (tmp_path / f"d{top}" / f"f{inner}").touch()
    monkeypatch.setattr(agent_files_worker, "NAMES_AT_ONCE", 2)
    monkeypatch.delattr(os, "listdir")
    fd = os.open(tmp_path, os.O_RDONLY)

    agent_files_worker._empty(fd)

    os.close(fd)
    assert [entry.name for entry in os.scandir(tmp_path)] == []


async def test_a_directory_is_deleted_without_following_links(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    doomed = tmp_path / "doomed"
    (doomed / "deep" / "er").mkdir(parents=True)
    (doomed / "link").symlink_to(kept)
    await agent_files.remove(doomed)
    assert not doomed.exists()
    assert (kept / "file").exists()
    await agent_files.remove(doomed)

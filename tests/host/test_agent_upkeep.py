"""What an agent may have planted where we write and prune costs one line and nothing of anybody else."""

import fcntl
import io
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trio

from hive_core.domain.retention import Cutoffs
from hive_core.host import agent_upkeep
from hive_core.host.agent_upkeep import Pruned
from hive_core.host.process import CommandError

EVENTS, STATS = "hyperhive-events.sqlite", "hyperhive-turn-stats.sqlite"
NOW = 1_000_000.0
OLD, YOUNG = NOW - 100, NOW + 100
ALL = Cutoffs(events=NOW, turn_stats=NOW)


def events(directory: Path, rows: list[tuple[float, str]], journal: str = "wal") -> Path:
    path = directory / EVENTS
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"pragma journal_mode = {journal}")
        db.execute(
            "create table events (id integer primary key autoincrement, ts real not null, kind text not null,"
            " payload_json text not null)"
        )
        db.executemany("insert into events (ts, kind, payload_json) values (?, ?, '{}')", rows)
        db.commit()
    return path


def stats(directory: Path, times: list[tuple[float | None, float | None]]) -> Path:
    path = directory / STATS
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table turn_stats (id integer primary key, started_at real, ended_at real)")
        db.executemany("insert into turn_stats (started_at, ended_at) values (?, ?)", times)
        db.commit()
    return path


def ids(path: Path, table: str = "events") -> list[int]:
    with closing(sqlite3.connect(path, timeout=10)) as db:
        return [row[0] for row in db.execute(f"select id from {table} order by id")]


async def prune(directory: Path, cutoffs: Cutoffs = ALL, *, dry_run: bool = False) -> dict[str, Pruned]:
    with trio.fail_after(15):
        found = await agent_upkeep.prune(directory, cutoffs, dry_run=dry_run)
    return {one.file: one for one in found}


# ── by age ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_old_goes_and_what_is_young_stays(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 250 + [(YOUNG, "note")] * 30)
    other = stats(tmp_path, [(OLD, OLD), (OLD, YOUNG), (OLD, None), (None, None)])

    found = await prune(tmp_path)

    assert (found[EVENTS].goes, found[STATS].goes) == (250, 2)
    assert ids(path) == list(range(251, 281))
    assert ids(other, "turn_stats") == [2, 4]


async def test_a_dry_run_counts_the_same_and_changes_nothing(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 250 + [(YOUNG, "note")])
    found = await prune(tmp_path, dry_run=True)
    assert found[EVENTS].goes == 250
    assert len(ids(path)) == 251


async def test_streams_alone_can_be_made_to_go(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "stream"), (OLD, "note"), (YOUNG, "stream")])
    await prune(tmp_path, Cutoffs(streams=NOW))
    assert ids(path) == [2, 3]


async def test_nothing_goes_without_a_cutoff(tmp_path: Path) -> None:
    events(tmp_path, [(OLD, "note")])
    assert await prune(tmp_path, Cutoffs()) == {}


async def test_old_rows_behind_young_ones_go_as_well(tmp_path: Path) -> None:
    path = events(tmp_path, [(YOUNG, "note")] * 150 + [(OLD, "note")] * 150)
    assert (await prune(tmp_path))[EVENTS].goes == 150
    assert len(ids(path)) == 150


async def test_ids_are_not_given_again(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 5)
    await prune(tmp_path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("insert into events (ts, kind, payload_json) values (1, 'note', '{}')")
        db.commit()
    assert ids(path) == [6]


async def test_no_directory_and_no_file_are_nothing_to_do(tmp_path: Path) -> None:
    assert await prune(tmp_path / "gone") == {}
    assert await prune(tmp_path) == {}


async def test_a_harness_that_writes_all_the_time_loses_no_event(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 5000)
    stop, failed = threading.Event(), []

    def harness() -> None:
        with closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as db:
            while not stop.is_set():
                try:
                    db.execute(
                        "insert into events (ts, kind, payload_json) values (?, 'note', '{}')", (YOUNG,)
                    )
                except sqlite3.OperationalError as error:
                    failed.append(error)
                time.sleep(0.001)

    thread = threading.Thread(target=harness)
    thread.start()
    try:
        found = await prune(tmp_path)
    finally:
        stop.set()
        thread.join()
    assert found[EVENTS].error is None
    assert found[EVENTS].goes == 5000
    assert failed == []


async def test_the_space_of_a_small_file_is_given_back(tmp_path: Path) -> None:
    path = events(tmp_path, [(YOUNG, "note")])
    with closing(sqlite3.connect(path)) as db:
        db.executemany(
            "insert into events (ts, kind, payload_json) values (?, 'note', ?)", [(OLD, "x" * 4000)] * 3000
        )
        db.commit()
    before = path.stat().st_size
    found = await prune(tmp_path)
    assert found[EVENTS].freed_bytes > 8 * 2**20
    assert path.stat().st_size < before / 4
    assert ids(path) == [1]


# ── traps ───────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def link(directory: Path) -> Iterator[None]:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    target = events(elsewhere, [(OLD, "note")])
    (directory / EVENTS).symlink_to(target)
    yield
    assert ids(target) == [1]


@contextmanager
def fifo(directory: Path) -> Iterator[None]:
    os.mkfifo(directory / EVENTS)
    yield


@contextmanager
def fifo_as_index(directory: Path) -> Iterator[None]:
    events(directory, [(OLD, "note")])
    (directory / f"{EVENTS}-shm").unlink(missing_ok=True)
    os.mkfifo(directory / f"{EVENTS}-shm")
    yield


@contextmanager
def a_directory(directory: Path) -> Iterator[None]:
    (directory / EVENTS).mkdir()
    yield


@contextmanager
def lease(directory: Path) -> Iterator[None]:
    fd = os.open(events(directory, [(OLD, "note")]), os.O_RDWR)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        yield
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)


CUT_OFF = """
import sqlite3, os, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute('pragma cache_size = 1')
db.execute('begin')
db.execute("update events set payload_json = 'half'")
os.kill(os.getpid(), 9)
"""


@contextmanager
def hot_journal(directory: Path) -> Iterator[None]:
    path = events(directory, [(OLD, "note")] * 2000, journal="delete")
    # A transaction that is cut off after it wrote into the file.
    subprocess.run(
        [
            sys.executable,
            "-c",
            CUT_OFF,
            str(path),
        ],
        check=False,
    )
    journal = path.with_name(f"{EVENTS}-journal")
    assert journal.stat().st_size
    yield
    assert journal.stat().st_size


@contextmanager
def corrupt(directory: Path) -> Iterator[None]:
    (directory / EVENTS).write_bytes(b"SQLite format 3\0" + os.urandom(8000))
    yield


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    with closing(sqlite3.connect(events(directory, [(OLD, "note")]), isolation_level=None)) as db:
        db.execute("begin immediate")
        yield


@contextmanager
def not_ours(directory: Path) -> Iterator[None]:
    with closing(sqlite3.connect(directory / EVENTS)) as db:
        db.execute("create view events as select 1 as id, 1.0 as ts")
    yield


@contextmanager
def endless_trigger(directory: Path) -> Iterator[None]:
    with closing(sqlite3.connect(events(directory, [(OLD, "note")]))) as db:
        db.execute(
            "create trigger t before delete on events begin insert into events (ts, kind, payload_json) select 1, '', ''"
            " from (with recursive n(x) as (select 1 union all select x + 1 from n) select x from n where x < 0); end"
        )
        db.commit()
    yield


TRAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link": (link, "symbolic links"),
    "a FIFO": (fifo, "not a regular file"),
    "a FIFO as -shm": (fifo_as_index, "not a regular file"),
    "a directory": (a_directory, "directory"),
    "a lease": (lease, "leased"),
    "a hot journal": (hot_journal, "rollback journal"),
    "a corrupt file": (corrupt, ""),
    "a lock": (locked, "locked"),
    "something else": (not_ours, ""),
    "an endless trigger": (endless_trigger, ""),
}


@pytest.mark.parametrize("trap", TRAPS)
async def test_a_trap_costs_one_line_and_the_other_file_is_pruned(tmp_path: Path, trap: str) -> None:
    set_up, says = TRAPS[trap]
    state = tmp_path / "state"
    state.mkdir()
    other = stats(state, [(OLD, OLD)])

    with set_up(state):  # type: ignore[attr-defined]
        found = await prune(state)

    error = found[EVENTS].error
    assert error is not None or trap == "something else"
    assert says in (error or "")
    assert "\n" not in (error or "")
    assert ids(other, "turn_stats") == []


async def test_an_index_cut_off_while_it_is_mapped_kills_one_child(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 20_000)
    other = stats(tmp_path, [(OLD, OLD)])
    stop = threading.Event()

    def cut() -> None:
        while not stop.is_set():
            for suffix in ("-shm", "-wal"):
                with suppress(FileNotFoundError):
                    os.truncate(f"{path}{suffix}", 0)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        found = await prune(tmp_path)
    finally:
        stop.set()
        thread.join()
    assert set(found) == {EVENTS, STATS}
    assert ids(other, "turn_stats") == []


async def test_nothing_is_left_running_when_a_sweep_is_cut_off(tmp_path: Path) -> None:
    def processes() -> list[str]:
        return [
            path.parent.name
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if str(tmp_path).encode() in _text_of(path)
        ]

    with endless_trigger(tmp_path):
        with trio.move_on_after(1) as scope:
            await agent_upkeep.prune(tmp_path, ALL)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            while processes():
                await trio.sleep(0.02)


def _text_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_fifty_sparse_gigabytes_cost_no_time(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 100 + [(YOUNG, "note")])
    os.truncate(path, 50 * 10**9)
    began = time.monotonic()
    found = await prune(tmp_path)
    assert time.monotonic() - began < 10
    assert set(found) == {EVENTS}


async def test_a_file_that_disappears_in_mid_sweep_is_one_line_at_most(tmp_path: Path) -> None:
    path = events(tmp_path, [(OLD, "note")] * 20_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prune, tmp_path)
        await trio.sleep(0.15)
        for name in list(tmp_path.iterdir()):
            name.unlink(missing_ok=True)
        (tmp_path / EVENTS).mkdir()
    assert path.is_dir()


async def test_a_link_in_place_of_the_directory_is_not_entered(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    path = events(target, [(OLD, "note")])
    (tmp_path / "state").symlink_to(target)
    with pytest.raises(CommandError):
        await prune(tmp_path / "state")
    assert ids(path) == [1]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_the_child_is_the_agent_and_sees_nothing_outside(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    path = events(state, [(OLD, "note")])
    os.chmod(tmp_path, 0o755)
    os.chown(state, 61234, 61234)
    for name in state.iterdir():
        os.chown(name, 61234, 61234)
    secret = tmp_path / "secret"
    secret.write_text("s")

    await agent_upkeep.prune(state, ALL, uid=61234)
    await agent_upkeep.write_file(state, "a/b", "text", uid=61234)

    assert ids(path) == []
    assert (state / "a" / "b").stat().st_uid == 61234
    (state / "l").symlink_to(secret)
    await agent_upkeep.write_file(state, "l", "text", uid=61234)
    assert secret.read_text() == "s"


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_is_written_with_the_directories_it_needs(tmp_path: Path) -> None:
    await agent_upkeep.write_file(tmp_path, "reminders/2026/7.md", "tea — “now”")
    written = tmp_path / "reminders" / "2026" / "7.md"
    assert written.read_text() == "tea — “now”"
    assert written.stat().st_mode & 0o777 == 0o600
    await agent_upkeep.write_file(tmp_path, "reminders/2026/7.md", "again")
    assert written.read_text() == "again"
    assert sorted(path.name for path in written.parent.iterdir()) == ["7.md"]


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../x", "/etc/x", "a/../b", "a//b", "a/", "/".join("a" * 40)]
)
async def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(CommandError, match="no path below"):
        await agent_upkeep.write_file(tmp_path / "", path, "x")
    assert list(tmp_path.iterdir()) == []


def test_half_a_text_replaces_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("whole")
    argv = ["-I", "-m", "hive_core.host.agent_upkeep_worker", "write", str(tmp_path), "--path", "a.md"]

    done = subprocess.run(
        [sys.executable, *argv, "--size", "10"], input="half", capture_output=True, text=True, timeout=10
    )

    assert (done.returncode, done.stderr) == (1, "cannot write a.md: only 4 of 10 bytes came\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"]
    assert (tmp_path / "a.md").read_text() == "whole"


async def test_no_link_is_followed_on_the_way_and_one_at_its_end_is_replaced(tmp_path: Path) -> None:
    outside, state = tmp_path / "outside", tmp_path / "state"
    outside.mkdir()
    state.mkdir()
    (outside / "file").write_text("kept")
    (state / "dir").symlink_to(outside)
    (state / "file").symlink_to(outside / "file")
    with pytest.raises(CommandError, match="cannot write dir/file"):
        await agent_upkeep.write_file(state, "dir/file", "x")
    await agent_upkeep.write_file(state, "file", "x")
    assert (outside / "file").read_text() == "kept"
    assert (state / "file").read_text() == "x"


async def test_a_directory_or_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("x")
    for path in ("d", "f/x"):
        with pytest.raises(CommandError, match=f"cannot write {path}"):
            await agent_upkeep.write_file(tmp_path, path, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "f"]


# ── packing ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_directory_comes_back_from_its_archive(tmp_path: Path) -> None:
    state, back = tmp_path / "state", tmp_path / "back"
    (state / "deep" / "er").mkdir(parents=True)
    back.mkdir()
    (state / "deep" / "er" / "notes.md").write_text("notes")
    (state / "link").symlink_to("/etc/passwd")
    os.mkfifo(state / "fifo")
    path = events(state, [(OLD, "note")] * 10)
    with closing(sqlite3.connect(path)) as harness:  # its last rows are in the write-ahead log alone
        harness.execute("insert into events (ts, kind, payload_json) values (1, 'late', '{}')")
        harness.commit()
        with (tmp_path / "tar").open("w+b") as file:
            await agent_upkeep.pack(state, file)
            file.seek(0)
            packed = file.read()

    await agent_upkeep.unpack(back, tmp_path / "tar")

    assert (back / "deep" / "er" / "notes.md").read_text() == "notes"
    assert os.readlink(back / "link") == "/etc/passwd"
    assert ids(back / EVENTS) == list(range(1, 12))
    assert sorted(path.name for path in back.iterdir()) == ["deep", EVENTS, "link"]
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        left_out = tar.extractfile(".hive-left-out")
        assert left_out is not None
        assert b"fifo: it is neither" in left_out.read()


def stored(directory: Path, stream: io.BytesIO) -> Path:
    path = directory / "tar"
    path.write_bytes(stream.getvalue())
    return path


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "."])
async def test_an_archive_that_names_something_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    state = tmp_path / "state"
    state.mkdir()
    with pytest.raises(CommandError, match="no path below"):
        await agent_upkeep.unpack(state, stored(tmp_path, stream))
    assert list(state.iterdir()) == []


async def test_an_archive_cannot_write_through_its_own_link(tmp_path: Path) -> None:
    outside, state = tmp_path / "outside", tmp_path / "state"
    outside.mkdir()
    state.mkdir()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        door = tarfile.TarInfo("door")
        door.type, door.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(door)
        tar.addfile(tarfile.TarInfo("door/x"))
    with pytest.raises(CommandError):
        await agent_upkeep.unpack(state, stored(tmp_path, stream))
    assert list(outside.iterdir()) == []

"""Run as root in a machine, in its state directory: plants something there for the host to trip over.

    python3 - TRAP FILE... < plant.py       FILE is one of the two databases that the host reads

The environment says HOST_FILE, a path of the host that must survive.
"""

import fcntl
import os
import random
import signal
import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Callable

HOST_FILE = os.environ.get("HOST_FILE", "/nothing-planted")
EVENTS = "create table events (id integer primary key, ts real, kind text, payload_json)"
STATS = "create table turn_stats (started_at integer, duration_ms integer, model text, wake_from text, result_kind text)"
GIB = 2**30


def clear(file: str) -> None:
    for name in (file, f"{file}-journal", f"{file}-wal", f"{file}-shm"):
        if os.path.lexists(name):
            os.rmdir(name) if os.path.isdir(name) and not os.path.islink(name) else os.unlink(name)


def database(file: str, page_size: int = 4096) -> sqlite3.Connection:
    db = sqlite3.connect(file)
    db.execute(f"pragma page_size = {page_size}")
    db.execute(EVENTS)
    db.execute(STATS)
    db.execute("insert into events values (1, 1.0, 'note', '{}')")
    db.execute("insert into turn_stats values (?, 5, 'm', 'w', 'ok')", (int(time.time()),))
    db.commit()
    return db


def link_to_the_hive(file: str) -> None:
    os.symlink("/var/lib/hyperhive/broker.sqlite", file)


def link_to_itself(file: str) -> None:
    os.symlink(file, file)


def link_to_a_process(file: str) -> None:
    os.symlink("/proc/self/mem", file)


def fifo(file: str) -> None:
    os.mkfifo(file)


def named_socket(file: str) -> None:
    socket.socket(socket.AF_UNIX).bind(file)


def directory(file: str) -> None:
    os.mkdir(file)


def sparse_giant(file: str) -> None:
    with open(file, "wb") as giant:
        giant.truncate(50 * GIB)


def sparse_giant_with_a_header(file: str) -> None:
    database(file).close()
    os.truncate(file, 50 * GIB)


def noise(file: str) -> None:
    with open(file, "wb") as out:
        out.write(b"SQLite format 3\0" + random.Random(1).randbytes(2**20))


def noise_behind_a_schema(file: str) -> None:
    database(file).close()
    with open(file, "r+b") as out:
        out.seek(4096)
        out.write(random.Random(2).randbytes(16 * 4096))


def hot_journal(file: str) -> None:
    """One whose rollback ends in the deletion of the journals that it names."""
    database(file).close()
    for name in (HOST_FILE, "/hyperhive-victim"):
        with open(f"{file}-journal", "wb") as out:
            header = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + struct.pack(">IIIII", 0, 1, 3, 512, 4096)
            out.write(header.ljust(512, b"\0"))
            path = name.encode()
            out.write(
                struct.pack(">I", 262145)
                + path
                + struct.pack(">II", len(path), sum(path) & 0xFFFFFFFF)
                + header[:8]
            )


def truncated_shm(file: str) -> None:
    db = database(file)
    db.execute("pragma journal_mode = wal")
    db.execute("insert into events values (2, 2.0, 'note', '{}')")
    db.commit()
    for name in (file, f"{file}-wal", f"{file}-shm"):
        os.rename(name, f"kept-{name}")
    db.close()
    for name in (file, f"{file}-wal", f"{file}-shm"):
        os.rename(f"kept-{name}", name)
    os.truncate(f"{file}-shm", 0)


def shm_is_a_fifo(file: str) -> None:
    truncated_shm(file)
    os.unlink(f"{file}-shm")
    os.mkfifo(f"{file}-shm")


def row_of_10_gigabytes(file: str) -> None:
    """More than SQLite can write; the file says all the same that it is there."""
    forged_row(file, 10 * GIB)


def row_of_900_megabytes(file: str) -> None:
    """As much as SQLite reads, for a file of some kilobytes."""
    forged_row(file, 900 * 10**6)


def forged_row(file: str, size: int) -> None:
    """An event that is *size* bytes long: a page of overflow that follows itself goes on for ever."""
    page_size = 65536
    db = database(file, page_size)
    db.execute("delete from events")
    db.execute("insert into events values (1, 1.0, 'stream', cast(zeroblob(?) as text))", (300 * page_size,))
    db.commit()
    root = db.execute("select rootpage from sqlite_schema where name = 'events'").fetchone()[0]
    db.close()
    kinds = bytes([0, 7, 13 + 2 * 6]) + varint(13 + 2 * size)
    record = bytes([len(kinds) + 1]) + kinds + struct.pack(">d", 1.0) + b"stream"
    total = len(record) + size
    most, least = page_size - 35, (page_size - 12) * 32 // 255 - 23
    local = least + (total - least) % (page_size - 4)
    local = local if local <= most else least
    overflow, pages = root + 2, 11 * GIB // page_size
    cell = varint(total) + b"\1" + record.ljust(local, b"{") + struct.pack(">I", overflow)
    with open(file, "r+b") as out:
        page = bytearray(os.pread(out.fileno(), page_size, (root - 1) * page_size))
        page[page_size - len(cell) :] = cell
        struct.pack_into(">HHH", page, 3, 1, page_size - len(cell), 0)
        struct.pack_into(">H", page, 8, page_size - len(cell))
        os.pwrite(out.fileno(), page, (root - 1) * page_size)
        os.pwrite(
            out.fileno(), struct.pack(">I", overflow) + b"x" * (page_size - 4), (overflow - 1) * page_size
        )
        os.pwrite(out.fileno(), struct.pack(">I", pages), 28)
        out.truncate(pages * page_size)


def varint(number: int) -> bytes:
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F | 0x80)
    return bytes(reversed(groups))


def row_of_300_megabytes(file: str) -> None:
    db = database(file, 65536)
    size = 300 * 2**20
    db.execute("insert into events values (7, 1.0, 'stream', cast(zeroblob(?) as text))", (size,))
    db.execute(
        "insert into turn_stats values (?, 1, cast(zeroblob(?) as text), 'w', 'ok')", (int(time.time()), size)
    )
    db.commit()


def many_rows(file: str) -> None:
    db = database(file)
    now = int(time.time())
    db.executemany(
        "insert into events values (?, 1.0, 'note', '{}')", ((number,) for number in range(2, 400_000))
    )
    db.executemany(
        "insert into turn_stats values (?, 1, ?, 'w', 'ok')",
        ((now, str(number)) for number in range(400_000)),
    )
    db.commit()


def view_without_an_end(file: str) -> None:
    db = sqlite3.connect(file)
    count = "with recursive c(x) as (select 1 union all select x + 1 from c)"
    db.execute(
        f"create view events as {count} select x as id, 1.0 as ts, 'k' as kind, '{{}}' as payload_json from c"
    )
    db.execute(f"create view turn_stats as {count} select 9e12 as started_at, x as duration_ms from c")
    db.commit()


def wild_values(file: str) -> None:
    db = database(file)
    for number, (ts, kind, payload) in enumerate(
        [
            (float("inf"), "k", "[" * 200_000),
            (-1e300, "k" * 10_000, '{"a": NaN, "b": 1e999}'),
            ("now", "\x1b]0;title\x07", b"\xff\xfe"),
            (1.0, "\x1b[2J", '{"text": "\\u001b[31m\\ud800"}'),
            (None, None, None),
        ]
    ):
        db.execute("insert into events values (?, ?, ?, ?)", (2**62 + number, ts, kind, payload))
    db.execute(
        "insert into turn_stats values (?, ?, ?, ?, ?)", (9e15, -(2**62), "\x1b[2J", b"\xff", "x" * 100_000)
    )
    db.commit()


def leased(file: str) -> None:
    """Whoever opens it waits until we let go, or 45 s."""
    database(file).close()
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(file, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("held", flush=True)
    time.sleep(40)


def locked(file: str) -> None:
    db = database(file)
    db.execute("begin exclusive")
    print("held", flush=True)
    time.sleep(40)


TRAPS: dict[str, Callable[[str], None]] = {
    trap.__name__: trap
    for trap in (
        *(link_to_the_hive, link_to_itself, link_to_a_process, fifo, named_socket, directory, sparse_giant),
        *(
            sparse_giant_with_a_header,
            noise,
            noise_behind_a_schema,
            hot_journal,
            truncated_shm,
            shm_is_a_fifo,
        ),
        *(
            row_of_10_gigabytes,
            row_of_900_megabytes,
            row_of_300_megabytes,
            many_rows,
            view_without_an_end,
            wild_values,
            leased,
            locked,
        ),
    )
}


def litter() -> None:
    """What is in the way of who deletes all this."""
    for deep in ("state", "claude"):
        os.chdir(os.environ["HIVE_AGENT_STATE"] if deep == "state" else "/root/.claude")
        for _ in range(3000):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        os.fchdir(os.open("/", os.O_RDONLY))
    os.chdir(os.environ["HIVE_AGENT_STATE"])
    os.mkdir("many")
    for number in range(20_000):
        os.close(os.open(f"many/{number}", os.O_CREAT | os.O_WRONLY))
    os.symlink("/", "root")
    os.symlink("/var/lib/hyperhive", "hive")
    os.mkfifo("pipe")
    with open("giant", "wb") as giant:
        giant.truncate(50 * GIB)
    for uid in (1, 1000, 65534):
        os.makedirs(f"of-{uid}/closed")
        os.chmod(f"of-{uid}/closed", 0)
        os.chown(f"of-{uid}", uid, uid)
    os.makedirs(b"\xff\n\x1b[2J/-rf")


if __name__ == "__main__":
    os.chdir(os.environ["HIVE_AGENT_STATE"])
    if sys.argv[1] == "litter":
        litter()
    else:
        trap, *files = sys.argv[1:]
        for file in files:
            clear(file)
            if trap != "nothing":
                TRAPS[trap](file)

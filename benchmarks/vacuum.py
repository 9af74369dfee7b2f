"""Latency of send and recv before, during and after a sweep of a large database, in one run.

    python -m benchmarks.vacuum                                  a million messages, of which 200 000 go
    python -m benchmarks.vacuum --rows 10000000 --old 1000000    the case of the targets; minutes to make

Stalls are printed beside the idle figure: the disk has its own.
"""

import argparse
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from benchmarks import load
from benchmarks.dialects import ACK, FRAMES, RECV, SEND, LoadError
from benchmarks.ours import argv, ring
from benchmarks.processes import Child, running, serves
from hive_core.config import Config
from hive_core.layout import Layout, local_layout
from hive_core.store.schema import migrate
from hive_core.wire.client import Client

DAY_S = 86400.0
BODY_BYTES = 200
PHASE_S = 10.0


@dataclass
class Latencies:
    """Milliseconds: of a send until its answer, and from a send until the other side has it."""

    send: list[float] = field(default_factory=list)
    recv: list[float] = field(default_factory=list)

    def line(self, name: str) -> str:
        parts = [f"{name:<8} {len(self.send):>7}"]
        for found in (sorted(self.send), sorted(self.recv)):
            parts.append(
                "".join(
                    f"{value:>9.2f}"
                    for value in (_at(found, 50), _at(found, 99), _at(found, 99.9), found[-1])
                )
            )
        return "  ".join(parts)


def _at(found: list[float], percent: float) -> float:
    return found[min(len(found) - 1, int(len(found) * percent / 100))]


class Pair:
    """One agent that sends and one that receives and acks, each in its own connection."""

    def __init__(self, layout: Layout, sender: str, receiver: str) -> None:
        self._out = load.Channel(layout.agent(sender).socket, 0, hello=True)
        self._in = load.Channel(layout.agent(receiver).socket, 1, hello=True)
        for channel in (self._out, self._in):
            channel.sock.settimeout(60)
        self._send = FRAMES.send(receiver)

    def close(self) -> None:
        self._out.sock.close()
        self._in.sock.close()

    def measure(self, into: Latencies, until: Callable[[], bool]) -> None:
        while not until():
            self._in.write(FRAMES.recv)
            began = time.perf_counter()
            self._out.write(self._send)
            self._expect(self._out, SEND)
            into.send.append((time.perf_counter() - began) * 1000)
            self._expect(self._in, RECV)
            into.recv.append((time.perf_counter() - began) * 1000)
            self._in.write(FRAMES.ack)
            self._expect(self._in, ACK)

    @staticmethod
    def _expect(channel: load.Channel, call: int) -> None:
        while not (calls := channel.read(FRAMES.split)):
            pass
        if calls != [call]:
            raise LoadError(f"answers {calls} instead of {call}")


def fill(layout: Layout, names: list[str], rows: int, old: int) -> None:
    """Make a hive with *rows* acked messages, the first *old* of them a year old and the others of today."""
    layout.make()
    db = apsw.Connection(str(layout.database))
    db.execute("pragma journal_mode = off").fetchall()
    db.execute("pragma synchronous = off")
    migrate(db, str(layout.database))
    now = time.time()
    with db:
        for name in names:
            db.execute("insert into agents (name, wanted, created_at) values (?, 'stopped', ?)", (name, now))
        db.execute(
            "insert into messages (id, sender, recipient, body, sent_at, delivered_at, acked_at, thread_id)"
            " with recursive n(x) as (select 1 union all select x + 1 from n where x < ?)"
            " select x, 'bob', 'agent' || (x % 50), hex(randomblob(?)), at, at, at, x from"
            " (select x, ? - (case when x <= ? then 365 * 86400.0 else 3600.0 end) + x * 1e-5 as at from n)",
            (rows, BODY_BYTES // 2, now, old),
        )
    db.execute("pragma journal_mode = wal").fetchall()
    db.close()


@contextmanager
def daemon(layout: Layout) -> Iterator[Child]:
    """One that keeps everything until it is told otherwise."""
    config = layout.home / "hive.toml"
    config.write_text("[retention]\nmessages_days = 0\n")
    command = [*argv(layout), "--config", str(config)]
    with running(command, layout.home / "daemon.log", lambda: serves(layout.host_socket)) as child:
        yield child


def sweep(layout: Layout, child: Child) -> dict[str, float]:
    """Let it delete what is older than 30 days; give what it says of that."""
    (layout.home / "hive.toml").write_text("[retention]\nmessages_days = 30\n")
    os.kill(child.pid, signal.SIGHUP)
    time.sleep(0.5)
    request: dict[str, object] = {"cmd": "vacuum"}
    with Client(layout.host_socket, 60) as client:
        while True:
            swept = client.ask(request).get("sweep")
            if swept is not None and not swept["running"]:
                return dict(swept)
            if swept is not None:
                request["number"] = swept["number"]


def run(rows: int, old: int, pairs: int, directory: Path) -> None:
    layout = local_layout(Config(home=str(directory / "home")))
    names = ring(pairs * 2)
    began = time.perf_counter()
    fill(layout, names, rows, old)
    size = layout.database.stat().st_size / 2**20
    made_s = time.perf_counter() - began
    print(f"{rows} messages, {old} of them old, {size:.0f} MiB, made in {made_s:.0f} s; {pairs} pairs")
    with daemon(layout) as child:
        time.sleep(5)  # its first sweep, of nothing
        connected = [Pair(layout, names[2 * each], names[2 * each + 1]) for each in range(pairs)]

        def phase(until: Callable[[], bool]) -> Latencies:
            found = Latencies()
            threads = [threading.Thread(target=pair.measure, args=(found, until)) for pair in connected]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return found

        def for_seconds(seconds: float) -> Callable[[], bool]:
            end = time.monotonic() + seconds
            return lambda: time.monotonic() > end

        phase(for_seconds(2))
        before = phase(for_seconds(PHASE_S))
        swept: list[dict[str, float]] = []
        thread = threading.Thread(target=lambda: swept.append(sweep(layout, child)))
        thread.start()
        during = phase(lambda: bool(swept))
        thread.join()
        after = phase(for_seconds(PHASE_S))
        for pair in connected:
            pair.close()
    heads = "".join(f"{head:>9}" for head in ("p50", "p99", "p99.9", "max"))
    print(f"{'ms':<8} {'count':>7}  {'send' + heads[4:]}  {'recv' + heads[4:]}")
    for name, found in (("before", before), ("during", during), ("after", after)):
        print(found.line(name))
    one, slice_ms = swept[0], swept[0]["longest_slice_seconds"] * 1000
    print(f"swept {one['messages']} rows in {one['seconds']:.1f} s, longest slice {slice_ms:.1f} ms")
    idle_ms = max(before.send + after.send)
    print(f"largest stall of a send {max(during.send):.1f} ms, beside {idle_ms:.1f} ms without a sweep")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vacuum", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--old", type=int, help="how many of them go (a fifth)")
    parser.add_argument("--pairs", type=int, default=4, help="senders, each with its receiver (4)")
    parser.add_argument("--directory", type=Path, help="on the disk to be measured (a new one in /var/tmp)")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="hive-vacuum-", dir="/var/tmp"))
    try:
        run(arguments.rows, arguments.old or arguments.rows // 5, arguments.pairs, directory)
    finally:
        if arguments.directory is None:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()

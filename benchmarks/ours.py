"""The real daemon under load.  Its agents exist and are stopped: the load speaks on their sockets itself."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import apsw

from benchmarks import load
from benchmarks.dialects import FRAMES
from benchmarks.processes import Child, running, serves
from hive_core.config import Config
from hive_core.domain.cage import Shape
from hive_core.domain.machine import Wanted
from hive_core.layout import Layout, local_layout
from hive_core.store import agents
from hive_core.store.schema import migrate

SETTLE_S = 1.0
"""Load before the first figures: until the write-ahead log is reused, each sync pays for a growing file."""


class Daemon:
    """A daemon that runs, and what the load does with it."""

    def __init__(self, child: Child, layout: Layout) -> None:
        self.child, self.layout = child, layout

    @contextmanager
    def connected(self, names: Sequence[str]) -> Iterator[list[load.Channel]]:
        """Connect to the sockets of *names* as their harnesses would."""
        channels: list[load.Channel] = []
        try:
            for index, name in enumerate(names):
                channels.append(load.Channel(self.layout.agent(name).socket, index, hello=True))
            yield channels
        finally:
            for channel in channels:
                channel.sock.close()

    def sends(self, count: int, secs: float, *, to_one: bool = False) -> load.Result:
        """Durable sends that nobody receives, one open per sender, to an inbox each or all *to_one*."""
        names = senders(count)
        with self.connected(names) as channels:
            return load.requests(channels, FRAMES, names[:1] if to_one else names, secs)

    def messages(self, count: int, secs: float) -> tuple[load.Result, float]:
        """Messages round a ring, each received and acked; and the daemon's CPU µs for each."""
        names = ring(count)
        with self.connected(names) as channels:
            before = self.child.cpu_s()
            result = load.ring(channels, channels, FRAMES, names, secs)
            return result, (self.child.cpu_s() - before) / result.total * 1e6

    def messages_at(self, rate: float, count: int, secs: float) -> load.Result:
        """The same ring with *rate* messages a second, whatever the daemon does."""
        names = ring(count)
        with self.connected(names) as channels:
            return load.open_loop(channels, names, rate, secs)


def senders(count: int) -> list[str]:
    return [f"s{index:03d}" for index in range(count)]


def ring(count: int) -> list[str]:
    return [f"r{index:03d}" for index in range(count)]


def prepare(home: Path, names: Sequence[str]) -> Layout:
    """Make a hive at *home* in which *names* were spawned and stopped."""
    layout = local_layout(Config(home=str(home)))
    layout.make()
    db = apsw.Connection(str(layout.database))
    try:
        migrate(db, str(layout.database))
        with db:
            for name in names:
                agents.create(db, name, time.time(), None, Shape())
                agents.want(db, name, Wanted.STOPPED, time.time())
    finally:
        db.close()
    return layout


def argv(layout: Layout) -> list[str]:
    return [sys.executable, "-P", "-m", "hive_core", "serve", "--local", "--home", str(layout.home)]


@contextmanager
def daemon(home: Path, names: Sequence[str]) -> Iterator[Daemon]:
    """Serve a fresh hive with *names* at *home* inside the block."""
    layout = prepare(home, names)
    log = home / "daemon.log"
    with running(argv(layout), log, lambda: serves(layout.host_socket)) as child:
        yield Daemon(child, layout)


def start_up(home: Path, count: int) -> tuple[float, float]:
    """Give seconds from exec until *count* agents can connect, and MiB when each waits in a recv."""
    names = ring(count)
    layout = prepare(home, names)
    log = home / "daemon.log"
    began = time.perf_counter()
    with running(argv(layout), log, lambda: serves(layout.host_socket)) as child:
        ready_s = time.perf_counter() - began
        with Daemon(child, layout).connected(names) as channels:
            for channel in channels:
                channel.write(FRAMES.recv)
            time.sleep(0.3)
            return ready_s, child.rss_mib()

"""What this machine can do at most: the disk's syncs, and answers through a Unix socket."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import load
from benchmarks.dialects import ECHO
from benchmarks.histogram import Histogram
from benchmarks.processes import listens, python, running

BLOCK_BYTES = 4096
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def file_system(path: Path) -> str:
    """Give the type of the file system that *path* is on, as the kernel calls it."""
    found, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        mount = fields.split()[4].encode().decode("unicode_escape")
        if len(mount) >= len(found) and Path(path).resolve().is_relative_to(mount):
            found, kind = mount, rest.split()[0]
    return kind


def is_disk(path: Path) -> bool:
    return file_system(path) not in _IN_MEMORY


def syncs(directory: Path, secs: float) -> load.Result:
    """Overwrite one block in place and fdatasync it, again and again."""
    histogram, block = Histogram(), os.urandom(BLOCK_BYTES)
    path = directory / "disk"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, bytes(2**20), 0)
        os.fsync(fd)
        at = time.perf_counter_ns()
        cpu, end = time.process_time(), at + int(secs * 1e9)
        while at < end:
            os.pwrite(fd, block, 0)
            os.fdatasync(fd)
            now = time.perf_counter_ns()
            histogram.add(now - at)
            at = now
    finally:
        os.close(fd)
        path.unlink()
    count = histogram.count
    client_cpu = (time.process_time() - cpu) / secs
    return load.Result(
        count / secs, histogram.percentile_us(50), histogram.percentile_us(99), count, client_cpu
    )


def echo(directory: Path, clients: Sequence[int], secs: float) -> dict[int, load.Result]:
    """Requests of the size of a send, answered by a Python epoll loop, by number of clients."""
    socket = directory / "echo.sock"
    found: dict[int, load.Result] = {}
    with running(python("echo_server.py", socket), directory / "echo.log", lambda: listens(socket)):
        for count in clients:
            channels = [load.Channel(socket, index) for index in range(count)]
            found[count] = load.requests(channels, ECHO, ["nobody"], secs)
            for channel in channels:
                channel.sock.close()
    return found

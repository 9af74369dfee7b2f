"""The stand-in under the same load."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import load
from benchmarks.dialects import LINES
from benchmarks.processes import listens, python, running


@contextmanager
def standin(directory: Path) -> Iterator[Path]:
    """Run the stand-in inside the block; give its socket."""
    socket = directory / "standin.sock"
    argv = python("standin_server.py", socket, directory / "standin.sqlite")
    with running(argv, directory / "standin.log", lambda: listens(socket)):
        yield socket


def sends(socket: Path, count: int, secs: float) -> load.Result:
    names = _names("s", count)
    with _connected(socket, names) as channels:
        return load.requests(channels, LINES, names, secs)


def messages(socket: Path, count: int, secs: float) -> load.Result:
    """Each agent has a connection that sends and one that waits, since a thread can do one thing."""
    names = _names("r", count)
    with _connected(socket, names) as senders, _connected(socket, names) as receivers:
        return load.ring(senders, receivers, LINES, names, secs)


def _names(letter: str, count: int) -> list[str]:
    # Names of their own for each count: the stand-in's recv outlives its connection and would eat a message.
    return [f"{letter}{count}-{index:03d}" for index in range(count)]


@contextmanager
def _connected(socket: Path, names: Sequence[str]) -> Iterator[list[load.Channel]]:
    channels = [load.Channel(socket, index) for index in range(len(names))]
    try:
        for channel, name in zip(channels, names, strict=True):
            channel.write(b'{"agent":"%s"}\n' % name.encode())
        yield channels
    finally:
        for channel in channels:
            channel.sock.close()

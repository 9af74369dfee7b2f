"""What builds said, one bounded file per deploy, and those who read along.

Much of it was written by programs that an agent chose: nothing in a line acts on the terminal that shows it.
"""

import logging
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar

import trio

T = TypeVar("T")

MAX_LOG_BYTES: Final = 2**20
HEAD_BYTES: Final = 256 * 2**10
"""Of a log that became too long, how much of its beginning stays; of its end twice that."""
MAX_LINE_CHARS: Final = 2000
MAX_LOGS: Final = 200
MARK: Final = "… here lines are missing: the log was too long …"

_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.?)", re.DOTALL)

log = logging.getLogger(__name__)


class DeployLogs:
    """The logs of deploys in *directory*, which is made when the first is written.

    A disk that does not take them is said once per deploy, and no build waits or fails for it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._silent: int | None = None

    def begin(self, deploy_id: int) -> None:
        """Make room for the log of *deploy_id*: only the newest MAX_LOGS stay."""
        self._silent = None
        with self._noting(deploy_id):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            ids = {int(path.stem) for path in self._directory.glob("*.log") if path.stem.isdecimal()}
            for old in sorted(ids - {deploy_id}, reverse=True)[MAX_LOGS - 1 :]:
                self._path(old).unlink(missing_ok=True)

    def append(self, deploy_id: int, lines: list[str]) -> None:
        """Add *lines*, of `plain_lines`."""
        with self._noting(deploy_id):
            path = self._path(deploy_id)
            with path.open("ab") as file:
                file.write("".join(f"{line}\n" for line in lines).encode())
                size = file.tell()
            if size > MAX_LOG_BYTES:
                _cut(path)

    def read(self, deploy_id: int, lines: int) -> list[str]:
        """Give the last *lines*; none when there is no such log any more.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with self._path(deploy_id).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 2 * MAX_LOG_BYTES))
                text = file.read()
        except FileNotFoundError:
            return []
        return list(deque(text.decode(errors="replace").split("\n")[:-1], lines))

    def _path(self, deploy_id: int) -> Path:
        return self._directory / f"{deploy_id}.log"

    @contextmanager
    def _noting(self, deploy_id: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._silent != deploy_id:
                self._silent = deploy_id
                log.error("Log of a deploy cannot be written deploy=%d: %s", deploy_id, error)


def plain_lines(text: str) -> list[str]:
    """Split *text* into lines of at most MAX_LINE_CHARS without escapes, controls and hidden characters.

    Of a line that was written over itself, as progress is, the last state stays.
    """
    lines = _ESCAPES.sub("", text[: MAX_LOG_BYTES // 4]).split("\n")
    return [_plain(line) for line in (lines[:-1] if lines[-1] == "" and len(lines) > 1 else lines)]


def _plain(line: str) -> str:
    shown = line.rstrip("\r").rpartition("\r")[2].expandtabs(4)
    shown = shown if shown.isprintable() else "".join(char for char in shown if char.isprintable())
    return shown if len(shown) <= MAX_LINE_CHARS else shown[: MAX_LINE_CHARS - 1] + "…"


def _cut(path: Path) -> None:
    """Take lines out of the midst of a log; whoever is killed here leaves it as it was."""
    text, mark = path.read_bytes(), f"{MARK}\n".encode()
    # An earlier cut has left its mark at the end of what stays.
    head, _, rest = text[: HEAD_BYTES + len(mark)].partition(mark)
    if not rest and len(head) > HEAD_BYTES:
        head = head[: head.rfind(b"\n", 0, HEAD_BYTES) + 1]
    tail = text[-2 * HEAD_BYTES :]
    fresh = path.with_suffix(".new")
    fresh.write_bytes(head + mark + tail[tail.find(b"\n") + 1 :])
    fresh.replace(path)


class Follower(Generic[T]):
    """One reader along: items come as they happen, and what it is too slow for is lost and counted."""

    MAX_WAITING: Final = 1000

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._lost = 0
        self._woken = trio.Event()

    def put(self, item: T) -> None:
        if len(self._items) >= self.MAX_WAITING:
            self._items.popleft()
            self._lost += 1
        self._items.append(item)
        self._woken.set()

    async def receive(self) -> tuple[list[T], int]:
        """Wait for the next items; give them, and how many before them were lost."""
        while not self._items:
            self._woken = trio.Event()
            await self._woken.wait()
        items, lost = list(self._items), self._lost
        self._items.clear()
        self._lost = 0
        return items, lost


class Audience(Generic[T]):
    """Those who read along.  Telling them never waits."""

    def __init__(self) -> None:
        self._followers: set[Follower[T]] = set()

    def tell(self, item: T) -> None:
        for follower in self._followers:
            follower.put(item)

    @contextmanager
    def follower(self) -> Iterator[Follower[T]]:
        one: Follower[T] = Follower()
        self._followers.add(one)
        try:
            yield one
        finally:
            self._followers.discard(one)

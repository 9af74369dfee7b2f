"""Runs a program on a terminal of its own, and passes on what happens there and here.

What runs in an agent's machine never gets our terminal: it could keep it, and read what is typed there
later.  (`systemd-run --machine --pty` would make one over there; with systemd 252 it looks for it here.)
"""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from hive_core.cli import programs


def relay(argv: Sequence[str]) -> int:
    """Run *argv* on a new terminal and give its exit status as a shell would.

    Raises:
        Problem: it cannot be started.
        Ended: this process was told to end; *argv* has ended.
    """
    ours, theirs = pty.openpty()
    try:
        _copy_size(ours)
        try:
            child = subprocess.Popen(
                list(argv), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
            )
        except OSError as error:
            raise programs.not_started(argv[0], error) from None
        os.close(theirs)
        theirs = -1
        with programs.signals_raise(), _raw(), _resizing(ours):
            try:
                _pass_on(child, ours)
            finally:
                programs.end(child)
        return programs.status_of(child)
    finally:
        os.close(ours)
        if theirs >= 0:
            os.close(theirs)


def _pass_on(child: subprocess.Popen[bytes], ours: int) -> None:
    ended = os.pidfd_open(child.pid)
    poller = select.poll()
    for fd in (0, ours, ended):
        poller.register(fd, select.POLLIN)
    try:
        while child.poll() is None:
            ready = [fd for fd, _ in poller.poll()]
            if ours in ready and not _pass_chunk(ours):
                poller.unregister(ours)
            if 0 in ready:
                # A person types less than a terminal takes.
                typed = os.read(0, 1024)
                if typed:
                    programs.write(ours, typed)
                else:
                    poller.unregister(0)
    finally:
        os.close(ended)
    os.set_blocking(ours, False)
    left = programs.PIPE_BYTES
    while left > 0 and (passed := _pass_chunk(ours)):
        left -= passed


def _pass_chunk(ours: int) -> int:
    """Show what was written on the terminal; 0 when there is nothing, or nobody who could write."""
    try:
        chunk = os.read(ours, programs.CHUNK_BYTES)
    except OSError:  # EIO is how it says that nobody has it open
        return 0
    programs.write(1, chunk)
    return len(chunk)


@contextmanager
def _raw() -> Iterator[None]:
    """Let every key go over, Ctrl-C too."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextmanager
def _resizing(ours: int) -> Iterator[None]:
    def resize(_number: int, _frame: FrameType | None) -> None:
        _copy_size(ours)

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _copy_size(ours: int) -> None:
    with suppress(OSError):
        fcntl.ioctl(ours, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

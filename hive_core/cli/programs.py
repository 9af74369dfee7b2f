"""Other programs: what a command of ours turns into, and what it passes bytes to and from."""

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any, Final, NoReturn

from hive_core.cli.problems import FAILED, Problem

CHUNK_BYTES: Final = 64 * 1024
PIPE_BYTES: Final = 1024 * 1024
"""The most that an unprivileged process can let a pipe hold: more than that nobody left in one."""

_PACKAGES: Final = {
    "machinectl": "apt install systemd-container",
    "systemd-run": "hive needs a host with systemd for that",
}


class Ended(Exception):
    """A signal told this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


def own(program: str) -> list[str]:
    """Give the start of a command line of hive-core: the one that this hive was installed with."""
    modules = {"hive-core": "hive_core"}
    return [sys.executable, "-I", "-m", modules[program]]


def become(argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None) -> NoReturn:
    """Let *argv* take this process's place.

    Raises:
        Problem: it cannot be started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if cwd is not None:
            os.chdir(cwd)
    except OSError as error:
        raise Problem(FAILED, f"cannot run {argv[0]} in {cwd}: {error.strerror}") from None
    try:
        os.execvpe(argv[0], list(argv), os.environ if env is None else env)  # noqa: S606 - argv, no shell
    except OSError as error:
        raise not_started(argv[0], error) from None


def relay(argv: Sequence[str]) -> int:
    """Run *argv*, pass its three streams on, and give its exit status as a shell would.

    It gets pipes of ours and never our own descriptors: those may be a terminal or a file, and what they
    are handed to may keep them.

    Raises:
        Problem: it cannot be started.
        OSError: what it writes cannot be passed on.
        Ended, KeyboardInterrupt: this process was told to end; *argv* has ended.
    """
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(list(argv), stdin=pipe, stdout=pipe, stderr=pipe)
    except OSError as error:
        raise not_started(argv[0], error) from None
    with signals_raise():
        try:
            # A thread, since either direction may have to wait for the other; it ends with this process.
            threading.Thread(target=_pass_input, args=[child.stdin], daemon=True).start()
            _pass_output(child)
        finally:
            end(child)
    return status_of(child)


def end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        child.wait()


def status_of(child: subprocess.Popen[bytes]) -> int:
    """Give the exit status of *child*, which has ended, as a shell would."""
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _pass_input(into: IO[bytes]) -> None:
    with suppress(OSError):  # it wants no more, or there is no stdin
        while chunk := os.read(0, CHUNK_BYTES):
            write(into.fileno(), chunk)
    with suppress(OSError):
        into.close()


def _pass_output(child: subprocess.Popen[bytes]) -> None:
    """Pass on what *child* writes until it has ended."""
    assert child.stdout is not None
    assert child.stderr is not None
    outputs = {child.stdout.fileno(): 1, child.stderr.fileno(): 2}
    ended = os.pidfd_open(child.pid)
    try:
        poller = select.poll()
        for fd in (ended, *outputs):
            poller.register(fd, select.POLLIN)
        while child.poll() is None:
            for fd in [fd for fd, _ in poller.poll() if fd in outputs]:
                if chunk := os.read(fd, CHUNK_BYTES):
                    write(outputs[fd], chunk)
                else:
                    poller.unregister(fd)
    finally:
        os.close(ended)
    _drain(outputs)


def _drain(outputs: Mapping[int, int]) -> None:
    """Pass on what is in the pipes, without waiting for whoever may still hold their other ends."""
    for fd, onto in outputs.items():
        os.set_blocking(fd, False)
        left = PIPE_BYTES
        with suppress(BlockingIOError):
            while left > 0 and (chunk := os.read(fd, CHUNK_BYTES)):
                write(onto, chunk)
                left -= len(chunk)


def write(fd: int, chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(fd, chunk) :]


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise, so that what was started is ended too.

    Once: a second one, as `timeout` sends it to the whole group, must not keep us from doing that.
    """
    endings = (signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for ending in endings:
            signal.signal(ending, signal.SIG_IGN)
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in endings}
    try:
        yield
    except Ended:
        raise  # and whatever comes now stays ignored
    except BaseException:
        _restore(before)
        raise
    else:
        _restore(before)


def _restore(handlers: Mapping[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def not_started(program: str, error: OSError) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(FAILED, f"cannot run {program}: it is not on PATH", _PACKAGES.get(program))
    return Problem(FAILED, f"cannot run {program}: {error.strerror}")

"""Starts processes.  Nothing else in hive_core does."""

import os
import signal
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Final

import trio

KILL_AFTER_S: Final = 5.0

_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "USER", "LOGNAME")


class CommandError(Exception):
    """A command ended badly.  The text can be pasted: what was run, how it ended, what it said."""


def built_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the environment of a child: a few harmless variables of ours, and *extra*."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(extra or {})


def start_session(
    argv: Sequence[str], *, cwd: Path, log: IO[bytes], env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start *argv* in a session of its own, so that neither our end nor a Ctrl-C on our terminal reaches it.

    Its stdout and stderr go to *log*.

    Raises:
        OSError: it cannot be started.
    """
    return subprocess.Popen(
        list(argv),
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def own_rss_bytes() -> int:
    """Memory that this process has resident."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def describe_exit(status: int | None) -> str:
    """Say how a process ended; *status* as subprocess gives it, None if nobody could see it."""
    if status is None:
        return "it ended, nobody saw how"
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    return f"exit status {status}"


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    said_to: bytes | None = None,
) -> bytes:
    """Run *argv* to its end and return what it wrote to stdout.

    *env* is added to the environment, *said_to* is written to its stdin.  When *timeout_s* runs out, it
    writes more than *max_output_bytes*, or the caller is cancelled, the process is killed; it is gone when
    this returns.

    Raises:
        CommandError: it ended with a status other than 0, or wrote too much.
        OSError: it cannot be started.
        trio.TooSlowError: *timeout_s* ran out.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL if said_to is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=built_environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    said = bytearray()
    complained = bytearray()

    async def collect(stream: trio.abc.ReceiveStream, into: bytearray, limit: int) -> None:
        async for chunk in stream:
            into += chunk
            if len(into) > limit:
                process.kill()
                return

    async def tell(stream: trio.abc.SendStream, text: bytes) -> None:
        # One that ends without listening says why on stderr.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(text)

    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                if process.stdin is not None:
                    nursery.start_soon(tell, process.stdin, said_to or b"")
                assert process.stdout is not None
                assert process.stderr is not None
                nursery.start_soon(collect, process.stdout, said, max_output_bytes)
                nursery.start_soon(collect, process.stderr, complained, 64 * 1024)
            await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
    if len(said) > max_output_bytes:
        raise CommandError(f"{' '.join(argv)}: wrote more than {max_output_bytes} bytes")
    if process.returncode:
        words = complained.decode(errors="replace").strip()[-500:]
        raise CommandError(f"{' '.join(argv)}: {describe_exit(process.returncode)}: {words}")
    return bytes(said)


class Lines:
    """What a running child writes, in batches of whole lines."""

    def __init__(self, process: trio.Process, max_line_bytes: int) -> None:
        self._process = process
        self._max_line_bytes = max_line_bytes
        self._rest = bytearray()

    async def receive(self) -> list[bytes]:
        """Wait for the next lines, without their newlines; an empty list: it has ended.

        The end of a line that is too long is dropped.  The child waits while nobody receives.
        """
        assert self._process.stdout is not None
        while True:
            chunk = await self._process.stdout.receive_some(64 * 1024)
            if not chunk:
                last, self._rest = bytes(self._rest), bytearray()
                return [last] if last else []
            *whole, rest = chunk.split(b"\n")
            if not whole:
                self._rest += rest[: self._max_line_bytes - len(self._rest)]
                continue
            self._rest += whole[0]
            lines = [bytes(line[: self._max_line_bytes]) for line in (self._rest, *whole[1:])]
            self._rest = bytearray(rest[: self._max_line_bytes])
            return lines

    async def end(self) -> str:
        """Wait until it has ended, and say how."""
        return describe_exit(await self._process.wait())


@asynccontextmanager
async def open_lines(
    argv: Sequence[str],
    *,
    max_line_bytes: int,
    env: Mapping[str, str] | None = None,
    with_stderr: bool = False,
) -> AsyncIterator[Lines]:
    """Start *argv*, which writes lines for as long as it is let; it is gone when the block is left.

    What it started in its session is killed with it.

    Raises:
        OSError: it cannot be started.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if with_stderr else subprocess.DEVNULL,
        env=built_environment(env),
        start_new_session=True,
    )
    try:
        yield Lines(process, max_line_bytes)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()

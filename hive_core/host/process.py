"""Starts processes.  Nothing else in hive_core does."""

import os
import pwd
import secrets
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import trio

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


@dataclass(frozen=True, slots=True)
class User:
    """Whom a child of root's becomes, with no group but its own."""

    uid: int
    gid: int


def find_user(name: str) -> User:
    """Give the system user *name*.

    Raises:
        OSError: there is none.
    """
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise OSError(
            f"there is no user {name} on this host; make install makes it, or systemd-sysusers"
        ) from None
    return User(found.pw_uid, found.pw_gid)


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    said_to: bytes | None = None,
    user: User | None = None,
) -> bytes:
    """Run *argv* to its end and return what it wrote to stdout.

    *env* is added to the environment, *said_to* is written to its stdin.  When *timeout_s* runs out, it
    writes more than *max_output_bytes*, or the caller is cancelled, the process is killed with what it
    started in its session; it is gone when this returns.  As *user*, where that is not us.

    Raises:
        CommandError: it ended with a status other than 0, or wrote too much.
        OSError: it cannot be started.
        trio.TooSlowError: *timeout_s* ran out.
    """
    said, too_much = await run_cut(
        argv,
        timeout_s=timeout_s,
        max_output_bytes=max_output_bytes,
        env=env,
        cwd=cwd,
        said_to=said_to,
        user=user,
    )
    if too_much:
        raise CommandError(f"{' '.join(argv)}: wrote more than {max_output_bytes} bytes")
    return said


async def run_cut(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    said_to: bytes | None = None,
    user: User | None = None,
) -> tuple[bytes, bool]:
    """Do as `run`, and give the first *max_output_bytes* of the output, and whether there was more.

    Raises:
        CommandError: it ended with a status other than 0 before it had written too much.
        OSError, trio.TooSlowError: as `run`.
    """
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL if said_to is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=built_environment(env),
        cwd=cwd,
        start_new_session=True,
        **_becoming(user),
    )
    said = bytearray()
    complained = bytearray()

    async def collect(stream: trio.abc.ReceiveStream, into: bytearray, limit: int) -> None:
        async for chunk in stream:
            into += chunk
            if len(into) > limit:
                _kill_session(process)
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
            _kill_session(process)
            await process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()
    if len(said) > max_output_bytes:
        return bytes(said[:max_output_bytes]), True
    if process.returncode:
        words = complained.decode(errors="replace").strip()[-500:]
        raise CommandError(f"{' '.join(argv)}: {describe_exit(process.returncode)}: {words}")
    return bytes(said), False


async def run_pair(
    source: Sequence[str],
    sink: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int,
) -> bytes:
    """Run *source* with its stdout as the stdin of *sink*, and return what *sink* wrote.

    Both are gone when this returns.

    Raises:
        CommandError: one ended with a status other than 0; *source*'s words come first, being the cause.
        OSError: one cannot be started.
        trio.TooSlowError: *timeout_s* ran out.
    """
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as end, open(writing, "wb", buffering=0) as begin:  # noqa: PTH123 - descriptors
        first = await trio.lowlevel.open_process(
            list(source),
            stdin=subprocess.DEVNULL,
            stdout=begin,
            stderr=subprocess.PIPE,
            env=built_environment(),
            start_new_session=True,
        )
        try:
            second = await trio.lowlevel.open_process(
                list(sink),
                stdin=end,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=built_environment(),
                start_new_session=True,
            )
        except BaseException:
            await _end(first)
            raise
    said: dict[str, bytearray] = {"first": bytearray(), "second": bytearray(), "answer": bytearray()}

    async def collect(process: trio.Process, stream: trio.abc.ReceiveStream | None, what: str) -> None:
        assert stream is not None
        limit = max_output_bytes if what == "answer" else 64 * 1024
        async for chunk in stream:
            said[what] += chunk
            if len(said[what]) > limit:
                _kill_session(process)
                return

    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, first, first.stderr, "first")
                nursery.start_soon(collect, second, second.stdout, "answer")
                nursery.start_soon(collect, second, second.stderr, "second")
                await second.wait()
                # Without a reader it has nothing more to do; it may hang in what it reads.
                with trio.move_on_after(1.0):
                    await first.wait()
                _kill_session(first)
                await first.wait()
    finally:
        await _end(first)
        await _end(second)
    for process, argv, words in ((first, source, said["first"]), (second, sink, said["second"])):
        # One whose reader refused was ended by that.
        if process.returncode and not (process is first and second.returncode and not words):
            text = words.decode(errors="replace").strip()[-500:]
            raise CommandError(f"{' '.join(argv)}: {describe_exit(process.returncode)}: {text}")
    return bytes(said["answer"])


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        _kill_session(process)
        await process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()


def _kill_session(process: trio.Process) -> None:
    """Kill *process*, which began a session, and what it started there; harmless when it has ended."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _becoming(user: User | None) -> dict[str, Any]:
    return {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}


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


MARK: Final = "HIVE_STARTED_AS"
"""A variable that everything has which a program of `run_aloud` started, however it detached itself."""
_SWEEPS: Final = 50
"""Looks for what is to be killed: it may start more meanwhile."""


async def run_aloud(
    argv: Sequence[str],
    *,
    timeout_s: float,
    tell: Callable[[bytes], None],
    max_line_bytes: int = 8192,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> bytes:
    """Run *argv* to its end, *tell* each line of its output as it comes, and give the last of its stdout.

    Of a line that is too long the end is dropped; empty ones are told and never given.  When it has ended,
    *timeout_s* runs out or the caller is cancelled, it is killed with all that it started and still runs.

    Raises:
        CommandError: it ended with a status other than 0.
        OSError: it cannot be started.
        trio.TooSlowError: *timeout_s* ran out.
    """
    mark = secrets.token_hex(16)
    process = await trio.lowlevel.open_process(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=built_environment(env) | {MARK: mark},
        cwd=cwd,
        start_new_session=True,
    )
    last = b""

    async def listen(stream: trio.abc.ReceiveStream, *, is_stdout: bool) -> None:
        nonlocal last
        rest = bytearray()
        while chunk := await stream.receive_some(64 * 1024):
            *whole, end = chunk.split(b"\n")
            for piece in whole:
                line = bytes((rest + piece)[:max_line_bytes])
                rest.clear()
                last = line if is_stdout and line.strip() else last
                tell(line)
            rest += end[: max_line_bytes - len(rest)]
        if rest:
            last = bytes(rest) if is_stdout else last
            tell(bytes(rest))

    assert process.stdout is not None
    assert process.stderr is not None
    try:
        with trio.fail_after(timeout_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(listen, process.stdout, is_stdout=True))
                nursery.start_soon(partial(listen, process.stderr, is_stdout=False))
                await process.wait()
                # What it left behind holds the pipes open.
                await trio.to_thread.run_sync(_kill_marked, mark)
    finally:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                process.kill()
            await process.wait()
            await trio.to_thread.run_sync(_kill_marked, mark)
            await process.stdout.aclose()
            await process.stderr.aclose()
    if process.returncode:
        raise CommandError(f"{' '.join(argv)}: {describe_exit(process.returncode)}")
    return last


def _kill_marked(mark: str) -> None:
    """Kill every process with *mark* in its environment, until there is none."""
    wanted = f"{MARK}={mark}".encode()
    for _ in range(_SWEEPS):
        found = False
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                # It may end meanwhile; what is another user's is none of ours.
                with suppress(OSError):
                    if wanted in (entry / "environ").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)
                        found = True
        if not found:
            return
        time.sleep(0.01)

"""Drives the login of a model's command line over plain pipes, for an operator who sits elsewhere.

It prints the address of a page, a person opens it and brings back a code, the code goes to its stdin.
Whether that worked is seen by the credentials that appear, and nowhere else.
"""

import logging
import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from hive_agent.providers.base import Program

log = logging.getLogger(__name__)

LOGIN_TIMEOUT_S: Final = 600.0
"""From the start to the end: a page that nobody opens must not leave a process for ever."""
URL_TIMEOUT_S: Final = 30.0
CODE_TIMEOUT_S: Final = 30.0
CODE_POLL_S: Final = 0.5
LAST_WORDS_S: Final = 1.0
SETTLE_S: Final = 0.5
"""An address without anything behind it is taken as whole after this much silence."""
MAX_SCAN_BYTES: Final = 64 * 2**10
MAX_URL_CHARS: Final = 4096
MAX_TAIL_CHARS: Final = 500

# No control characters, so that what is shown to the operator is what will be opened.
_URL: Final = re.compile(rb"https://[!#-&(-;=?-~]+")
_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


class LoginFailed(Exception):
    """The login cannot go on.  The text begins "cannot …"."""


def find_url(text: bytes, *, ended: bool) -> str | None:
    """Give the first address in *text*; one that reaches the end of *text* only when that has *ended*."""
    found = _URL.search(text)
    if found is None or (found.end() == len(text) and not ended):
        return None
    url = found[0].rstrip(b".,;:!?)]}").decode("ascii")
    return url if len(url) <= MAX_URL_CHARS else None


class Login:
    """At most one login at a time.

    *opened* is called with True when one begins and with False when it has ended, however it did.
    """

    def __init__(
        self,
        program: Program,
        *,
        cwd: Path,
        opened: Callable[[bool], None],
        is_logged_in: Callable[[], bool],
        note: Callable[[str], object],
    ) -> None:
        self._program = program
        self._cwd = cwd
        self._opened = opened
        self._is_logged_in = is_logged_in
        self._note = note
        self._nursery: trio.Nursery | None = None
        self._attempt: _Attempt | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the logins; when this is cancelled, an open one ends."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def start(self) -> str:
        """Begin a login, or find the one that is open, and give the address of its page.

        Waits up to 30 s for the address.

        Raises:
            LoginFailed: the program cannot be started, or shows no address.
        """
        if self._attempt is None:
            if self._nursery is None:
                raise LoginFailed("cannot log in: the harness stops")
            attempt = self._attempt = _Attempt()
            self._opened(True)
            self._nursery.start_soon(self._drive, attempt)
        return await self._attempt.wait_url()

    async def enter(self, code: str) -> str:
        """Give the open login its code, and say what came of it.  Waits up to 30 s for its end.

        Raises:
            LoginFailed: none is open, or the code was not taken.
        """
        attempt = self._attempt
        if attempt is None:
            raise LoginFailed("cannot take the code: no login is open")
        if not code.strip() or not code.isprintable():
            raise LoginFailed("cannot take the code: it is no line of text")
        was_logged_in = self._is_logged_in()
        await attempt.write(code.strip())
        with trio.move_on_after(CODE_TIMEOUT_S):
            while not attempt.ended.is_set() and (was_logged_in or not self._is_logged_in()):
                with trio.move_on_after(CODE_POLL_S):
                    await attempt.ended.wait()
        if self._is_logged_in() and (attempt.status == 0 or not was_logged_in):
            return "logged in"
        raise LoginFailed(f"cannot log in with that code: {attempt.last_words()}")

    def cancel(self) -> bool:
        """End the open login at once; False when none is."""
        if self._attempt is None:
            return False
        self._attempt.scope.cancel()
        return True

    async def _drive(self, attempt: "_Attempt") -> None:
        try:
            with attempt.scope, trio.move_on_after(LOGIN_TIMEOUT_S) as patience:
                await attempt.run(self._program, self._cwd)
            if patience.cancelled_caught:
                self._note(f"Login given up: nobody finished it in {LOGIN_TIMEOUT_S / 60:g} min")
            elif attempt.scope.cancelled_caught:
                self._note("Login cancelled")
        finally:
            self._attempt = None
            attempt.ended.set()
            self._opened(False)


class _Attempt:
    """One run of the login program."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.status: int | None = None
        self._process: trio.Process | None = None
        self._trouble: str | None = None
        self._url: str | None = None
        self._url_known = trio.Event()
        self._scanned = bytearray()
        self._tail = bytearray()

    async def run(self, program: Program, cwd: Path) -> None:
        name = program.argv[0]
        try:
            self._process = process = await trio.lowlevel.open_process(
                list(program.argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(program.env),
                start_new_session=True,
            )
        except OSError as error:
            self._trouble = f"{name} cannot be started: {error.strerror}"
            self._url_known.set()
            return
        log.info("Login started pid=%d command=%s", process.pid, name)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, process)
                self.status = await process.wait()
                # What it started may hold its output open for ever.
                nursery.cancel_scope.deadline = trio.current_time() + LAST_WORDS_S
            log.info("Login ended status=%d", self.status)
        finally:
            if process.returncode is None:
                _kill_group(process)
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdin, process.stdout):
                    if stream is not None:
                        await stream.aclose()
            self._url_known.set()

    async def wait_url(self) -> str:
        with trio.move_on_after(URL_TIMEOUT_S):
            await self._url_known.wait()
        if self._url is None:
            self.scope.cancel()
            raise LoginFailed(f"cannot log in: {self._trouble or f'no address came: {self.last_words()}'}")
        return self._url

    async def write(self, line: str) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise LoginFailed("cannot take the code: the login is not that far")
        self._tail.clear()
        try:
            await process.stdin.send_all(line.encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            raise LoginFailed(f"cannot take the code: {self.last_words()}") from None

    def last_words(self) -> str:
        """What the program said last, as one line."""
        text = _ESCAPE.sub("", self._tail.decode(errors="replace"))
        said = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return said[-MAX_TAIL_CHARS:] or "the login program said nothing"

    async def _read(self, process: trio.Process) -> None:
        assert process.stdout is not None
        while True:
            settled = self._url is None and _URL.search(self._scanned) is not None
            chunk: bytes | None = None
            with trio.move_on_after(SETTLE_S if settled else float("inf")):
                chunk = bytes(await process.stdout.receive_some(4096))
            if chunk:
                self._tail += chunk
                del self._tail[: -4 * MAX_TAIL_CHARS]
                if len(self._scanned) < MAX_SCAN_BYTES:
                    self._scanned += chunk
            if self._url is None:
                self._url = find_url(bytes(self._scanned), ended=not chunk)
                if self._url is not None:
                    self._url_known.set()
            if chunk == b"":
                return


def _kill_group(process: trio.Process) -> None:
    """End the program and what it started; it leads a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)

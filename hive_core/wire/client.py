"""A small blocking client of host.sock, on the standard library alone: it is what makes `hive` start fast.

with Client(path) as hive:
    print(hive.ask({"cmd": "list"})["agents"])
"""

import errno
import json
import os
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from hive_core.wire.unix import short_address

ANSWER_TIMEOUT_S: Final = 30.0

_WHY_UNREACHABLE: Final = {
    errno.ENOENT: "there is no socket",
    errno.ENOTDIR: "there is no socket",
    errno.ECONNREFUSED: "a socket is there but nobody listens",
    errno.EACCES: "permission denied",
    errno.EAGAIN: "the daemon accepts no connection",
}


class Unreachable(Exception):
    """No daemon answers at *path*."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"cannot reach the daemon at {path}: {why}")
        self.path = path
        self.why = why

    @property
    def is_denied(self) -> bool:
        """Whether one answers, but not this user."""
        return self.why == _WHY_UNREACHABLE[errno.EACCES]


class TimedOut(Exception):
    """The daemon did not answer in time."""


class RequestFailed(Exception):
    """The daemon answered no.  *code* is one of wire.errors.ErrorCode, *reply* the whole line."""

    def __init__(self, reply: dict[str, Any]) -> None:
        super().__init__(str(reply.get("error", "the daemon gave no reason")))
        self.code = str(reply.get("code", "internal"))
        self.reply = reply


class Client:
    """One connection to host.sock.

    Raises:
        Unreachable: nobody answers at *path*, or the connection broke.
        TimedOut: no answer within *timeout_s*.
    """

    def __init__(self, path: str | os.PathLike[str], timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            with short_address(self._path) as address:
                self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            why = _WHY_UNREACHABLE.get(error.errno or 0, str(error))
            raise Unreachable(self._path, why) from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and give its reply.

        Raises:
            RequestFailed: the daemon said no.
        """
        self._write(request)
        reply = self._read()
        if reply is None:
            raise Unreachable(self._path, "the daemon closed the connection without an answer")
        return reply

    def follow(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request that follows, see it accepted, and give its items until the daemon ends it.

        Between items there is no time limit.

        Raises:
            RequestFailed: the daemon said no, or cut this reader off.
        """
        self.ask(request)
        self._socket.settimeout(None)
        return iter(self._read, None)

    def _write(self, request: dict[str, Any]) -> None:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return  # it has closed already; what it said before that is still there to be read
        except TimeoutError:
            raise TimedOut("the daemon takes no request") from None
        except OSError as error:
            raise Unreachable(self._path, f"the connection broke: {error}") from None

    def _read(self) -> dict[str, Any] | None:
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise TimedOut("the daemon did not answer in time") from None
        except OSError as error:
            raise Unreachable(self._path, f"the connection broke: {error}") from None
        if not line.endswith(b"\n"):
            return None
        try:
            reply: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError):
            reply = {}
        if not isinstance(reply, dict) or "ok" not in reply:
            raise Unreachable(self._path, "what answers there is no hyperhive daemon")
        if not reply.get("ok"):
            raise RequestFailed(reply)
        return reply

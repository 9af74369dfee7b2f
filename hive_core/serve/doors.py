"""What all doors have in common: listening, letting in, containing, and letting go."""

import errno
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from hive_core.wire.errors import Disconnected, ProtocolError
from hive_core.wire.stream import Connection

MAX_CONNECTIONS: Final = 64
"""Open at once through one socket."""

_OUT_OF_FDS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = logging.getLogger(__name__)

Answer = Callable[[Connection], Awaitable[None]]


class Door:
    """A listening socket and its connections.

    *answer* serves one connection to its end; *refuse* is what a connection above the limit is told.
    """

    def __init__(self, name: str, listener: socket.socket, answer: Answer, refuse: bytes) -> None:
        self._name = name
        self._listener = listener
        self._answer = answer
        self._refuse = refuse
        self.connections = 0

    async def run(
        self,
        stop: trio.Event,
        drain_s: float,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Let connections in until *stop* is set.

        Then let none in, and give those that are open *drain_s* seconds to end by themselves.
        """
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self._accept, connections)
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            connections.cancel_scope.deadline = trio.current_time() + drain_s

    def close(self) -> None:
        trio.lowlevel.notify_closing(self._listener)
        self._listener.close()

    async def _accept(self, connections: trio.Nursery) -> None:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._listener)
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except (ValueError, trio.ClosedResourceError):
                return  # closed under us: the agent is gone
            except OSError as error:
                if error.errno not in _OUT_OF_FDS:
                    return
                log.warning("Door %s cannot let anybody in: %s", self._name, os.strerror(error.errno or 0))
                await trio.sleep(0.1)
                continue
            connections.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        """Serve one connection; whatever a peer can cause ends here."""
        self.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                connection = Connection(sock, nursery)
                try:
                    if self.connections > MAX_CONNECTIONS:
                        connection.send_nowait(self._refuse)
                    else:
                        await self._answer(connection)
                    with trio.move_on_after(1):
                        await connection.drain()
                finally:
                    if connection.overrun:
                        log.warning("Peer at %s does not read its answers: connection closed", self._name)
                    connection.close()
                    nursery.cancel_scope.cancel()
        except* Disconnected:
            pass
        except* ProtocolError as group:
            log.warning("Peer at %s broke the protocol: %s", self._name, _first(group))
        except* Exception:
            log.exception("Connection at %s ended by a bug", self._name)
        finally:
            self.connections -= 1


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def log_bug(what: str) -> str:
    """Log the exception that is being handled, and give the sentence that the peer gets."""
    mark = secrets.token_hex(4)
    log.exception("Internal error %s in %s", mark, what)
    return f"internal error {mark} in {what}: the daemon's log has the details"

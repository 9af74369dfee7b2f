"""host.sock: JSON lines of the operator, one request after the other."""

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec
import trio

from hive_core.deferred import Deferred
from hive_core.handlers.deps import CutOff, Deps, Emit, Peer, Role
from hive_core.handlers.routes import Route, route_of
from hive_core.serve.doors import log_bug
from hive_core.wire import host
from hive_core.wire.errors import Disconnected, ErrorCode, LineTooLong, Refused
from hive_core.wire.ids import OPERATOR
from hive_core.wire.lines import LineDecoder
from hive_core.wire.stream import Connection

SLOW_READER_S: Final = 30.0
"""How long a follower may take to read what the socket holds, before it is cut off."""

TOO_MANY: Final = host.encode_line(
    host.Failure(error="cannot serve: too many connections", code=ErrorCode.UNAVAILABLE.value)
)

log = logging.getLogger(__name__)


async def answer(deps: Deps, stop: trio.Event, group_may_connect: bool, connection: Connection) -> None:
    """Serve one connection until the client leaves or *stop* is set."""
    peer_process = connection.credentials()
    # With a group, the socket's mode says who may connect; without one nobody but us and root may.
    if not group_may_connect and peer_process.uid not in {0, os.geteuid()}:
        log.warning("Peer refused at host.sock uid=%d pid=%d", peer_process.uid, peer_process.pid)
        _fail(connection, ErrorCode.FORBIDDEN, "cannot serve you: you are neither root nor the hive's user")
        return
    session = _Session(deps, Peer(Role.OPERATOR, OPERATOR, peer_process.uid, peer_process.pid), connection)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when, stop, session, nursery.cancel_scope)
        await session.run()
        nursery.cancel_scope.cancel()


async def _cancel_when(stop: trio.Event, session: "_Session", scope: trio.CancelScope) -> None:
    await stop.wait()
    while session.busy:  # a verb that does not follow is short: let it answer
        await session.became_idle.wait()
    scope.cancel()


class _Session:
    def __init__(self, deps: Deps, peer: Peer, connection: Connection) -> None:
        self._deps, self._peer, self._connection = deps, peer, connection
        self._decoder = LineDecoder()
        self.busy = False
        self.became_idle = trio.Event()

    async def run(self) -> None:
        while chunk := await self._connection.receive():
            self._decoder.receive_data(chunk)
            while True:
                try:
                    line = self._decoder.next_line()
                except LineTooLong as error:
                    _fail(self._connection, ErrorCode.INVALID_ARGUMENT, f"cannot read the request: {error}")
                    continue
                if line is None:
                    break
                await self._answer_line(line)
                await self._connection.drain()
                await trio.lowlevel.checkpoint()  # however many lines came at once

    async def _answer_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            request = host.decode_request(line)
            route = route_of(request, self._peer.role)
            follow = route.handler if route.stream else route.following
            if follow is not None and getattr(request, "follow", True):
                if route.check is not None:
                    route.check(self._deps, request)
                await self._follow(partial(follow, self._deps, self._peer, request))
            else:
                self._connection.send_nowait(host.encode_line(await self._call(route, request)))
        except Refused as error:
            _fail(self._connection, error.code, error.text, error.reason)
        except (Disconnected, trio.Cancelled):
            raise
        except Exception:
            _fail(self._connection, ErrorCode.INTERNAL, log_bug("host.sock"))

    async def _call(self, route: Route, request: msgspec.Struct) -> msgspec.Struct:
        self.busy, self.became_idle = True, trio.Event()
        try:
            outcome = route.handler(self._deps, self._peer, request)
            if isinstance(outcome, Deferred):
                outcome = await outcome.wait()
            elif route.is_async:
                outcome = await outcome
            assert isinstance(outcome, msgspec.Struct)
            return outcome
        finally:
            self.busy = False
            self.became_idle.set()

    async def _follow(self, handler: Callable[[Emit], Awaitable[None]]) -> None:
        """Answer success, then emit until the handler ends or the client leaves.

        Nothing more is read on this connection than its end.
        """
        refusal: Refused | CutOff | None = None
        bug = ""

        async def emit(item: msgspec.Struct) -> None:
            self._connection.send_nowait(host.encode_line(item))
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(SLOW_READER_S) as patience:
                await self._connection.drain()
            if patience.cancelled_caught:
                raise CutOff(None)
            if self._connection.closed:
                raise Disconnected("the client does not read")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._until_gone, nursery.cancel_scope)
            try:
                self._connection.send_nowait(host.encode_line(host.Reply()))
                await handler(emit)
            except (Refused, CutOff) as error:
                refusal = error
            except Disconnected:
                pass  # said below, outside the nursery, which would wrap it in a group
            except Exception:
                bug = log_bug("host.sock")
            nursery.cancel_scope.cancel()
        if isinstance(refusal, CutOff):
            last = msgspec.UNSET if refusal.last_id is None else refusal.last_id
            tail = "" if refusal.last_id is None else f"; go on after id {refusal.last_id}"
            text = f"cannot follow: you read too slowly and were cut off{tail}"
            line = host.Failure(error=text, code=ErrorCode.UNAVAILABLE.value, last_id=last)
            self._connection.send_nowait(host.encode_line(line))
        elif refusal is not None:
            raise refusal
        elif bug:
            _fail(self._connection, ErrorCode.INTERNAL, bug)
        with trio.move_on_after(SLOW_READER_S):
            await self._connection.drain()
        raise Disconnected("the stream is over")

    async def _until_gone(self, scope: trio.CancelScope) -> None:
        try:
            while await self._connection.receive():
                pass
        except Disconnected:
            pass
        scope.cancel()


def _fail(connection: Connection, code: ErrorCode, text: str, reason: str | None = None) -> None:
    failure = host.Failure(error=text, code=code.value, reason=msgspec.UNSET if reason is None else reason)
    connection.send_nowait(host.encode_line(failure))

"""The calls that are open on one connection of an agent: what the two languages of its socket share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

import msgspec
import trio

from hive_core.deferred import Deferred
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.routes import ROUTES, Route
from hive_core.serve.doors import log_bug
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.limits import MAX_OPEN_CALLS, MAX_OPEN_STREAMS
from hive_core.wire.stream import Connection

MAX_REMEMBERED: Final = MAX_OPEN_CALLS
"""Answers that can be undone when it turns out that their caller did not take them."""
MAX_UNREAD: Final = 4
"""Of these, how many a client that left is taken not to have read, when it left something unread."""

CALLS_PER_TURN: Final = 32
"""Taken from one connection before all others have had their turn."""

MAX_SLOW_CALLS: Final = 2
"""Of one agent, that may be reading the database or a file at once; the others wait in line."""

Key = TypeVar("Key")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shares:
    """What the connections of one agent share, so that it holds up nobody but itself."""

    large: trio.Lock = field(default_factory=trio.Lock)
    """Held by the one that sends a frame above SMALL_FRAME_BYTES."""
    slow: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_SLOW_CALLS))


class Answer(Protocol):
    """Where the outcome of one call goes, in the words of its connection.  Nothing here waits."""

    def reply(self, result: msgspec.Struct) -> None: ...
    def fault(self, error: Refused) -> None: ...
    def item(self, item: msgspec.Struct) -> None: ...
    def end(self) -> None: ...


class OpenCalls(Generic[Key]):
    """Begins calls, gives their outcomes to their answers, and gives them up."""

    def __init__(
        self, deps: Deps, peer: Peer, connection: Connection, slow: trio.Semaphore, nursery: trio.Nursery
    ) -> None:
        self._deps, self._peer, self._connection, self._nursery = deps, peer, connection, nursery
        self._slow = slow
        self._open: dict[Key, Deferred[msgspec.Struct] | trio.CancelScope] = {}
        self._streams: set[Key] = set()
        self._answered: dict[Key, Callable[[], object]] = {}
        self._mute = False
        self._settled = trio.Event()

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def begin(self, key: Key, read: Callable[[], msgspec.Struct], answer: Answer) -> None:
        """Call what *read* gives, which may raise Refused.  *key* is not open."""
        try:
            if len(self._open) >= MAX_OPEN_CALLS:
                raise Refused(
                    ErrorCode.UNAVAILABLE, f"cannot take the call: {MAX_OPEN_CALLS} are open, the limit"
                )
            request = read()
            route = ROUTES[type(request)]
            if route.stream and len(self._streams) >= MAX_OPEN_STREAMS:
                raise Refused(
                    ErrorCode.UNAVAILABLE, f"cannot open the stream: {MAX_OPEN_STREAMS} are open, the limit"
                )
            if route.is_async:
                scope = self._open[key] = trio.CancelScope()
                if route.stream:
                    self._streams.add(key)
                self._nursery.start_soon(self._run, key, route, request, answer, scope)
                return
            outcome = route.handler(self._deps, self._peer, request)
            if not isinstance(outcome, Deferred):
                answer.reply(outcome)
                return
            self._open[key] = outcome
            outcome.then(partial(self._reply, key, route, answer), partial(self._fail, key, answer))
        except Refused as error:
            answer.fault(error)
        except Exception:
            answer.fault(Refused(ErrorCode.INTERNAL, log_bug(f"a call of {self._peer.name}")))

    def cancel(self, key: Key) -> None:
        """Give up the call *key*.  If it was answered just now, its caller no longer wants that answer."""
        waiting = self._open.get(key)
        if waiting is not None:
            waiting.cancel()
        elif key in self._answered:
            self._answered.pop(key)()

    def forget_parked(self) -> None:
        """Nobody will read the answers of what is parked: give it up without a word."""
        self._mute = True
        for key, waiting in list(self._open.items()):
            if isinstance(waiting, Deferred) or key in self._streams:
                waiting.cancel()
        self._mute = False

    def undo_unread(self) -> None:
        """The connection broke, so the peer left something unread, and nobody can say what: undo the last."""
        for key in list(self._answered)[0 if self._connection.overrun else -MAX_UNREAD :]:
            self._answered.pop(key)()

    async def finish(self) -> None:
        """Wait for what cannot be given up, such as a send that is being committed."""
        while self._open.keys() - self._streams:
            self._settled = trio.Event()
            await self._settled.wait()

    def _reply(self, key: Key, route: Route, answer: Answer, result: msgspec.Struct) -> None:
        self._close_call(key)
        answer.reply(result)
        if route.undo is None:
            return
        undo = route.undo(self._deps, self._peer, result)
        if self._connection.closed:
            undo()
            return
        self._answered[key] = undo
        if len(self._answered) > MAX_REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def _fail(self, key: Key, answer: Answer, error: Exception) -> None:
        self._close_call(key)
        if not isinstance(error, Refused):
            log.error("Call of %s failed: %r", self._peer.name, error)
            error = Refused(ErrorCode.INTERNAL, f"internal error: {type(error).__name__}")
        if not self._mute:
            answer.fault(error)

    async def _run(
        self, key: Key, route: Route, request: msgspec.Struct, answer: Answer, scope: trio.CancelScope
    ) -> None:
        async def emit(item: msgspec.Struct) -> None:
            answer.item(item)
            await self._connection.drain()

        try:
            with scope:
                if route.stream:
                    await route.handler(self._deps, self._peer, request, emit)
                    answer.end()
                else:
                    async with self._slow:
                        if self._connection.closed:  # while it waited in line, its caller left
                            raise Disconnected("nobody reads the answer")
                        result = await route.handler(self._deps, self._peer, request)
                    answer.reply(result)
            if scope.cancelled_caught:
                answer.fault(Refused(ErrorCode.CANCELLED, "cannot go on: the call was cancelled"))
        except Refused as error:
            answer.fault(error)
        except Disconnected:
            pass
        except Exception:
            answer.fault(Refused(ErrorCode.INTERNAL, log_bug(f"a call of {self._peer.name}")))
        finally:
            self._streams.discard(key)
            self._close_call(key)

    def _close_call(self, key: Key) -> None:
        self._open.pop(key, None)
        self._settled.set()

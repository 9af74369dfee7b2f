"""The calls that are open on one connection of an agent: what the two languages of its socket share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
import trio

from hive_core.broker import Handover
from hive_core.deferred import Deferred
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.routes import Route, route_of
from hive_core.serve.doors import log_bug
from hive_core.wire.agent import AckTurn
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.limits import MAX_OPEN_CALLS, MAX_OPEN_STREAMS
from hive_core.wire.stream import Connection

MAX_REMEMBERED: Final = MAX_OPEN_CALLS
"""Answers that were read, and can be undone all the same by a cancel that crossed them."""
LAST_READ_S: Final = 1.0
"""For a client that has said its last word and still reads."""
LAST_READ_POLL_S: Final = 0.02

CALLS_PER_TURN: Final = 32
"""Taken from one connection before all others have had their turn."""

LARGE_READ_BYTES: Final = 16 * 1024
"""More than any but a rare message takes.  What is read beyond it, an agent's connections read in turn."""

REST_TIMES: Final = 4
"""The large requests of an agent may take a fifth of the daemon's time."""

MAX_SLOW_CALLS: Final = 2
"""Of one agent, that may be reading the database or a file at once; the others wait in line."""

Key = TypeVar("Key")

log = logging.getLogger(__name__)


@dataclass
class Shares:
    """What the connections of one agent share, so that it holds up nobody but itself."""

    large: trio.Lock = field(default_factory=trio.Lock)
    """Held by the one that sends a frame above SMALL_FRAME_BYTES."""
    slow: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(MAX_SLOW_CALLS))
    watched: set["OpenCalls[Any]"] = field(default_factory=set)
    """Those whose answers are done with a turn only when they have been read."""
    turn: trio.Lock = field(default_factory=trio.Lock)
    rest_until: float = 0.0

    async def take_turn(self, size_bytes: int) -> None:
        """Wait before as much as *size_bytes* is looked at; a usual request does not.

        Many connections that are all full would each be read, and what they hold be decoded, before anybody
        else is served again: 64 lines of 1 MiB are half a second.  So it is one of them at a time, and then
        nothing large for some times as long as that took.
        """
        if size_bytes > LARGE_READ_BYTES:
            async with self.turn:
                await trio.sleep_until(self.rest_until)

    def account(self, size_bytes: int, began: float) -> None:
        """Note how long a request of *size_bytes* was looked at."""
        if size_bytes > LARGE_READ_BYTES:
            now = trio.current_time()
            self.rest_until = now + REST_TIMES * (now - began)


class Answer(Protocol):
    """Where the outcome of one call goes, in the words of its connection.  Nothing here waits."""

    def reply(self, result: msgspec.Struct) -> None: ...
    def fault(self, error: Refused) -> None: ...
    def item(self, item: msgspec.Struct) -> None: ...
    def end(self) -> None: ...


class OpenCalls(Generic[Key]):
    """Begins calls, gives their outcomes to their answers, and gives them up.

    Answers that hand something over to a peer that is *in_turn* are in doubt until the peer says that it
    has them, or, if it is of those that do not, until the kernel says so.
    """

    def __init__(
        self, deps: Deps, peer: Peer, connection: Connection, shares: Shares, nursery: trio.Nursery
    ) -> None:
        self._deps, self._peer, self._connection, self._nursery = deps, peer, connection, nursery
        self._shares = shares
        self._open: dict[Key, Deferred[msgspec.Struct] | trio.CancelScope] = {}
        self._streams: set[Key] = set()
        self._answered: dict[Key, Handover] = {}
        # And whether the peer will say that it has it.
        self._in_doubt: dict[Key, tuple[Handover, bool]] = {}
        self._mute = False
        self._settled = trio.Event()

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def begin(
        self, key: Key, read: Callable[[], msgspec.Struct], answer: Answer, *, tells: bool = False
    ) -> None:
        """Call what *read* gives, which may raise Refused.  *key* is not open.

        The peer *tells* when it has the answer: `confirm` is called then, and nothing else counts.
        """
        try:
            if len(self._open) >= MAX_OPEN_CALLS:
                raise Refused(
                    ErrorCode.UNAVAILABLE, f"cannot take the call: {MAX_OPEN_CALLS} are open, the limit"
                )
            request = read()
            if isinstance(request, AckTurn):
                for calls in self._shares.watched:
                    calls.look()
            route = route_of(request, self._peer.role)
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
            outcome.then(partial(self._reply, key, route, answer, tells), partial(self._fail, key, answer))
        except Refused as error:
            answer.fault(error)
        except Exception:
            answer.fault(Refused(ErrorCode.INTERNAL, log_bug(f"a call of {self._peer.name}")))

    def cancel(self, key: Key) -> None:
        """Give up the call *key*.  If it was answered just now, its caller no longer wants that answer."""
        waiting = self._open.get(key)
        if waiting is not None:
            waiting.cancel()
        else:
            self._undo(key)

    def confirm(self, key: Key) -> None:
        """The peer has the answer to *key*."""
        handover, _ = self._in_doubt.pop(key, (None, False))
        if handover is not None:
            handover.arrived()
            self._remember(key, handover)

    def look(self) -> None:
        """See whether the answers in doubt have been read, where the peer does not tell."""
        silent = [key for key, (_, tells) in self._in_doubt.items() if not tells]
        if silent and self._connection.has_read_all:
            for key in silent:
                self.confirm(key)

    def forget_parked(self) -> None:
        """Nobody will read the answers of what is parked: give it up without a word."""
        self._mute = True
        for key, waiting in list(self._open.items()):
            if isinstance(waiting, Deferred) or key in self._streams:
                waiting.cancel()
        self._mute = False

    def undo_doubtful(self) -> None:
        """The peer is gone: undo what it may not have read."""
        for key in list(self._in_doubt):
            self._undo(key)

    async def settle(self) -> None:
        """The peer has said its last word: see what it reads of its answers, and undo the others."""
        with trio.move_on_after(LAST_READ_S):
            while any(not tells for _, tells in self._in_doubt.values()) and not self._connection.closed:
                self.look()
                await trio.sleep(LAST_READ_POLL_S)
        self.undo_doubtful()

    async def finish(self) -> None:
        """Wait for what cannot be given up, such as a send that is being committed."""
        while self._open.keys() - self._streams:
            self._settled = trio.Event()
            await self._settled.wait()

    def _reply(self, key: Key, route: Route, answer: Answer, tells: bool, result: msgspec.Struct) -> None:
        self._close_call(key)
        handover = route.hand_over(self._deps, self._peer, result) if route.hand_over else None
        if handover is None:
            answer.reply(result)
            return
        self.look()
        answer.reply(result)
        if self._connection.closed:
            handover.undo()
        elif self._peer.in_turn:
            if key in self._in_doubt:
                # Its id is used again: nothing more will be heard of that answer.
                self._undo(key)
            self._in_doubt[key] = handover, tells
        else:
            self._remember(key, handover)

    def _remember(self, key: Key, handover: Handover) -> None:
        self._answered[key] = handover
        if len(self._answered) > MAX_REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def _undo(self, key: Key) -> None:
        handover, _ = self._in_doubt.pop(key, (None, False))
        handover = handover or self._answered.pop(key, None)
        if handover is not None:
            handover.undo()

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
                    async with self._shares.slow:
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

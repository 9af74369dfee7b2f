"""One connection to the daemon, kept up for ever.

Whoever asks through the link does not see the daemon restart: a call waits for a connection, and is
asked again when the connection ends before its answer.  That is safe because every request of the
harness may be repeated (one that adds something carries an idempotency key), except `recv`: its lost
answer may have leased a message.
"""

import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from hive_core.wire.agent import Recv
from hive_core.wire.errors import Disconnected, ErrorCode, ProtocolError, Refused
from hive_core.wire.stream import Caller, open_caller
from hive_core.wire.version import VERSION

log = logging.getLogger(__name__)

SOFTWARE: Final = f"hive-agent {VERSION}"
FIRST_DELAY_S: Final = 0.1
LONGEST_DELAY_S: Final = 5.0
SETTLED_S: Final = 1.0
"""A connection that ended sooner than this does not count as a success for the back-off."""
ANSWER_TIMEOUT_S: Final = 60.0
"""Longer than any answer takes; a daemon that is silent for that long is stuck, and is dialled anew."""

T = TypeVar("T")
Attend = Callable[[Caller], Awaitable[None]]


class Calls(Protocol):
    """What the parts of the harness see of the link."""

    @property
    def epoch(self) -> int:
        """Number of connections so far."""

    async def call(self, request: msgspec.Struct, result_type: type[T]) -> T: ...


async def ask(
    caller: Caller, request: msgspec.Struct, result_type: type[T], timeout_s: float = ANSWER_TIMEOUT_S
) -> T:
    """Call over this one connection.

    Raises:
        Refused: the daemon said no, or one side's words do not fit the wire.
        Disconnected: the connection ended, or nothing came for *timeout_s*: leave it then.
    """
    with trio.move_on_after(timeout_s):
        try:
            return await caller.call(request, result_type)
        except ProtocolError as error:
            raise Refused(ErrorCode.INTERNAL, f"cannot read the daemon's answer: {error}") from None
        except (ValueError, OverflowError) as error:
            raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot put it on the wire: {error}") from None
    raise Disconnected(f"the daemon did not answer for {timeout_s:g} s")


class Link:
    """Keeps a connection to the socket at *path*.

    Each of *attend* runs in every connection, from its hello to its end; one that raises
    Disconnected ends the connection.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        attend: Iterable[Attend] = (),
        linger_s: float | None = None,
        jitter: Callable[[], float] = lambda: secrets.SystemRandom().uniform(0.75, 1.0),
    ) -> None:
        self._path = path
        self._attend = tuple(attend)
        self._linger_s = float("inf") if linger_s is None else linger_s
        self._jitter = jitter
        self._epoch = 0
        self._caller: Caller | None = None
        self._hang_up = trio.CancelScope()
        self._connected = trio.Event()
        self._complaint = ""
        self._delay_s = FIRST_DELAY_S

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def connected(self) -> bool:
        return self._caller is not None and not self._caller.gone.is_set()

    async def call(self, request: msgspec.Struct, result_type: type[T]) -> T:
        """Ask and wait for the answer, over as many connections as it takes.

        Raises:
            Refused: the daemon said no.
            Disconnected: only for Recv.  A message may have been leased: requeue before the next one.
        """
        timeout_s = ANSWER_TIMEOUT_S
        if isinstance(request, Recv):
            timeout_s += request.wait_seconds or 0
        if getattr(request, "idempotency_key", "") is None:
            request = msgspec.structs.replace(request, idempotency_key=secrets.token_hex(16))
        while True:
            caller, hang_up = await self._wait_connected()
            try:
                return await ask(caller, request, result_type, timeout_s)
            except Disconnected:
                hang_up.cancel()
                if isinstance(request, Recv):
                    raise

    async def run(self) -> None:
        """Connect, and connect again, until there was no connection for *linger_s*."""
        alone_since = trio.current_time()
        while True:
            with trio.CancelScope(deadline=alone_since + self._linger_s) as patience:
                if await self._connect_once(patience):
                    alone_since = trio.current_time()
                    patience.deadline = alone_since + self._linger_s
                await trio.sleep(self._delay_s * self._jitter())
                self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
            if patience.cancelled_caught:
                log.info("Link given up: no daemon at %s for %g s", self._path, self._linger_s)
                return

    async def _connect_once(self, patience: trio.CancelScope) -> bool:
        """Be connected until it ends; False when there was no connection at all."""
        met_at: float | None = None
        try:
            async with open_caller(self._path, SOFTWARE) as caller:
                patience.deadline = float("inf")
                met_at = trio.current_time()
                await self._stay(caller)
        except Refused as refusal:
            # One of the two is too old: nothing changes until somebody updates it.
            self._complain(f"the daemon refuses: {refusal.text}")
            self._delay_s = LONGEST_DELAY_S
        except (OSError, ProtocolError, Disconnected, trio.TooSlowError) as error:
            self._complain(str(error) or "the daemon does not say hello")
        if met_at is None:
            return False
        if trio.current_time() - met_at >= SETTLED_S:
            self._delay_s = FIRST_DELAY_S
        return True

    async def _stay(self, caller: Caller) -> None:
        self._epoch += 1
        self._complaint = ""
        log.info("Link up epoch=%d socket=%s", self._epoch, self._path)
        try:
            with trio.CancelScope() as self._hang_up:
                self._caller = caller
                self._connected.set()
                async with trio.open_nursery() as nursery:
                    for attend in self._attend:
                        nursery.start_soon(_attend, attend, caller, self._hang_up)
                    await caller.gone.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self._caller = None
        log.info("Link down epoch=%d", self._epoch)

    async def _wait_connected(self) -> tuple[Caller, trio.CancelScope]:
        while True:
            caller, hang_up = self._caller, self._hang_up
            if caller is not None and not hang_up.cancel_called and not caller.gone.is_set():
                return caller, hang_up
            if self._connected.is_set():
                self._connected = trio.Event()
            await self._connected.wait()

    def _complain(self, why: str) -> None:
        if why != self._complaint:
            log.warning("Link failed: %s", why)
            self._complaint = why


async def _attend(attend: Attend, caller: Caller, hang_up: trio.CancelScope) -> None:
    try:
        await attend(caller)
    except* Disconnected:
        hang_up.cancel()

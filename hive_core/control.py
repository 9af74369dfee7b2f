"""Commands to harnesses, over the stream that each of them holds open."""

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from hive_core.deferred import Deferred
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused

MAX_WAITING_COMMANDS: Final = 32

Make = Callable[[int], wire.Command]

log = logging.getLogger(__name__)


@dataclass
class _Line:
    send: trio.MemorySendChannel[wire.Command]
    waiting: dict[int, Deferred[str | None]] = field(default_factory=dict)


class Control:
    """One line per agent; the newest subscriber holds it.

    *changed* is called with the name of an agent that got a line, *lost* with one that has none any more.
    """

    def __init__(self, *, changed: Callable[[str], None], lost: Callable[[str], None]) -> None:
        self._changed = changed
        self._lost = lost
        self._lines: dict[str, _Line] = {}
        self._arrived = trio.Event()
        self._ids = itertools.count(1)

    def is_connected(self, agent: str) -> bool:
        return agent in self._lines

    async def wait_connected(self, agent: str) -> None:
        """Return when *agent* has a line."""
        while agent not in self._lines:
            await self._arrived.wait()

    def subscribe(self, agent: str) -> trio.MemoryReceiveChannel[wire.Command]:
        """Open the line of *agent*, ending the one before, and give the end that the harness reads."""
        self._drop(agent)
        send, receive = trio.open_memory_channel[wire.Command](MAX_WAITING_COMMANDS)
        self._lines[agent] = _Line(send)
        self._arrived.set()
        self._arrived = trio.Event()
        self._changed(agent)
        return receive

    def unsubscribe(self, agent: str, receive: trio.MemoryReceiveChannel[wire.Command]) -> None:
        """The reader of *receive* has gone.  A newer line of the agent stays."""
        line = self._lines.get(agent)
        receive.close()
        if line is not None and line.send.statistics().open_receive_channels == 0:
            self._drop(agent)
            self._lost(agent)

    def command(self, agent: str, make: Make) -> Deferred[str | None]:
        """Send the command that *make* builds from its id; the deferred has what the harness says to it.

        Raises:
            Refused: UNAVAILABLE: no harness is connected, or it does not read its commands.
        """
        line = self._lines.get(agent)
        if line is None:
            raise Refused(ErrorCode.UNAVAILABLE, f"cannot command {agent}: its harness is not connected")
        command_id = next(self._ids)
        try:
            line.send.send_nowait(make(command_id))
        except (trio.WouldBlock, trio.BrokenResourceError):
            raise Refused(
                ErrorCode.UNAVAILABLE, f"cannot command {agent}: its harness does not read"
            ) from None
        deferred: Deferred[str | None] = Deferred(lambda: line.waiting.pop(command_id, None) is not None)
        line.waiting[command_id] = deferred
        return deferred

    async def quiesce(self, agent: str) -> None:
        """Let the running turn of *agent* end and begin no other; return when that is so, or nobody hears."""
        try:
            await self.command(agent, lambda command_id: wire.Quiesce(id=command_id)).wait()
        except Refused as error:
            log.info("Agent not quiesced agent=%s: %s", agent, error.text)

    def tell(self, agent: str, command: wire.Command) -> None:
        """Send a command that needs no answer, if there is somebody to read it."""
        line = self._lines.get(agent)
        if line is not None:
            try:
                line.send.send_nowait(command)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._drop(agent)  # it will subscribe again, and hear what holds then

    def done(self, agent: str, command_id: int, ok: bool, text: str | None) -> None:
        """The harness of *agent* answered.  An id that nobody waits for is ignored."""
        line = self._lines.get(agent)
        deferred = line.waiting.pop(command_id, None) if line else None
        if deferred is None:
            return
        if ok:
            deferred.resolve(text)
        else:
            why = text or "the harness gave no reason"
            sentence = why if why.startswith("cannot") else f"cannot do it: {why}"
            deferred.fail(Refused(ErrorCode.PRECONDITION_FAILED, sentence))

    def _drop(self, agent: str) -> None:
        line = self._lines.pop(agent, None)
        if line is None:
            return
        line.send.close()
        for deferred in line.waiting.values():
            deferred.fail(Refused(ErrorCode.UNAVAILABLE, f"cannot command {agent}: its harness went away"))

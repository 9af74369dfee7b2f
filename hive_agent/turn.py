"""The turn loop: take a message, run a turn over it, say that it is done.

A message is done when it is acked.  Whatever goes wrong before that, here or on the wire, it stays
leased, and `requeue_inflight` makes it come again, flagged redelivered.  The loop never holds more than
one message, so between two turns everything that is leased is lost and may be requeued.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import trio

from hive_agent.events import Emit
from hive_agent.link import Calls
from hive_agent.prompt import render_wake_prompt
from hive_agent.providers.base import Outcome, Provider, TurnPrompt, TurnResult
from hive_agent.state import Board, Status, TurnState
from hive_agent.tools import Tools
from hive_core.wire.agent import (
    Acked,
    AckTurn,
    InboxStatus,
    Message,
    Messages,
    Recv,
    Requeued,
    RequeueInflight,
    Unread,
)
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.limits import MAX_RECV_SECONDS

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
LONGEST_BACK_OFF_S: Final = 60.0
SHORTEST_POLL_S: Final = 1.0
"""A `recv` that comes back empty sooner than this is not asked again before."""
MAX_ACK_ATTEMPTS: Final = 5

CANCELLED: Final = TurnResult(outcome=Outcome.INTERRUPTED, note="cancelled by the operator")
INTERRUPTED: Final = TurnResult(outcome=Outcome.INTERRUPTED, note="interrupted: the harness stops")


def back_off_s(failures: int) -> float:
    """Give the pause after that many failures in a row: 1, 2, 4 … 60 s."""
    return float(min(2 ** min(failures - 1, 6), LONGEST_BACK_OFF_S))


class TurnLoop:
    def __init__(
        self, link: Calls, provider: Provider, *, emit: Emit, board: Board, model: Callable[[], str]
    ) -> None:
        self._link = link
        self._provider = provider
        self._emit = emit
        self._board = board
        self._model = model
        self._paused = False
        self._quiescing = False
        self._fresh = False
        # What an earlier harness, or a lost answer, may have left leased.
        self._in_doubt = True
        self._running: tuple[int, trio.CancelScope] | None = None
        self._waiting = trio.CancelScope()
        self._gate_changed = trio.Event()
        self._at_rest = trio.Event()
        self._attempts: dict[int, int] = {}
        # Grows by one in seven seconds at the very most, and only as long as this process lives.
        self._set_aside: set[int] = set()
        self._failures_in_a_row = 0
        self._refusals_in_a_row = 0

    async def run(self) -> None:
        while True:
            if self._in_doubt:
                await self._requeue()
            await self._wait_open()
            if self._in_doubt:
                continue
            for message in await self._receive():
                if message.id not in self._set_aside:
                    await self._take(message)

    # ── what the operator wants ─────────────────────────────────────────────────────────────────

    def set_paused(self, paused: bool) -> None:
        """Take no message while paused.  Also ends a `quiesce`: who asks for the one forgot the other."""
        self._paused = paused
        self._quiescing = False
        self._board.set_status(Status.PAUSED if paused else Status.ONLINE)
        self._change_gate()

    async def quiesce(self) -> None:
        """Let the running turn end and take no other; return when nothing is in hand."""
        self._quiescing = True
        self._change_gate()
        await self._at_rest.wait()

    def cancel_turn(self) -> int | None:
        """Interrupt the running turn; give the id of its message, or None when no turn is running."""
        if self._running is None:
            return None
        message_id, scope = self._running
        scope.cancel()
        return message_id

    def begin_new_session(self) -> None:
        self._fresh = True
        self._note("The next turn begins a new session")

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    async def _wait_open(self) -> None:
        while self._closed:
            self._at_rest.set()
            await self._gate_changed.wait()
        if self._at_rest.is_set():
            self._at_rest = trio.Event()

    async def _requeue(self) -> None:
        try:
            requeued = (await self._link.call(RequeueInflight(), Requeued)).requeued
        except Refused as refusal:
            await self._rest_after(refusal)
            return
        self._in_doubt = False
        self._refusals_in_a_row = 0
        if requeued:
            log.info("Messages requeued count=%d", requeued)

    async def _receive(self) -> list[Message]:
        asked_at = trio.current_time()
        with self._interruptible():
            try:
                asked = Recv(wait_seconds=MAX_RECV_SECONDS, max=1)
                messages = (await self._link.call(asked, Messages)).messages
            except Disconnected:
                self._in_doubt = True
                return []
            except Refused as refusal:
                await self._rest_after(refusal)
                return []
            self._refusals_in_a_row = 0
            if not messages:
                await trio.sleep_until(asked_at + SHORTEST_POLL_S)
            return messages
        # The answer may have won against our taking it back.
        self._in_doubt = True
        return []

    async def _take(self, message: Message) -> None:
        epoch = self._link.epoch
        unread = await self._count_unread()
        fresh, self._fresh = self._fresh, False
        started: dict[str, Any] = {
            "from": message.sender,
            "body": message.body,
            "unread": unread,
            "message_id": message.id,
        }
        if message.redelivered:
            started["redelivered"] = True
        log.info("Turn started message=%d from=%s", message.id, message.sender)
        self._board.set_turn_state(TurnState.THINKING)
        self._emit("turn_start", started)
        if fresh:
            self._note("This turn begins a new session")
        prompt = TurnPrompt(
            text=render_wake_prompt(message, unread),
            message=message,
            unread=unread,
            model=self._model(),
            fresh=fresh,
        )
        result = INTERRUPTED
        try:
            result = await self._run_turn(prompt)
            settled = result.ok or result is CANCELLED
            if settled:
                await self._ack(message.id)
        finally:
            self._end(message, result)
        if self._link.epoch != epoch:
            self._in_doubt = True
        if settled:
            self._attempts.pop(message.id, None)
            self._failures_in_a_row = 0
        else:
            await self._after_failure(message)

    async def _run_turn(self, prompt: TurnPrompt) -> TurnResult:
        message_id = prompt.message.id if prompt.message else 0
        tools = Tools(self._link, message_id)
        with trio.CancelScope() as scope:
            self._running = message_id, scope
            try:
                return await self._provider.run_turn(prompt, tools, self._emit)
            except Refused as refusal:
                return TurnResult(outcome=Outcome.FAILED, note=refusal.text)
            except Exception as error:
                # Somebody's words may have led to it: they must not end the harness, again and again.
                log.exception("Turn crashed message=%d", message_id)
                return TurnResult(outcome=Outcome.FAILED, note=f"internal error: {error!r}"[:500])
            finally:
                self._running = None
        return CANCELLED

    async def _ack(self, message_id: int) -> None:
        # With its id: a blanket ack would take along a message whose recv answer was lost.
        for attempt in range(1, MAX_ACK_ATTEMPTS + 1):
            try:
                await self._link.call(AckTurn(ids=[message_id]), Acked)
            except Refused as refusal:
                log.warning("Ack refused message=%d: %s", message_id, refusal.text)
                if refusal.code != ErrorCode.UNAVAILABLE:
                    return
                await trio.sleep(back_off_s(attempt))
            else:
                return

    def _end(self, message: Message, result: TurnResult) -> None:
        ended: dict[str, Any] = {"ok": result.ok, "message_id": message.id}
        if result.note is not None:
            ended["note"] = result.note
        note = "" if result.note is None else f" note={result.note!r}"
        log.info("Turn ended message=%d ok=%s%s", message.id, result.ok, note)
        self._emit("turn_end", ended)
        self._board.set_turn_state(TurnState.IDLE)

    async def _after_failure(self, message: Message) -> None:
        self._failures_in_a_row += 1
        attempts = self._attempts.pop(message.id, 0) + 1
        if attempts < MAX_ATTEMPTS:
            self._attempts[message.id] = attempts
            self._in_doubt = True
        else:
            self._set_aside.add(message.id)
            log.warning("Message set aside message=%d attempts=%d", message.id, attempts)
            self._note(
                f"Message {message.id} is set aside after {attempts} failed turns: "
                "it stays unacked, and comes again when the harness restarts"
            )
        with self._interruptible():
            await trio.sleep(back_off_s(self._failures_in_a_row))

    async def _count_unread(self) -> int:
        try:
            return (await self._link.call(InboxStatus(), Unread)).unread
        except Refused as refusal:
            log.warning("Inbox cannot be counted: %s", refusal.text)
            return 0

    async def _rest_after(self, refusal: Refused) -> None:
        self._refusals_in_a_row += 1
        log.warning("Mailbox refused: %s", refusal.text)
        with self._interruptible():
            await trio.sleep(back_off_s(self._refusals_in_a_row))

    def _interruptible(self) -> trio.CancelScope:
        """Give a scope for a wait that is given up as soon as the operator closes the gate."""
        self._waiting = trio.CancelScope()
        if self._closed:
            self._waiting.cancel()
        return self._waiting

    @property
    def _closed(self) -> bool:
        return self._paused or self._quiescing

    def _change_gate(self) -> None:
        if self._closed:
            self._waiting.cancel()
        self._gate_changed.set()
        self._gate_changed = trio.Event()

    def _note(self, text: str) -> None:
        self._emit("note", {"text": text, "origin": "harness"})

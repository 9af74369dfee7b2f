"""The turn loop: take a message, run a turn over it, say that it is done.

A message is done when it is acked.  Whatever goes wrong before that, here or on the wire, it stays
leased, and `requeue_inflight` makes it come again, flagged redelivered.  The loop never holds more than
one message, so between two turns everything that is leased is lost and may be requeued.
"""

import contextlib
import logging
from typing import Any, Final

import msgspec
import trio

from hive_agent.context import AfterTooLong, after_too_long
from hive_agent.events import Emit
from hive_agent.link import Calls
from hive_agent.prompt import render_wake_prompt
from hive_agent.providers.base import Outcome, Provider, TurnResult
from hive_agent.readiness import Readiness
from hive_agent.retry import back_off_s
from hive_agent.runner import CANCELLED, INTERRUPTED, Runner
from hive_agent.state import Board, Status
from hive_agent.upkeep import Upkeep
from hive_core.wire.agent import (
    Acked,
    AckTurn,
    Done,
    InboxStatus,
    Message,
    Messages,
    Recv,
    Requeued,
    RequeueInflight,
    SetAside,
    Unread,
)
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.limits import MAX_DEAD_REASON_CHARS, MAX_RECV_SECONDS

log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 3
SHORTEST_POLL_S: Final = 1.0
"""A `recv` that comes back empty sooner than this is not asked again before."""
MAX_ACK_ATTEMPTS: Final = 5


class TurnLoop:
    def __init__(
        self,
        link: Calls,
        provider: Provider,
        runner: Runner,
        upkeep: Upkeep,
        readiness: Readiness,
        *,
        emit: Emit,
        board: Board,
    ) -> None:
        self._link = link
        self._provider = provider
        self._runner = runner
        self._upkeep = upkeep
        self._readiness = readiness
        self._emit = emit
        self._board = board
        self._paused = False
        self._quiescing = False
        self._fresh = False
        self._compact_wanted = False
        # What an earlier harness, or a lost answer, may have left leased.
        self._in_doubt = True
        # Somebody failed over it.  An earlier harness may have died of what it began a turn with: one that
        # was told to end gave that back.
        self._failed = True
        self._waiting = trio.CancelScope()
        self._gate_changed = trio.Event()
        self._at_rest = trio.Event()
        self._attempts: dict[int, int] = {}
        # Grows by one in seven seconds at the very most, and only as long as this process lives.
        self._set_aside: set[int] = set()
        self._failures_in_a_row = 0
        self._refusals_in_a_row = 0
        self._in_hand = False

    async def run(self) -> None:
        while True:
            if self._in_doubt:
                await self._requeue()
            if self._compact_wanted and not self._quiescing:
                self._compact_wanted = False
                await self._upkeep.compact()
            elif self._closed:
                await self._rest()
            elif self._in_doubt:
                continue
            elif not self._readiness.ready:
                with self._interruptible():
                    await self._readiness.wait()
            else:
                for message in await self._receive():
                    if message.id not in self._set_aside:
                        await self._take(message)

    # ── what the operator wants ─────────────────────────────────────────────────────────────────

    def set_paused(self, paused: bool) -> None:
        """Take no message while paused.  Also ends a `quiesce`: who asks for the one forgot the other."""
        if self._paused and not paused:
            self.try_again()
        self._paused = paused
        self._quiescing = False
        if paused:
            self._board.hold(Status.PAUSED)
        else:
            self._board.let_go(Status.PAUSED)
        self._change_gate()

    async def quiesce(self) -> None:
        """Let the running turn end and take no other; return when nothing is in hand."""
        self._quiescing = True
        self._change_gate()
        await self._at_rest.wait()

    def cancel_turn(self) -> str | None:
        """Interrupt what runs and say what that was; None when nothing does."""
        return self._runner.cancel()

    def begin_new_session(self) -> None:
        self._fresh = True
        self._note("The next turn begins a new session")

    def ask_for_compaction(self) -> bool:
        """Shorten the conversation now, or, and then it is true, when what runs has ended."""
        self._compact_wanted = True
        self._change_gate()
        self._waiting.cancel()
        return self._runner.busy

    def try_again(self) -> None:
        """Something has changed that may end a rate limit or bring credentials: look at once."""
        self._readiness.try_again()
        if not self._readiness.ready:
            self._waiting.cancel()

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    async def _rest(self) -> None:
        self._at_rest.set()
        await self._gate_changed.wait()
        self._at_rest = trio.Event()

    async def _requeue(self) -> None:
        try:
            requeued = (await self._link.call(RequeueInflight(failed=self._failed), Requeued)).requeued
        except Refused as refusal:
            await self._rest_after(refusal)
            return
        self._in_doubt = self._failed = self._in_hand = False
        self._refusals_in_a_row = 0
        if requeued:
            log.info("Messages requeued count=%d", requeued)

    async def give_back(self) -> None:
        """Let the message in hand come again, since the harness ends: it is not to blame for that."""
        if self._in_hand:
            with contextlib.suppress(Refused):
                await self._link.call(RequeueInflight(failed=self._failed), Requeued)

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
        fresh = self._fresh or await self._upkeep.before_turn()
        self._fresh = False
        unread = await self._count_unread()
        started: dict[str, Any] = {"message_id": message.id}
        if message.redelivered:
            started["redelivered"] = True
        log.info("Turn started message=%d from=%s", message.id, message.sender)
        self._runner.begin(message.sender, message.body, unread, **started)
        if fresh:
            self._note("This turn begins a new session")
        result = INTERRUPTED
        self._in_hand = True
        try:
            result = await self._turn(message, unread, fresh=fresh)
            settled = result.ok or result is CANCELLED
            if settled:
                await self._ack(message.id)
                self._in_hand = False
        finally:
            note = "" if result.note is None else f" note={result.note!r}"
            log.info("Turn ended message=%d ok=%s%s", message.id, result.ok, note)
            self._runner.end(result, message_id=message.id)
        if self._link.epoch != epoch:
            self._in_doubt = True
        if self._readiness.take(result):
            self._in_doubt = True
            # The turn did not get as far as forgetting anything.
            self._fresh = self._fresh or fresh
        elif settled:
            await self._after_success(message, result)
        else:
            await self._after_failure(message, result)

    async def _turn(self, message: Message, unread: int, *, fresh: bool) -> TurnResult:
        """Run the turn over *message*, and once more if the conversation was too long for it."""
        retried = False
        while True:
            model = self._runner.model
            text = render_wake_prompt(message, unread)
            result = await self._runner.turn(text, message=message, unread=unread, fresh=fresh)
            self._upkeep.observe(model, result, fresh=fresh)
            if result.outcome is not Outcome.PROMPT_TOO_LONG:
                return result
            can_compact = self._provider.capabilities.compact
            plan = after_too_long(can_compact=can_compact, retried=retried)
            if plan is AfterTooLong.FAIL:
                return result
            self._note("The prompt is too long: compacting the conversation, then trying once more")
            if not await self._upkeep.compact():
                return result
            # The first try may have got somewhere before it was too long.
            message = msgspec.structs.replace(message, redelivered=True)
            retried, fresh = True, False

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

    async def _after_success(self, message: Message, result: TurnResult) -> None:
        self._attempts.pop(message.id, None)
        self._failures_in_a_row = 0
        # Who waits for the turn to end, to stop the machine, does not wait for this.
        if result.ok and not self._quiescing:
            await self._upkeep.after_good_turn()

    async def _after_failure(self, message: Message, result: TurnResult) -> None:
        self._failures_in_a_row += 1
        attempts = self._attempts.pop(message.id, 0) + 1
        # Also when it is set aside: what the model took in this turn was not.
        self._in_doubt = self._failed = True
        if attempts < MAX_ATTEMPTS:
            self._attempts[message.id] = attempts
            too_long = result.outcome is Outcome.PROMPT_TOO_LONG
            if too_long and attempts == MAX_ATTEMPTS - 1 and self._provider.capabilities.sessions:
                # Else no message would ever be worked on again.
                self.begin_new_session()
        else:
            await self._put_aside(message.id, attempts, result.note)
        with self._interruptible():
            await trio.sleep(back_off_s(self._failures_in_a_row))

    async def _put_aside(self, message_id: int, attempts: int, why: str | None) -> None:
        """Let the daemon keep a message that cannot be worked on; without it, pass it over from now on."""
        log.warning("Message set aside message=%d attempts=%d", message_id, attempts)
        reason = f"{attempts} turns over it failed" + (f", the last one: {why}" if why else "")
        aside = SetAside(ids=[message_id], reason=reason[:MAX_DEAD_REASON_CHARS])
        try:
            await self._link.call(aside, Done)
        except Refused as refusal:
            log.warning("Message not taken aside message=%d: %s", message_id, refusal.text)
            self._set_aside.add(message_id)
            what = "it stays unacked, and comes again when the harness restarts"
        else:
            what = f"hive dead shows it, and hive dead retry {message_id} brings it back"
        self._note(f"Message {message_id} is set aside after {attempts} failed turns: {what}")

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

    # ── the gate ────────────────────────────────────────────────────────────────────────────────

    def _interruptible(self) -> trio.CancelScope:
        """Give a scope for a wait that is given up as soon as the operator wants something else."""
        self._waiting = trio.CancelScope()
        if self._closed or self._compact_wanted:
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

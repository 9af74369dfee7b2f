"""Carries out what the daemon orders: one stream of commands for as long as a connection lasts."""

import logging
from typing import Final

import msgspec
import trio

from hive_agent.link import ask
from hive_agent.login import Login, LoginFailed
from hive_agent.model import BadEffort, BadModel, EffortChoice, ModelChoice
from hive_agent.turn import TurnLoop
from hive_core.wire.agent import (
    CancelTurn,
    Command,
    Compact,
    ControlDone,
    Done,
    LoginCancel,
    LoginCode,
    LoginStart,
    NewSession,
    Quiesce,
    SetEffort,
    SetModel,
    SetPaused,
    SubscribeControl,
    decode_command,
)
from hive_core.wire.envelope import DECODE_ERRORS
from hive_core.wire.errors import Refused
from hive_core.wire.stream import Caller

log = logging.getLogger(__name__)

RESUBSCRIBE_S: Final = 5.0
"""After the daemon ended the stream: another harness may have taken it."""


class _Numbered(msgspec.Struct):
    """As much of a command as can be read when it is not known."""

    id: int
    type: str = "?"


class Control:
    """*login* is None where the provider needs none, *can_compact* whether it can shorten a conversation."""

    def __init__(
        self,
        turns: TurnLoop,
        model: ModelChoice,
        effort: EffortChoice,
        *,
        login: Login | None,
        can_compact: bool,
    ) -> None:
        self._turns = turns
        self._model = model
        self._effort = effort
        self._login = login
        self._can_compact = can_compact

    async def run(self, caller: Caller) -> None:
        """Hold the control stream over one connection.

        Raises:
            Disconnected: the connection ended.
        """
        while True:
            async with trio.open_nursery() as nursery:
                try:
                    async with caller.stream(SubscribeControl()) as items:
                        async for item in items:
                            await self._obey(caller, item, nursery)
                    log.info("Control stream ended by the daemon")
                except Refused as refusal:
                    log.warning("Control stream refused: %s", refusal.text)
                nursery.cancel_scope.cancel()
            await trio.sleep(RESUBSCRIBE_S)

    async def _obey(self, caller: Caller, item: msgspec.Raw, nursery: trio.Nursery) -> None:
        try:
            command = decode_command(item)
        except DECODE_ERRORS as error:
            await _refuse_unknown(caller, item, str(error))
            return
        match command:
            # These take their time, and another command may have to cut them short.
            case Quiesce():
                nursery.start_soon(self._quiesce, caller, command.id)
                return
            case LoginStart() | LoginCode():
                nursery.start_soon(self._log_in, caller, command)
                return
        ok, text = self._carry_out(command)
        # The state that every stream begins with is no order.
        if command.id != 0:
            await _answer(caller, ControlDone(id=command.id, ok=ok, text=text))

    def _carry_out(self, command: Command) -> tuple[bool, str]:
        match command:
            case CancelTurn():
                cancelled = self._turns.cancel_turn()
                if cancelled is None:
                    return False, "cannot cancel the turn: none is running"
                return True, f"cancelled {cancelled}"
            case NewSession():
                self._turns.begin_new_session()
                return True, "the next turn begins a new session"
            case SetModel() | SetEffort():
                return self._choose(command)
            case Compact():
                if not self._can_compact:
                    return False, "cannot compact: this provider keeps no conversation that it could shorten"
                busy = self._turns.ask_for_compaction()
                return True, "compacting when the running turn has ended" if busy else "compacting"
            case LoginCancel():
                if self._login is None or not self._login.cancel():
                    return False, "cannot cancel the login: none is open"
                return True, "login cancelled"
            case SetPaused(paused=paused):
                self._turns.set_paused(paused)
                return True, "paused" if paused else "resumed"
            case Quiesce() | LoginStart() | LoginCode():
                raise AssertionError("it has its own task")

    def _choose(self, command: SetModel | SetEffort) -> tuple[bool, str]:
        try:
            if isinstance(command, SetEffort):
                self._effort.choose(command.effort)
                return True, f"effort {command.effort} from the next turn on"
            self._model.choose(command.model)
        except (BadModel, BadEffort) as error:
            return False, str(error)
        # A limit may be that of the old model.
        self._turns.try_again()
        return True, f"model {command.model} from the next turn on"

    async def _quiesce(self, caller: Caller, command_id: int) -> None:
        await self._turns.quiesce()
        await _answer(caller, ControlDone(id=command_id, ok=True, text="nothing is in hand"))

    async def _log_in(self, caller: Caller, command: LoginStart | LoginCode) -> None:
        try:
            if self._login is None:
                raise LoginFailed("cannot log in: this provider needs no login")
            if isinstance(command, LoginStart):
                text = await self._login.start()
            else:
                text = await self._login.enter(command.code)
                self._turns.try_again()
            ok = True
        except LoginFailed as failure:
            ok, text = False, str(failure)
        await _answer(caller, ControlDone(id=command.id, ok=ok, text=text))


async def _refuse_unknown(caller: Caller, item: msgspec.Raw, why: str) -> None:
    log.warning("Command not known: %s", why)
    try:
        command = msgspec.msgpack.decode(item, type=_Numbered)
    except DECODE_ERRORS:
        return
    text = f"cannot carry out {command.type[:64]!r}: {why}"
    await _answer(caller, ControlDone(id=command.id, ok=False, text=text))


async def _answer(caller: Caller, done: ControlDone) -> None:
    try:
        await ask(caller, done, Done)
    except Refused as refusal:
        log.info("Command answer refused command=%d: %s", done.id, refusal.text)

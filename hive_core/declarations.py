"""Brings the agents to what the host's configuration says of them: at the start, and when that is read again.

domain/declared.py says what is to be done, the supervisor does it.  Agents that nobody declared are left
alone, and so are all of them where there is no configuration file: nobody has said that one is to go.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from hive_core.config import Config, DeclaredAgent
from hive_core.domain.declared import Change, Destroy, Spawn, fingerprint, plan
from hive_core.domain.helper_event import DeclarationFailed
from hive_core.domain.machine import Wanted
from hive_core.machines import ActivationFailed
from hive_core.supervisor import Supervisor
from hive_core.wire.errors import ErrorCode, Refused

AGAIN_S: Final = (2.0, 300.0)
"""Between two attempts at what the hive refuses now, at first and at most: it doubles."""

log = logging.getLogger(__name__)


class Declarations:
    """*source* is the file that *config* comes from, None where there is none; *tell* reports a failure."""

    def __init__(
        self,
        supervisor: Supervisor,
        config: Callable[[], Config],
        source: Path | None,
        tell: Callable[[DeclarationFailed], None],
    ) -> None:
        self._supervisor = supervisor
        self._config = config
        self._source = source
        self._tell = tell
        self._woken = trio.Event()
        self._told: dict[str, str] = {}

    # ── what is declared ────────────────────────────────────────────────────────────────────────

    def source_of(self, agent: str) -> str | None:
        """The file that declares *agent*; None: none does."""
        return str(self._source) if self._source is not None and agent in self._config().agents else None

    def refuse(self, agent: str, what: str) -> None:
        """Refuse *what*, such as `destroy alice`, if *agent* is declared.

        Raises:
            Refused: CONFLICT, with the reason `declared`.
        """
        source = self.source_of(agent)
        if source is not None:
            text = f"cannot {what}: it is declared in {source} and would come again; take it out there"
            raise Refused(ErrorCode.CONFLICT, text, "declared")

    def refuse_said(self, agent: str, what: str, key: str) -> None:
        """Refuse *what*, such as `limit alice`: *key* is said of *agent* where it wins.

        Raises:
            Refused: CONFLICT, with the reason `declared`.
        """
        source = self._source or "the host's configuration"
        text = f"cannot {what}: agents.{agent}.{key} is declared in {source}, which wins; change it there"
        raise Refused(ErrorCode.CONFLICT, text, "declared")

    # ── bringing it about ───────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Look again: the configuration is another one."""
        self._woken.set()

    async def try_again(self, agent: str) -> None:
        """Try what could not be had of *agent* once more.

        Raises:
            Refused: NOT_FOUND, CONFLICT.
        """
        if self._supervisor.agent(agent).row.refused_declaration is not None:
            await self._supervisor.refuse_declaration(agent, None)
            self._told.pop(agent, None)
            self.wake()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what is to be done, whenever there is something, for ever."""
        task_status.started()
        if self._source is None:
            return
        again_s = AGAIN_S[0]
        while True:
            self._woken = trio.Event()
            if await self._bring_about():
                await self._woken.wait()
                again_s = AGAIN_S[0]
                continue
            with trio.move_on_after(again_s) as nap:
                await self._woken.wait()
            again_s = min(2 * again_s, AGAIN_S[1]) if nap.cancelled_caught else AGAIN_S[0]

    async def _bring_about(self) -> bool:
        """Do all that is to be done, one agent after the other; False: some of it has to be tried again."""
        is_done = True
        for action in plan(self._supervisor.rows(), self._config().agents):
            if self._woken.is_set():
                return True  # with another configuration there may be other things to do
            try:
                await self._do(action)
            except Refused as error:
                is_done = False
                self._say_refused(action, error)
        return is_done

    async def _do(self, action: Spawn | Change | Destroy) -> None:
        match action:
            case Spawn(agent, declaration):
                wanted = Wanted.RUNNING if declaration.auto_start else Wanted.STOPPED
                await self._supervisor.spawn(agent, declaration=declaration, wanted=wanted)
            case Change():
                await self._change(action)
            case Destroy(agent):
                log.info("Agent is not declared any more agent=%s", agent)
                await self._supervisor.destroy(agent, purge=False)

    async def _change(self, change: Change) -> None:
        agent, former = change.agent, self._supervisor.agent(change.agent).row.declaration
        if change.wants is False:
            await self._supervisor.stop(agent, graceful=True)
        try:
            starts = change.wants is True
            await self._supervisor.declare(agent, change.declaration, say=_say_of(agent), starts=starts)
        except ActivationFailed as error:
            await self._go_back(agent, change.declaration, former, str(error))
            return
        log.info("Agent is as declared agent=%s", agent)
        self._told.pop(agent, None)

    async def _go_back(
        self, agent: str, wrong: DeclaredAgent | None, former: DeclaredAgent | None, story: str
    ) -> None:
        """Let *agent* be as before: with *wrong* its machine does not come up, as *story* says."""
        log.error("Agent cannot be as declared agent=%s: %s", agent, story)
        note = f"cannot be as its host's configuration says, and is as before: {story}"
        try:
            await self._supervisor.declare(agent, former, say=_say_of(agent))
        except ActivationFailed as error:
            log.error("Agent cannot be as before either agent=%s: %s", agent, error)
            note = f"cannot be as its host's configuration says: {story}; nor as before: {error}"
        if wrong is not None:
            await self._supervisor.refuse_declaration(agent, fingerprint(wrong))
        self._tell(DeclarationFailed(agent=agent, note=note))

    def _say_refused(self, action: Spawn | Change | Destroy, error: Refused) -> None:
        """Tell of it once; it is tried again for as long as it is declared so."""
        agent = action.agent
        declaration = None if isinstance(action, Destroy) else action.declaration
        what = "" if declaration is None else fingerprint(declaration)
        if agent in self._supervisor.names and isinstance(action, Spawn):
            return  # it is being destroyed, and comes when that is over
        if self._told.get(agent) == what:
            return
        self._told[agent] = what
        log.error("Agent cannot be as declared, trying again agent=%s: %s", agent, error.text)
        self._tell(DeclarationFailed(agent=agent, note=error.text))


def _say_of(agent: str) -> Callable[[str], None]:
    return lambda line: log.info("Agent is being changed agent=%s: %s", agent, line)

"""One running machine, from its unit's main process to the unit's end."""

import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import trio

from hive_core.host import cgroup, machinectl
from hive_core.host.machinectl import UnitState, unit_of
from hive_core.host.process import CommandError

DOWN_S: Final = 30.0
"""From the end of nspawn to a unit that is down; what is left of it is killed in the middle of that."""
_ASK_AGAIN_S: Final = (0.01, 0.5)

log = logging.getLogger(__name__)


class NspawnMachine:
    """A machine whose nspawn runs: one that we started, or one that an earlier daemon did.

    *ended* is called with it when its unit is down.
    """

    def __init__(
        self,
        machine: str,
        unit: UnitState,
        leader: int,
        pidfd: int,
        digest: str,
        ended: Callable[["NspawnMachine"], None],
    ) -> None:
        self.machine = machine
        self.pid = leader
        self.main_pid = unit.main_pid
        self.control_group = unit.control_group
        self.digest = digest
        """Of what it was started with."""
        self.interface: str | None = None
        """The host's end of its link to the outside, once one has asked for it."""
        self._pidfd = pidfd
        self._ended = ended

    async def wait(self) -> str:
        """Wait until its unit is down, and say how it ended.  Once.

        Raises:
            CommandError: systemd does not say, or the unit does not go down.
        """
        if self._pidfd >= 0:
            with suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._pidfd)
            self.close()
        began = trio.current_time()
        ask_again_s, most_s = _ASK_AGAIN_S
        while True:
            waited_s = trio.current_time() - began
            unit: UnitState | None = None
            try:
                unit = await machinectl.unit_state(unit_of(self.machine))
            except CommandError:
                if waited_s > DOWN_S:
                    raise
            if unit is not None and unit.is_down:
                self._ended(self)
                return machinectl.describe_end(unit)
            if unit is not None and unit.main_pid not in {0, self.main_pid}:
                # Somebody started it anew, before we saw it down.
                self._ended(self)
                return "it was started again"
            if waited_s > DOWN_S:
                raise CommandError(f"{unit_of(self.machine)} does not go down: nothing of its nspawn is left")
            # systemd would start a machine again that rebooted itself; that is for the daemon to decide.
            if unit is not None and (unit.active_state == "activating" or waited_s > DOWN_S / 2):
                with suppress(CommandError):
                    await machinectl.stop(self.machine, timeout_s=machinectl.ANSWER_S)
            await trio.sleep(ask_again_s)
            ask_again_s = min(ask_again_s * 2, most_s)

    async def terminate(self) -> None:
        """Ask it to power off.  Harmless when it has.  Returns at once.

        Raises:
            CommandError: nobody can be asked.
        """
        try:
            await machinectl.poweroff(self.machine)
        except CommandError as error:
            if await self._is_down():
                return
            log.warning(
                "Machine not powered off by machined, asking systemd machine=%s: %s", self.machine, error
            )
            await self._unless_down(machinectl.shut_down)

    async def kill(self) -> None:
        """Kill all its processes.  Harmless when there are none.

        Raises:
            CommandError: systemd does not answer.
        """
        await self._unless_down(machinectl.terminate)

    def close(self) -> None:
        """Let go of its process, which nobody waits for any more."""
        if self._pidfd >= 0:
            # Its number may be another file's from here on.
            pidfd, self._pidfd = self._pidfd, -1
            trio.lowlevel.notify_closing(pidfd)
            os.close(pidfd)

    async def _unless_down(self, verb: Callable[[str], Awaitable[None]]) -> None:
        try:
            await verb(self.machine)
        except CommandError:
            if not await self._is_down():
                raise

    async def _is_down(self) -> bool:
        return (await machinectl.unit_state(unit_of(self.machine))).is_down


def open_process(pid: int, unit: str) -> int:
    """Give a descriptor of process *pid*, -1 when it is gone or its number has become that of another one."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    if cgroup.unit_of(pid) == unit:
        return pidfd
    os.close(pidfd)
    return -1

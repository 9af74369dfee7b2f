"""Which machines of this hive run now: told at once by machined, and looked at every ten seconds.

systemd is the judge: a machine is there when its unit runs, whether machined knows of it or not.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from hive_core.domain.machine_names import MachineNames
from hive_core.host import machinectl, process
from hive_core.host.process import CommandError

LOOK_S: Final = 10.0
"""Between two looks, for what no signal told."""
MONITOR_AGAIN_S: Final = (1.0, 30.0)
"""Before the monitor is started again: first, and at most."""

log = logging.getLogger(__name__)


class MachineWatch:
    """The machines that *names* covers.

    *appeared* is called with the name of a machine that runs and did not when one last looked.
    """

    def __init__(self, names: MachineNames, appeared: Callable[[str], None]) -> None:
        self._names = names
        self._appeared = appeared
        self._units: dict[str, str] | None = None
        """The ActiveState of each unit, by its machine; None: nobody has looked yet."""
        self._looking = trio.Lock()
        self._silent = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep looking, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_monitoring)
            await self._look_and_log()
            task_status.started()
            while True:
                await trio.sleep(LOOK_S)
                await self._look_and_log()

    async def active_state(self, machine: str) -> str:
        """Give the ActiveState of the unit of *machine*, as it was when one last looked.

        Raises:
            CommandError: nobody could look yet.
        """
        if self._units is None:
            await self.look()
        assert self._units is not None
        return self._units.get(machine, "inactive")

    async def look(self) -> dict[str, str]:
        """Give the ActiveStates of all units there are, by machine, as they are now.

        Raises:
            CommandError: systemd does not answer.
        """
        async with self._looking:
            known = self._units
            listed = await machinectl.units(*map(machinectl.unit_pattern, self._names.patterns))
            found = {machinectl.machine_of(unit.name): unit.active_state for unit in listed}
            self._units = {machine: state for machine, state in found.items() if machine is not None}
            for machine, state in self._units.items():
                if known is not None and state == "active" and known.get(machine) != "active":
                    self._appeared(machine)
            return self._units

    def note(self, machine: str, active_state: str) -> None:
        """Take down what somebody else saw."""
        if self._units is not None:
            self._units[machine] = active_state

    async def _look_and_log(self) -> None:
        try:
            await self.look()
        except CommandError as error:
            if not self._silent:
                log.error("Machines cannot be looked at: %s", error)
            self._silent = True
        else:
            self._silent = False

    async def _keep_monitoring(self) -> None:
        again_s, most_s = MONITOR_AGAIN_S
        while True:
            began = trio.current_time()
            try:
                how = await self._monitor()
            except OSError as error:
                how = str(error.strerror)
            if trio.current_time() - began > most_s:
                again_s = MONITOR_AGAIN_S[0]
            log.warning("Monitor of machines ended, next one in %g s: %s", again_s, how)
            await trio.sleep(again_s)
            again_s = min(again_s * 2, most_s)

    async def _monitor(self) -> str:
        async with process.open_lines(
            machinectl.MONITOR, max_line_bytes=machinectl.MAX_SIGNAL_BYTES, env=machinectl.PLAIN
        ) as lines:
            while batch := await lines.receive():
                signals = [machinectl.read_signal(line) for line in batch]
                if any(signal is not None and self._names.covers(signal[0]) for signal in signals):
                    await self._look_and_log()
            return await lines.end()

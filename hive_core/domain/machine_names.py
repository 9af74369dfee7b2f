"""How systemd knows the machines of a hive, and no machine of anybody else."""

from dataclasses import dataclass
from typing import Final

from hive_core.wire.ids import MANAGER, why_no_agent_name

MAX_MACHINE_NAME: Final = 64
"""systemd's limit."""


@dataclass(frozen=True, slots=True)
class MachineNames:
    """*prefix* and the agent, `h-alice`; the manager's is `hm1nd`, which no agent's can be."""

    prefix: str
    """It ends with a hyphen."""

    @property
    def manager(self) -> str:
        return self.prefix.removesuffix("-") + "m1nd"

    @property
    def patterns(self) -> tuple[str, ...]:
        """Shell patterns of all of them; what matches may still be nobody's: ask `agent`."""
        return (self.manager, f"{self.prefix}*")

    def machine(self, agent: str) -> str:
        return self.manager if agent == MANAGER else self.prefix + agent

    def agent(self, machine: str) -> str | None:
        """Give the agent that *machine* is named after, None if it is none of ours."""
        if machine == self.manager:
            return MANAGER
        agent = machine.removeprefix(self.prefix)
        return None if agent == machine or why_no_agent_name(agent) is not None else agent

    def covers(self, name: str) -> bool:
        """Whether a machine of ours may be called *name*, so that nothing else should."""
        return name == self.manager or name.startswith(self.prefix)

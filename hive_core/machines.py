"""What the daemon asks of whatever runs its agents: host/nspawn_machines.py, or host/local.py."""

from collections.abc import Collection, Sequence
from typing import Final, Protocol

import trio

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import MachineFacts, Usage
from hive_core.host.process import CommandError

TROUBLE: Final = (OSError, CommandError, trio.TooSlowError)
"""What asking the host for something can end in."""


class ActivationFailed(Exception):
    """A machine did not come up as it was declared.  The text is its story."""


class Machine(Protocol):
    """Something that runs an agent's harness."""

    @property
    def pid(self) -> int:
        """The host's pid of its first process."""
        ...

    async def wait(self) -> str:
        """Wait until it has ended and nothing of it is left, and say how.  Once."""
        ...

    async def terminate(self) -> None:
        """Ask it to end; harmless when it has.  Returns at once."""
        ...

    async def kill(self) -> None:
        """End it hard; harmless when it has.  Returns at once."""
        ...


class Machines(Protocol):
    """What can start and find machines.  Where it says TROUBLE it raises one of that."""

    @property
    def isolation(self) -> str:
        """`nspawn`, or `none`."""
        ...

    async def find(self, agent: str) -> Machine | None:
        """Give the running machine of *agent*, whoever started it.  TROUBLE: nobody can say."""
        ...

    async def start(self, row: AgentRow) -> Machine:
        """Start a machine as declared, and give it when it is up.  Cancelled, it leaves none.

        Raises:
            CannotStart: the host cannot provide what is declared.
            TROUBLE: it did not come up.
        """
        ...

    async def switch(self, row: AgentRow) -> bool:
        """Bring its running machine to *row* without an end, limits included; False: it needs a start.

        Raises:
            CannotStart: the host cannot provide what is declared.
            TROUBLE: nobody can say what it has now.
        """
        ...

    async def update_limits(self, row: AgentRow) -> None:
        """Apply the limits of *row* to its running machine; CannotStart or TROUBLE: they are as before."""
        ...

    async def tidy(self, agent: str) -> None:
        """Keep what grows within its bounds.  Called now and then."""
        ...

    async def forget(self, agent: str) -> None:
        """Remove what is left on the host of a destroyed agent's machine."""
        ...

    async def leftovers(self, known: Collection[str]) -> None:
        """End and remove machines of this hive whose agent is not *known*.  Called once, at start.

        That takes a while, and *known* is asked each time: one of them may be spawned meanwhile.
        """
        ...

    async def facts(self, row: AgentRow) -> MachineFacts: ...

    async def usage(self, agents: Sequence[str]) -> dict[str, Usage]:
        """Give what the machines of *agents* take, of those that run."""
        ...

    def applied(self, agent: str) -> str | None:
        """The digest of what the running machine was started with."""
        ...

    def declared(self, row: AgentRow) -> str | None:
        """The digest of what a start would give it now."""
        ...

    def is_member(self, agent: str, pid: int) -> bool:
        """Whether process *pid* belongs to the machine of *agent*."""
        ...


def describe(error: BaseException) -> str:
    """Give words for one of TROUBLE; the end of a deadline has none of its own."""
    return str(error) or "it takes too long"

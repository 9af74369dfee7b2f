"""What runs a turn: a model's command line or API, or the scripted stand-in."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from hive_agent.config import Config
from hive_agent.events import Emit
from hive_agent.tools import Tools
from hive_core.wire.agent import Message


class BadProvider(Exception):
    """A provider cannot be used as it is configured.  The text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnPrompt:
    text: str
    """The wake prompt, for a model to read."""
    message: Message
    unread: int
    model: str
    fresh: bool = False
    """Begin without the old conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnResult:
    ok: bool
    note: str | None = None


class Provider(Protocol):
    name: ClassVar[str]
    default_model: ClassVar[str]

    @classmethod
    def open(cls, config: Config) -> "Provider":
        """Get ready to run turns.

        Raises:
            BadProvider: it cannot.
        """

    async def run_turn(self, prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        """Run one turn to its end.

        Cancelled when the operator cancels the turn or the harness stops: leave nothing running then.
        Whatever else it raises makes the turn fail, and the message comes again.
        """

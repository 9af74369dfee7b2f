"""What runs a turn: a model's command line or API, or the scripted stand-in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol

from hive_agent.config import Config
from hive_agent.events import Emit
from hive_agent.tools import Tools
from hive_core.wire.agent import Message


class BadProvider(Exception):
    """A provider cannot be used as it is configured.  The text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """What a provider can do besides running a turn; what it cannot is never asked of it."""

    steer: bool = False
    """`steer` reaches a turn that runs."""
    compact: bool = False
    """`compact` shortens the conversation."""
    sessions: bool = False
    """A turn continues the conversation of the one before, unless it is fresh."""
    login: bool = False
    """It needs credentials, and `is_logged_in` can tell."""
    efforts: tuple[str, ...] = ()
    """The words for how hard the model thinks, weakest first; none where that cannot be chosen."""


class Outcome(StrEnum):
    """How a turn ended, as far as somebody acts on it."""

    OK = "ok"
    FAILED = "failed"
    PROMPT_TOO_LONG = "prompt_too_long"
    RATE_LIMITED = "rate_limited"
    NEEDS_LOGIN = "needs_login"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_creation: int = 0

    @property
    def prompt(self) -> int:
        """What the model had to read."""
        return self.input + self.cache_read + self.cache_creation


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnPrompt:
    text: str
    """The wake prompt, for a model to read."""
    message: Message | None = None
    """What the turn is about; None for one that the harness begins by itself."""
    unread: int = 0
    model: str
    effort: str | None = None
    """One of the capability's words; None is the provider's own default."""
    fresh: bool = False
    """Begin without the old conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnResult:
    """*note* is for people.  The figures are None where the provider does not tell them."""

    outcome: Outcome
    note: str | None = None
    last: Usage | None = None
    """Of the last inference: its prompt is how full the context is."""
    total: Usage | None = None
    """Of all inferences of the turn: what it cost."""
    window: int | None = None
    """Size of the model's context in tokens."""
    cost_usd: float | None = None
    tools: Mapping[str, int] = field(default_factory=dict)
    """How often each tool was called."""
    reset_at: float | None = None
    """RATE_LIMITED: when the limit ends, in unix seconds, if it was said."""

    @property
    def ok(self) -> bool:
        return self.outcome is Outcome.OK


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """What is run in the agent's state directory, and all of the environment that it sees."""

    argv: Sequence[str]
    env: Mapping[str, str]


class Provider(Protocol):
    name: ClassVar[str]
    default_model: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    held_up: Callable[[bool], None]
    """Set by whoever runs turns: to be told when a rate limit holds a turn up, and when that is over."""
    cut_off: TurnResult | None
    """The figures of what was cancelled, a turn or a compaction: it could not return them any more."""

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

    async def steer(self, text: str) -> bool:
        """Give the running turn one more text to read; False when none runs that could."""

    async def compact(self, model: str, tools: Tools, emit: Emit) -> TurnResult:
        """Shorten the conversation.  Only with the capability.

        Cancelled as `run_turn` is.  The result's `last`, where it is known, is how large the
        conversation is afterwards.
        """

    def is_logged_in(self) -> bool:
        """Whether there are credentials; true where none are needed.  Looks at files, asks nobody.

        Asked every two seconds while a login is waited for.  Credentials that a turn was refused with
        are none until they change.
        """

    def login_program(self) -> Program:
        """Give what a person is led through to log in.  Only with the capability.

        Its credentials land where `is_logged_in` and the turns look for them.
        """

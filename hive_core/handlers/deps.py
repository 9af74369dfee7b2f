"""What a handler may use, and who is asking."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from hive_core.applier import Applier
from hive_core.backup import Backups
from hive_core.broker import Broker
from hive_core.config import Config
from hive_core.configurations import Configurations
from hive_core.control import Control
from hive_core.dead_letters import DeadLetters
from hive_core.declarations import Declarations
from hive_core.deployer import Deployer
from hive_core.feed import Feed
from hive_core.host.images import Images
from hive_core.layout import Layout
from hive_core.machines import Machines
from hive_core.questions import Questions
from hive_core.repositories import Repositories
from hive_core.scheduler import Scheduler
from hive_core.search import Search
from hive_core.store.database import Store
from hive_core.store.mailbox import MailboxOp
from hive_core.supervisor import Supervisor
from hive_core.vacuum import Vacuum
from hive_core.wire.machine import Check

Emit = Callable[[msgspec.Struct], Awaitable[None]]
"""Sends one item of a stream, waiting while the reader is behind."""


class Role(StrEnum):
    OPERATOR = "operator"
    AGENT = "agent"
    MANAGER = "manager"
    """The agent of that name.  It may do what every agent may, and more."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks: the socket it came through, and what the kernel says of its process."""

    role: Role
    name: str
    """The agent's name, or `operator`."""
    uid: int
    pid: int
    in_turn: bool = False
    """It speaks MCP: a model, whose recv takes messages into the turn that is running."""


class Logs(Protocol):
    """Where the logs of agents can be read.  Each raises CommandError, OSError or TooSlowError when not."""

    async def read_log(self, agent: str, lines: int) -> list[str]:
        """Give the last *lines*."""
        ...

    def follow_log(self, agent: str, lines: int) -> AsyncGenerator[list[str], None]:
        """Give the last *lines* and then what is added, in batches, until it is closed."""
        ...


@dataclass(frozen=True)
class Cages:
    """What only a hive has whose agents run in machines of their own."""

    images: Images
    check_host: Callable[[], Awaitable[Sequence[Check]]]
    """Look whether the host has what machines need."""


@dataclass(frozen=True)
class Deps:
    """The parts that handlers call."""

    broker: Broker
    supervisor: Supervisor
    feed: Feed
    control: Control
    dead_letters: DeadLetters
    questions: Questions
    applier: Applier
    configurations: Configurations
    declarations: Declarations
    deployer: Deployer
    repositories: Repositories
    scheduler: Scheduler
    search: Search
    vacuum: Vacuum
    backups: Backups
    store: Store[MailboxOp]
    machines: Machines
    logs: Logs
    cages: Cages | None
    """None: the agents are processes of a local hive."""
    layout: Layout
    config: Callable[[], Config]
    mode: str
    started_at: float
    count_connections: Callable[[], int]


class CutOff(Exception):
    """A follower was too slow.  *last_id* is where it may take up again, if the stream has ids."""

    def __init__(self, last_id: int | None) -> None:
        super().__init__("too slow")
        self.last_id = last_id

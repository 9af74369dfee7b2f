"""Dead letters on host.sock."""

from typing import Annotated

from msgspec import Meta

from hive_core.wire.ids import AgentName, RowId
from hive_core.wire.limits import MAX_ROWS
from hive_core.wire.rows import MessageRow
from hive_core.wire.verb import Reply, Request


class Dead(Request, frozen=True, kw_only=True, tag="dead"):
    """The newest messages that are handed out no more, since their agent failed over them too often."""

    agent: AgentName | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class DeadLetters(Reply, frozen=True, kw_only=True):
    """Oldest first."""

    messages: list[MessageRow]


class DeadRetry(Request, frozen=True, kw_only=True, tag="dead_retry"):
    """Hand a dead message out again, or, with *all*, every one there is, of *agent* or of anyone."""

    id: RowId | None = None
    all: bool = False
    agent: AgentName | None = None


class Retried(Reply, frozen=True, kw_only=True):
    retried: int


class DeadDrop(Request, frozen=True, kw_only=True, tag="dead_drop"):
    """Be done with a dead message.  It is kept as long as those that were acked."""

    id: RowId

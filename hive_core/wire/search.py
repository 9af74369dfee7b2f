"""Finding messages on host.sock."""

from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.ids import AgentName, RowId
from hive_core.wire.limits import MAX_ROWS
from hive_core.wire.rows import MessageRow
from hive_core.wire.verb import Reply, Request


class Thread(Request, frozen=True, kw_only=True, tag="thread"):
    """The messages of the thread that a message is in, oldest first."""

    id: RowId
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class Search(Request, frozen=True, kw_only=True, tag="search"):
    """The newest messages with every word of *text*, oldest first.

    Words in double quotes stand together; a word that ends with `*` is the beginning of one.
    """

    text: str
    agent: AgentName | None = None
    """Only what it sent or got."""
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 50


class Found(Reply, frozen=True, kw_only=True):
    messages: list[MessageRow]
    not_indexed: int | UnsetType = UNSET
    """Messages that could not be looked through yet; a repeat finds more."""

"""On host.sock: to whom an agent may write."""

from typing import Annotated

from msgspec import Meta

from hive_core.wire.ids import AgentName
from hive_core.wire.limits import MAX_ALLOWED
from hive_core.wire.verb import Request


class Allow(Request, frozen=True, kw_only=True, tag="allow"):
    """Let an agent write to *recipients* and to the manager only; null or none of them: to anyone.

    `operator` must be among them to be written to.  Names that no agent has yet are taken as they are.
    The agent's row shows the list as `allowed_recipients`.
    """

    name: AgentName
    recipients: Annotated[list[AgentName], Meta(max_length=MAX_ALLOWED)] | None

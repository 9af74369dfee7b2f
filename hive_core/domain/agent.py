"""What the hive knows of an agent for good: the operator's wish, and what was declared of it."""

from dataclasses import dataclass, field

from hive_core.domain.cage import Shape
from hive_core.domain.machine import Wanted


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent.  Times are unix seconds."""

    name: str
    wanted: Wanted
    paused: bool
    created_at: float
    destroyed_at: float | None = None
    status_text: str | None = None
    status_set_at: float | None = None
    uid_base: int | None = None
    """The first of its machine's 65536 users on this host; None: it never had a machine of its own."""
    shape: Shape = field(default_factory=Shape)

"""What the hive knows of an agent for good: the operator's wish, and what was declared of it."""

from dataclasses import dataclass, field, replace

from hive_core.config import DeclaredAgent
from hive_core.domain.cage import Shape
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest


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
    deployed_sha: str | None = None
    """The commit of its configuration that was deployed last; None: none ever was."""
    deployed_tag: str | None = None
    manifest: Manifest = NOTHING
    """The agent.toml of that commit."""
    declaration: DeclaredAgent | None = None
    """What the host's configuration said of it when that was brought about last, which wins over the rest
    (domain/declared.py); None: an operator or the manager wanted it, or nobody but its row says so."""
    refused_declaration: str | None = None
    """The fingerprint of a later one that could not be had: it is not tried again."""

    @property
    def declared(self) -> "Declared":
        """All but what the host's configuration says."""
        return Declared(self.shape, self.manifest, self.deployed_sha, self.deployed_tag)

    def declared_as(self, declared: "Declared") -> "AgentRow":
        return replace(
            self,
            shape=declared.shape,
            manifest=declared.manifest,
            deployed_sha=declared.sha,
            deployed_tag=declared.tag,
        )


@dataclass(frozen=True, slots=True)
class Declared:
    """What an agent is to be: its machine, and the configuration that was deployed."""

    shape: Shape
    manifest: Manifest = NOTHING
    sha: str | None = None
    tag: str | None = None

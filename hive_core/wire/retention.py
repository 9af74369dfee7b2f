"""Retention on host.sock."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.ids import AgentName
from hive_core.wire.verb import Reply, Request


class RetentionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of thing that is kept, of the hive or of one agent.  What is not counted is absent."""

    what: str
    agent: str | UnsetType = UNSET
    goes: int | UnsetType = UNSET
    stays: int | UnsetType = UNSET
    at_least: bool | UnsetType = UNSET
    """There is so much that counting it was broken off."""
    why: str
    trouble: bool | UnsetType = UNSET
    """It cannot be swept; *why* says what is wrong."""


class Vacuumed(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep deleted; while it runs, so far."""

    number: int
    """Counted from the start of the daemon."""
    started_at: str
    seconds: float
    running: bool = False
    messages: int
    events: int
    turn_stats: int
    generations: int = 0
    """Closures that machines of NixOS had, beyond those that are kept."""
    troubles: int
    freed_bytes: int
    longest_slice_seconds: float
    """How long a message that came just then had to wait for it."""


class Vacuum(Request, frozen=True, kw_only=True, tag="vacuum"):
    """Delete what is old, or with *dry_run* only say what that is.

    A sweep that takes longer than a few seconds is answered while it runs; with *number*, that of a sweep,
    none is begun but its end is waited for, again a few seconds.
    """

    dry_run: bool = False
    number: Annotated[int, Meta(ge=1)] | None = None


class VacuumReply(Reply, frozen=True, kw_only=True):
    """With `dry_run` the plan as `rows`, else the sweep; its `rows` are what could not be swept."""

    rows: list[RetentionRow] = msgspec.field(default_factory=list)
    sweep: Vacuumed | UnsetType = UNSET
    database_bytes: int = 0
    free_bytes: int = 0
    """Room in the database's file that new rows fill; most of it is given back at a start of the daemon."""


class BackupCreate(Request, frozen=True, kw_only=True, tag="backup_create"):
    """Write everything there is into one file in the hive's own directory of backups, while it runs."""


class Export(Request, frozen=True, kw_only=True, tag="export"):
    """Write one agent's state and messages into a file there."""

    agent: AgentName


class ArchiveRow(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    kind: str
    """`hive` or `agent`."""
    size_bytes: int
    created_at: str
    schema: int
    agents: list[str]
    messages: int
    problem: str | UnsetType = UNSET
    """Why it cannot be used."""


class ArchiveReply(Reply, frozen=True, kw_only=True):
    archive: ArchiveRow


class Backups(Request, frozen=True, kw_only=True, tag="backups"):
    """The archives in that directory, oldest first."""


class BackupsReply(Reply, frozen=True, kw_only=True):
    archives: list[ArchiveRow]


class BackupVerify(Request, frozen=True, kw_only=True, tag="backup_verify"):
    """Read an archive whole: every hash, and whether its database is sound."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class Import(Request, frozen=True, kw_only=True, tag="import"):
    """Make an agent, stopped, of an archive that `export` wrote."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    name: AgentName | None = None
    """Another name than it had."""

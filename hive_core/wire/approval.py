"""Approvals, deploys and what became of agents, on host.sock.  The rows of the original keep its keys."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.ids import AgentName, Label, RowId
from hive_core.wire.limits import MAX_INPUTS, MAX_LOG_LINES, MAX_NOTE_CHARS, MAX_ROWS
from hive_core.wire.verb import Reply, Request

MAX_DIFF_BYTES = 256 * 2**10

COMMIT_PATTERN = r"^[0-9a-f]{7,40}\Z"
DIGEST_PATTERN = r"^[0-9a-f]{64}\Z"
TAG_PATTERN = r"^deployed/(?:0|[1-9][0-9]{0,17})\Z"

CommitRef = Annotated[str, Meta(pattern=COMMIT_PATTERN)]
"""7 to 40 hex digits of a commit: a branch or a tag could be moved after it was approved."""
Description = Annotated[str, Meta(max_length=MAX_NOTE_CHARS)]
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]
TagName = Annotated[str, Meta(pattern=TAG_PATTERN)]


class ApprovalRow(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of the original come first."""

    id: int
    agent: str
    kind: str
    commit_ref: str
    fetched_sha: str | UnsetType = UNSET
    requested_at: str
    status: str
    resolved_at: str | UnsetType = UNSET
    note: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    proposer: str = "operator"
    base_sha: str | UnsetType = UNSET
    """What ran when it was asked for."""
    expires_at: str | UnsetType = UNSET
    decided_by_uid: int | UnsetType = UNSET
    tag: str | UnsetType = UNSET
    finished: bool = False
    """Of one that was approved: its effect is over too."""
    digest: str | UnsetType = UNSET
    """Of all that an operator decides on; `approve` with it is refused once that is something else."""


class Consequence(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that an approval would change, as the daemon computed it."""

    kind: str
    """`bind`, `network`, `mcp_server`, `package`, `limit`, `environment`, `image`, `recipients`, …"""
    text: str
    weight: Literal["info", "notice", "danger"] = "info"


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    """With control and bidirectional characters made visible."""
    change: Literal["added", "changed", "deleted", "mode"]
    added: int = 0
    removed: int = 0
    binary: bool = False


class Pending(Request, frozen=True, kw_only=True, tag="pending"):
    """The approvals that wait for a decision, the oldest first."""


class Approvals(Reply, frozen=True, kw_only=True):
    approvals: list[ApprovalRow]


class ApprovalsRequest(Request, frozen=True, kw_only=True, tag="approvals"):
    """The newest approvals, decided or not, the oldest of them first."""

    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100
    agent: AgentName | None = None


class ShowApproval(Request, frozen=True, kw_only=True, tag="approval"):
    """One approval with what it would change, compared with *base*: what runs, what was approved last, or
    what was proposed before it."""

    id: RowId
    base: Literal["running", "approved", "previous"] = "running"
    diff: bool = False


class ApprovalReply(Reply, frozen=True, kw_only=True):
    approval: ApprovalRow
    base_sha: str | UnsetType = UNSET
    """What it is compared with; absent: with nothing."""
    consequences: list[Consequence]
    files: list[FileChange]
    files_left_out: int = 0
    """Files that differ too, and are not listed."""
    restart: Literal["none", "switch", "restart"]
    """What a deploy would do to the running machine; a switch changes it from inside, without an end."""
    diff: str | UnsetType = UNSET
    """A unified diff with what cannot be seen made visible, cut at 256 KiB."""
    diff_cut: bool = False
    manifest: str | UnsetType = UNSET
    """Why its agent.toml cannot be used, if it cannot."""


class Approve(Request, frozen=True, kw_only=True, tag="approve"):
    """Approve one.  Answers when recorded; `deploys` shows what comes of it.

    With *digest*, of the row that was decided on, only if it is still that.
    """

    id: RowId
    digest: Digest | None = None


class Deny(Request, frozen=True, kw_only=True, tag="deny"):
    """Deny one; who asked for it is told, and *note*."""

    id: RowId
    note: Description | None = None


class Requested(Reply, frozen=True, kw_only=True):
    id: int


class RequestSpawn(Request, frozen=True, kw_only=True, tag="request_spawn"):
    """Queue the creation of an agent, from a template or from what is proposed for it already.

    Of one that was destroyed it takes up the kept state.
    """

    name: AgentName
    description: Description | None = None


class RequestInitConfig(Request, frozen=True, kw_only=True, tag="request_init_config"):
    """Queue a configuration to begin with, for an agent that is created when that was edited."""

    name: AgentName
    description: Description | None = None


class RequestApplyCommit(Request, frozen=True, kw_only=True, tag="request_apply_commit"):
    """Queue a commit of an agent's proposed configuration; without *commit_ref* the newest of its branch."""

    agent: AgentName
    commit_ref: CommitRef | None = None
    description: Description | None = None


class RequestUpdateInputs(Request, frozen=True, kw_only=True, tag="request_update_meta_inputs"):
    """Queue newer *inputs* of the hive's flake."""

    inputs: Annotated[list[Label], Meta(min_length=1, max_length=MAX_INPUTS)]
    description: Description | None = None


class CancelApproval(Request, frozen=True, kw_only=True, tag="cancel_approval"):
    """Take back what waits for a decision."""

    id: RowId


# ── deploys ─────────────────────────────────────────────────────────────────────────────────────


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    step: str
    at: str


class DeployRow(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    agent: str
    kind: str
    """`spawn`, `init_config`, `apply`, `rollback` or `inputs`."""
    step: str
    """`queued`, `preparing`, `building`, `activating`, `finalizing`, `done`, `aborting` or `failed`."""
    requested_at: str
    approval_id: int | UnsetType = UNSET
    sha: str | UnsetType = UNSET
    tag: str | UnsetType = UNSET
    error: str | UnsetType = UNSET
    started_at: str | UnsetType = UNSET
    finished_at: str | UnsetType = UNSET
    steps: list[StepRow] = []


class Deploys(Request, frozen=True, kw_only=True, tag="deploys"):
    """The newest deploys, the oldest of them first; with *follow* the log of what is deployed, on and on."""

    agent: AgentName | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 20
    follow: bool = False


class DeploysReply(Reply, frozen=True, kw_only=True):
    """The rows; when following, one row that changed, or new lines of the log of one."""

    deploys: list[DeployRow] | UnsetType = UNSET
    id: int | UnsetType = UNSET
    """Whose *lines* these are."""
    lines: list[str] | UnsetType = UNSET


class DeployLog(Request, frozen=True, kw_only=True, tag="deploy_log"):
    """The end of the log of a deploy."""

    id: RowId
    lines: Annotated[int, Meta(ge=1, le=MAX_LOG_LINES)] = 200


class DeployLogReply(Reply, frozen=True, kw_only=True):
    lines: list[str]


class Rollback(Request, frozen=True, kw_only=True, tag="rollback"):
    """Queue the return of an agent to what *tag* had deployed, or to what ran before."""

    agent: AgentName
    tag: TagName | None = None


class RollbackReply(Reply, frozen=True, kw_only=True):
    id: int
    """Of the deploy."""
    tag: str
    """To which it goes back."""


class HistoryRow(msgspec.Struct, frozen=True, kw_only=True):
    """One tag of an agent's applied repository."""

    tag: str
    sha: str
    at: str
    subject: str
    """Of the commit."""
    note: str | UnsetType = UNSET
    """Of an annotated tag: the error, or the reason."""
    running: bool = False


class History(Request, frozen=True, kw_only=True, tag="history"):
    """What was proposed for an agent, deployed, denied and failed; the newest last."""

    agent: AgentName
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 50


class HistoryReply(Reply, frozen=True, kw_only=True):
    history: list[HistoryRow]


class ConfigRequest(Request, frozen=True, kw_only=True, tag="config"):
    """Where an agent's proposed configuration is; one is made when there is none."""

    name: AgentName


class ConfigReply(Reply, frozen=True, kw_only=True):
    path: str


# ── what was destroyed ──────────────────────────────────────────────────────────────────────────


class TombstoneRow(msgspec.Struct, frozen=True, kw_only=True):
    """A destroyed agent whose state is kept."""

    name: str
    destroyed_at: str
    bytes: int | UnsetType = UNSET
    """What its files take; absent: they could not be counted."""
    has_credentials: bool = False


class Tombstones(Request, frozen=True, kw_only=True, tag="tombstones"):
    """The destroyed agents whose state is kept."""


class TombstonesReply(Reply, frozen=True, kw_only=True):
    tombstones: list[TombstoneRow]


class Purge(Request, frozen=True, kw_only=True, tag="purge"):
    """Delete what is kept of a destroyed agent: state, login, repositories.  There is no way back.

    *confirm* is its name once more.
    """

    name: AgentName
    confirm: str

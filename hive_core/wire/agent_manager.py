"""What only the manager may ask on its socket: changes for the operator to decide, and what moves agents.

Nothing here decides.  A request for approval gives an id, and what becomes of it comes as a message from
`system`.  An agent that is no manager is refused as `forbidden`.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.agent_verb import Key, Request, Result
from hive_core.wire.approval import CommitRef, Description
from hive_core.wire.ids import AgentName, Label
from hive_core.wire.limits import MAX_INPUTS

Reason = Annotated[Description, Meta(description="What it is for, as the operator who decides will read it.")]

# ── requests for approval ───────────────────────────────────────────────────────────────────────


class RequestSpawn(Request, frozen=True, kw_only=True, tag="request_spawn"):
    """Ask the operator for a new agent, made from a template or from what is proposed for it already.

    Of one that was destroyed it takes up the kept state.  Of this and the requests below, a repeat with the
    same *idempotency_key* does nothing again and gives what the first one gave.
    """

    name: Annotated[AgentName, Meta(description="The new agent's name: a-z, 0-9 and -, at most 63.")]
    description: Reason | None = None
    idempotency_key: Key | None = None


class RequestInitConfig(Request, frozen=True, kw_only=True, tag="request_init_config"):
    """Ask the operator for a configuration to begin with, to be edited before there is an agent that runs."""

    name: Annotated[AgentName, Meta(description="Of the agent that is to be: a-z, 0-9 and -, at most 63.")]
    description: Reason | None = None
    idempotency_key: Key | None = None


class RequestApplyCommit(Request, frozen=True, kw_only=True, tag="request_apply_commit"):
    """Ask the operator to let a commit of an agent's proposed configuration be what runs.

    The commit is taken in at once: what becomes of the repository later changes nothing in the request.
    """

    agent: Annotated[AgentName, Meta(description="Whose configuration it is.")]
    commit_ref: Annotated[
        CommitRef,
        Meta(description="Its hash, as `git rev-parse HEAD` prints it: 7 to 40 hex digits, no branch."),
    ]
    description: Reason | None = None
    idempotency_key: Key | None = None


class RequestUpdateInputs(Request, frozen=True, kw_only=True, tag="request_update_meta_inputs"):
    """Ask the operator for newer inputs of the hive's flake."""

    inputs: Annotated[
        list[Label],
        Meta(min_length=1, max_length=MAX_INPUTS, description="Their names, such as `nixpkgs`."),
    ]
    description: Reason | None = None
    idempotency_key: Key | None = None


class Requested(Result, frozen=True, kw_only=True):
    id: int
    """Of the approval that waits for the operator."""


class OpenConfig(Request, frozen=True, kw_only=True, tag="open_config"):
    """See that there is a proposed configuration of an agent: one that describes what runs is made if not."""

    name: Annotated[AgentName, Meta(description="Name of an agent that is there.")]


class ListApprovals(Request, frozen=True, kw_only=True, tag="list_approvals"):
    """The requests that wait for the operator, and the newest that were decided; the oldest first.

    Whoever asked for one may take it back with `cancel_thread`.
    """


class ApprovalBrief(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    id: int
    kind: str
    """`spawn`, `init_config`, `apply_commit` or `update_meta_inputs`."""
    status: str
    """`pending`, `approved`, `denied`, `failed` or `cancelled`."""
    requested_at: float
    agent: str = ""
    """Of an update of inputs: empty."""
    proposer: str = "manager"
    sha: str | UnsetType = UNSET
    """The commit that it is about."""
    description: str | UnsetType = UNSET
    """Its beginning, as of *note*."""
    note: str | UnsetType = UNSET
    """The operator's reason, or why it failed."""
    tag: str | UnsetType = UNSET
    """The last that the commit got, such as `deployed/7`."""
    expires_at: float | UnsetType = UNSET
    in_work: bool = False
    """It was approved, and its effect is not over."""


class Approvals(Result, frozen=True, kw_only=True):
    approvals: list[ApprovalBrief]


# ── agents ──────────────────────────────────────────────────────────────────────────────────────

Other = Annotated[AgentName, Meta(description="Name of another agent.")]
# What moves agents has no key: a wish that a dying daemon may have forgotten is to be made again.


class ListAgents(Request, frozen=True, kw_only=True, tag="list_agents"):
    """The agents of the hive and how they are."""


class AgentBrief(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    running: bool
    failed: bool = False
    """It should run, and has ended too often."""
    paused: bool = False
    needs_update: bool = False
    """It runs with something else than what is declared now."""
    needs_login: bool = False
    status_text: str | UnsetType = UNSET
    """What it says that it is doing."""
    transient: str | UnsetType = UNSET
    """What is being done to it: `starting`, `stopping`, `restarting`, `rebuilding` or `destroying`."""
    deployed_sha: str | UnsetType = UNSET
    """The commit of its configuration that was deployed last."""
    deployed_tag: str | UnsetType = UNSET
    failure: str | UnsetType = UNSET
    """Why it does not run: the last exit."""
    unread: int = 0
    """Messages that wait for it."""


class Agents(Result, frozen=True, kw_only=True):
    agents: list[AgentBrief]


class Kill(Request, frozen=True, kw_only=True, tag="kill"):
    """Stop another agent, when its running turn has ended.  Answers when recorded."""

    name: Other


class Start(Request, frozen=True, kw_only=True, tag="start"):
    """Start another agent; one that has failed gets another chance.  Answers when recorded."""

    name: Other


class Restart(Request, frozen=True, kw_only=True, tag="restart"):
    """Stop another agent and start it again.  Answers when recorded."""

    name: Other


class Update(Request, frozen=True, kw_only=True, tag="update"):
    """Stop another agent and start it again with everything as it is declared now.  Answers when recorded."""

    name: Other

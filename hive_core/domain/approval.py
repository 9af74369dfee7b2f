"""What may happen to a request for approval: a table.

A request waits for an operator.  Approved, its effect waits in the queue of deploys (`domain/deploy.py`):
the row of the one and the row of the other are written in the same transaction.
"""

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_PENDING_OF_ONE: Final = 100
"""Requests of one proposer that wait for a decision."""
MAX_PENDING: Final = 1000
"""All that wait: nobody could decide on more."""
MAX_ASKED_A_DAY: Final = 1000
"""Requests of one agent, decided or not."""


class Kind(StrEnum):
    SPAWN = "spawn"
    INIT_CONFIG = "init_config"
    APPLY_COMMIT = "apply_commit"
    UPDATE_META_INPUTS = "update_meta_inputs"


class Status(StrEnum):
    """As the original says it.  Approved it stays when the effect went well."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Happening(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    CANCEL = "cancel"
    """Who asked for it took it back."""
    EXPIRE = "expire"
    """Nobody decided in time."""
    FAIL = "fail"
    """It cannot be had, or its effect went wrong."""
    SUCCEED = "succeed"
    """Its effect went well."""


@dataclass(frozen=True, slots=True)
class State:
    status: str
    finished: bool
    """Nothing happens to it any more."""


PENDING: Final = State(Status.PENDING, finished=False)
APPROVED: Final = State(Status.APPROVED, finished=False)

TABLE: Final[dict[tuple[State, Happening], State]] = {
    (PENDING, Happening.APPROVE): APPROVED,
    (PENDING, Happening.DENY): State(Status.DENIED, finished=True),
    (PENDING, Happening.CANCEL): State(Status.CANCELLED, finished=True),
    (PENDING, Happening.EXPIRE): State(Status.CANCELLED, finished=True),
    (PENDING, Happening.FAIL): State(Status.FAILED, finished=True),
    (APPROVED, Happening.SUCCEED): State(Status.APPROVED, finished=True),
    (APPROVED, Happening.FAIL): State(Status.FAILED, finished=True),
}
"""What is not in it cannot happen."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A request.  Times are unix seconds."""

    id: int
    agent: str
    """Of an update of inputs: empty."""
    kind: str
    """A Kind, or what a later or earlier version of the original wrote."""
    commit_ref: str
    requested_at: float
    status: str
    """A Status, or what a later version of the original wrote."""
    finished: bool
    proposer: str
    """An agent, or `operator`."""
    fetched_sha: str | None = None
    """The commit it is about, as it was pinned."""
    base_sha: str | None = None
    """What ran when it was asked for."""
    description: str | None = None
    note: str | None = None
    resolved_at: float | None = None
    expires_at: float | None = None
    decided_by_uid: int | None = None
    tag: str | None = None
    """The last tag it got, such as `deployed/7`."""

    @property
    def state(self) -> State:
        return State(self.status, self.finished)


def advance(state: State, happening: Happening) -> State | None:
    """Give what *state* becomes; None: it cannot happen to it."""
    return TABLE.get((state, happening))


def digest(approval: Approval, running_sha: str | None) -> str:
    """Give the SHA-256, in hex, of all that is decided on: another one means that it is something else now.

    *running_sha* is the commit that its agent runs with now; None: with none, or it is not there.
    """
    decided_on = [approval.kind, approval.agent, approval.commit_ref, approval.fetched_sha, running_sha]
    # As JSON, so that the end of one part can never be taken for the beginning of the next.
    text = json.dumps([*decided_on, approval.description])
    return hashlib.sha256(text.encode()).hexdigest()

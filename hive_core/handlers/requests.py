"""What the manager asks for.  It decides nothing: an operator does."""

from typing import Final

from msgspec import UNSET

from hive_core.domain.approval import Approval, Status
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.wire import agent
from hive_core.wire import agent_manager as wire

MAX_PENDING: Final = 100
"""Shown of those that wait; above that, an operator has other worries."""
MAX_DECIDED: Final = 20
MAX_TEXT_CHARS: Final = 500
"""Shown of a description or a note: the log of a build is not to fill a model's context."""


async def request_spawn(deps: Deps, peer: Peer, request: wire.RequestSpawn) -> wire.Requested:
    approval_id = await deps.applier.request_spawn(
        request.name, request.description, by=peer.name, key=request.idempotency_key
    )
    return wire.Requested(id=approval_id)


async def request_init_config(deps: Deps, peer: Peer, request: wire.RequestInitConfig) -> wire.Requested:
    approval_id = await deps.applier.request_init(
        request.name, request.description, by=peer.name, key=request.idempotency_key
    )
    return wire.Requested(id=approval_id)


async def request_apply_commit(deps: Deps, peer: Peer, request: wire.RequestApplyCommit) -> wire.Requested:
    approval_id = await deps.applier.submit_commit(
        request.agent, request.commit_ref, request.description, by=peer.name, key=request.idempotency_key
    )
    return wire.Requested(id=approval_id)


async def request_update_inputs(deps: Deps, peer: Peer, request: wire.RequestUpdateInputs) -> wire.Requested:
    approval_id = await deps.applier.request_inputs(
        request.inputs, request.description, by=peer.name, key=request.idempotency_key
    )
    return wire.Requested(id=approval_id)


async def open_config(deps: Deps, _peer: Peer, request: wire.OpenConfig) -> agent.Done:
    await deps.configurations.ensure_for(request.name)
    return agent.Done()


async def list_approvals(deps: Deps, _peer: Peer, _request: wire.ListApprovals) -> wire.Approvals:
    pending = await deps.applier.pending(MAX_PENDING)
    newest = await deps.applier.newest(MAX_DECIDED)
    found = {approval.id: approval for approval in (*pending, *newest)}
    briefs = [_brief(found[approval_id]) for approval_id in sorted(found)]
    return wire.Approvals(approvals=within_line(briefs, newest=True))


def _brief(approval: Approval) -> wire.ApprovalBrief:
    sha = approval.fetched_sha or approval.commit_ref
    return wire.ApprovalBrief(
        id=approval.id,
        kind=approval.kind,
        status=approval.status,
        requested_at=approval.requested_at,
        agent=approval.agent,
        proposer=approval.proposer,
        sha=sha or UNSET,
        description=_beginning(approval.description) if approval.description else UNSET,
        note=_beginning(approval.note) if approval.note else UNSET,
        tag=approval.tag or UNSET,
        expires_at=approval.expires_at or UNSET,
        in_work=approval.status == Status.APPROVED and not approval.finished,
    )


def _beginning(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + " …"

"""Approvals: what is asked for, shown, decided and taken back on host.sock."""

from msgspec import UNSET, UnsetType

from hive_core.domain import approval as rules
from hive_core.domain.approval import MAX_PENDING, Approval
from hive_core.domain.clock import rfc3339
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.wire import approval as wire
from hive_core.wire import host
from hive_core.wire.ids import OPERATOR


async def pending(deps: Deps, _peer: Peer, _request: wire.Pending) -> wire.Approvals:
    found = await deps.applier.pending(MAX_PENDING)
    return wire.Approvals(approvals=within_line([approval_row(deps, each) for each in found]))


async def approvals(deps: Deps, _peer: Peer, request: wire.ApprovalsRequest) -> wire.Approvals:
    found = await deps.applier.newest(request.limit, request.agent)
    return wire.Approvals(approvals=within_line([approval_row(deps, each) for each in found], newest=True))


async def approve(deps: Deps, peer: Peer, request: wire.Approve) -> host.Reply:
    await deps.applier.approve(request.id, uid=peer.uid, digest=request.digest)
    return host.Reply()


async def deny(deps: Deps, peer: Peer, request: wire.Deny) -> host.Reply:
    await deps.applier.deny(request.id, uid=peer.uid, note=request.note)
    return host.Reply()


async def cancel(deps: Deps, peer: Peer, request: wire.CancelApproval) -> host.Reply:
    await deps.applier.cancel(request.id, by=OPERATOR, uid=peer.uid)
    return host.Reply()


async def request_spawn(deps: Deps, _peer: Peer, request: wire.RequestSpawn) -> wire.Requested:
    return wire.Requested(id=await deps.applier.request_spawn(request.name, request.description, by=OPERATOR))


async def request_init(deps: Deps, _peer: Peer, request: wire.RequestInitConfig) -> wire.Requested:
    return wire.Requested(id=await deps.applier.request_init(request.name, request.description, by=OPERATOR))


async def request_commit(deps: Deps, _peer: Peer, request: wire.RequestApplyCommit) -> wire.Requested:
    approval_id = await deps.applier.submit_commit(
        request.agent, request.commit_ref, request.description, by=OPERATOR
    )
    return wire.Requested(id=approval_id)


async def request_inputs(deps: Deps, _peer: Peer, request: wire.RequestUpdateInputs) -> wire.Requested:
    approval_id = await deps.applier.request_inputs(request.inputs, request.description, by=OPERATOR)
    return wire.Requested(id=approval_id)


async def config(deps: Deps, _peer: Peer, request: wire.ConfigRequest) -> wire.ConfigReply:
    await deps.configurations.ensure_for(request.name)
    return wire.ConfigReply(path=str(deps.layout.config_of(request.name)))


def approval_row(
    deps: Deps, approval: Approval, running_sha: str | UnsetType | None = UNSET
) -> wire.ApprovalRow:
    """Give it for the wire; *running_sha* is what it was compared with, if that may have changed since."""
    waits = approval.state == rules.PENDING
    if running_sha is UNSET:
        running_sha = deps.applier.running_sha(approval.agent)
    return wire.ApprovalRow(
        id=approval.id,
        agent=approval.agent,
        kind=approval.kind,
        commit_ref=approval.commit_ref,
        fetched_sha=approval.fetched_sha or UNSET,
        requested_at=rfc3339(approval.requested_at),
        status=approval.status,
        resolved_at=UNSET if approval.resolved_at is None else rfc3339(approval.resolved_at),
        note=approval.note or UNSET,
        description=approval.description or UNSET,
        proposer=approval.proposer,
        base_sha=approval.base_sha or UNSET,
        expires_at=UNSET if approval.expires_at is None else rfc3339(approval.expires_at),
        decided_by_uid=UNSET if approval.decided_by_uid is None else approval.decided_by_uid,
        tag=approval.tag or UNSET,
        finished=approval.finished,
        digest=rules.digest(approval, running_sha) if waits else UNSET,
    )

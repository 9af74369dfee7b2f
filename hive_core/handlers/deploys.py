"""Deploys: what is being done of what was approved, what was done, and the way back."""

from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.domain.deploy import Deploy
from hive_core.domain.visible import one_line
from hive_core.handlers.deps import Deps, Emit, Peer
from hive_core.handlers.rows import within_line
from hive_core.host.git_output import TagInfo
from hive_core.wire import approval as wire


async def deploys(deps: Deps, _peer: Peer, request: wire.Deploys) -> wire.DeploysReply:
    found = await deps.deployer.newest(request.limit, request.agent)
    return wire.DeploysReply(deploys=within_line([_row(deploy) for deploy in found], newest=True))


async def follow_deploys(deps: Deps, _peer: Peer, request: wire.Deploys, emit: Emit) -> None:
    """Show the newest, then what is under way with the end of its log, and what comes."""
    # Followed before it is looked: one that ends in between would be in neither.
    with deps.deployer.follow() as (news, follower):
        found = await deps.deployer.newest(request.limit, request.agent)
        await emit(wire.DeploysReply(deploys=within_line([_row(deploy) for deploy in found], newest=True)))
        about = {deploy.id for deploy in found}
        lost = 0
        new = news
        while True:
            if lost:
                await emit(wire.DeploysReply(lines=[f"… {lost} lines or changes were too fast for this …"]))
            for item in new:
                if isinstance(item, Deploy):
                    if request.agent is None or item.agent == request.agent:
                        about.add(item.id)
                        await emit(wire.DeploysReply(deploys=[_row(item)]))
                elif request.agent is None or item.deploy_id in about:
                    lines = within_line(item.lines, newest=True)
                    await emit(wire.DeploysReply(id=item.deploy_id, lines=lines))
            new, lost = await follower.receive()


async def deploy_log(deps: Deps, _peer: Peer, request: wire.DeployLog) -> wire.DeployLogReply:
    lines = await deps.deployer.read_log(request.id, request.lines)
    return wire.DeployLogReply(lines=within_line(lines, newest=True))


async def rollback(deps: Deps, peer: Peer, request: wire.Rollback) -> wire.RollbackReply:
    queued = await deps.deployer.rollback(request.agent, request.tag, uid=peer.uid)
    assert queued.tag is not None
    return wire.RollbackReply(id=queued.id, tag=queued.tag)


async def history(deps: Deps, _peer: Peer, request: wire.History) -> wire.HistoryReply:
    """Give the tags of an agent that is there, or was.

    Raises:
        Refused: UNAVAILABLE, when its repository cannot be read.
    """
    name = request.agent
    row = deps.supervisor.agent(name).row if name in deps.supervisor.names else None
    found = await deps.deployer.history(name, request.limit)
    if not found:
        deps.supervisor.agent(name)  # refused, when there never was such an agent
    running = row.deployed_tag if row is not None else None
    rows = [_history_row(tag, is_running=tag.tag == running) for tag in found]
    return wire.HistoryReply(history=within_line(rows, newest=True))


def _row(deploy: Deploy) -> wire.DeployRow:
    return wire.DeployRow(
        id=deploy.id,
        agent=deploy.agent,
        kind=deploy.kind.value,
        step=deploy.step.value,
        requested_at=rfc3339(deploy.requested_at),
        approval_id=UNSET if deploy.approval_id is None else deploy.approval_id,
        sha=UNSET if deploy.sha is None else deploy.sha,
        tag=UNSET if deploy.tag is None else deploy.tag,
        error=UNSET if deploy.error is None else deploy.error,
        started_at=UNSET if deploy.started_at is None else rfc3339(deploy.started_at),
        finished_at=UNSET if deploy.finished_at is None else rfc3339(deploy.finished_at),
        steps=[wire.StepRow(step=step.value, at=rfc3339(at)) for step, at in deploy.steps],
    )


def _history_row(tag: TagInfo, *, is_running: bool) -> wire.HistoryRow:
    return wire.HistoryRow(
        tag=one_line(tag.tag),
        sha=tag.sha,
        at=rfc3339(tag.at),
        subject=one_line(tag.subject),
        note=UNSET if tag.note is None else one_line(tag.note),
        running=is_running,
    )

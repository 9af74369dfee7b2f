"""Agents as the operator sees and moves them."""

from hive_core.feed import Overtaken, RowChanged
from hive_core.handlers.deps import Deps, Emit, Peer
from hive_core.handlers.machines import check_image
from hive_core.handlers.rows import agent_row
from hive_core.wire import allow as wire
from hive_core.wire import host
from hive_core.wire.errors import ErrorCode, Refused


def list_agents(deps: Deps, _peer: Peer, _request: host.List) -> host.Agents:
    return host.Agents(agents=deps.supervisor.names)


def agent_status(deps: Deps, _peer: Peer, _request: host.AgentStatus) -> host.AgentStatuses:
    return host.AgentStatuses(agent_statuses=[agent_row(deps, name) for name in deps.supervisor.names])


async def subscribe_agent_status(
    deps: Deps, _peer: Peer, _request: host.SubscribeAgentStatus, emit: Emit
) -> None:
    ring = deps.feed.everything
    sent = {name: agent_row(deps, name) for name in deps.supervisor.names}
    place = ring.end
    while True:
        try:
            items = await ring.after(place)
            touched = dict.fromkeys(item.agent for item in items if isinstance(item, RowChanged))
        except Overtaken:  # a slow reader loses updates, not its connection
            touched = dict.fromkeys(deps.supervisor.names)
        place = ring.end
        for name in touched:
            if name not in deps.supervisor.names:
                sent.pop(name, None)
                continue
            row = agent_row(deps, name)
            if sent.get(name) != row:
                sent[name] = row
                await emit(host.AgentStatuses(agent_statuses=[row]))


async def set_paused(deps: Deps, _peer: Peer, request: host.SetPaused) -> host.Reply:
    await deps.supervisor.set_paused(request.name, request.paused)
    return host.Reply()


async def allow(deps: Deps, _peer: Peer, request: wire.Allow) -> host.Reply:
    declaration = deps.supervisor.agent(request.name).row.declaration
    if declaration is not None and declaration.recipients is not None:
        deps.declarations.refuse_said(request.name, f"allow {request.name} other recipients", "recipients")
    await deps.broker.allow(request.name, request.recipients)
    return host.Reply()


async def start(deps: Deps, _peer: Peer, request: host.Start) -> host.Reply:
    for name in _names_in(deps, request.scope, "start"):
        await deps.supervisor.start(name)
    return host.Reply()


async def stop(deps: Deps, _peer: Peer, request: host.Stop) -> host.Reply:
    for name in _names_in(deps, request.scope, "stop"):
        await deps.supervisor.stop(name, graceful=request.graceful)
    return host.Reply()


async def kill(deps: Deps, _peer: Peer, request: host.Kill) -> host.Reply:
    await deps.supervisor.stop(request.name, graceful=True)
    return host.Reply()


async def restart(deps: Deps, _peer: Peer, request: host.Restart) -> host.Reply:
    await check_image(deps, request.name, "restart")
    await deps.supervisor.restart(request.name)
    return host.Reply()


async def destroy(deps: Deps, _peer: Peer, request: host.Destroy) -> host.Reply:
    if request.name in deps.supervisor.names:
        deps.declarations.refuse(request.name, f"destroy {request.name}")
    await deps.supervisor.destroy(request.name, purge=request.purge)
    return host.Reply()


def urls(deps: Deps, _peer: Peer, _request: host.UrlsRequest) -> host.UrlsReply:
    domain = deps.config().domain
    return host.UrlsReply(urls=host.Urls(domain=domain, home=f"https://{domain}/") if domain else host.Urls())


def _names_in(deps: Deps, scope: host.LifecycleScope, verb: str) -> list[str]:
    """Give the agents in *scope*, all of which exist, so that nothing is half done."""
    if scope.all or scope.agents:
        return deps.supervisor.names
    if not scope.agent_names:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT,
            f'cannot {verb}: the scope names no agent; to mean all of them say "all": true',
        )
    for name in scope.agent_names:
        deps.supervisor.agent(name)
    return list(dict.fromkeys(scope.agent_names))

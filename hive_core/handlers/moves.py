"""How the manager sees and moves the other agents."""

from msgspec import UNSET

from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.machines import check_image
from hive_core.handlers.rows import agent_row, within_line
from hive_core.wire import agent
from hive_core.wire import agent_manager as wire
from hive_core.wire.errors import ErrorCode, Refused


def list_agents(deps: Deps, _peer: Peer, _request: wire.ListAgents) -> wire.Agents:
    return wire.Agents(agents=within_line([_agent_brief(deps, name) for name in deps.supervisor.names]))


async def kill(deps: Deps, peer: Peer, request: wire.Kill) -> agent.Done:
    _check_other(peer, "kill", request.name)
    await deps.supervisor.stop(request.name, graceful=True)
    return agent.Done()


async def start(deps: Deps, peer: Peer, request: wire.Start) -> agent.Done:
    _check_other(peer, "start", request.name)
    await deps.supervisor.start(request.name)
    return agent.Done()


async def restart(deps: Deps, peer: Peer, request: wire.Restart) -> agent.Done:
    _check_other(peer, "restart", request.name)
    await check_image(deps, request.name, "restart")
    await deps.supervisor.restart(request.name)
    return agent.Done()


async def update(deps: Deps, peer: Peer, request: wire.Update) -> agent.Done:
    _check_other(peer, "update", request.name)
    await check_image(deps, request.name, "update")
    await deps.supervisor.rebuild(request.name)
    return agent.Done()


def _check_other(peer: Peer, verb: str, name: str) -> None:
    """Refuse what would end the turn that asks for it."""
    if name == peer.name:
        text = f"cannot {verb} {name}: that is you yourself; the operator can"
        raise Refused(ErrorCode.FORBIDDEN, text)


def _agent_brief(deps: Deps, name: str) -> wire.AgentBrief:
    shown = agent_row(deps, name)
    row = deps.supervisor.agent(name).row
    return wire.AgentBrief(
        name=name,
        running=shown.running,
        failed=shown.failed,
        paused=shown.paused,
        needs_update=shown.needs_update,
        needs_login=shown.needs_login,
        status_text=shown.status_text,
        transient=shown.transient,
        deployed_sha=row.deployed_sha or UNSET,
        deployed_tag=row.deployed_tag or UNSET,
        failure=shown.failure,
        unread=shown.unread,
    )

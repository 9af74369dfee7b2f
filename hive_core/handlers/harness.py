"""The harness: what it says about itself, and what the operator tells it to do."""

from typing import Final

import trio

from hive_core.control import Make
from hive_core.handlers.deps import Deps, Emit, Peer
from hive_core.wire import agent, host
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.version import VERSION

COMMAND_TIMEOUT_S: Final = 10.0
LOGIN_TIMEOUT_S: Final = 45.0
"""The harness gives the login program 30 s for its address, and for an answer to the code."""


def whoami(_deps: Deps, peer: Peer, _request: agent.Whoami) -> agent.Identity:
    return agent.Identity(name=peer.name, role=peer.role.value, version=VERSION)


async def set_status(deps: Deps, peer: Peer, request: agent.SetStatus) -> agent.Done:
    await deps.supervisor.set_status(peer.name, request.text)
    return agent.Done()


def publish(deps: Deps, peer: Peer, request: agent.Publish) -> agent.Done:
    deps.feed.publish(peer.name, request.events, request.now)
    return agent.Done()


async def subscribe_control(deps: Deps, peer: Peer, _request: agent.SubscribeControl, emit: Emit) -> None:
    receive = deps.control.subscribe(peer.name)
    try:
        await emit(agent.SetPaused(id=0, paused=deps.supervisor.agent(peer.name).row.paused))
        async for command in receive:
            await emit(command)
    finally:
        deps.control.unsubscribe(peer.name, receive)


def control_done(deps: Deps, peer: Peer, request: agent.ControlDone) -> agent.Done:
    deps.control.done(peer.name, request.id, request.ok, request.text)
    return agent.Done()


async def cancel_turn(deps: Deps, _peer: Peer, request: host.CancelTurn) -> host.Carried:
    return await _command(deps, request.agent, lambda command_id: agent.CancelTurn(id=command_id))


async def new_session(deps: Deps, _peer: Peer, request: host.NewSession) -> host.Carried:
    return await _command(deps, request.agent, lambda command_id: agent.NewSession(id=command_id))


async def set_model(deps: Deps, _peer: Peer, request: host.SetModel) -> host.Carried:
    return await _command(
        deps, request.agent, lambda command_id: agent.SetModel(id=command_id, model=request.model)
    )


async def set_effort(deps: Deps, _peer: Peer, request: host.SetEffort) -> host.Carried:
    return await _command(
        deps, request.agent, lambda command_id: agent.SetEffort(id=command_id, effort=request.effort)
    )


async def compact(deps: Deps, _peer: Peer, request: host.Compact) -> host.Carried:
    return await _command(deps, request.agent, lambda command_id: agent.Compact(id=command_id))


async def login_start(deps: Deps, _peer: Peer, request: host.LoginStart) -> host.LoginUrl:
    carried = await _command(
        deps, request.agent, lambda command_id: agent.LoginStart(id=command_id), LOGIN_TIMEOUT_S
    )
    if not carried.text:
        raise Refused(ErrorCode.UNAVAILABLE, f"cannot log {request.agent} in: its harness gave no address")
    return host.LoginUrl(url=carried.text)


async def login_code(deps: Deps, _peer: Peer, request: host.LoginCode) -> host.Carried:
    return await _command(
        deps,
        request.agent,
        lambda command_id: agent.LoginCode(id=command_id, code=request.code),
        LOGIN_TIMEOUT_S,
    )


async def login_cancel(deps: Deps, _peer: Peer, request: host.LoginCancel) -> host.Carried:
    return await _command(deps, request.agent, lambda command_id: agent.LoginCancel(id=command_id))


async def _command(deps: Deps, name: str, make: Make, timeout_s: float = COMMAND_TIMEOUT_S) -> host.Carried:
    """Send a command to the harness of *name* and wait for what it says.

    Raises:
        Refused: NOT_FOUND; UNAVAILABLE if it is not connected or does not answer in *timeout_s*;
            PRECONDITION_FAILED if it could not.
    """
    deps.supervisor.agent(name)
    answer = deps.control.command(name, make)
    with trio.move_on_after(timeout_s):
        text = await answer.wait()
        return host.Carried(text=text) if text else host.Carried()
    raise Refused(ErrorCode.UNAVAILABLE, f"cannot command {name}: its harness does not answer")

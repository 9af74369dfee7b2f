"""The harness: what it says about itself, and what the operator tells it to do."""

from typing import Final

import trio

from hive_core.control import Make
from hive_core.handlers.deps import Deps, Emit, Peer
from hive_core.wire import agent, host
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.version import VERSION

COMMAND_TIMEOUT_S: Final = 10.0


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


async def _command(deps: Deps, name: str, make: Make) -> host.Carried:
    """Send a command to the harness of *name* and wait for what it says.

    Raises:
        Refused: NOT_FOUND; UNAVAILABLE if it is not connected or does not answer in 10 s;
            PRECONDITION_FAILED if it could not.
    """
    deps.supervisor.agent(name)
    answer = deps.control.command(name, make)
    with trio.move_on_after(COMMAND_TIMEOUT_S):
        text = await answer.wait()
        return host.Carried(text=text) if text else host.Carried()
    raise Refused(ErrorCode.UNAVAILABLE, f"cannot command {name}: its harness does not answer")

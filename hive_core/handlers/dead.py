"""Dead letters: made by harnesses, seen and taken up again by the operator."""

from hive_core.deferred import Deferred
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import message_row, within_line
from hive_core.store import mailbox
from hive_core.wire import agent, host
from hive_core.wire import dead as wire
from hive_core.wire.errors import ErrorCode, Refused


def set_aside(deps: Deps, peer: Peer, request: agent.SetAside) -> Deferred[agent.Done]:
    return deps.dead_letters.set_aside(peer.name, request.ids, request.reason).map(lambda _: agent.Done())


async def dead(deps: Deps, _peer: Peer, request: wire.Dead) -> wire.DeadLetters:
    # Of any name: what was sent to an agent that is destroyed by now is there too.
    rows = await deps.store.read(mailbox.dead, request.agent, request.limit)
    return wire.DeadLetters(messages=within_line([message_row(row) for row in rows], newest=True))


async def retry(deps: Deps, _peer: Peer, request: wire.DeadRetry) -> wire.Retried:
    if (request.id is None) != request.all:
        raise Refused(ErrorCode.INVALID_ARGUMENT, "cannot retry: give either id or all, and one of them")
    if request.id is None:
        return wire.Retried(retried=await deps.dead_letters.retry_all(request.agent))
    if request.agent is not None:
        raise Refused(ErrorCode.INVALID_ARGUMENT, "cannot retry: give agent with all alone")
    await deps.dead_letters.retry(request.id)
    return wire.Retried(retried=1)


async def drop(deps: Deps, _peer: Peer, request: wire.DeadDrop) -> host.Reply:
    await deps.dead_letters.drop(request.id)
    return host.Reply()

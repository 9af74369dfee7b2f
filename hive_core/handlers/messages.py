"""Messages: by the operator on host.sock, and by agents on theirs."""

from hive_core.broker import Handover
from hive_core.deferred import Deferred
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import message_row, within_line
from hive_core.store import mailbox
from hive_core.wire import agent, host
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR


def operator_send(deps: Deps, peer: Peer, request: host.Send) -> Deferred[host.Sent]:
    sent = deps.broker.send(
        OPERATOR,
        request.to,
        request.body,
        sender_uid=peer.uid,
        in_reply_to=request.in_reply_to,
        idempotency_key=request.idempotency_key,
    )
    return sent.map(lambda message_id: host.Sent(id=message_id))


async def inbox(deps: Deps, _peer: Peer, request: host.Inbox) -> host.Messages:
    if request.agent == OPERATOR:
        rows = await deps.store.read(mailbox.recent, OPERATOR, request.limit)
    else:
        deps.supervisor.agent(request.agent)
        rows = await deps.store.read(mailbox.unfinished, request.agent, request.limit)
    shown = [message_row(row) for row in rows]
    return host.Messages(messages=within_line(shown, newest=request.agent == OPERATOR))


async def messages(deps: Deps, _peer: Peer, request: host.MessagesRequest) -> host.Messages:
    rows = await deps.store.read(mailbox.page, request.since, request.limit)
    return host.Messages(
        messages=within_line([message_row(row) for row in rows], newest=request.since is None)
    )


async def why(deps: Deps, _peer: Peer, request: host.Why) -> host.Messages:
    rows = await deps.store.read(mailbox.chain, request.id)
    if not rows:
        raise Refused(ErrorCode.NOT_FOUND, f"cannot explain message {request.id}: there is no such message")
    return host.Messages(messages=within_line([message_row(row) for row in rows], newest=True))


def send(deps: Deps, peer: Peer, request: agent.Send) -> Deferred[agent.Sent]:
    sent = deps.broker.send(
        peer.name,
        request.to,
        request.body,
        sender_uid=peer.uid,
        in_reply_to=request.in_reply_to,
        idempotency_key=request.idempotency_key,
    )
    return sent.map(lambda message_id: agent.Sent(id=message_id))


def recv(deps: Deps, peer: Peer, request: agent.Recv) -> Deferred[agent.Messages]:
    leased = deps.broker.recv(peer.name, request.max, request.wait_seconds, drained=peer.in_turn)
    return leased.map(lambda found: agent.Messages(messages=found))


def hand_over(deps: Deps, peer: Peer, result: agent.Messages) -> Handover | None:
    """Watch over an answer with messages.  It keeps their ids alone: it is kept for a while."""
    if not result.messages:
        return None
    return deps.broker.hand_over(peer.name, [message.id for message in result.messages])


def ack_turn(deps: Deps, peer: Peer, request: agent.AckTurn) -> agent.Acked:
    return agent.Acked(acked=deps.broker.ack(peer.name, request.ids))


def requeue_inflight(
    deps: Deps, peer: Peer, request: agent.RequeueInflight
) -> agent.Requeued | Deferred[agent.Requeued]:
    if request.failed:
        requeued = deps.dead_letters.requeue_failed(peer.name)
        return requeued.map(lambda count: agent.Requeued(requeued=count))
    return agent.Requeued(requeued=deps.broker.requeue(peer.name))


def inbox_status(deps: Deps, peer: Peer, _request: agent.InboxStatus) -> agent.Unread:
    return agent.Unread(unread=deps.broker.count_unread(peer.name))


async def recent(deps: Deps, peer: Peer, request: agent.Recent) -> agent.Messages:
    rows = await deps.store.read(mailbox.recent, peer.name, request.limit)
    found = [mailbox.as_handed_out(row) for row in rows]
    return agent.Messages(messages=within_line(found, newest=True))


def wake(deps: Deps, peer: Peer, request: agent.Wake) -> Deferred[agent.Sent]:
    woken = deps.broker.wake(peer.name, request.from_, request.body, sender_uid=peer.uid)
    return woken.map(lambda message_id: agent.Sent(id=message_id))


def request_next_turn(
    deps: Deps, peer: Peer, _request: agent.RequestNextTurn
) -> agent.NextTurn | Deferred[agent.NextTurn]:
    requested = deps.broker.request_next_turn(peer.name, sender_uid=peer.uid)
    if requested is None:
        return agent.NextTurn()
    return requested.map(lambda message_id: agent.NextTurn(id=message_id))


def operator_msg(deps: Deps, peer: Peer, request: agent.OperatorMsg) -> Deferred[agent.Sent]:
    told = deps.broker.tell(peer.name, request.body, sender_uid=peer.uid)
    return told.map(lambda message_id: agent.Sent(id=message_id))

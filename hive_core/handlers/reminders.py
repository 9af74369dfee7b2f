"""Reminders: left by agents, seen and mended by the operator."""

from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.domain.reminder import Reminder
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.store import reminders as rows
from hive_core.wire import agent, host
from hive_core.wire import reminder as wire
from hive_core.wire.ids import OPERATOR


async def remind(deps: Deps, peer: Peer, request: agent.Remind) -> agent.Reminded:
    reminder = await deps.scheduler.remind(
        peer.name,
        request.message,
        delay_seconds=request.delay_seconds,
        at=request.at_unix_timestamp,
        file_path=request.file_path,
        key=request.idempotency_key and f"remind {request.idempotency_key}",
    )
    return agent.Reminded(id=reminder.id, due_at=reminder.due_at)


def count_pending(deps: Deps, peer: Peer, _request: agent.CountPendingReminders) -> agent.PendingReminders:
    return agent.PendingReminders(pending=deps.scheduler.count(peer.name))


async def reminders(deps: Deps, _peer: Peer, request: wire.Reminders) -> wire.RemindersReply:
    if request.agent is not None:
        deps.supervisor.agent(request.agent)
    found = await deps.store.read(rows.pending, request.agent, request.limit)
    return wire.RemindersReply(reminders=within_line([_row(each) for each in found]))


async def cancel(deps: Deps, _peer: Peer, request: wire.CancelReminder) -> host.Reply:
    await deps.scheduler.cancel(request.id, by=OPERATOR)
    return host.Reply()


async def retry(deps: Deps, _peer: Peer, request: wire.RetryReminder) -> host.Reply:
    await deps.scheduler.retry(request.id)
    return host.Reply()


def _row(reminder: Reminder) -> wire.ReminderRow:
    return wire.ReminderRow(
        id=reminder.id,
        agent=reminder.agent,
        message=reminder.message,
        due_at=rfc3339(reminder.due_at),
        created_at=rfc3339(reminder.created_at),
        file_path=UNSET if reminder.file_path is None else reminder.file_path,
        attempts=reminder.attempts,
        last_error=UNSET if reminder.last_error is None else reminder.last_error,
    )

"""Rows as host.sock shows them."""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from hive_core.domain.clock import rfc3339
from hive_core.domain.event import Event
from hive_core.domain.machine import Wanted
from hive_core.domain.machine_names import MachineNames
from hive_core.handlers.deps import Deps
from hive_core.store.mailbox import StoredMessage
from hive_core.wire import host
from hive_core.wire.limits import MAX_LINE_BYTES

T = TypeVar("T")

ENVELOPE_BYTES: Final = 1024
"""What a reply has round its rows, commas included, with room to spare."""


def within_line(rows: Sequence[T], *, newest: bool = False) -> list[T]:
    """Give as many of *rows* as fit a line of host.sock, from the first on, or the last ones.

    At least one: the limits of a body and an event keep a single row far below a line.
    """
    size, fitting = 0, 0
    for row in reversed(rows) if newest else rows:
        size += len(msgspec.json.encode(row))
        if fitting and size > MAX_LINE_BYTES - ENVELOPE_BYTES:
            break
        fitting += 1
    return list(rows[len(rows) - fitting :] if newest else rows[:fitting])


def message_row(message: StoredMessage) -> host.MessageRow:
    return host.MessageRow(
        id=message.id,
        sender=message.sender,
        recipient=message.recipient,
        body=message.body,
        sent_at=rfc3339(message.sent_at),
        delivered_at=UNSET if message.delivered_at is None else rfc3339(message.delivered_at),
        acked_at=UNSET if message.acked_at is None else rfc3339(message.acked_at),
        in_reply_to=UNSET if message.in_reply_to is None else message.in_reply_to,
        redelivered=True if message.redelivered else UNSET,
        thread_id=message.thread_id,
        cause_id=UNSET if message.cause_id is None else message.cause_id,
        sender_uid=UNSET if message.sender_uid is None else message.sender_uid,
        broadcast=True if message.broadcast else UNSET,
        attempts=message.attempts or UNSET,
        dead_at=UNSET if message.dead_at is None else rfc3339(message.dead_at),
        dead_reason=UNSET if message.dead_reason is None else message.dead_reason,
    )


def event_row(event: Event) -> host.EventRow:
    return host.EventRow(id=event.id, ts=rfc3339(event.ts), kind=event.kind, payload=event.payload)


def agent_row(deps: Deps, name: str) -> host.AgentStatusRow:
    """The roster's row of *name*.

    Raises:
        Refused: NOT_FOUND.
    """
    agent = deps.supervisor.agent(name)
    row = agent.row
    running = agent.machine is not None
    now = deps.feed.snapshot_of(name) if running else None
    failed = deps.supervisor.has_failed(agent) and row.wanted is Wanted.RUNNING
    status_shown = running and row.status_text is not None
    domain = deps.config().domain
    allowed = deps.broker.allowed(name)
    return host.AgentStatusRow(
        name=name,
        running=running,
        failed=failed,
        needs_update=agent.needs_update,
        needs_login=now is not None and now.status.startswith("needs_login"),
        deployed_sha=UNSET if row.deployed_sha is None else row.deployed_sha[:12],
        pending_reminders=deps.scheduler.count(name),
        paused=row.paused,
        active_model=now.model if now and now.model else UNSET,
        status_text=row.status_text if status_shown and row.status_text else UNSET,
        status_set_at=rfc3339(row.status_set_at, fraction=False)
        if status_shown and row.status_set_at
        else UNSET,
        url=f"https://{domain}/agent/{name}/" if domain else UNSET,
        wanted=row.wanted.value,
        connected=running and deps.control.is_connected(name),
        isolation=deps.supervisor.isolation,
        turn_state=now.turn_state if now else UNSET,
        turn_state_since=rfc3339(now.turn_state_since) if now and now.turn_state_since else UNSET,
        unread=deps.broker.count_unread(name),
        pid=agent.machine.pid if agent.machine else UNSET,
        provider=now.provider if now and now.provider else UNSET,
        failure=agent.exits.last if agent.exits.times and not running else UNSET,
        status=now.status if now else UNSET,
        effort=now.effort if now and now.effort else UNSET,
        allowed_recipients=UNSET if allowed is None else sorted(allowed),
        dead=deps.dead_letters.count(name) or UNSET,
        ctx_tokens=now.ctx_tokens if now and now.ctx_tokens is not None else UNSET,
        window_tokens=now.window_tokens if now and now.window_tokens is not None else UNSET,
        machine=_machine_name(deps, name),
        transient=UNSET if agent.transient is None else agent.transient.value,
    )


def _machine_name(deps: Deps, name: str) -> str | UnsetType:
    return UNSET if deps.cages is None else MachineNames(deps.config().machines.prefix).machine(name)

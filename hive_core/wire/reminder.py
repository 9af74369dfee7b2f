"""Reminders on host.sock."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.ids import AgentName, RowId
from hive_core.wire.limits import MAX_ROWS
from hive_core.wire.verb import Reply, Request


class ReminderRow(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    agent: str
    message: str
    due_at: str
    created_at: str
    file_path: str | UnsetType = UNSET
    """Where its text goes, below the agent's state directory."""
    attempts: int = 0
    """How often it could not be delivered; from 5 on it waits for `retry_reminder`."""
    last_error: str | UnsetType = UNSET


class Reminders(Request, frozen=True, kw_only=True, tag="reminders"):
    """What agents, or one of them, left for themselves, the next one first."""

    agent: AgentName | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class RemindersReply(Reply, frozen=True, kw_only=True):
    reminders: list[ReminderRow]


class CancelReminder(Request, frozen=True, kw_only=True, tag="cancel_reminder"):
    """Delete a reminder."""

    id: RowId


class RetryReminder(Request, frozen=True, kw_only=True, tag="retry_reminder"):
    """Deliver a reminder that failed too often to be tried again by itself."""

    id: RowId

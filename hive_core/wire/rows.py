"""Rows that several verbs on host.sock show."""

import msgspec
from msgspec import UNSET, UnsetType


class MessageRow(msgspec.Struct, frozen=True, kw_only=True):
    """A message, with what the daemon knows about it."""

    id: int
    sender: str
    recipient: str
    body: str
    sent_at: str
    delivered_at: str | UnsetType = UNSET
    acked_at: str | UnsetType = UNSET
    in_reply_to: int | UnsetType = UNSET
    redelivered: bool | UnsetType = UNSET
    thread_id: int | UnsetType = UNSET
    cause_id: int | UnsetType = UNSET
    """The message that the sender was working on when it sent this one."""
    sender_uid: int | UnsetType = UNSET
    broadcast: bool | UnsetType = UNSET
    attempts: int | UnsetType = UNSET
    """How often it came back from a turn that failed."""
    dead_at: str | UnsetType = UNSET
    """Since when it is handed out no more."""
    dead_reason: str | UnsetType = UNSET

"""The rows that go with an agent into another hive: what it was, what waits for it, what it set itself."""

from typing import Any, Final, cast

import apsw
import msgspec

from hive_core.domain.cage import Network, Shape
from hive_core.domain.machine import Wanted
from hive_core.domain.reminder import Reminder
from hive_core.store import agents, reminders
from hive_core.wire.limits import MAX_BODY_BYTES

MAX_MESSAGES: Final = 10_000
MAX_BYTES: Final = 64 * 2**20


class Waiting(msgspec.Struct, frozen=True):
    sender: str
    body: str
    sent_at: float
    broadcast: bool = False


class Due(msgspec.Struct, frozen=True):
    message: str
    due_at: float
    created_at: float
    file_path: str | None = None


class Luggage(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in the database that goes with an agent; the rest are its directories."""

    image: str | None = None
    network: Network | None = None
    memory_max_bytes: int | None = None
    cpu_quota_percent: int | None = None
    tasks_max: int | None = None
    allowed_recipients: list[str] | None = None
    """To whom it may write; None: to anyone."""
    messages: list[Waiting] = []
    """Not acked, oldest first."""
    reminders: list[Due] = []


_DECODER: Final = msgspec.json.Decoder(Luggage)


def decode_luggage(text: bytes) -> Luggage:
    """Read what another hive wrote.

    Raises:
        ValueError: it makes no sense.
    """
    try:
        luggage = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"the agent's rows cannot be read: {error}") from None
    if len(luggage.messages) > MAX_MESSAGES or any(
        len(message.body.encode()) > MAX_BODY_BYTES for message in luggage.messages
    ):
        raise ValueError("the agent's rows cannot be read: there is too much")
    return luggage


def pack_rows(db: apsw.Connection, agent: str) -> Luggage:
    """Give what goes with *agent*, of its messages the oldest MAX_MESSAGES."""
    row = next(row for row in agents.all_agents(db) if row.name == agent)
    found = db.execute(
        "select sender, body, sent_at, broadcast from messages indexed by messages_waiting"
        " where recipient = ? and acked_at is null and dead_at is null order by id limit ?",
        (agent, MAX_MESSAGES),
    )
    allowed = agents.allowed_of(db, agent)
    messages: list[Waiting] = []
    left_bytes = MAX_BYTES
    for sender, body, sent_at, broadcast in cast("Any", found):
        left_bytes -= len(body)
        if left_bytes < 0:
            break
        messages.append(Waiting(sender, body, sent_at, bool(broadcast)))
    return Luggage(
        image=row.shape.image,
        network=row.shape.network,
        memory_max_bytes=row.shape.memory_max_bytes,
        cpu_quota_percent=row.shape.cpu_quota_percent,
        tasks_max=row.shape.tasks_max,
        allowed_recipients=None if allowed is None else sorted(allowed),
        messages=messages,
        reminders=[
            Due(each.message, each.due_at, each.created_at, each.file_path)
            for each in reminders.pending(db, agent, 1000)
        ],
    )


def unpack_rows(
    db: apsw.Connection, agent: str, uid_base: int | None, luggage: Luggage, first_id: int, now: float
) -> None:
    """Make *agent*, as one that was destroyed and whose state is kept: a spawn takes it up.

    Its messages get ids from *first_id* on and come as ones that may have been handed out before.
    """
    shape = Shape(
        luggage.image,
        luggage.network,
        luggage.memory_max_bytes,
        luggage.cpu_quota_percent,
        luggage.tasks_max,
    )
    agents.create(db, agent, now, uid_base, shape)
    agents.want(db, agent, Wanted.GONE, now)
    agents.allow(db, agent, luggage.allowed_recipients or None)
    db.executemany(
        "insert into messages (id, sender, recipient, body, sent_at, redelivered, broadcast, thread_id)"
        " values (?, ?, ?, ?, ?, 1, ?, ?)",
        [
            (message_id, message.sender, agent, message.body, message.sent_at, message.broadcast, message_id)
            for message_id, message in enumerate(luggage.messages, start=first_id)
        ],
    )
    for due in luggage.reminders:
        reminders.insert(db, Reminder(0, agent, due.message, due.due_at, due.created_at, due.file_path))

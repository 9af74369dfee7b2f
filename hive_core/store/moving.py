"""The rows that go with an agent into another hive: what it was, what waits for it, what it set itself."""

from typing import Any, Final, cast

import apsw
import msgspec

from hive_core.domain.cage import Network, Shape
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest
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


class Dead(msgspec.Struct, frozen=True):
    """A message that nobody could work on."""

    sender: str
    body: str
    sent_at: float
    dead_at: float
    reason: str | None = None
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
    dead: list[Dead] = []
    """The oldest first, too."""
    deployed_sha: str | None = None
    """The commit that it runs with, in the repository that comes along."""
    deployed_tag: str | None = None
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
    bodies = [one.body for one in luggage.messages] + [one.body for one in luggage.dead]
    if max(len(luggage.messages), len(luggage.dead)) > MAX_MESSAGES or any(
        len(body.encode()) > MAX_BODY_BYTES for body in bodies
    ):
        raise ValueError("the agent's rows cannot be read: there is too much")
    return luggage


def pack_rows(db: apsw.Connection, agent: str) -> Luggage:
    """Give what goes with *agent*, of its messages the oldest MAX_MESSAGES, and as many dead ones."""
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
    buried = db.execute(
        "select sender, body, sent_at, dead_at, dead_reason, broadcast from messages indexed by messages_dead"
        " where recipient = ? and acked_at is null and dead_at is not null order by id limit ?",
        (agent, MAX_MESSAGES),
    )
    dead: list[Dead] = []
    for sender, body, sent_at, dead_at, reason, broadcast in cast("Any", buried):
        left_bytes -= len(body)
        if left_bytes < 0:
            break
        dead.append(Dead(sender, body, sent_at, dead_at, reason, bool(broadcast)))
    return Luggage(
        image=row.shape.image,
        network=row.shape.network,
        memory_max_bytes=row.shape.memory_max_bytes,
        cpu_quota_percent=row.shape.cpu_quota_percent,
        tasks_max=row.shape.tasks_max,
        allowed_recipients=None if allowed is None else sorted(allowed),
        messages=messages,
        dead=dead,
        deployed_sha=row.deployed_sha,
        deployed_tag=row.deployed_tag,
        reminders=[
            Due(each.message, each.due_at, each.created_at, each.file_path)
            for each in reminders.pending(db, agent, 1000)
        ],
    )


def unpack_rows(
    db: apsw.Connection,
    agent: str,
    uid_base: int | None,
    luggage: Luggage,
    first_id: int,
    now: float,
    *,
    manifest: Manifest = NOTHING,
    last_number: int = 0,
) -> None:
    """Make *agent*, as one that was destroyed and whose state is kept: a spawn takes it up.

    Its messages get ids from *first_id* on and come as ones that may have been handed out before.
    *manifest* is what was deployed of it.  Approvals get numbers above *last_number*, the highest that its
    repository's tags have: there they are those of another hive.
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
    db.executemany(
        "insert into messages (id, sender, recipient, body, sent_at, redelivered, broadcast, thread_id,"
        " dead_at, dead_reason) values (?, ?, ?, ?, ?, 1, ?, ?, ?, ?)",
        [
            (
                *(message_id, message.sender, agent, message.body, message.sent_at, message.broadcast),
                *(message_id, message.dead_at, message.reason),
            )
            for message_id, message in enumerate(luggage.dead, start=first_id + len(luggage.messages))
        ],
    )
    if luggage.deployed_sha is not None:
        agents.note_deployed(db, agent, luggage.deployed_sha, luggage.deployed_tag, manifest)
    _count_on(db, last_number)
    for due in luggage.reminders:
        reminders.insert(db, Reminder(0, agent, due.message, due.due_at, due.created_at, due.file_path))


def _count_on(db: apsw.Connection, number: int) -> None:
    """Let the next approval have an id above *number*."""
    db.execute("update sqlite_sequence set seq = max(seq, ?) where name = 'approvals'", (number,))
    if not db.changes():
        db.execute("insert into sqlite_sequence (name, seq) values ('approvals', ?)", (number,))

"""The rows of messages: what a batch does to them, and how they are read."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import apsw
import msgspec
from msgspec import UNSET

from hive_core.store.database import Outcome
from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR
from hive_core.wire.limits import MAX_LINE_BYTES

RECENT_IDS: Final = 50_000
"""How far back `recent` looks: an agent may ask for it again and again, and must not keep the reader busy."""

MAX_CHAIN: Final = 100
"""Messages that `why` follows back."""

MAX_PAGE_BYTES: Final = MAX_LINE_BYTES - 4096
"""What is read at once for somebody to look at fits one line of host.sock."""

ROW_BYTES: Final = 1024
"""What a row takes there beside its body, at most."""


# Structs of msgspec where a broker makes several per message: a frozen dataclass takes ten times as long.


class Post(msgspec.Struct, frozen=True):
    """One accepted message: a row per recipient, with ids that rise from *first_id*."""

    first_id: int
    sender: str
    recipients: Sequence[str]
    body: str
    sent_at: float
    in_reply_to: int | None = None
    cause_id: int | None = None
    sender_uid: int | None = None
    idempotency_key: str | None = None
    broadcast: bool = False


class Delivered(msgspec.Struct, frozen=True):
    ids: Sequence[int]
    now: float


class Acked(msgspec.Struct, frozen=True):
    ids: Sequence[int]
    now: float


class Requeued(msgspec.Struct, frozen=True):
    ids: Sequence[int]


MailboxOp = Post | Delivered | Acked | Requeued


class Posted(msgspec.Struct, frozen=True, gc=False):
    """Outcome of a Post: the id that the sender gets, the thread, and whether it is new."""

    id: int
    thread_id: int
    new: bool


class StoredMessage(msgspec.Struct, frozen=True, gc=False):
    """A message's row with all its columns."""

    id: int
    sender: str
    recipient: str
    body: str
    sent_at: float
    delivered_at: float | None
    acked_at: float | None
    in_reply_to: int | None
    redelivered: int
    broadcast: int
    thread_id: int
    cause_id: int | None
    sender_uid: int | None
    attempts: int = 0
    """How often it was handed out and came back."""
    dead_at: float | None = None
    """Since when nobody is given it any more, unless it was acked or dropped later."""
    dead_reason: str | None = None


_INSERT: Final = (
    "insert into messages (id, sender, recipient, body, sent_at, in_reply_to, thread_id, cause_id,"
    " sender_uid, idempotency_key, broadcast) values "
)
_VALUES: Final = "(?,?,?,?,?,?,?,?,?,?,?)"
# Few large statements: each one that ends gives the GIL to a busy event loop and waits to get it back.
_INSERTS: Final = {size: _INSERT + ",".join([_VALUES] * size) for size in (64, 16, 4, 1)}

_MARKS: Final = " from (select cast(key as integer) as id, value as at from json_each(?)) as mark"
_DELIVER: Final = f"update messages set delivered_at = mark.at{_MARKS} where messages.id = mark.id"  # noqa: S608
_ACK: Final = (
    f"update messages set acked_at = mark.at, delivered_at = coalesce(delivered_at, mark.at){_MARKS}"  # noqa: S608
    " where messages.id = mark.id and acked_at is null"
)
_REQUEUE: Final = "update messages set redelivered = 1 where id in (select value from json_each(?))"

_COLUMNS: Final = (
    "id, sender, recipient, body, sent_at, delivered_at, acked_at, in_reply_to, redelivered, broadcast,"
    " coalesce(thread_id, id), cause_id, sender_uid, attempts, dead_at, dead_reason"
)


def apply_batch(db: apsw.Connection, ops: Sequence[MailboxOp]) -> list[Outcome]:
    """Carry out a batch, in order, and give the outcome of each operation."""
    outcomes: list[Outcome] = []
    rows: list[object] = []
    delivered: dict[int, float] = {}
    acked: dict[int, float] = {}
    requeued: list[int] = []
    for op in ops:
        match op:
            case Post(in_reply_to=None, idempotency_key=None):
                rows += _row_values(op, None)
                outcomes.append(Posted(op.first_id, op.first_id, new=True))
            case Post():
                # It asks the table something, so what came before it must be there.
                _insert(db, rows)
                outcomes.append(_post_checked(db, op))
            case Delivered(ids, now):
                delivered.update(dict.fromkeys(ids, now))
                outcomes.append(None)
            case Acked(ids, now):
                for message_id in ids:
                    acked.setdefault(message_id, now)
                outcomes.append(None)
            case Requeued(ids):
                requeued += ids
                outcomes.append(None)
    _insert(db, rows)
    # Marks come after all rows: what they change no row of the batch asks for, and an acked one stays so.
    for statement, marks in ((_DELIVER, delivered), (_ACK, acked), (_REQUEUE, requeued)):
        if marks:
            db.execute(statement, (json.dumps(marks),))
    return outcomes


def insert_posts(db: apsw.Connection, posts: Iterable[Post]) -> None:
    """Insert posts that reply to nothing and carry no key, in a transaction of the caller's."""
    _insert(db, [value for post in posts for value in _row_values(post, None)])


def _row_values(post: Post, thread_id: int | None) -> list[object]:
    values: list[object] = []
    for offset, recipient in enumerate(post.recipients):
        message_id = post.first_id + offset
        values += (
            message_id,
            post.sender,
            recipient,
            post.body,
            post.sent_at,
            post.in_reply_to,
            thread_id or message_id,
            post.cause_id,
            post.sender_uid,
            post.idempotency_key if offset == 0 else None,
            post.broadcast,
        )
    return values


def _insert(db: apsw.Connection, values: list[object]) -> None:
    """Insert the rows whose values are strung together in *values*, and empty it."""
    width = _VALUES.count("?")
    start = 0
    for size, statement in _INSERTS.items():
        while len(values) - start >= size * width:
            db.execute(statement, values[start : start + size * width])
            start += size * width
    values.clear()


def _post_checked(db: apsw.Connection, post: Post) -> Posted | Refused:
    if post.idempotency_key is not None:
        first = db.execute(
            "select id, body, in_reply_to, coalesce(thread_id, id), recipient, broadcast from messages"
            " where sender = ? and idempotency_key = ?",
            (post.sender, post.idempotency_key),
        ).fetchone()
        if first is not None:
            message_id, body, in_reply_to, thread_id, recipient, broadcast = first
            same_to = bool(broadcast) == post.broadcast and (broadcast or recipient == post.recipients[0])
            if (body, in_reply_to) != (post.body, post.in_reply_to) or not same_to:
                return Refused(
                    ErrorCode.CONFLICT,
                    f"cannot send: the idempotency key was used for another message, {message_id}",
                    "idempotency_key",
                )
            return Posted(int(message_id), int(thread_id), new=False)
    thread_id = None
    if post.in_reply_to is not None:
        parent = db.execute(
            "select coalesce(thread_id, id), sender, recipient from messages where id = ?",
            (post.in_reply_to,),
        ).fetchone()
        # The operator sees everything; an agent only what it wrote or got.
        if parent is None or (post.sender != OPERATOR and post.sender not in parent[1:]):
            return Refused(
                ErrorCode.NOT_FOUND, f"cannot send: no message {post.in_reply_to} to reply to", "in_reply_to"
            )
        thread_id = int(parent[0])
    _insert(db, _row_values(post, thread_id))
    return Posted(post.first_id, thread_id or post.first_id, new=True)


# Named, so that a query that could not use it fails instead of walking through everything ever acked.
_UNACKED: Final = "messages indexed by messages_waiting"
_WAITS: Final = "acked_at is null and dead_at is null"
"""What the index holds; a query that does not say so literally cannot use it."""


# ── reading ─────────────────────────────────────────────────────────────────────────────────────


def last_id(db: apsw.Connection) -> int:
    """The highest id that was ever given, deleted rows included."""
    highest = _number(db, "select coalesce(max(id), 0) from messages")
    if _number(db, "select count(*) from sqlite_schema where name = 'sqlite_sequence'"):
        given = _number(db, "select coalesce(max(seq), 0) from sqlite_sequence where name = 'messages'")
        highest = max(highest, given)
    return highest


def count(db: apsw.Connection) -> int:
    return _number(db, "select count(*) from messages")


def flag_unacked(db: apsw.Connection) -> None:
    """After an unclean end: what is not acked may have been handed out, whatever its row says."""
    db.execute(
        f"update {_UNACKED} set redelivered = 1"  # noqa: S608
        f" where {_WAITS} and redelivered = 0 and recipient != ?",
        (OPERATOR,),
    )


def waiting_of(db: apsw.Connection, agent: str) -> tuple[int, list[int]]:
    """Give how many messages wait for *agent*, and which of them were handed out to it, at most 32."""
    waiting = f"{_UNACKED} where recipient = ? and {_WAITS}"
    count = _number(db, f"select count(*) from {waiting}", agent)  # noqa: S608
    handed_out = db.execute(
        f"select id from {waiting} and delivered_at is not null order by id limit 32",  # noqa: S608
        (agent,),
    )
    return count, [int(message_id) for (message_id,) in handed_out]


def load_window(
    db: apsw.Connection, agent: str, above: int, leased: Iterable[int], limit: int, max_bytes: int
) -> tuple[list[Message], bool]:
    """Give *agent*'s oldest deliverable messages with ids above *above*, and whether these are all.

    At most *limit* of them, and, after the first, not more than *max_bytes* of text.
    """
    found = _select(
        db,
        f"recipient = ? and {_WAITS} and id > ?"  # noqa: S608
        " and id not in (select value from json_each(?)) order by id limit ?",
        (agent, above, json.dumps(list(leased)), limit + 1),
        table=_UNACKED,
    )
    messages: list[Message] = []
    size = 0
    for row in found:
        size += len(row.body)
        if len(messages) == limit or (messages and size > max_bytes):
            return messages, False
        again = row.redelivered or row.delivered_at is not None
        messages.append(as_handed_out(msgspec.structs.replace(row, redelivered=again)))
    return messages, True


def as_handed_out(message: StoredMessage) -> Message:
    return Message(
        id=message.id,
        sender=message.sender,
        recipient=message.recipient,
        body=message.body,
        sent_at=message.sent_at,
        in_reply_to=UNSET if message.in_reply_to is None else message.in_reply_to,
        thread_id=message.thread_id,
        redelivered=bool(message.redelivered),
        broadcast=bool(message.broadcast),
    )


def unfinished(db: apsw.Connection, agent: str, limit: int) -> list[StoredMessage]:
    """The oldest messages that *agent* has not acked, but for the dead ones."""
    return _page(db, f"recipient = ? and {_WAITS} order by id limit ?", (agent, limit), table=_UNACKED)


def dead(db: apsw.Connection, agent: str | None, limit: int) -> list[StoredMessage]:
    """The newest dead messages to *agent*, or to anyone, oldest first."""
    where = "acked_at is null and dead_at is not null and (?1 is null or recipient = ?1)"
    table = "messages indexed by messages_dead"
    return _page(db, f"{where} order by id desc limit ?2", (agent, limit), table=table)[::-1]


def recent(db: apsw.Connection, recipient: str, limit: int) -> list[StoredMessage]:
    """The newest messages to *recipient*, oldest first.

    All there are of the operator's; of an agent's those among the hive's newest RECENT_IDS.
    """
    if recipient == OPERATOR:
        return _page(db, f"recipient = '{OPERATOR}' order by id desc limit ?", (limit,))[::-1]
    newest = "id > (select max(id) from messages) - ?"
    return _page(db, f"{newest} and recipient = ? order by id desc limit ?", (RECENT_IDS, recipient, limit))[
        ::-1
    ]


def page(db: apsw.Connection, since: int | None, limit: int) -> list[StoredMessage]:
    """Messages with ids above *since*, else the newest; oldest first."""
    if since is None:
        return _page(db, "true order by id desc limit ?", (limit,))[::-1]
    return _page(db, "id > ? order by id limit ?", (since, limit))


def chain(db: apsw.Connection, message_id: int) -> list[StoredMessage]:
    """*message_id* and what it followed from, the first cause first; empty if there is no such message."""
    found: list[StoredMessage] = []
    seen: set[int] = set()
    left_bytes = MAX_PAGE_BYTES
    at: int | None = message_id
    while at is not None and at not in seen and len(found) < MAX_CHAIN:
        seen.add(at)
        rows = list(_select(db, "id = ?", (at,)))
        left_bytes -= sum(map(_line_bytes, rows))
        if found and left_bytes < 0:
            break
        found += rows
        at = (rows[0].cause_id or rows[0].in_reply_to) if rows else None
    return found[::-1]


def thread(db: apsw.Connection, message_id: int, limit: int) -> list[StoredMessage]:
    """The thread that *message_id* is in, oldest first; empty if there is no such message."""
    root = db.execute("select coalesce(thread_id, id) from messages where id = ?", (message_id,)).fetchone()
    if root is None:
        return []
    # Two conditions for two ways to find them: the first one by its id, its replies by their index.
    where = "(id = ?1 or (thread_id = ?1 and in_reply_to is not null)) order by id limit ?2"
    return _page(db, where, (int(root[0]), limit))


def by_ids(db: apsw.Connection, ids: Sequence[int]) -> list[StoredMessage]:
    """Those of *ids* that are there, the newest first."""
    return _page(db, "id in (select value from json_each(?)) order by id desc", (json.dumps(ids),))


def which_exist(db: apsw.Connection, ids: Sequence[int]) -> list[int]:
    found = db.execute(
        "select id from messages where id in (select value from json_each(?))", (json.dumps(ids),)
    )
    return [int(cast("int", message_id)) for (message_id,) in found]


def texts_after(db: apsw.Connection, message_id: int, limit: int, max_bytes: int) -> list[tuple[int, str]]:
    """Ids and bodies above *message_id*, oldest first; after the first not more than *max_bytes* of text."""
    texts: list[tuple[int, str]] = []
    for found, body in db.execute(
        "select id, body from messages where id > ? order by id limit ?", (message_id, limit)
    ):
        max_bytes -= len(str(body))
        if texts and max_bytes < 0:
            break
        texts.append((int(cast("int", found)), str(body)))
    return texts


def count_after(db: apsw.Connection, message_id: int) -> int:
    return _number(db, "select count(*) from messages where id > ?", message_id)


def _page(
    db: apsw.Connection, where: str, bindings: tuple[object, ...], *, table: str = "messages"
) -> list[StoredMessage]:
    """Give the first rows, as many as fit MAX_PAGE_BYTES, and one in any case."""
    page: list[StoredMessage] = []
    left_bytes = MAX_PAGE_BYTES
    for row in _select(db, where, bindings, table=table):
        left_bytes -= _line_bytes(row)
        if page and left_bytes < 0:
            break
        page.append(row)
    return page


def _line_bytes(row: StoredMessage) -> int:
    # As JSON a body can be six times as long.
    return len(msgspec.json.encode(row.body)) + ROW_BYTES


def _select(
    db: apsw.Connection, where: str, bindings: tuple[object, ...], *, table: str = "messages"
) -> Iterator[StoredMessage]:
    rows: Iterable[Any] = db.execute(f"select {_COLUMNS} from {table} where {where}", bindings)  # noqa: S608
    return (StoredMessage(*row) for row in rows)


def _number(db: apsw.Connection, sql: str, *bindings: str | int) -> int:
    return int(cast("int", db.execute(sql, bindings).fetchall()[0][0]))

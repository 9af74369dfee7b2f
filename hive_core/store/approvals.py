"""The rows of approvals.  They are kept for ever."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import apsw

from hive_core.domain import approval as rules
from hive_core.domain.approval import Approval, Happening, Kind, Status
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_NOTE_CHARS

_COLUMNS: Final = (
    "id, agent, kind, commit_ref, requested_at, status, finished, proposer, fetched_sha, base_sha,"
    " description, note, resolved_at, expires_at, decided_by_uid, tag"
)
# Literally the condition of the index: approved ones whose effect is not over are in it too.
_PENDING: Final = "finished = 0 and status = 'pending'"
_HALF: Final = f"{_PENDING} and kind = '{Kind.APPLY_COMMIT}' and fetched_sha is null"


def insert(db: apsw.Connection, approval: Approval) -> int:
    """Store *approval* under a new id, and give it."""
    db.execute(
        "insert into approvals (agent, kind, commit_ref, requested_at, status, finished, proposer,"
        " fetched_sha, base_sha, description, note, resolved_at, expires_at, decided_by_uid, tag)"
        " values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            approval.agent,
            approval.kind,
            approval.commit_ref,
            approval.requested_at,
            approval.status,
            int(approval.finished),
            approval.proposer,
            approval.fetched_sha,
            approval.base_sha,
            approval.description,
            approval.note,
            approval.resolved_at,
            approval.expires_at,
            approval.decided_by_uid,
            approval.tag,
        ),
    )
    return int(db.last_insert_rowid())


def get(db: apsw.Connection, approval_id: int) -> Approval | None:
    return next(_select(db, "id = ?", approval_id), None)


def pin(
    db: apsw.Connection, approval_id: int, fetched_sha: str, base_sha: str | None, tag: str | None = None
) -> Approval:
    """Say which commit a pending one is about, what ran when it was asked for, and its tag.

    Raises:
        Refused: NOT_FOUND, or CONFLICT when it is not pending any more.
    """
    approval = _existing(db, approval_id, "propose")
    if approval.state != rules.PENDING:
        raise _decided(approval, "propose")
    db.execute(
        # Who proposed what was newest proposed this.
        "update approvals set fetched_sha = ?1, base_sha = ?2, tag = coalesce(?3, tag),"
        " commit_ref = iif(kind = 'apply_commit' and commit_ref = '', ?1, commit_ref) where id = ?4",
        (fetched_sha, base_sha, tag, approval_id),
    )
    return _existing(db, approval_id, "propose")


def advance(
    db: apsw.Connection,
    approval_id: int,
    happening: Happening,
    now: float,
    *,
    note: str | None = None,
    uid: int | None = None,
    tag: str | None = None,
) -> Approval:
    """Let *happening* happen to one, and give what it is then.  A None leaves what the row says.

    Raises:
        Refused: NOT_FOUND, or CONFLICT with the reason `decided` when it cannot happen to it any more.
    """
    approval = _existing(db, approval_id, happening.value)
    state = rules.advance(approval.state, happening)
    if state is None:
        raise _decided(approval, happening.value)
    db.execute(
        "update approvals set status = ?, finished = ?, resolved_at = coalesce(resolved_at, ?),"
        " note = coalesce(?, note), decided_by_uid = coalesce(?, decided_by_uid), tag = coalesce(?, tag)"
        " where id = ?",
        (state.status, int(state.finished), now, _bounded(note), uid, tag, approval_id),
    )
    return _existing(db, approval_id, happening.value)


def pending(db: apsw.Connection, limit: int) -> list[Approval]:
    """The oldest that wait for a decision."""
    return list(_select_open(db, f"{_PENDING} order by id limit ?", limit))


def pending_of(db: apsw.Connection, agent: str) -> list[Approval]:
    """Those about *agent* that wait for a decision, the oldest first."""
    return list(_select_open(db, f"{_PENDING} and agent = ? order by id", agent))


def pending_by(db: apsw.Connection, proposer: str, limit: int) -> list[Approval]:
    """The oldest that *proposer* asked for and that wait for a decision."""
    return list(_select_open(db, f"{_PENDING} and proposer = ? order by id limit ?", proposer, limit))


def count_pending(db: apsw.Connection) -> int:
    return _count(db, _PENDING)


def count_pending_by(db: apsw.Connection, proposer: str) -> int:
    return _count(db, f"{_PENDING} and proposer = ?", proposer)


def newest(db: apsw.Connection, limit: int, agent: str | None = None) -> list[Approval]:
    """The newest ones, decided or not, the oldest of them first; of *agent*, if one is named."""
    if agent is None:
        return list(_select(db, "true order by id desc limit ?", limit))[::-1]
    return list(_select(db, "agent = ? order by id desc limit ?", agent, limit))[::-1]


def asked_at(db: apsw.Connection, proposer: str, count: int) -> float | None:
    """When *proposer* asked for the oldest of its newest *count*; None: it never asked for so many."""
    found = db.execute(
        "select requested_at from approvals where proposer = ? order by id desc limit 1 offset ?",
        (proposer, count - 1),
    ).fetchone()
    return None if found is None else cast("float", found[0])


def previous(db: apsw.Connection, approval_id: int) -> Approval | None:
    """The last one before it, about the same agent, of which a commit was taken in."""
    where = "id < ?1 and fetched_sha is not null and agent = (select agent from approvals where id = ?1)"
    return next(_select(db, f"{where} order by id desc limit 1", approval_id), None)


def last_approved(db: apsw.Connection, approval_id: int) -> Approval | None:
    """The last one before it, about the same agent, of which a commit was approved, whatever became of it."""
    where = (
        "id < ?1 and fetched_sha is not null and agent = (select agent from approvals where id = ?1)"
        " and (status = 'approved' or status = 'failed' and decided_by_uid is not null)"
    )
    return next(_select(db, f"{where} order by id desc limit 1", approval_id), None)


def running_sha(db: apsw.Connection, agent: str) -> str | None:
    """The commit that *agent* runs with; None: with none, or it is not there."""
    rows = db.execute("select deployed_sha from agents where name = ? and destroyed_at is null", (agent,))
    found = rows.fetchone()
    return None if found is None else cast("str | None", found[0])


def mark(db: apsw.Connection, approval_id: int, tag: str) -> None:
    """Its commit has *tag* now."""
    db.execute("update approvals set tag = ? where id = ?", (tag, approval_id))


def unmarked(db: apsw.Connection, limit: int) -> list[Approval]:
    """The newest that were denied or failed and whose commit does not say so yet, oldest first."""
    where = "status in ('denied', 'failed') and finished = 1 and tag = 'proposal/' || id"
    return list(_select(db, f"{where} order by id desc limit ?", limit))[::-1]


def cut_off(db: apsw.Connection) -> list[Approval]:
    """Those whose commit was being taken in; when a daemon starts, its last one ended in that."""
    return list(_select_open(db, f"{_HALF} order by id"))


def give_time(db: apsw.Connection, expires_at: float) -> None:
    """Let those expire too that the original left without a time for it."""
    db.execute(
        f"update approvals set expires_at = ? where {_PENDING} and expires_at is null",  # noqa: S608
        (expires_at,),
    )


def due(db: apsw.Connection, now: float, limit: int) -> list[Approval]:
    """Those that nobody decided in time, the longest due first."""
    return list(_select_open(db, f"{_PENDING} and expires_at <= ? order by expires_at limit ?", now, limit))


def next_expiry(db: apsw.Connection) -> float | None:
    rows = db.execute(
        f"select min(expires_at) from approvals indexed by approvals_open where {_PENDING}"  # noqa: S608
    )
    return cast("float | None", rows.fetchall()[0][0])


def _bounded(note: str | None) -> str | None:
    # The end of a build's log says why it failed.
    return note if note is None or len(note) <= MAX_NOTE_CHARS else "… " + note[2 - MAX_NOTE_CHARS :]


def _existing(db: apsw.Connection, approval_id: int, verb: str) -> Approval:
    approval = get(db, approval_id)
    if approval is None:
        raise Refused(ErrorCode.NOT_FOUND, f"cannot {verb} approval {approval_id}: there is no such approval")
    return approval


def _decided(approval: Approval, verb: str) -> Refused:
    return Refused(
        ErrorCode.CONFLICT,
        f"cannot {verb} approval {approval.id}: it is {approval.status} already",
        reason="decided",
    )


def _count(db: apsw.Connection, where: str, *bindings: object) -> int:
    rows = db.execute(
        f"select count(*) from approvals indexed by approvals_open where {where}",  # noqa: S608
        bindings,
    )
    return int(rows.fetchall()[0][0])  # type: ignore[arg-type]


def _select_open(db: apsw.Connection, where: str, *bindings: object) -> Iterator[Approval]:
    # Left to itself SQLite goes through all that were ever asked for, since they are in order.
    return _select(db, where, *bindings, table="approvals indexed by approvals_open")


def _select(
    db: apsw.Connection, where: str, *bindings: object, table: str = "approvals"
) -> Iterator[Approval]:
    rows: Iterable[Any] = db.execute(
        f"select {_COLUMNS} from {table} where {where}",  # noqa: S608
        bindings,
    )
    return (_approval(row) for row in rows)


def _approval(row: Sequence[Any]) -> Approval:
    (approval_id, agent, kind, commit_ref, requested_at, status, finished, proposer, *rest) = row
    return Approval(
        approval_id,
        agent,
        kind,
        commit_ref,
        float(requested_at),
        # What another version of the original may have written is shown as it is, and is never pending.
        Status(status) if status in set(Status) else str(status),
        bool(finished),
        proposer,
        *rest,
    )

"""The rows of deploys and of the steps that each came through.  They are kept for ever."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import apsw

from hive_core.domain.deploy import ENDED, Deploy, DeployKind, Step
from hive_core.wire.errors import ErrorCode, Refused

_COLUMNS: Final = (
    "id, agent, kind, step, requested_at, approval_id, sha, from_sha, tag, output, before_json, error, uid,"
    " started_at, finished_at"
)
_SETTABLE: Final = frozenset({"sha", "from_sha", "tag", "output", "before_json", "error"})
_LEAVES_RUNNING: Final = "('spawn', 'apply', 'rollback')"
"""Kinds after which a commit of the agent's own runs."""


def insert(db: apsw.Connection, deploy: Deploy) -> int:
    """Put *deploy* at the end of the queue under a new id, and give that.

    One approval has one deploy: a second of the same is an apsw.ConstraintError.
    """
    db.execute(
        "insert into deploys (agent, kind, step, requested_at, approval_id, sha, from_sha, tag, output,"
        " before_json, error, uid) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            deploy.agent,
            deploy.kind,
            deploy.step,
            deploy.requested_at,
            deploy.approval_id,
            deploy.sha,
            deploy.from_sha,
            deploy.tag,
            deploy.output,
            deploy.before_json,
            deploy.error,
            deploy.uid,
        ),
    )
    deploy_id = int(db.last_insert_rowid())
    _note_step(db, deploy_id, deploy.step, deploy.requested_at)
    return deploy_id


def get(db: apsw.Connection, deploy_id: int) -> Deploy | None:
    return next(iter(_select(db, "id = ?", deploy_id)), None)


def open_ones(db: apsw.Connection) -> list[Deploy]:
    """Those that have not ended, the oldest first."""
    return _select(db, "finished_at is null order by id", table="deploys indexed by deploys_open")


def newest(db: apsw.Connection, limit: int, agent: str | None = None) -> list[Deploy]:
    """The newest ones, ended or not, the oldest of them first; of *agent*, if one is named."""
    if agent is None:
        return _select(db, "true order by id desc limit ?", limit)[::-1]
    return _select(db, "agent = ? order by id desc limit ?", agent, limit)[::-1]


def last_done(db: apsw.Connection, agent: str, before: int | None = None) -> Deploy | None:
    """The last that made a commit of *agent* run, of those with an id below *before*."""
    where = f"agent = ? and id < ? and step = 'done' and kind in {_LEAVES_RUNNING} order by id desc limit 1"
    return next(iter(_select(db, where, agent, 2**62 if before is None else before)), None)


def last_with(db: apsw.Connection, agent: str, tag: str) -> Deploy | None:
    """The last of *agent* that ended well with *tag*."""
    where = "agent = ? and tag = ? and step = 'done' order by id desc limit 1"
    return next(iter(_select(db, where, agent, tag)), None)


def advance(db: apsw.Connection, deploy_id: int, step: Step, now: float, /, **columns: str | None) -> Deploy:
    """Record that one comes to *step*, with *columns* (sha, from_sha, tag, output, before_json, error).

    Raises:
        Refused: NOT_FOUND, or CONFLICT with the reason `ended` when it has ended.
    """
    unknown = columns.keys() - _SETTABLE
    assert not unknown, unknown
    before = get(db, deploy_id)
    if before is None:
        raise Refused(ErrorCode.NOT_FOUND, f"cannot go on with deploy {deploy_id}: there is no such deploy")
    if before.step in ENDED:
        raise Refused(
            ErrorCode.CONFLICT,
            f"cannot go on with deploy {deploy_id}: it is {before.step} already",
            reason="ended",
        )
    values: dict[str, object] = {"step": step, **columns}
    if step is Step.PREPARING and before.started_at is None:
        values["started_at"] = now
    if step in ENDED:
        values["finished_at"] = now
    assignments = ", ".join(f"{name} = ?" for name in values)
    db.execute(f"update deploys set {assignments} where id = ?", (*values.values(), deploy_id))  # noqa: S608
    _note_step(db, deploy_id, step, now)
    after = get(db, deploy_id)
    assert after is not None
    return after


def _note_step(db: apsw.Connection, deploy_id: int, step: Step, now: float) -> None:
    db.execute("insert into deploy_steps (deploy_id, step, at) values (?, ?, ?)", (deploy_id, step, now))


def _select(db: apsw.Connection, where: str, *bindings: object, table: str = "deploys") -> list[Deploy]:
    rows: Iterable[Any] = db.execute(
        f"select {_COLUMNS} from {table} where {where}",  # noqa: S608
        bindings,
    ).fetchall()
    return [_deploy(db, row) for row in rows]


def _deploy(db: apsw.Connection, row: Sequence[Any]) -> Deploy:
    deploy_id, agent, kind, step, *rest = row
    steps: Iterable[Any] = db.execute(
        "select step, at from deploy_steps where deploy_id = ? order by id", (deploy_id,)
    )
    reached = tuple((Step(name), float(at)) for name, at in steps)
    return replace(Deploy(deploy_id, agent, DeployKind(kind), Step(step), *rest), steps=reached)

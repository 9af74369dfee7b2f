"""The rows of agents: what the operator wants of each."""

import json
from collections.abc import Collection

import apsw

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import Network, Shape
from hive_core.domain.machine import Wanted


def all_agents(db: apsw.Connection) -> list[AgentRow]:
    """Give the row of every agent whose state is kept, destroyed ones included."""
    rows = db.execute(
        "select name, wanted, paused, created_at, destroyed_at, status_text, status_set_at, uid_base,"
        " image, network, memory_max_bytes, cpu_quota_percent, tasks_max from agents order by name"
    )
    return [_row(*row) for row in rows]


def create(db: apsw.Connection, agent: str, now: float, uid_base: int | None, shape: Shape) -> None:
    """Make the row, or take up that of an agent of the same name that was destroyed.

    What is taken up gets the shape declared now; its uids are those its files belong to.
    """
    db.execute(
        "insert into agents (name, wanted, created_at, uid_base, image, network, memory_max_bytes,"
        " cpu_quota_percent, tasks_max) values (?, 'running', ?, ?, ?, ?, ?, ?, ?)"
        " on conflict (name) do update set wanted = 'running', paused = 0, destroyed_at = null,"
        " uid_base = coalesce(uid_base, excluded.uid_base), image = excluded.image,"
        " network = excluded.network, memory_max_bytes = excluded.memory_max_bytes,"
        " cpu_quota_percent = excluded.cpu_quota_percent, tasks_max = excluded.tasks_max",
        (agent, now, uid_base, *_shape_values(shape)),
    )


def want(db: apsw.Connection, agent: str, wanted: Wanted, now: float) -> None:
    destroyed_at = now if wanted in {Wanted.GONE, Wanted.PURGED} else None
    db.execute(
        "update agents set wanted = ?, destroyed_at = coalesce(destroyed_at, ?) where name = ?",
        (wanted.value, destroyed_at, agent),
    )


def set_paused(db: apsw.Connection, agent: str, paused: bool) -> None:
    db.execute("update agents set paused = ? where name = ?", (int(paused), agent))


def set_status(db: apsw.Connection, agent: str, text: str | None, now: float | None) -> None:
    db.execute("update agents set status_text = ?, status_set_at = ? where name = ?", (text, now, agent))


def set_uid_base(db: apsw.Connection, agent: str, uid_base: int) -> None:
    db.execute("update agents set uid_base = ? where name = ?", (uid_base, agent))


def set_shape(db: apsw.Connection, agent: str, shape: Shape) -> None:
    db.execute(
        "update agents set image = ?, network = ?, memory_max_bytes = ?, cpu_quota_percent = ?,"
        " tasks_max = ? where name = ?",
        (*_shape_values(shape), agent),
    )


def allow(db: apsw.Connection, agent: str, recipients: Collection[str] | None) -> None:
    """Let *agent* write to *recipients* only, or to anyone."""
    names = None if recipients is None else json.dumps(sorted(recipients))
    db.execute("update agents set allowed_recipients = ? where name = ?", (names, agent))


def allowed_of(db: apsw.Connection, agent: str) -> frozenset[str] | None:
    """To whom *agent* may write; None: to anyone."""
    found = db.execute("select allowed_recipients from agents where name = ?", (agent,)).fetchone()
    if found is None or found[0] is None:
        return None
    return frozenset(map(str, json.loads(str(found[0]))))


def forget(db: apsw.Connection, agent: str) -> None:
    """Delete the row, and with it the claim on its uids."""
    db.execute("delete from agents where name = ?", (agent,))


def _row(
    name: str,
    wanted: str,
    paused: int,
    created_at: float,
    destroyed_at: float | None,
    status_text: str | None,
    status_set_at: float | None,
    uid_base: int | None,
    image: str | None,
    network: str | None,
    memory_max_bytes: int | None,
    cpu_quota_percent: int | None,
    tasks_max: int | None,
) -> AgentRow:
    shape = Shape(
        image, None if network is None else Network(network), memory_max_bytes, cpu_quota_percent, tasks_max
    )
    return AgentRow(
        name=name,
        wanted=Wanted(wanted),
        paused=bool(paused),
        created_at=created_at,
        destroyed_at=destroyed_at,
        status_text=status_text,
        status_set_at=status_set_at,
        uid_base=uid_base,
        shape=shape,
    )


def _shape_values(shape: Shape) -> tuple[str | None, str | None, int | None, int | None, int | None]:
    network = None if shape.network is None else shape.network.value
    return shape.image, network, shape.memory_max_bytes, shape.cpu_quota_percent, shape.tasks_max

"""The rows of agents: what the operator wants of each."""

from dataclasses import dataclass

import apsw

from hive_core.domain.machine import Wanted


@dataclass(frozen=True, slots=True)
class AgentRow:
    """One agent.  Times are unix seconds."""

    name: str
    wanted: Wanted
    paused: bool
    created_at: float
    destroyed_at: float | None
    status_text: str | None
    status_set_at: float | None


def all_agents(db: apsw.Connection) -> list[AgentRow]:
    rows = db.execute(
        "select name, wanted, paused, created_at, destroyed_at, status_text, status_set_at from agents"
        " order by name"
    )
    return [AgentRow(row[0], Wanted(row[1]), bool(row[2]), *row[3:]) for row in rows]


def create(db: apsw.Connection, agent: str, now: float) -> None:
    """Make the row, or take up that of an agent of the same name that was destroyed."""
    db.execute(
        "insert into agents (name, wanted, created_at) values (?, 'running', ?)"
        " on conflict (name) do update set wanted = 'running', paused = 0, destroyed_at = null",
        (agent, now),
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


def forget(db: apsw.Connection, agent: str) -> None:
    db.execute("delete from agents where name = ?", (agent,))

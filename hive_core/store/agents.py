"""The rows of agents: what the operator wants of each."""

import json
from collections.abc import Collection

import apsw
import msgspec

from hive_core.config import DeclaredAgent
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import Network, Shape
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest


def all_agents(db: apsw.Connection) -> list[AgentRow]:
    """Give the row of every agent whose state is kept, destroyed ones included."""
    rows = db.execute(
        "select name, wanted, paused, created_at, destroyed_at, status_text, status_set_at, uid_base,"
        " image, network, memory_max_bytes, cpu_quota_percent, tasks_max, deployed_sha, deployed_tag,"
        " manifest, declaration, refused_declaration from agents order by name"
    )
    return [_row(*row) for row in rows]


def create(db: apsw.Connection, agent: str, now: float, uid_base: int | None, shape: Shape) -> None:
    """Make the row, or take up that of an agent of the same name that was destroyed.

    What is taken up gets the shape declared now; its uids are those its files belong to, and what was
    deployed of it stays noted.  The host's configuration says nothing of it.
    """
    db.execute(
        "insert into agents (name, wanted, created_at, uid_base) values (?, 'running', ?, ?)"
        " on conflict (name) do update set wanted = 'running', paused = 0, destroyed_at = null,"
        " uid_base = coalesce(uid_base, excluded.uid_base), declaration = null, refused_declaration = null",
        (agent, now, uid_base),
    )
    set_shape(db, agent, shape)


def create_declared(
    db: apsw.Connection,
    agent: str,
    now: float,
    uid_base: int | None,
    declared: Declared,
    declaration: DeclaredAgent | None = None,
    wanted: Wanted = Wanted.RUNNING,
) -> None:
    """The same, as *declared* in all; *declaration* is what the host's configuration says of it."""
    create(db, agent, now, uid_base, declared.shape)
    declare(db, agent, declared)
    set_declaration(db, agent, declaration)
    want(db, agent, wanted, now)


def want(db: apsw.Connection, agent: str, wanted: Wanted, now: float) -> None:
    """Keep the wish; of one that is to go the host's configuration says nothing any more."""
    destroyed_at = now if wanted in {Wanted.GONE, Wanted.PURGED} else None
    if destroyed_at is not None:
        set_declaration(db, agent, None)
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


def declare(db: apsw.Connection, agent: str, declared: Declared) -> None:
    """Let *agent* be as *declared* from now on."""
    set_shape(db, agent, declared.shape)
    note_deployed(db, agent, declared.sha, declared.tag, declared.manifest)


def set_declaration(db: apsw.Connection, agent: str, declaration: DeclaredAgent | None) -> None:
    """Keep what the host's configuration says of *agent*, now that it is so; None: nothing."""
    text = None if declaration is None else msgspec.json.encode(declaration).decode()
    db.execute("update agents set declaration = ?, refused_declaration = null where name = ?", (text, agent))


def refuse_declaration(db: apsw.Connection, agent: str, fingerprint: str | None) -> None:
    """Keep the hash of a declaration that could not be had; None: it may be tried again."""
    db.execute("update agents set refused_declaration = ? where name = ?", (fingerprint, agent))


def note_deployed(
    db: apsw.Connection, agent: str, sha: str | None, tag: str | None, manifest: Manifest
) -> None:
    """Keep what of its configuration runs, or is to."""
    text = None if manifest == NOTHING else msgspec.json.encode(manifest).decode()
    db.execute(
        "update agents set deployed_sha = ?, deployed_tag = ?, manifest = ? where name = ?",
        (sha, tag, text, agent),
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
    deployed_sha: str | None,
    deployed_tag: str | None,
    manifest: str | None,
    declaration: str | None,
    refused_declaration: str | None,
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
        deployed_sha=deployed_sha,
        deployed_tag=deployed_tag,
        manifest=NOTHING if manifest is None else msgspec.json.decode(manifest, type=Manifest),
        declaration=_declaration(declaration),
        refused_declaration=refused_declaration,
    )


def _declaration(text: str | None) -> DeclaredAgent | None:
    return None if text is None else msgspec.json.decode(text, type=DeclaredAgent)


def _shape_values(shape: Shape) -> tuple[str | None, str | None, int | None, int | None, int | None]:
    network = None if shape.network is None else shape.network.value
    return shape.image, network, shape.memory_max_bytes, shape.cpu_quota_percent, shape.tasks_max

"""The rows of agents, and the uids that they claim."""

from pathlib import Path

import apsw
import pytest

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import Network, Shape
from hive_core.domain.machine import Wanted
from hive_core.store import agents
from hive_core.store.schema import MIGRATIONS, migrate

SHAPE = Shape("debian", Network.VETH, 2**30, 150, 512)
BASE = 0x40000000


@pytest.fixture
def db(tmp_path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(tmp_path / "broker.sqlite"))
    migrate(connection, "broker.sqlite")
    return connection


def test_a_row_keeps_what_was_declared(db: apsw.Connection) -> None:
    agents.create(db, "alice", 10.0, BASE, SHAPE)
    agents.create(db, "bob", 11.0, None, Shape())

    assert agents.all_agents(db) == [
        AgentRow("alice", Wanted.RUNNING, False, 10.0, uid_base=BASE, shape=SHAPE),
        AgentRow("bob", Wanted.RUNNING, False, 11.0),
    ]


def test_a_destroyed_agent_that_comes_back_has_the_users_that_its_files_belong_to(
    db: apsw.Connection,
) -> None:
    agents.create(db, "alice", 10.0, BASE, SHAPE)
    agents.want(db, "alice", Wanted.GONE, 11.0)
    agents.create(db, "alice", 12.0, BASE + 65536, Shape(image="other"))

    (row,) = agents.all_agents(db)

    assert (row.uid_base, row.shape, row.destroyed_at) == (BASE, Shape(image="other"), None)


def test_two_agents_never_have_the_same_users(db: apsw.Connection) -> None:
    agents.create(db, "alice", 10.0, BASE, Shape())
    agents.want(db, "alice", Wanted.GONE, 11.0)
    with pytest.raises(apsw.ConstraintError):
        agents.create(db, "bob", 12.0, BASE, Shape())
    agents.forget(db, "alice")
    agents.create(db, "bob", 12.0, BASE, Shape())

    assert [row.name for row in agents.all_agents(db)] == ["bob"]


def test_limits_and_uids_are_changed_by_themselves(db: apsw.Connection) -> None:
    agents.create(db, "alice", 10.0, None, Shape())
    agents.set_shape(db, "alice", SHAPE)
    agents.set_uid_base(db, "alice", BASE)

    (row,) = agents.all_agents(db)

    assert (row.shape, row.uid_base, row.wanted) == (SHAPE, BASE, Wanted.RUNNING)


def test_a_hive_of_the_first_schema_keeps_its_agents(tmp_path: Path) -> None:
    db = apsw.Connection(str(tmp_path / "old.sqlite"))
    MIGRATIONS[0](db)
    db.execute("pragma user_version = 1")
    db.execute("pragma application_id = 0x48495645")
    db.execute("insert into agents (name, wanted, paused, created_at) values ('alice', 'stopped', 1, 5)")

    migrate(db, "old.sqlite")

    assert agents.all_agents(db) == [AgentRow("alice", Wanted.STOPPED, True, 5.0)]

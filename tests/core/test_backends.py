"""What differs between a local hive and one of machines."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hive_core.backends import Backend, Mode, Surroundings, open_backend
from hive_core.config import Config
from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.host import accounts, agent_dirs
from hive_core.layout import Layout

FIRST = Config().machines.uid_first
NEXT = FIRST + 65536
by_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")


def row(name: str, uid_base: int | None) -> AgentRow:
    return AgentRow(name, Wanted.RUNNING, False, 0.0, uid_base=uid_base)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run", tmp_path / "state")
    made.make()
    return made


@pytest.fixture
def open_as(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mode], Backend]:
    monkeypatch.setattr(accounts, "taken_ranges", list)
    around = Surroundings(layout, Config, lambda: None, lambda _agent: None, lambda *_: True)
    return lambda mode: open_backend(mode, around)


@pytest.mark.root
@by_root
def test_configurations_of_a_purged_manager_wait_for_the_next_one(
    layout: Layout, open_as: Callable[[Mode], Backend]
) -> None:
    backend = open_as(Mode.NSPAWN)
    assert backend.allocate("manager", []) == FIRST
    agent_dirs.make(layout, "manager", FIRST, FIRST)
    agent_dirs.make(layout, "alice", NEXT, FIRST)
    (layout.config_of("alice") / "flake.nix").touch()
    alice = row("alice", NEXT)

    assert backend.allocate("bob", [alice]) == NEXT + 65536, "it would own what the manager has written"
    assert backend.allocate("manager", [alice]) == FIRST


@pytest.mark.root
@by_root
@pytest.mark.parametrize("owner", [1000, FIRST + 1, FIRST - 65536])
def test_a_configuration_of_an_ordinary_user_makes_nobody_that_user(
    layout: Layout, open_as: Callable[[Mode], Backend], owner: int
) -> None:
    backend = open_as(Mode.NSPAWN)
    agent_dirs.make(layout, "alice", NEXT, None)
    os.chown(layout.config_of("alice"), owner, owner)

    assert backend.allocate("manager", []) == FIRST


def test_what_a_machines_users_wrote_is_not_served_by_a_local_hive(
    layout: Layout, open_as: Callable[[Mode], Backend]
) -> None:
    backend = open_as(Mode.LOCAL)
    backend.make_dirs(row("bob", None))

    with pytest.raises(OSError, match="those of a machine's users"):
        backend.make_dirs(row("alice", FIRST))
    assert layout.agent("bob").state.is_dir()
    assert not layout.agent("alice").state.exists()

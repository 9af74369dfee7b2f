"""Directories that belong to the users of machines."""

import os
from pathlib import Path

import pytest

from hive_core.host import agent_dirs
from hive_core.layout import Layout

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away"),
]
ALICE, MANAGER_UID = 0x40000000, 0x40010000


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run", tmp_path / "state")
    made.make()
    agent_dirs.make_common(made)
    return made


def look(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_mode & 0o7777


def test_an_agent_owns_its_state_below_what_is_roots_alone(layout: Layout) -> None:
    agent_dirs.make(layout, "alice", ALICE, None)
    agent_dirs.make(layout, "alice", ALICE, None)

    dirs = layout.agent("alice")
    assert look(dirs.state) == look(dirs.claude) == (ALICE, 0o700)
    assert look(dirs.base) == look(layout.agents) == (0, 0o700)
    assert look(dirs.run) == (0, 0o755)
    assert look(layout.config_of("alice").parent) == (0, 0o755)


def test_the_manager_owns_the_configurations_of_all_and_not_what_they_lie_in(layout: Layout) -> None:
    agent_dirs.make(layout, "alice", ALICE, None)
    assert look(layout.config_of("alice"))[0] == 0
    agent_dirs.make(layout, "manager", MANAGER_UID, MANAGER_UID)
    agent_dirs.make(layout, "bob", ALICE + 2 * 65536, MANAGER_UID)

    for name in ("alice", "bob", "manager"):
        assert look(layout.config_of(name)) == (MANAGER_UID, 0o755)
        assert look(layout.config_of(name).parent) == (0, 0o755)
    assert look(layout.configs) == (0, 0o755)
    assert layout.agent("manager").run == layout.run / "manager"


def test_what_is_somebody_elses_is_not_given_away(layout: Layout) -> None:
    agent_dirs.make(layout, "alice", ALICE, None)
    (layout.agent("alice").state / "secret").touch()

    with pytest.raises(PermissionError, match=f"belongs to uid {ALICE}, and must to {ALICE + 65536}"):
        agent_dirs.make(layout, "alice", ALICE + 65536, None)


def test_roots_own_files_are_not_given_away(layout: Layout) -> None:
    layout.agent("alice").state.mkdir(parents=True)
    (layout.agent("alice").state / "precious").touch()

    with pytest.raises(PermissionError, match="belongs to uid 0"):
        agent_dirs.make(layout, "alice", ALICE, None)


def test_a_link_in_the_way_is_refused(layout: Layout, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    layout.agent("alice").base.mkdir()
    layout.agent("alice").state.symlink_to(elsewhere)

    with pytest.raises(OSError, match="state"):
        agent_dirs.make(layout, "alice", ALICE, None)
    assert look(elsewhere)[0] == 0

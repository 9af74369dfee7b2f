"""Generations of a NixOS machine: old ones go, never what is current or runs."""

from pathlib import Path

import pytest

from hive_core.host.nix_roots import pin_booted, profile, remove_profile, sweep_generations


def closure(tmp_path: Path, number: int) -> Path:
    path = tmp_path / "store" / f"{number}-system"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """Alice has eight generations and runs the second; the third is the current one."""
    directory = tmp_path / "profiles" / "alice"
    directory.mkdir(parents=True)
    for number in range(1, 9):
        (directory / f"system-{number}-link").symlink_to(closure(tmp_path, number))
    profile("alice", tmp_path / "profiles").symlink_to("system-3-link")
    pin_booted("alice", closure(tmp_path, 2), tmp_path / "roots")
    return tmp_path / "profiles"


def left(profiles: Path) -> list[str]:
    return sorted(path.name for path in (profiles / "alice").iterdir())


def test_all_but_the_newest_the_current_and_the_booted_one_go(tmp_path: Path, profiles: Path) -> None:
    swept = sweep_generations("alice", 5, profiles=profiles, roots=tmp_path / "roots")

    assert swept == (1, 7)
    assert left(profiles) == ["system", *(f"system-{number}-link" for number in range(2, 9))]
    assert profile("alice", profiles).resolve() == closure(tmp_path, 3)


def test_a_dry_run_deletes_nothing(tmp_path: Path, profiles: Path) -> None:
    assert sweep_generations("alice", 1, dry_run=True, profiles=profiles, roots=tmp_path / "roots") == (5, 3)
    assert len(left(profiles)) == 9


def test_what_is_no_generation_stays(tmp_path: Path, profiles: Path) -> None:
    (profiles / "alice" / "system-old-link").symlink_to("/nowhere")

    sweep_generations("alice", 1, profiles=profiles, roots=tmp_path / "roots")

    assert left(profiles) == [
        *("system", "system-2-link", "system-3-link", "system-8-link", "system-old-link"),
    ]


def test_an_agent_without_a_profile_has_none(tmp_path: Path) -> None:
    assert sweep_generations("bob", 5, profiles=tmp_path, roots=tmp_path) is None


def test_of_one_that_is_destroyed_nothing_is_left(tmp_path: Path, profiles: Path) -> None:
    for _ in range(2):
        remove_profile("alice", profiles)

    assert list(profiles.iterdir()) == []
    assert closure(tmp_path, 3).is_dir()

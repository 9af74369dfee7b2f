"""Where we are root: proposals are read as their owner, shut in, and git is nobody who could do anything."""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hive_core.host import agent_dirs, git, process
from hive_core.host.process import CommandError, User
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from tests.repositories.kit import SECRET, Proposal, everything_in

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else"),
]
MANAGER, GIT = 0x40010000, 64321


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Layout]:
    monkeypatch.setattr(process, "find_user", lambda _name: User(GIT, GIT))
    monkeypatch.setattr(agent_dirs, "find_user", lambda _name: User(GIT, GIT))
    # pytest's own directories let nobody else through.
    top = Path(tempfile.mkdtemp(prefix="hive-", dir="/var/tmp"))
    top.chmod(0o711)
    made = Layout(top / "state", top / "run", top / "state")
    made.make()
    (made.state / "broker.sqlite").write_text(SECRET)
    (made.state / "broker.sqlite-wal").write_text(SECRET)
    (made.state / "backups").mkdir()
    agent_dirs.make_common(made)
    yield made
    shutil.rmtree(top)


@pytest.fixture
def repositories(layout: Layout) -> Repositories:
    return Repositories(layout, isolated=True)


def give(path: Path, uid: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, uid, follow_symlinks=False)


def owners(path: Path) -> set[int]:
    return {each.lstat().st_uid for each in (path, *path.rglob("*"))}


async def test_each_file_belongs_to_who_wrote_it(layout: Layout, repositories: Repositories) -> None:
    assert await repositories.seed("alice", {"agent.toml": b"x"}, MANAGER)
    sha = await repositories.take_in("alice", None, "deployed/0")
    await repositories.move_main("alice", sha)
    await repositories.write_meta({"agents.json": b"{}"}, "deploy")
    await repositories.export("alice", sha, layout.release_of("alice", sha) / "config")

    assert owners(layout.config_of("alice")) == {MANAGER}
    assert owners(layout.applied_of("alice")) == owners(layout.meta) == {GIT}
    assert owners(layout.releases) == {0}
    assert layout.config_of("alice").parent.stat().st_uid == 0
    # Its machine, whose users are others, reads all of that.
    for path in (layout.applied, layout.meta, layout.releases):
        for each in path.rglob("*"):
            assert each.stat().st_mode & (0o005 if each.is_dir() else 0o004)
    await repositories.remove("alice")
    assert not layout.applied_of("alice").exists()


async def test_others_get_through_the_state_directory_and_read_nothing_in_it(layout: Layout) -> None:
    assert stat.S_IMODE(layout.state.stat().st_mode) == 0o711
    shut = {path.name: stat.S_IMODE(path.stat().st_mode) for path in layout.state.iterdir()}
    assert shut == {
        "agents": 0o700,
        "backups": 0o700,
        "broker.sqlite": 0o600,
        "broker.sqlite-wal": 0o600,
        "applied": 0o755,
        "configs": 0o755,
        "meta": 0o755,
        "releases": 0o755,
        "staging": 0o711,
    }
    for name in ("broker.sqlite", "broker.sqlite-wal", "backups", "agents"):
        with pytest.raises(CommandError, match="Permission denied"):
            await process.run(
                ["ls", str(layout.state / name)]
                if (layout.state / name).is_dir()
                else ["cat", str(layout.state / name)],
                timeout_s=5,
                max_output_bytes=1000,
                user=User(GIT, GIT),
                cwd=Path("/"),
            )


async def test_what_only_root_may_read_is_not_read_for_an_agent(
    layout: Layout, repositories: Repositories
) -> None:
    proposal = Proposal(layout.config_of("alice"))
    sha = proposal.commit({"a": SECRET})
    blob = proposal.git("rev-parse", "HEAD:a")
    give(proposal.path, MANAGER)
    path = proposal.dot_git / "objects" / blob[:2] / blob[2:]
    os.chown(path, 0, 0)
    path.chmod(0o400)

    with pytest.raises(BadProposal, match="Permission denied"):
        await repositories.take_in("alice", sha, "proposal/1")
    assert SECRET.encode() not in everything_in(layout.applied)


async def test_no_name_leads_out_of_the_directory(layout: Layout, repositories: Repositories) -> None:
    proposal = Proposal(layout.config_of("alice"))
    proposal.commit({"a": "1"})
    elsewhere = Proposal(layout.home / "elsewhere")
    secret = elsewhere.commit({"secret": SECRET})
    give(elsewhere.path, MANAGER)
    (proposal.path / "was").mkdir()
    proposal.dot_git.rename(proposal.path / "was" / "git")
    proposal.dot_git.symlink_to(elsewhere.dot_git)
    give(proposal.path, MANAGER)

    with pytest.raises(BadProposal, match=r"\.git is missing, or no directory"):
        await repositories.take_in("alice", secret, "proposal/1")


async def test_git_is_not_root_and_may_not_become_it(layout: Layout, repositories: Repositories) -> None:
    await repositories.seed("alice", {"agent.toml": b"x"}, MANAGER)
    await repositories.take_in("alice", None, "deployed/0")
    runner = git.Git(User(GIT, GIT))
    # An alias of the command line is the one program that git would start for us.
    said = await runner.run(layout.applied_of("alice"), "-c", "alias.who=!id -u; id -G; ulimit -c", "who")
    assert said.split() == [str(GIT).encode(), str(GIT).encode(), b"0"]


async def test_a_missing_user_is_said(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if subprocess.run(["id", git.USER], capture_output=True, check=False).returncode == 0:
        pytest.skip("this host has the user")
    with pytest.raises(OSError, match="there is no user hive-git on this host"):
        await Repositories(layout, isolated=True).take_in("alice", None, "proposal/1")


async def test_what_was_seeded_without_a_manager_is_handed_to_the_one_that_comes(
    layout: Layout, repositories: Repositories
) -> None:
    await repositories.seed("alice", {"agent.toml": b"x", "d/e": b"y"}, None)
    (layout.config_of("alice") / "link").symlink_to("/etc/passwd")
    assert owners(layout.config_of("alice")) == {0}
    sha = await repositories.take_in("alice", None, "deployed/0")

    agent_dirs.make(layout, "manager", MANAGER, MANAGER)

    assert owners(layout.config_of("alice")) == {MANAGER}
    assert Path("/etc/passwd").stat().st_uid == 0
    assert stat.S_IMODE(layout.config_of("alice").stat().st_mode) == 0o755
    assert await repositories.take_in("alice", sha, "proposal/1") == sha


def test_files_of_a_machine_with_the_hosts_users_are_shifted_once(layout: Layout) -> None:
    state = layout.agents / "alice" / "state"
    (state / "home").mkdir(parents=True)
    (state / "home" / "file").touch()
    (state / "link").symlink_to("/etc/passwd")
    os.chown(state / "home" / "file", 1000, 100)

    for _ in range(2):
        agent_dirs.shift_owners(state, MANAGER)

    assert (state / "home" / "file").stat().st_uid == MANAGER + 1000
    assert (state / "home" / "file").stat().st_gid == MANAGER + 100
    assert owners(state) == {MANAGER, MANAGER + 1000}
    assert Path("/etc/passwd").stat().st_uid == 0

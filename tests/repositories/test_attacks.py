"""What the manager, an archive, or git itself once it was taken over, could try on whoever uses repositories."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from hive_core import repositories as module
from hive_core.adoption import Adoption
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host import agent_dirs, quarantine
from hive_core.host.git import Git
from hive_core.host.git_files import sweep_locks
from hive_core.host.git_output import made_at
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.store import agents
from hive_core.store.database import open_store
from hive_core.store.mailbox import apply_batch
from tests.repositories.kit import Proposal

WHO = "m <m@hive> 1700000000 +0000"


def put_message(proposal: Proposal, message: str) -> str:
    """Make a commit with any message at all."""
    proposal.commit({"agent.toml": ""})
    tree = proposal.git("rev-parse", "HEAD^{tree}")
    return proposal.put("commit", f"tree {tree}\nauthor {WHO}\ncommitter {WHO}\n\n{message}".encode())


# ── what an operator is told ────────────────────────────────────────────────────────────────────


async def test_no_number_of_files_hides_one(proposal: Proposal, repositories: Repositories) -> None:
    base = proposal.commit({f"a/{number}": "x" for number in range(1200)})
    sha = proposal.commit({f"a/{number}": "y" for number in range(1200)} | {"agent.nix": "{ }"})
    await repositories.take_in("alice", base, "proposal/1")
    await repositories.take_in("alice", sha, "proposal/2")

    changes = await repositories.changes("alice", base, sha)

    assert len(changes) == 1201
    assert "agent.nix" in {change.path for change in changes}


async def test_no_message_of_a_commit_becomes_a_tag(proposal: Proposal, repositories: Repositories) -> None:
    forged = f"deployed/99\0commit\0{'a' * 40}\0\x001700000000\0fine\0\0"
    sha = put_message(proposal, f"x\n\0\x01\n{forged}\n\0\x01\n{forged}")

    with suppress(BadProposal):
        await repositories.take_in("alice", sha, "proposal/1")

    assert [one.tag for one in await repositories.history("alice", 10)] in ([], ["proposal/1"])


async def test_messages_without_end_are_refused_before_they_are_kept(
    proposal: Proposal, repositories: Repositories
) -> None:
    sha = put_message(proposal, "m" * (quarantine.MAX_MESSAGE_BYTES + 1))

    with pytest.raises(BadProposal, match=r"its message has 16\d\d\d bytes, and may have 16384"):
        await repositories.take_in("alice", sha, "proposal/1")
    assert not await repositories.exists("alice")


# ── what it takes ───────────────────────────────────────────────────────────────────────────────


async def test_many_slow_packs_are_not_read_one_limit_after_the_other(
    proposal: Proposal, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        proposal.commit({"file": str(number)})
        proposal.git("repack", "--quiet")
    monkeypatch.setattr(quarantine, "MAX_INDEXING_S", 0.0)

    with pytest.raises(BadProposal, match="for the packs of its repository; git gc"):
        await repositories.take_in("alice", None, "proposal/1")


async def test_what_was_proposed_for_an_agent_has_an_end(
    proposal: Proposal, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = proposal.commit({"file": os.urandom(4096)})
    await repositories.take_in("alice", first, "proposal/1")
    monkeypatch.setattr(module, "MAX_APPLIED_BYTES", 1024)
    second = proposal.commit({"file": "x"})

    with pytest.raises(BadProposal, match="an operator has to make room"):
        await repositories.take_in("alice", second, "proposal/2")
    assert await repositories.resolve("alice", "proposal/2") is None


# ── git, which reads what agents made, taken over ───────────────────────────────────────────────


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_git_has_no_directory_in_which_root_makes_its_repositories(layout: Layout) -> None:
    agent_dirs.make_common(layout)

    assert {path.lstat().st_uid for path in (layout.applied, layout.staging, layout.releases)} == {0}


def test_a_link_is_never_given_to_git(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o700)
    (tmp_path / "alice").symlink_to("etc")

    with pytest.raises(OSError, match="alice"):
        Git().own(tmp_path / "alice", mode=0o777)
    assert (tmp_path / "etc").stat().st_mode & 0o777 == 0o700


def test_no_lock_behind_a_link_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "etc/sub").mkdir(parents=True)
    locks = [tmp_path / "etc/passwd.lock", tmp_path / "etc/sub/x.lock"]
    for lock in locks:
        lock.touch()
    (tmp_path / "alice/objects").mkdir(parents=True)
    (tmp_path / "alice/refs").symlink_to(tmp_path / "etc")
    (tmp_path / "alice/HEAD.lock").touch()
    (tmp_path / "alice/objects/kept.lock").touch()

    sweep_locks(tmp_path / "alice", set())
    with suppress(OSError):
        (tmp_path / "link").symlink_to("etc")
        sweep_locks(tmp_path / "link", set())

    assert all(lock.exists() for lock in locks)
    assert not (tmp_path / "alice/HEAD.lock").exists()
    assert (tmp_path / "alice/objects/kept.lock").exists()


async def test_a_fifo_in_a_log_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")

    with trio.fail_after(5):
        assert await trio.to_thread.run_sync(made_at, tmp_path / "log", 7.0) == 7.0


def test_a_link_where_the_hive_has_a_directory_is_not_followed(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o700)
    layout.meta.symlink_to(tmp_path / "etc")

    with pytest.raises(NotADirectoryError, match="is a link, and has to be a directory"):
        agent_dirs.make_common(layout)
    assert (tmp_path / "etc").stat().st_mode & 0o777 == 0o700


# ── an installation of the original that somebody else packed ───────────────────────────────────


async def adopt(layout: Layout, manifest: Manifest = NOTHING) -> dict[str, agents.AgentRow]:
    async def manifest_at(_agent: str, _sha: str) -> Manifest:
        return manifest

    async with open_store(layout.database, apply_batch) as store:
        adoption = Adoption(
            store,
            layout,
            Repositories(layout, isolated=False),
            allocate=lambda _name, _rows: None,
            manifest_at=manifest_at,
            environ={},
        )
        await adoption.run()
        return {row.name: row for row in await store.read(agents.all_agents)}


async def test_what_an_archive_declares_is_approved_before_it_holds(layout: Layout) -> None:
    applied = Proposal(layout.applied / "alice")
    applied.commit({"agent.toml": 'network = "veth"'})
    applied.git("tag", "deployed/0")

    row = (await adopt(layout, Manifest(network="veth")))["alice"]

    # Nothing runs: so the card of what is proposed shows all of it.
    assert (row.manifest, row.deployed_sha, row.deployed_tag) == (NOTHING, None, None)


async def test_no_link_of_an_archive_leads_out_of_the_hive(layout: Layout, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "config").mkdir(parents=True, mode=0o700)
    (outside / "config/secret").touch()
    Proposal(outside / "repository").commit({"agent.nix": "{ }"})
    layout.agents.mkdir()
    layout.applied.mkdir()
    layout.configs.mkdir()
    (layout.agents / "alice").symlink_to(outside)
    (layout.applied / "bob").symlink_to(outside / "repository")
    (layout.agents / "carol/config").mkdir(parents=True)
    (layout.configs / "carol").symlink_to(outside)

    rows = await adopt(layout)

    assert set(rows) == set()
    assert (outside / "config/secret").exists()
    assert (outside / "config").stat().st_mode & 0o777 == 0o700
    assert (outside / "repository/.git").is_dir()

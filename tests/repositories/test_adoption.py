"""A hive of the original is taken over whole, however often it is cut off meanwhile."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hive_core.adoption import SKIP, THEIR_MARK, Adoption
from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.store import agents
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import apply_batch
from tests.repositories.kit import Proposal


async def nothing_declared(_agent: str, _sha: str) -> Manifest:
    return NOTHING


class Original:
    """The state of an installation of the original, with two agents and a broken one."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.main: dict[str, str] = {}
        for name in ("alice", "bob"):
            proposed = Proposal(layout.agents / name / "config")
            (layout.agents / name / "state").mkdir()
            sha = proposed.commit({"agent.nix": "{ }"})
            applied = Proposal(layout.applied / name)
            applied.git("fetch", "--quiet", str(proposed.path), "main:refs/heads/proposed")
            applied.git("reset", "--quiet", "--hard", "proposed")
            applied.git("tag", "deployed/0")
            proposed.commit({"agent.nix": "{ bad }"})
            applied.git("fetch", "--quiet", str(proposed.path), "main:refs/heads/proposed")
            applied.git("tag", "proposal/3", "proposed")
            applied.git("tag", "-a", "-m", "it broke", "failed/3", "proposed")
            applied.git("tag", "v1.0")
            (applied.dot_git / "hooks" / "post-checkout").write_text(f"#!/bin/sh\ntouch {layout.home}/ran\n")
            (applied.dot_git / "hooks" / "post-checkout").chmod(0o755)
            self.main[name] = sha
        meta = Proposal(layout.meta)
        meta.commit({"flake.nix": "{ }"})
        meta.commit({"flake.lock": "{}"}, "deploy alice deployed/0")
        (layout.meta / THEIR_MARK).write_text("done")

    def look(self) -> list[tuple[str, str]]:
        """What matters of what is there now."""
        found = []
        for name in ("alice", "bob"):
            top = self.layout.applied_of(name)
            found.append((name, _git(top, "for-each-ref", "--format=%(refname) %(objectname)")))
            proposed = self.layout.config_of(name)
            found.append((name, _git(proposed / ".git", "log", "--format=%s %H")))
            found.append((name, (proposed / "agent.nix").read_text()))
        found.append(("meta", _git(self.layout.meta / ".git", "log", "--format=%s %H")))
        found.append(("meta", " ".join(sorted(path.name for path in self.layout.meta.iterdir()))))
        return found


def _git(top: Path, *arguments: str) -> str:
    run = ["git", f"--git-dir={top}", *arguments]
    return subprocess.run(run, capture_output=True, check=True, text=True).stdout


@asynccontextmanager
async def adoption(layout: Layout, **environ: str) -> AsyncIterator[tuple[Adoption, Store[Any]]]:
    async with open_store(layout.database, apply_batch) as store:
        repositories = Repositories(layout, isolated=False)
        yield (
            Adoption(
                store,
                layout,
                repositories,
                allocate=lambda _name, _rows: None,
                manifest_at=nothing_declared,
                environ=environ,
            ),
            store,
        )


async def rows_of(store: Store[Any]) -> dict[str, AgentRow]:
    return {row.name: row for row in await store.read(agents.all_agents)}


@pytest.fixture
def original(layout: Layout) -> Original:
    return Original(layout)


async def test_everything_is_taken_over_and_then_left_alone(original: Original, layout: Layout) -> None:
    async with adoption(layout) as (adopting, store):
        await adopting.run()
        rows = await rows_of(store)
        before = original.look()
        await adopting.run()
    assert original.look() == before

    assert set(rows) == {"alice", "bob"}
    alice = rows["alice"]
    assert (alice.wanted, alice.deployed_sha, alice.deployed_tag) == (
        *(Wanted.STOPPED, original.main["alice"], "deployed/0"),
    )
    repositories = Repositories(layout, isolated=False)
    tags = {info.tag: info.note for info in await repositories.history("alice", 10)}
    assert tags == {"deployed/0": None, "proposal/3": None, "failed/3": "it broke"}
    assert await repositories.main("alice") == original.main["alice"]
    assert await repositories.take_in("alice", None, "proposal/4")
    assert not (layout.agents / "alice" / "config").exists()
    assert not (layout.home / "ran").exists()
    assert await repositories.read_meta("flake.lock") == b"{}"
    await repositories.write_meta({"agents.json": b"{}"}, "deploy bob")
    log = _git(layout.meta / ".git", "log", "--format=%s").split("\n")
    assert log[:3] == ["deploy bob", "deploy alice deployed/0", "a change"]
    assert (layout.meta / THEIR_MARK).read_text() == "done"


async def test_a_fresh_hive_has_nothing_to_take_over(layout: Layout) -> None:
    async with adoption(layout) as (adopting, _):
        await adopting.run()
    assert not layout.adopted.exists()


async def test_it_can_be_switched_off(original: Original, layout: Layout) -> None:
    async with adoption(layout, **{SKIP: "1"}) as (adopting, store):
        await adopting.run()
        assert await rows_of(store) == {}
    assert (layout.applied / "alice" / ".git").is_dir()
    assert not layout.adopted.exists()


async def test_a_broken_agent_does_not_keep_the_others(original: Original, layout: Layout) -> None:
    shutil.rmtree(layout.applied / "alice" / ".git" / "objects")
    async with adoption(layout) as (adopting, store):
        await adopting.run()
        assert set(await rows_of(store)) == {"bob"}
        assert (layout.applied / "alice" / ".git").is_dir()
        assert not (layout.adopted / "done").exists()
        # Somebody looks after it, and the next start goes on.
        shutil.rmtree(layout.applied / "alice")
        await adopting.run()
        assert (await rows_of(store))["alice"].deployed_sha is None
    assert (layout.adopted / "done").exists()


class Killed(BaseException):
    pass


async def run_killed(adopting: Adoption, patched: pytest.MonkeyPatch, step: int) -> bool:
    """Kill it at that one of its changes; before it if *step* is odd, else after.  Say whether it had so many."""
    calls = 0

    def counted(change: Any) -> Any:
        def do(path: Path, *arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step and step % 2:
                raise Killed
            done = change(path, *arguments, **named)
            if calls == step:
                raise Killed
            return done

        return do

    for name in ("rename", "rmdir", "touch"):
        patched.setattr(Path, name, counted(getattr(Path, name)))
    try:
        await adopting.run()
    except BaseException as error:
        if not isinstance(error, Killed):
            raise
    return calls >= step


async def test_a_kill_at_any_change_of_the_disk_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Layout(tmp_path / "once", tmp_path / "once" / "run", tmp_path / "once" / "state")
    first.make()
    Original(first)
    for step in range(1, 30):
        layout = Layout(tmp_path / f"{step}", tmp_path / f"{step}" / "run", tmp_path / f"{step}" / "state")
        shutil.copytree(first.home, layout.home, symlinks=True)
        async with adoption(layout) as (adopting, _):
            with monkeypatch.context() as patched:
                killed = await run_killed(adopting, patched, step)
        # As the next start does before.
        layout.meta.mkdir(exist_ok=True)
        async with adoption(layout) as (adopting, store):
            await adopting.run()
            rows = await rows_of(store)
        assert set(rows) == {"alice", "bob"}
        assert (layout.adopted / "done").exists()
        repositories = Repositories(layout, isolated=False)
        for name in rows:
            assert await repositories.main(name) == rows[name].deployed_sha
            assert await repositories.has_proposed(name)
        assert await repositories.read_meta("flake.lock") == b"{}"
        if not killed:
            assert step > 6
            return
    pytest.fail("it never ended")

"""Newer inputs of the hive's flake: every agent that was built of them is built anew, and no other."""

import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hive_core.builders import Running
from hive_core.config import Config
from hive_core.config import Deploy as DeployConfig
from hive_core.domain.cage import Shape
from hive_core.domain.deploy import Deploy, DeployKind, Step
from hive_core.wire.errors import ErrorCode, Refused

from .world import FIRST, SECOND, THIRD, Fate, World, world_at


@pytest.fixture
async def world(tmp_path: Path, autojump_clock: MockClock) -> AsyncIterator[World]:
    """Alice and bob were built here, tom starts from a tree though he has an agent.nix too."""
    autojump_clock.autojump_threshold = 0.05
    async with world_at(tmp_path / "h") as world:
        world.config = Config(deploy=DeployConfig(builder="nix", timeout_s=600))
        entries = {}
        for name, sha, image in (
            ("alice", FIRST, "image-1111"),
            ("bob", SECOND, "image-2222"),
            ("tom", THIRD, "debian"),
        ):
            world.repositories.commit(sha, agent_nix="{ }")
            world.repositories.tags[name] = {"deployed/0": (sha, None)}
            world.repositories.mains[name] = sha
            world.agents.add(name, sha, "deployed/0", shape=Shape(image=image))
            builder = "tree" if name == "tom" else "nix"
            entries[name] = {"sha": sha, "tag": "deployed/0", "builder": builder, "output": image}
        world.repositories.meta["agents.json"] = json.dumps({"agents": entries}).encode()
        world.layout.meta.mkdir()
        yield world


async def renew(world: World) -> Deploy:
    await world.approve(DeployKind.INPUTS, "", commit_ref='["nixpkgs"]')
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()
    return done


async def test_only_those_that_were_built_are_built_anew(world: World) -> None:
    world.builder.images["bob"] = "image-of-newer"
    world.builder.images["tom"] = "image-never"

    done = await renew(world)

    assert (done.step, done.error) == (Step.DONE, None)
    images = {name: row.shape.image for name, row in world.agents.rows.items()}
    assert images == {"alice": "image-1111", "bob": "image-of-newer", "tom": "debian"}
    await world.check()
    entries = world.repositories.agents_json
    assert {name: entry["builder"] for name, entry in entries.items()} == {
        "alice": "nix",
        "bob": "nix",
        "tom": "tree",
    }


async def test_where_nothing_was_built_there_is_nothing_to_renew(world: World) -> None:
    for name in ("alice", "bob"):
        del world.agents.rows[name]

    done = await renew(world)

    assert done.step is Step.FAILED
    assert "no machine is built of them yet" in (done.error or "")
    assert world.agents.rows["tom"].shape.image == "debian"


async def test_when_one_does_not_come_up_all_are_as_before_and_the_builder_knows(world: World) -> None:
    world.builder.images |= {"alice": "image-new-a", "bob": "image-new-b"}
    world.agents.broken.add("image-new-b")

    done = await renew(world)

    assert done.step is Step.FAILED
    assert {row.shape.image for row in world.agents.rows.values()} == {"image-1111", "image-2222", "debian"}
    await world.check()
    last = world.builder.restored[-1]
    assert last == {"alice": Running(FIRST, "image-1111"), "bob": Running(SECOND, "image-2222")}


async def test_when_one_does_not_even_go_back_the_others_do(world: World) -> None:
    world.builder.images |= {"alice": "image-new-a", "bob": "image-new-b"}
    world.agents.broken |= {"image-new-b", "image-1111"}

    done = await renew(world)

    assert "what ran before does not come up either: alice: it ended again at once" in (done.error or "")
    assert world.agents.running["bob"].shape.image == "image-2222"


async def test_one_that_is_destroyed_meanwhile_keeps_no_other_from_going_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.builder.images |= {"alice": "image-new-a", "bob": "image-new-b"}
    world.agents.broken.add("image-new-b")
    allow = world.agents.allow

    async def allow_others(name: str, recipients: Collection[str] | None) -> None:
        if name == "alice":
            raise Refused(ErrorCode.NOT_FOUND, "cannot find agent 'alice'")
        await allow(name, recipients)

    monkeypatch.setattr(world.agents, "allow", allow_others)
    world.deployer = world.new_deployer()

    done = await renew(world)

    assert done.step is Step.FAILED
    assert world.agents.running["bob"].shape.image == "image-2222"


async def test_nothing_stays_laid_out_when_all_are_destroyed_meanwhile(world: World) -> None:
    await world.approve(DeployKind.INPUTS, "", commit_ref='["nixpkgs"]')
    fate = world.fate(Fate(waits={"export": trio.Event()}, begun={"export": trio.Event()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun["export"].wait()
        for name in list(world.agents.rows):
            await world.agents.destroy(name)
            await world.deployer.agent_destroyed(name)
        fate.waits["export"].set()
        await world.wait_ended()
        nursery.cancel_scope.cancel()

    assert world.builder.laid_out == set()


async def test_what_is_being_renewed_is_in_meta_only_when_it_runs(world: World) -> None:
    world.builder.images |= {"alice": "image-new-a", "bob": "image-new-b"}
    await world.approve(DeployKind.INPUTS, "", commit_ref='["nixpkgs"]')
    fate = world.fate(Fate(waits={"activate": trio.Event()}, begun={"activate": trio.Event()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun["activate"].wait()
        # As a new daemon does for all of them, when the last one was killed here.
        world.deployer.settle("alice")
        await trio.sleep(1)
        written = list(world.repositories.log)
        fate.waits["activate"].set()
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()

    assert (written, done.step) == ([], Step.DONE)
    await world.check()

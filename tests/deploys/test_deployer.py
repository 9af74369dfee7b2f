"""The queue and its steps over a real database: what fails, what is cut off, what a kill leaves."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hive_core.builders import BuildFailed
from hive_core.declarable import Limits
from hive_core.deployer import MAX_OPEN, TRIES, Lines
from hive_core.domain.deploy import Deploy, DeployKind, Step, tag_of
from hive_core.domain.helper_event import ConfigReady, Rebuilt, Spawned
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import Manifest
from hive_core.host.process import CommandError
from hive_core.machines import describe
from hive_core.store import deploys
from hive_core.wire.errors import ErrorCode, Refused

from .world import AS_DEPLOYED, FIRST, SECOND, THIRD, Fate, World, world_at


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    # Not at once: the writer's thread takes its time.
    autojump_clock.autojump_threshold = 0.05
    return autojump_clock


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_at(tmp_path / "h") as world:
        prepare(world)
        yield world


def prepare(world: World) -> None:
    """Alice runs her first configuration; there are two more."""
    repositories = world.repositories
    repositories.commit(FIRST, agent_toml="model = 'one'")
    repositories.commit(SECOND, agent_toml="model = 'two'\nrecipients = ['bob']\n[limits]\nmemory = '1G'")
    repositories.commit(THIRD, agent_toml="model = 'three'\n[mcp_servers.notes]\ncommand = 'notes'")
    repositories.tags["alice"] = {"deployed/0": (FIRST, None)}
    repositories.mains["alice"] = FIRST
    world.agents.add("alice", FIRST, "deployed/0", manifest=Manifest(model="one"), shape=AS_DEPLOYED)
    entry = {"sha": FIRST, "tag": "deployed/0", "builder": "tree", "output": "image-1111"}
    repositories.meta["agents.json"] = json.dumps({"agents": {"alice": entry}}).encode()
    world.layout.meta.mkdir()


async def carry_out(world: World, count: int | None = None) -> list[Deploy]:
    """Let the worker do what there is, and give all deploys."""
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        found = await world.wait_ended(count)
        await trio.sleep(1)  # agents.json of those that came and went
        nursery.cancel_scope.cancel()
    return found


# ── going well ──────────────────────────────────────────────────────────────────────────────────


async def test_what_was_approved_runs_and_everything_says_so(clock: MockClock, world: World) -> None:
    number = await world.approve(DeployKind.APPLY, "alice", SECOND)
    (done,) = await carry_out(world)

    assert [step for step, _ in done.steps] == [*Step][:6]
    assert (done.step, done.from_sha, done.tag) == (Step.DONE, FIRST, f"deployed/{number}")
    row = world.agents.rows["alice"]
    assert (row.deployed_sha, row.manifest.model, row.shape.image) == (SECOND, "two", "image-2222")
    assert row.shape.memory_max_bytes == 2**30
    assert world.agents.lists["alice"] == frozenset({"bob", "manager"})
    assert world.repositories.log[-1] == f"deploy alice deployed/{number} 222222222222 image-2222"
    tags = world.repositories.tags["alice"]
    assert [tag.partition("/")[0] for tag in tags][1:] == ["proposal", "approved", "building", "deployed"]
    assert world.told == [Rebuilt(agent="alice", ok=True, sha=SECOND, tag=done.tag)]
    (letter,) = await world.letters()
    assert (letter["event"], letter["status"], letter["tag"]) == ("approval_resolved", "approved", done.tag)
    await world.check()


async def test_what_a_deploy_leaves_out_is_as_before_it_was_said(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    await carry_out(world)
    await world.approve(DeployKind.APPLY, "alice", THIRD)
    await carry_out(world, 2)
    assert world.agents.rows["alice"].shape.memory_max_bytes is None
    assert world.agents.lists["alice"] is None
    await world.check()


async def test_a_release_is_laid_out_and_older_ones_go(clock: MockClock, world: World) -> None:
    for sha in (SECOND, THIRD, FIRST):
        await world.approve(DeployKind.APPLY, "alice", sha)
    await carry_out(world, 3)
    releases = world.layout.releases / "alice"
    assert {path.name for path in releases.iterdir()} == {FIRST, THIRD}
    assert (releases / FIRST / "config" / "agent.toml").read_text() == "model = 'one'"
    assert (releases / THIRD / "extra-mcp.json").read_text() == '{"notes":{"command":"notes"}}'


async def test_a_new_agent_comes_from_the_template(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.SPAWN, "bob")
    (done,) = await carry_out(world)
    assert (done.step, done.tag) == (Step.DONE, "deployed/0")
    assert world.agents.rows["bob"].deployed_tag == "deployed/0"
    assert world.told == [Spawned(agent="bob", ok=True, sha=done.sha, tag="deployed/0")]
    await world.check()


async def test_a_new_agent_comes_from_what_was_proposed_for_it(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.SPAWN, "bob", SECOND)
    (done,) = await carry_out(world)
    assert (done.step, done.sha) == (Step.DONE, SECOND)
    assert world.agents.rows["bob"].manifest.limits == Limits(memory="1G")
    await world.check()


async def test_what_was_proposed_after_the_request_is_not_what_was_approved(
    clock: MockClock, world: World
) -> None:
    number = await world.approve(DeployKind.SPAWN, "bob")
    world.repositories.proposed["bob"] = SECOND
    (done,) = await carry_out(world)
    assert done.step is Step.FAILED
    assert "ask again" in (done.error or "")
    assert "bob" not in world.agents.rows
    assert (await world.approval(number)).status == "failed"


async def test_a_destroyed_agent_comes_back_with_what_it_ran(clock: MockClock, world: World) -> None:
    await world.agents.destroy("alice")
    number = await world.approve(DeployKind.SPAWN, "alice")
    (done,) = await carry_out(world)
    assert (done.sha, done.tag) == (FIRST, "deployed/0")
    await world.agents.destroy("alice")
    await world.deployer.agent_destroyed("alice")
    world.repositories.mains["alice"] = SECOND
    number = await world.approve(DeployKind.SPAWN, "alice")
    *_, done = await carry_out(world, 2)
    assert (done.sha, done.tag) == (SECOND, f"deployed/{number}")
    await world.check()


async def test_a_configuration_to_begin_with_runs_nothing(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.INIT_CONFIG, "bob")
    (done,) = await carry_out(world)
    assert done.step is Step.DONE
    assert world.told == [ConfigReady(agent="bob")]
    assert "bob" in world.repositories.proposed
    assert "bob" not in world.agents.rows
    await world.approve(DeployKind.INIT_CONFIG, "bob")
    *_, again = await carry_out(world, 2)
    assert again.error == "cannot begin a configuration of bob: there is one already"
    await world.check()


async def test_a_rollback_goes_to_what_ran_before_and_builds_nothing_new(
    clock: MockClock, world: World
) -> None:
    for sha in (SECOND, THIRD):
        await world.approve(DeployKind.APPLY, "alice", sha)
    _, third = await carry_out(world, 2)
    queued = await world.deployer.rollback("alice", None, uid=7)
    assert (queued.kind, queued.sha, queued.uid) == (DeployKind.ROLLBACK, SECOND, 7)
    *_, done = await carry_out(world, 3)
    assert done.step is Step.DONE
    assert world.builder.former == [None, None, "image-2222"]
    assert world.repositories.log[-1].startswith("rollback alice deployed/1 222222222222")
    await world.check()
    back = await world.deployer.rollback("alice", third.tag, uid=7)
    assert back.sha == THIRD


async def test_a_rollback_passes_over_the_same_commit(clock: MockClock, world: World) -> None:
    for sha in (SECOND, THIRD, THIRD, THIRD):
        await world.approve(DeployKind.APPLY, "alice", sha)
    await carry_out(world, 4)
    queued = await world.deployer.rollback("alice", None, uid=7)
    assert (queued.sha, queued.tag) == (SECOND, "deployed/1")


@pytest.mark.parametrize(
    ("agent", "tag", "code"),
    [
        ("nobody", None, ErrorCode.NOT_FOUND),
        ("alice", None, ErrorCode.PRECONDITION_FAILED),
        ("alice", "deployed/0", ErrorCode.CONFLICT),
        ("alice", "deployed/9", ErrorCode.NOT_FOUND),
    ],
)
async def test_a_rollback_that_leads_nowhere_is_refused(
    clock: MockClock, world: World, agent: str, tag: str | None, code: ErrorCode
) -> None:
    with pytest.raises(Refused, match=r"^cannot roll back") as refused:
        await world.deployer.rollback(agent, tag, uid=0)
    assert refused.value.code is code


async def test_the_queue_is_bounded(clock: MockClock, world: World) -> None:
    for _ in range(MAX_OPEN):
        await world.approve(DeployKind.APPLY, "alice", SECOND)
    world.repositories.tags["alice"]["deployed/9"] = (SECOND, None)
    with pytest.raises(Refused, match="100 deploys wait"):
        await world.deployer.rollback("alice", "deployed/9", uid=0)


# ── going wrong ─────────────────────────────────────────────────────────────────────────────────

TROUBLES = (OSError(28, "no space left"), CommandError("git: exit status 1"), trio.TooSlowError())
BEFORE_IT_RUNS = ("tag approved", "tag building", "prepare", "build", "export", "allow", "activate")
AFTERWARDS = ("tag deployed", "move_main", "finalize", "write_meta")


@pytest.mark.parametrize(
    "trouble", [BuildFailed("it does not compile"), *TROUBLES], ids=lambda it: type(it).__name__
)
@pytest.mark.parametrize("name", BEFORE_IT_RUNS)
async def test_whatever_fails_what_ran_before_runs(
    clock: MockClock, world: World, name: str, trouble: Exception
) -> None:
    number = await world.approve(DeployKind.APPLY, "alice", SECOND)
    fate = world.fate(Fate(fails={name: trouble}))
    before = world.agents.rows["alice"]
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        with world.deployer.follow() as (_, follower):
            aborting = False
            while not aborting:
                news, _lost = await follower.receive()
                aborting = any(isinstance(one, Deploy) and one.step is Step.ABORTING for one in news)
        fate.fails.clear()
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()
    assert done.step is Step.FAILED
    assert describe(trouble) in (done.error or "")
    assert world.agents.rows["alice"] == before
    tags = world.repositories.tags["alice"]
    assert tags[f"failed/{number}"] == (
        SECOND,
        done.error if name not in {"allow", "activate"} else tags[f"failed/{number}"][1],
    )
    assert world.told == [
        Rebuilt(agent="alice", ok=False, note=done.error, sha=SECOND, tag=f"failed/{number}")
    ]
    assert (await world.approval(number)).note == done.error
    world.fate(Fate())
    await carry_out(world)
    await world.check()


@pytest.mark.parametrize("name", AFTERWARDS)
async def test_what_runs_is_said_as_soon_as_the_disk_lets_it(
    clock: MockClock, world: World, name: str
) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    fate = world.fate(Fate(fails={name: OSError(28, "no space left")}, begun={name: trio.Event()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun[name].wait()
        fate.fails.clear()
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()
    assert done.step is Step.DONE
    await world.check()


async def test_what_can_never_be_said_goes_back(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    fate = world.fate(Fate(fails={"finalize": OSError(5, "i/o error")}))
    (done,) = await carry_out(world)
    assert fate.count > TRIES
    assert done.step is Step.FAILED
    assert "i/o error" in (done.error or "")
    assert world.agents.rows["alice"].deployed_sha == FIRST
    assert world.repositories.mains["alice"] == FIRST


async def test_one_that_fails_for_ever_lets_the_next_through(clock: MockClock, world: World) -> None:
    world.repositories.commit("4" * 40, agent_toml="modle = 'x'")
    await world.approve(DeployKind.APPLY, "alice", "4" * 40)
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    first, second = await carry_out(world, 2)
    assert first.step is Step.FAILED
    assert "unknown key modle" in (first.error or "")
    assert second.step is Step.DONE
    await world.check()


async def test_when_neither_comes_up_the_error_says_both(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    world.agents.broken |= {FIRST, SECOND}
    (done,) = await carry_out(world)
    assert (
        done.error
        == "it ended again at once; what ran before does not come up either: it ended again at once"
    )
    assert world.agents.rows["alice"].deployed_sha == FIRST


async def test_a_bug_fails_the_deploy_and_not_the_daemon(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    world.fate(Fate(fails={"build": ZeroDivisionError("oh")}))
    (done,) = await carry_out(world)
    assert done.error == "cannot go on: ZeroDivisionError, a bug; the log of hive-core says more"
    await world.check()


async def test_a_build_may_not_take_for_ever(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    world.fate(Fate(waits={"build": trio.Event()}))
    (done,) = await carry_out(world)
    assert done.error == "cannot build alice: it takes longer than deploy.timeout_s, 600 s"
    await world.check()


async def test_a_new_agent_that_does_not_come_up_is_taken_away(clock: MockClock, world: World) -> None:
    world.agents.broken.add(SECOND)
    number = await world.approve(DeployKind.SPAWN, "bob", SECOND)
    (done,) = await carry_out(world)
    assert done.step is Step.FAILED
    assert "bob" not in world.agents.rows
    assert world.told == [
        Spawned(agent="bob", ok=False, note=done.error, sha=SECOND, tag=tag_of("failed", number))
    ]
    await world.check()


async def test_an_agent_of_the_same_name_that_was_faster_stays(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.SPAWN, "bob", SECOND)
    fate = world.fate(Fate(waits={"build": trio.Event()}, begun={"build": trio.Event()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun["build"].wait()
        world.agents.add("bob")
        fate.waits["build"].set()
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()
    assert done.step is Step.FAILED
    assert world.agents.rows["bob"].deployed_sha is None


@pytest.mark.parametrize("name", ["prepare", "build", "export", "activate"])
async def test_who_is_destroyed_meanwhile_ends_it(clock: MockClock, world: World, name: str) -> None:
    number = await world.approve(DeployKind.APPLY, "alice", SECOND)
    fate = world.fate(Fate(waits={name: trio.Event()}, begun={name: trio.Event()}))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun[name].wait()
        await world.agents.destroy("alice")
        await world.deployer.agent_destroyed("alice")
        (done,) = await world.wait_ended()
        nursery.cancel_scope.cancel()
    assert done.error == "cannot deploy alice: it was destroyed meanwhile"
    assert world.repositories.tags["alice"][f"failed/{number}"] == (SECOND, done.error)
    await carry_out(world)
    await world.check()


async def test_a_stopped_agent_is_not_started(clock: MockClock, world: World) -> None:
    world.agents.rows["alice"] = replace(world.agents.rows["alice"], wanted=Wanted.STOPPED)
    del world.agents.running["alice"]
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    (done,) = await carry_out(world)
    assert done.step is Step.DONE
    assert world.agents.rows["alice"].deployed_sha == SECOND
    assert "alice" not in world.agents.running
    assert (await world.deployer.read_log(1, 1)) == ["It is what runs once alice is started."]


async def test_agents_json_follows_what_comes_and_goes(clock: MockClock, world: World) -> None:
    world.repositories.meta.clear()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await trio.sleep(1)
        assert world.repositories.agents_json["alice"]["sha"] == FIRST
        await world.agents.destroy("alice")
        await world.deployer.agent_destroyed("alice")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert world.repositories.agents_json == {}
    assert world.repositories.log[-1] == "destroy alice"
    assert world.builder.forgotten == ["alice"]


# ── reading along ───────────────────────────────────────────────────────────────────────────────


async def test_who_reads_along_sees_steps_and_lines_without_a_gap(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    fate = world.fate(Fate(waits={"export": trio.Event()}, begun={"export": trio.Event()}))
    steps: list[Step] = []
    lines: list[str] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(world.deployer.run)
        await fate.begun["export"].wait()
        with world.deployer.follow() as (news, follower):
            fate.waits["export"].set()
            while Step.DONE not in steps:
                for one in news:
                    if isinstance(one, Lines):
                        lines += one.lines
                    else:
                        steps.append(one.step)
                news, lost = await follower.receive()
                assert lost == 0
                steps += [one.step for one in news if isinstance(one, Deploy) and one.step is Step.DONE]
        nursery.cancel_scope.cancel()
    assert steps[0] is Step.BUILDING
    assert lines[:2] == ["apply alice", "building 2222"]
    assert await world.deployer.read_log(1, 100) == ["apply alice", "building 2222", "It runs."]
    with pytest.raises(Refused, match="no such deploy"):
        await world.deployer.read_log(2, 100)


# ── kills ───────────────────────────────────────────────────────────────────────────────────────


async def of_apply(world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)


async def of_a_broken_one(world: World) -> None:
    world.agents.broken.add(SECOND)
    await of_apply(world)


async def of_spawn(world: World) -> None:
    await world.approve(DeployKind.SPAWN, "bob")


async def of_a_broken_spawn(world: World) -> None:
    world.agents.broken.add(SECOND)
    await world.approve(DeployKind.SPAWN, "bob", SECOND)


async def of_init(world: World) -> None:
    await world.approve(DeployKind.INIT_CONFIG, "bob")


async def of_rollback(world: World) -> None:
    world.repositories.tags["alice"]["deployed/8"] = (THIRD, None)
    await world.deployer.rollback("alice", "deployed/8", uid=0)


ENDS: dict[Callable[[World], Awaitable[None]], Step] = {
    of_apply: Step.DONE,
    of_a_broken_one: Step.FAILED,
    of_spawn: Step.DONE,
    of_a_broken_spawn: Step.FAILED,
    of_init: Step.DONE,
    of_rollback: Step.DONE,
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("begin", ENDS, ids=lambda begin: begin.__name__)
async def test_whenever_it_is_killed_a_new_daemon_brings_it_to_its_end(
    clock: MockClock, tmp_path: Path, begin: Callable[[World], Awaitable[None]], after: bool
) -> None:
    """At every single thing that is done to the world, and at the same ones again in the second life."""
    number = 0
    while True:
        number += 1
        async with world_at(tmp_path / str(number)) as world:
            prepare(world)
            await begin(world)
            fate = world.fate(Fate(dies_at=number, after=after))
            died = await live(world, fate)
            world.new_deployer()
            again = world.fate(Fate(dies_at=max(1, number // 2), after=not after))
            if died and await live(world, again):
                world.new_deployer()
                world.fate(Fate())
            (done,) = await carry_out(world)
            assert done.step is ENDS[begin]
            await world.check()
            if not died:
                break
    assert number > (1 if begin is of_init else 9)


async def live(world: World, fate: Fate) -> bool:
    """Let the worker work until it dies, or all is done; say whether it died."""
    died = False
    async with trio.open_nursery() as nursery:

        async def die() -> None:
            nonlocal died
            await fate.death.wait()
            died = True
            nursery.cancel_scope.cancel()

        nursery.start_soon(die)
        await nursery.start(world.deployer.run)
        await world.wait_ended()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    return died


async def test_each_step_is_recorded_before_it_is_done(clock: MockClock, world: World) -> None:
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    seen: dict[str, Step] = {}
    plain = world.fate(Fate())

    async def meet(name: str, effect: Callable[[], object] = lambda: None) -> object:
        (now,) = await world.store.read(deploys.newest, 1)
        seen.setdefault(name, now.step)
        return await Fate.meet(plain, name, effect)

    plain.meet = meet  # type: ignore[method-assign]
    await carry_out(world)
    assert seen["tag approved"] is seen["prepare"] is Step.PREPARING
    assert seen["build"] is seen["export"] is Step.BUILDING
    assert seen["allow"] is seen["activate"] is Step.ACTIVATING
    assert seen["tag deployed"] is seen["move_main"] is seen["write_meta"] is Step.FINALIZING


async def test_limits_that_an_operator_set_stay(clock: MockClock, world: World) -> None:
    row = world.agents.rows["alice"]
    world.agents.rows["alice"] = replace(row, shape=replace(row.shape, tasks_max=99))
    await world.approve(DeployKind.APPLY, "alice", SECOND)
    await carry_out(world)
    assert world.agents.rows["alice"].shape.tasks_max == 99

"""Requests over a real store and broker, with repositories in memory."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from approvals.fake_repositories import FakeRepositories
from hive_core.applier import CUT_OFF, DESTROYED, GONE_AWAY, MAX_ENDED, Applier
from hive_core.broker import Broker
from hive_core.config import Approvals, Config, DeclaredAgent, Deploy
from hive_core.configurations import Configurations
from hive_core.domain import approval as rules
from hive_core.domain.agent import AgentRow
from hive_core.domain.approval import MAX_PENDING, MAX_PENDING_OF_ONE, Approval, Status, digest
from hive_core.domain.cage import Shape
from hive_core.domain.deploy import DeployKind, Step
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest, parse
from hive_core.store import agents, approvals, deploys
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import why_no_agent_name

NOON = 1_000_000.0
HOUR = 3600.0
AGENT_TOML = b'model = "opus"\n'


class Wall:
    """A wall clock that runs with trio's."""

    def __call__(self) -> float:
        return trio.current_time() + NOON


class Hive:
    def __init__(self, store: Store[MailboxOp]) -> None:
        self.store = store
        self.repositories = FakeRepositories()
        self.config = Config()
        self.rows: dict[str, AgentRow] = {}
        self.woken = 0
        self.broker = Broker(store, announce=lambda _message: None, changed=lambda _agent: None, clock=Wall())
        self.configurations = Configurations(
            self.repositories,
            row_of=self.rows.get,
            owner=lambda: 1234,
            note_deployed=self.note_deployed,
            config=lambda: self.config,
        )
        self.applier = Applier(
            store,
            self.repositories,
            self.configurations,
            leave=self.broker.leave_with,
            row_of=self.rows.get,
            why_no_name=why_no_agent_name,
            wake=self.wake,
            config=lambda: self.config,
            clock=Wall(),
        )

    def wake(self) -> None:
        self.woken += 1

    async def note_deployed(self, name: str, sha: str, tag: str, manifest: Manifest) -> None:
        row = self.rows[name]
        self.rows[name] = replace(row, deployed_sha=sha, deployed_tag=tag, manifest=manifest)
        await self.store.write(agents.note_deployed, name, sha, tag, manifest)

    async def add(self, name: str, shape: Shape | None = None) -> None:
        shape = shape or Shape()
        self.rows[name] = AgentRow(name, Wanted.RUNNING, False, NOON, shape=shape)
        await self.store.write(agents.create, name, NOON, None, shape)
        await self.broker.register(name, paused=False)

    async def destroy(self, name: str) -> None:
        self.rows[name] = replace(self.rows[name], wanted=Wanted.GONE)
        await self.store.write(agents.want, name, Wanted.GONE, NOON)
        await self.applier.agent_destroyed(name)
        self.broker.unregister(name)
        del self.rows[name]

    async def propose(self, agent: str = "bob", by: str = "manager", **files: bytes) -> int:
        """Commit something else, and ask for it."""
        await self.configurations.ensure(agent)
        self.repositories.commit(agent, {"agent.toml": AGENT_TOML}, **(files or {"notes": b"more"}))
        return await self.applier.submit_commit(agent, None, "why", by=by)

    async def told(self, agent: str = "manager") -> list[dict[str, Any]]:
        messages = await self.broker.recv(agent, 32, None).wait()
        assert all(message.sender == "system" for message in messages)
        return [json.loads(message.body) for message in messages]

    async def approval(self, approval_id: int) -> Approval:
        return await self.applier.get(approval_id)

    async def deploys(self) -> list[Any]:
        return await self.store.read(deploys.newest, 100)

    async def elapse(self, clock: MockClock, seconds: float) -> None:
        """Let time pass, and the worker do what is due: the writer's thread knows no mock clock."""
        clock.jump(seconds)
        while (at := await self.store.read(approvals.next_expiry)) is not None and at <= Wall()():
            await wait_all_tasks_blocked()
        await self.store.write(lambda _db: None)  # what was committed before has been delivered


@asynccontextmanager
async def hive_at(path: Path, *names: str) -> AsyncIterator[Hive]:
    async with open_store(path, apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store)
        await hive.broker.recover()
        await nursery.start(hive.broker.run)
        for name in names:
            await hive.add(name)
        await hive.applier.recover()
        await nursery.start(hive.applier.run)
        yield hive
        nursery.cancel_scope.cancel()


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "manager", "bob") as hive:
        yield hive


def refused_as(refused: pytest.ExceptionInfo[Refused]) -> tuple[ErrorCode, str | None]:
    return refused.value.code, refused.value.reason


# ── asking for a commit ─────────────────────────────────────────────────────────────────────────


async def test_a_commit_is_pinned_and_tagged_before_anybody_decides(hive: Hive) -> None:
    approval_id = await hive.propose()
    sha = hive.repositories.proposed["bob"]

    found = await hive.approval(approval_id)

    assert (found.status, found.kind, found.proposer) == (Status.PENDING, "apply_commit", "manager")
    assert (found.fetched_sha, found.commit_ref, found.tag) == (sha, sha, f"proposal/{approval_id}")
    assert found.base_sha == hive.rows["bob"].deployed_sha
    assert found.expires_at == found.requested_at + 72 * HOUR
    assert hive.repositories.tags[("bob", f"proposal/{approval_id}")] == (sha, None)
    assert await hive.told() == [], "whoever asks has the answer"


async def test_what_is_proposed_later_changes_nothing_in_it(hive: Hive) -> None:
    approval_id = await hive.propose()
    pinned = (await hive.approval(approval_id)).fetched_sha

    hive.repositories.commit("bob", {"agent.toml": b"network = 'veth'"})

    assert (await hive.approval(approval_id)).fetched_sha == pinned


async def test_a_commit_is_found_by_the_beginning_of_its_hash(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    sha = hive.repositories.commit("bob", {"agent.toml": AGENT_TOML})
    hive.repositories.commit("bob", {"agent.toml": b""})

    approval_id = await hive.applier.submit_commit("bob", sha[:9], None, by="manager")

    found = await hive.approval(approval_id)
    assert (found.commit_ref, found.fetched_sha) == (sha[:9], sha)


@pytest.mark.parametrize("ref", ["main", "HEAD", "", "abcdef", "ABCDEF0", "-u", "a" * 41, "abcdef0\n"])
async def test_only_a_hash_names_a_commit(hive: Hive, ref: str) -> None:
    with pytest.raises(Refused, match="hex digits") as refused:
        await hive.applier.submit_commit("bob", ref, None, by="manager")

    assert refused_as(refused) == (ErrorCode.INVALID_ARGUMENT, None)
    assert await hive.applier.newest(9) == []


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"agent.toml": b"modell = 'opus'"}, "agent.toml: "),
        ({"agent.toml": b"\xff"}, "agent.toml: "),
        ({"agent.toml": b"x" * 70_000}, "larger than"),
    ],
)
async def test_a_bad_manifest_fails_at_once_and_whoever_asked_hears_why(
    hive: Hive, files: dict[str, bytes], said: str
) -> None:
    await hive.configurations.ensure("bob")
    sha = hive.repositories.commit("bob", files)

    with pytest.raises(Refused, match=said) as refused:
        await hive.applier.submit_commit("bob", None, None, by="manager")

    assert refused_as(refused) == (ErrorCode.PRECONDITION_FAILED, None)
    (failed,) = await hive.applier.newest(9)
    assert (failed.status, failed.finished, failed.fetched_sha) == (Status.FAILED, True, sha)
    assert failed.note is not None
    assert failed.note in refused.value.text
    assert hive.repositories.tags[("bob", f"failed/{failed.id}")] == (sha, failed.note)
    assert failed.tag == f"failed/{failed.id}"


async def test_a_commit_that_is_not_there_fails_at_once(hive: Hive) -> None:
    with pytest.raises(Refused, match="there is no commit abcdef0") as refused:
        await hive.applier.submit_commit("bob", "abcdef0", None, by="manager")

    assert refused_as(refused) == (ErrorCode.PRECONDITION_FAILED, None)
    (failed,) = await hive.applier.newest(9)
    assert (failed.status, failed.fetched_sha, failed.tag) == (Status.FAILED, None, None)
    assert await hive.applier.pending(9) == []


async def test_trouble_with_the_repository_fails_it_too(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    hive.repositories.taking, hive.repositories.entered = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match="disk is gone"):
                await hive.applier.submit_commit("bob", None, None, by="manager")

        nursery.start_soon(ask)
        await hive.repositories.entered.wait()
        hive.repositories.trouble = OSError("disk is gone")
        hive.repositories.taking.set()

    (failed,) = await hive.applier.newest(9)
    assert failed.status == Status.FAILED


async def test_whoever_goes_away_while_it_is_taken_in_leaves_nothing_half(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    hive.repositories.taking, hive.repositories.entered = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hive.propose)
        await hive.repositories.entered.wait()
        nursery.cancel_scope.cancel()

    (failed,) = await hive.applier.newest(9)
    assert (failed.status, failed.note) == (Status.FAILED, GONE_AWAY)
    assert [(event["event"], event["id"]) for event in await hive.told()] == [
        ("approval_resolved", failed.id)
    ]


async def test_what_is_still_being_taken_in_cannot_be_approved(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    hive.repositories.taking, hive.repositories.entered = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hive.propose)
        await hive.repositories.entered.wait()
        (half,) = await hive.applier.pending(9)
        with pytest.raises(Refused, match="still being taken in"):
            await hive.applier.approve(half.id, uid=0)
        hive.repositories.taking.set()

    assert (await hive.applier.approve(half.id, uid=0)).status == Status.APPROVED


async def test_what_is_denied_while_it_is_taken_in_stays_denied(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    hive.repositories.taking, hive.repositories.entered = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match="denied already"):
                await hive.propose()

        nursery.start_soon(ask)
        await hive.repositories.entered.wait()
        (half,) = await hive.applier.pending(9)
        await hive.applier.deny(half.id, uid=0)
        hive.repositories.taking.set()

    assert (await hive.approval(half.id)).status == Status.DENIED


async def test_a_repeat_with_the_same_key_asks_for_nothing(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    hive.repositories.commit("bob", {"agent.toml": AGENT_TOML})
    first = await hive.applier.submit_commit("bob", None, None, by="manager", key="k")

    again = await hive.applier.submit_commit("bob", None, None, by="manager", key="k")

    assert (again, len(await hive.applier.newest(9))) == (first, 1)
    hive.repositories.commit("bob", {"agent.toml": b"nonsense"})
    for _ in range(2):
        with pytest.raises(Refused, match=r"approval 2 has failed"):
            await hive.applier.submit_commit("bob", None, None, by="manager", key="k2")


async def test_an_agent_that_is_not_there_gets_no_commit(hive: Hive) -> None:
    for name in ("carol", "../bob"):
        with pytest.raises(Refused, match="not managed") as refused:
            await hive.applier.submit_commit(name, None, None, by="manager")
        assert refused_as(refused) == (ErrorCode.NOT_FOUND, None)


# ── limits ──────────────────────────────────────────────────────────────────────────────────────


async def test_so_many_requests_of_one_proposer_may_wait_and_no_more(hive: Hive) -> None:
    for number in range(MAX_PENDING_OF_ONE):
        await hive.applier.request_spawn(f"a{number}", None, by="manager")

    with pytest.raises(Refused, match="100 requests of manager wait") as refused:
        await hive.applier.request_spawn("b", None, by="manager")

    assert refused_as(refused) == (ErrorCode.PRECONDITION_FAILED, None)
    assert await hive.applier.request_spawn("b", None, by="operator")
    await hive.applier.cancel(1, by="manager")
    assert await hive.applier.request_spawn("c", None, by="manager")


async def test_so_many_requests_may_wait_in_all(hive: Hive) -> None:
    def fill(db: apsw.Connection) -> None:
        for number in range(MAX_PENDING):
            name = f"p{number // 90}"
            approvals.insert(db, Approval(0, "x", "spawn", "", NOON, Status.PENDING, False, name))

    await hive.store.write(fill)

    with pytest.raises(Refused, match="1000 requests wait"):
        await hive.applier.request_spawn("b", None, by="manager")


async def test_a_description_has_an_end(hive: Hive) -> None:
    with pytest.raises(Refused, match="2000 characters") as refused:
        await hive.applier.request_spawn("b", "x" * 2001, by="manager")

    assert refused_as(refused) == (ErrorCode.INVALID_ARGUMENT, None)


# ── other requests ──────────────────────────────────────────────────────────────────────────────


async def test_a_new_agent_without_a_configuration_comes_from_the_template(hive: Hive) -> None:
    approval_id = await hive.applier.request_spawn("carol", "helps", by="manager")

    found = await hive.approval(approval_id)

    assert (found.kind, found.agent, found.commit_ref) == ("spawn", "carol", "")
    assert (found.fetched_sha, found.description) == (None, "helps")


async def test_a_new_agent_is_made_of_what_was_proposed_when_it_was_asked_for(hive: Hive) -> None:
    sha = hive.repositories.commit("carol", {"agent.toml": AGENT_TOML})
    approval_id = await hive.applier.request_spawn("carol", None, by="manager")
    hive.repositories.commit("carol", {"agent.toml": b"network = 'veth'"})

    await hive.applier.approve(approval_id, uid=0)

    (deploy,) = await hive.deploys()
    assert (deploy.kind, deploy.sha, deploy.approval_id) == (DeployKind.SPAWN, sha, approval_id)


async def test_a_new_agent_of_which_nothing_was_seen_is_not_made_of_what_came_later(hive: Hive) -> None:
    approval_id = await hive.applier.request_spawn("carol", None, by="manager")
    hive.repositories.commit("carol", {"agent.toml": b"network = 'veth'"})

    with pytest.raises(Refused, match="there is a configuration of carol") as refused:
        await hive.applier.approve(approval_id, uid=0)

    assert refused_as(refused) == (ErrorCode.CONFLICT, "changed")
    assert await hive.deploys() == []


@pytest.mark.parametrize(
    "name", ["..", "a/b", "-u", "A", "operator", "a" * 64, "", "bob\n", "\x00", "system", "*"]
)
async def test_what_can_be_no_agents_name_is_not_asked_for(hive: Hive, name: str) -> None:
    for ask in (hive.applier.request_spawn, hive.applier.request_init):
        with pytest.raises(Refused) as refused:
            await ask(name, None, by="manager")
        assert refused_as(refused) == (ErrorCode.INVALID_ARGUMENT, None)


async def test_an_agent_that_exists_is_not_asked_for_again(hive: Hive) -> None:
    for ask in (hive.applier.request_spawn, hive.applier.request_init):
        with pytest.raises(Refused, match="exists already") as refused:
            await ask("bob", None, by="manager")
        assert refused_as(refused) == (ErrorCode.CONFLICT, "exists")


async def test_one_request_about_a_new_agent_waits_at_a_time(hive: Hive) -> None:
    await hive.applier.request_spawn("carol", None, by="manager")

    for ask in (hive.applier.request_spawn, hive.applier.request_init):
        with pytest.raises(Refused, match="approval 1 about it waits"):
            await ask("carol", None, by="operator")


async def test_a_configuration_to_begin_with_needs_a_name_that_has_none(hive: Hive) -> None:
    approval_id = await hive.applier.request_init("carol", None, by="manager")
    await hive.applier.approve(approval_id, uid=0)

    (deploy,) = await hive.deploys()
    assert (deploy.kind, deploy.agent) == (DeployKind.INIT_CONFIG, "carol")
    hive.repositories.commit("carol", {})
    with pytest.raises(Refused, match="there is a configuration of carol"):
        await hive.applier.request_init("carol", None, by="manager")


async def test_newer_inputs_are_those_of_a_flake(hive: Hive) -> None:
    with pytest.raises(Refused, match="does not build with Nix") as refused:
        await hive.applier.request_inputs(["nixpkgs"], None, by="manager")
    assert refused_as(refused) == (ErrorCode.PRECONDITION_FAILED, None)

    hive.config = Config(deploy=Deploy(builder="nix", inputs={"nixpkgs": "x", "hyperhive": "y"}))
    approval_id = await hive.applier.request_inputs(["nixpkgs", "nixpkgs"], None, by="manager")
    with pytest.raises(Refused, match="has hyperhive, nixpkgs"):
        await hive.applier.request_inputs(["nixos"], None, by="manager")

    found = await hive.approval(approval_id)
    assert (found.kind, found.agent, found.commit_ref) == ("update_meta_inputs", "", '["nixpkgs"]')


async def test_where_machines_are_built_with_nix_the_manifest_names_no_image(hive: Hive) -> None:
    hive.config = Config(deploy=Deploy(builder="nix"))
    await hive.configurations.ensure("bob")
    hive.repositories.commit("bob", {"agent.toml": b"image = 'debian'"})

    with pytest.raises(Refused, match=r"image: this hive builds machines from agent\.nix"):
        await hive.applier.submit_commit("bob", None, None, by="manager")


# ── deciding ────────────────────────────────────────────────────────────────────────────────────


async def test_what_is_approved_waits_in_the_queue_of_deploys(
    hive: Hive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    approval_id = await hive.propose()

    approved = await hive.applier.approve(approval_id, uid=1000)

    assert (approved.status, approved.finished, approved.decided_by_uid) == (Status.APPROVED, False, 1000)
    (deploy,) = await hive.deploys()
    assert (deploy.kind, deploy.step, deploy.agent) == (DeployKind.APPLY, Step.QUEUED, "bob")
    assert (deploy.sha, deploy.tag) == (approved.fetched_sha, f"deployed/{approval_id}")
    assert (deploy.approval_id, deploy.uid, hive.woken) == (approval_id, 1000, 1)
    assert f"Approval approved id={approval_id}" in caplog.text
    assert "uid=1000" in caplog.text
    assert await hive.told() == [], "that comes with what becomes of it"


async def test_what_is_denied_is_tagged_with_the_reason_and_told(
    hive: Hive, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    approval_id = await hive.propose()
    sha = hive.repositories.proposed["bob"]

    await hive.applier.deny(approval_id, uid=1000, note="too much")

    denied = await hive.approval(approval_id)
    assert (denied.status, denied.finished, denied.note) == (Status.DENIED, True, "too much")
    assert denied.tag == f"denied/{approval_id}"
    assert hive.repositories.tags[("bob", f"denied/{approval_id}")] == (sha, "too much")
    assert await hive.told() == [
        {
            "event": "approval_resolved",
            "agent": "bob",
            "id": approval_id,
            "kind": "apply_commit",
            "status": "denied",
            "note": "too much",
            "sha": sha,
            "tag": f"denied/{approval_id}",
            "description": "why",
        }
    ]
    assert "uid=1000" in caplog.text
    assert await hive.deploys() == []


async def test_a_new_agent_that_is_denied_leaves_no_tag(hive: Hive) -> None:
    approval_id = await hive.applier.request_spawn("carol", None, by="operator")

    await hive.applier.deny(approval_id, uid=0)

    assert hive.repositories.tags_of("carol") == []
    assert await hive.told() == [
        {
            "event": "approval_resolved",
            "agent": "carol",
            "id": approval_id,
            "kind": "spawn",
            "status": "denied",
        }
    ]


async def test_a_tag_that_could_not_be_put_is_put_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "manager", "bob") as hive:
        approval_id = await hive.propose()
        repositories = hive.repositories
        repositories.trouble = OSError("no room")
        await hive.applier.deny(approval_id, uid=0, note="no")
        assert (await hive.approval(approval_id)).tag == f"proposal/{approval_id}"
    repositories.trouble = None

    async with open_store(path, apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store)
        hive.applier._repositories = repositories
        await hive.applier.recover()
        await nursery.start(hive.applier.run)
        while (await hive.approval(approval_id)).tag != f"denied/{approval_id}":
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()

    assert ("bob", f"denied/{approval_id}") in repositories.tags


@pytest.mark.parametrize("first", ["approve", "deny", "cancel"])
@pytest.mark.parametrize("second", ["approve", "deny", "cancel"])
async def test_the_second_decision_loses(hive: Hive, first: str, second: str) -> None:
    approval_id = await hive.propose()

    async def decide(how: str) -> None:
        if how == "cancel":
            await hive.applier.cancel(approval_id, by="operator")
        else:
            await getattr(hive.applier, how)(approval_id, uid=1)

    await decide(first)
    before = await hive.approval(approval_id)
    with pytest.raises(Refused, match="already") as refused:
        await decide(second)

    assert refused_as(refused) == (ErrorCode.CONFLICT, "decided")
    assert await hive.approval(approval_id) == before
    assert len(await hive.deploys()) == (first == "approve")


async def test_of_many_decisions_at_once_one_wins(hive: Hive) -> None:
    for _ in range(20):
        approval_id = await hive.propose()
        won: list[str] = []

        async def decide(how: str, approval_id: int = approval_id, won: list[str] = won) -> None:
            try:
                await getattr(hive.applier, how)(approval_id, uid=1)
            except Refused as refused:
                assert refused.reason == "decided"
            else:
                won.append(how)

        async with trio.open_nursery() as nursery:
            for how in ("approve", "deny") * 4:
                nursery.start_soon(decide, how)

        (winner,) = won
        expected = Status.APPROVED if winner == "approve" else Status.DENIED
        assert (await hive.approval(approval_id)).status == expected
        found = [deploy for deploy in await hive.deploys() if deploy.approval_id == approval_id]
        assert len(found) == (winner == "approve")


async def test_what_is_not_any_more_what_was_seen_is_not_approved(hive: Hive) -> None:
    approval_id = await hive.propose()
    seen = digest(await hive.approval(approval_id), hive.applier.running_sha("bob"))

    await hive.note_deployed("bob", "f" * 40, "deployed/99", NOTHING)
    with pytest.raises(Refused, match="look at it again") as refused:
        await hive.applier.approve(approval_id, uid=0, digest=seen)

    assert refused_as(refused) == (ErrorCode.CONFLICT, "changed")
    assert (await hive.approval(approval_id)).status == Status.PENDING
    assert await hive.deploys() == []
    now = digest(await hive.approval(approval_id), hive.applier.running_sha("bob"))
    assert (await hive.applier.approve(approval_id, uid=0, digest=now)).status == Status.APPROVED


async def test_a_kind_that_nobody_knows_is_denied_and_not_approved(hive: Hive) -> None:
    asked = Approval(0, "bob", "schedule_prompt", "", NOON, Status.PENDING, False, "manager")
    approval_id = await hive.store.write(approvals.insert, asked)

    with pytest.raises(Refused, match="does not know what 'schedule_prompt' is") as refused:
        await hive.applier.approve(approval_id, uid=0)
    assert refused_as(refused) == (ErrorCode.PRECONDITION_FAILED, None)
    await hive.applier.deny(approval_id, uid=0)

    assert (await hive.approval(approval_id)).status == Status.DENIED


@pytest.mark.parametrize("unknown", [0, -1, 99, 2**63 - 1, -(2**63)])
async def test_what_was_never_asked_for_is_not_found(hive: Hive, unknown: int) -> None:
    for decide in (hive.applier.approve, hive.applier.deny):
        with pytest.raises(Refused, match="no such approval") as refused:
            await decide(unknown, uid=0)
        assert refused_as(refused) == (ErrorCode.NOT_FOUND, None)


async def test_a_request_is_taken_back_by_who_asked_and_by_nobody_else(hive: Hive) -> None:
    await hive.add("carol")
    mine, other = await hive.propose(), await hive.propose()

    with pytest.raises(Refused, match="no such approval") as refused:
        await hive.applier.cancel(mine, by="carol")
    assert refused_as(refused) == (ErrorCode.NOT_FOUND, None)
    await hive.applier.cancel(mine, by="manager", key="k")
    await hive.applier.cancel(mine, by="manager", key="k")
    assert await hive.told() == [], "it knows"
    await hive.applier.cancel(other, by="operator", uid=5)

    assert (await hive.approval(mine)).status == Status.CANCELLED
    (told,) = await hive.told()
    assert (told["id"], told["status"], told["note"]) == (other, "cancelled", "taken back by operator")
    assert (await hive.approval(other)).decided_by_uid == 5


async def test_who_asked_is_told_too_when_that_is_not_the_manager(hive: Hive) -> None:
    await hive.add("carol")
    approval_id = await hive.propose(by="carol")

    await hive.applier.deny(approval_id, uid=0)

    assert [event["id"] for event in await hive.told("carol")] == [approval_id]
    assert [event["id"] for event in await hive.told("manager")] == [approval_id]


# ── agents that go ──────────────────────────────────────────────────────────────────────────────


async def test_what_waits_about_a_destroyed_agent_fails(hive: Hive) -> None:
    mine = [await hive.propose() for _ in range(3)]
    others = await hive.applier.request_spawn("carol", None, by="manager")
    approved = await hive.propose()
    await hive.applier.approve(approved, uid=0)

    await hive.destroy("bob")

    for approval_id in mine:
        found = await hive.approval(approval_id)
        assert (found.status, found.note) == (Status.FAILED, DESTROYED)
    assert [event["id"] for event in await hive.told()] == mine
    assert (await hive.approval(others)).status == Status.PENDING
    assert (await hive.approval(approved)).state.finished is False, "its deploy ends it"


async def test_any_number_of_them_fails(hive: Hive) -> None:
    count = MAX_ENDED + 5

    def fill(db: apsw.Connection) -> None:
        for _ in range(count):
            approvals.insert(db, Approval(0, "bob", "x", "", NOON, Status.PENDING, False, "operator"))

    await hive.store.write(fill)
    await hive.destroy("bob")

    assert await hive.applier.pending(9) == []


async def test_what_was_asked_of_an_agent_that_is_going_cannot_be_approved(hive: Hive) -> None:
    approval_id = await hive.propose()
    hive.rows["bob"] = replace(hive.rows["bob"], wanted=Wanted.GONE)

    with pytest.raises(Refused, match="being destroyed") as refused:
        await hive.applier.approve(approval_id, uid=0)

    assert refused_as(refused) == (ErrorCode.CONFLICT, "going")


# ── time ────────────────────────────────────────────────────────────────────────────────────────


async def test_what_nobody_decides_in_time_is_cancelled(hive: Hive, mock_clock: MockClock) -> None:
    approval_id = await hive.propose()

    await hive.elapse(mock_clock, 72 * HOUR - 1)
    assert (await hive.approval(approval_id)).status == Status.PENDING
    await hive.elapse(mock_clock, 1)

    expired = await hive.approval(approval_id)
    assert (expired.status, expired.finished) == (Status.CANCELLED, True)
    assert expired.note == "expired: nobody decided in 72 h"
    (told,) = await hive.told()
    assert (told["status"], told["note"]) == ("cancelled", expired.note)
    assert hive.repositories.tags_of("bob") == ["deployed/0", "proposal/0", f"proposal/{approval_id}"]


async def test_a_shorter_time_holds_for_what_is_asked_then(hive: Hive, mock_clock: MockClock) -> None:
    longer = await hive.propose()
    hive.config = Config(approvals=Approvals(expire_hours=0.5))
    shorter = await hive.propose()

    await hive.elapse(mock_clock, HOUR)

    assert (await hive.approval(longer)).status == Status.PENDING
    assert (await hive.approval(shorter)).note == "expired: nobody decided in 0.5 h"


async def test_what_the_original_left_gets_its_time_from_the_first_start_on(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    path = tmp_path / "broker.sqlite"
    async with open_store(path, apply_batch) as store:
        old = Approval(0, "bob", "merge_config_pr", "17", 5.0, Status.PENDING, False, "manager")
        approval_id = await store.write(approvals.insert, old)

    async with hive_at(path, "manager", "bob") as hive:
        await hive.elapse(mock_clock, 71 * HOUR)
        assert (await hive.approval(approval_id)).status == Status.PENDING
        await hive.elapse(mock_clock, HOUR)
        assert (await hive.approval(approval_id)).status == Status.CANCELLED


async def test_what_was_being_taken_in_when_the_daemon_ended_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with open_store(path, apply_batch) as store:
        half = Approval(0, "bob", "apply_commit", "", NOON, Status.PENDING, False, "manager")
        approval_id = await store.write(approvals.insert, half)
        spawn = await store.write(approvals.insert, replace(half, kind="spawn", agent="carol"))

    async with hive_at(path, "manager", "bob") as hive:
        while (found := await hive.approval(approval_id)).status == Status.PENDING:
            await trio.lowlevel.checkpoint()
        await hive.store.write(lambda _db: None)  # what was committed before has been delivered
        assert (found.status, found.note) == (Status.FAILED, CUT_OFF)
        assert [event["id"] for event in await hive.told()] == [approval_id]
        assert (await hive.approval(spawn)).status == Status.PENDING, "it needs no commit"


# ── configurations ──────────────────────────────────────────────────────────────────────────────


async def test_an_agent_that_ran_without_a_configuration_gets_one_that_says_what_it_runs_with(
    hive: Hive,
) -> None:
    await hive.add("carol", Shape(memory_max_bytes=2**30))

    await hive.configurations.ensure("carol")

    sha = hive.repositories.proposed["carol"]
    assert sha is not None
    assert parse(hive.repositories.commits[sha]["agent.toml"]).limits.memory == "1G"
    assert hive.repositories.owners["carol"] == 1234
    assert hive.repositories.tags_of("carol") == ["deployed/0", "proposal/0"]
    assert hive.repositories.mains["carol"] == sha
    assert (hive.rows["carol"].deployed_sha, hive.rows["carol"].deployed_tag) == (sha, "deployed/0")


async def test_a_second_time_nothing_happens(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    before = dict(hive.repositories.tags), dict(hive.repositories.proposed), dict(hive.rows)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hive.configurations.ensure, "bob")

    assert (hive.repositories.tags, hive.repositories.proposed, hive.rows) == before


async def test_what_somebody_proposed_before_is_not_said_to_run(hive: Hive) -> None:
    hive.repositories.commit("bob", {"agent.toml": b"network = 'veth'"})

    await hive.configurations.ensure("bob")

    assert hive.rows["bob"].deployed_sha is None
    assert hive.repositories.tags_of("bob") == ["proposal/0"]


async def test_what_was_cut_off_while_it_was_planted_goes_on(hive: Hive) -> None:
    await hive.configurations.ensure("bob")
    sha = hive.rows["bob"].deployed_sha
    hive.rows["bob"] = replace(hive.rows["bob"], deployed_sha=None, deployed_tag=None)
    hive.repositories.commit("bob", {"agent.toml": AGENT_TOML})

    await hive.configurations.ensure("bob")

    assert hive.rows["bob"].deployed_sha == sha


async def test_an_agent_that_is_to_be_has_the_configuration_that_was_made_for_it(hive: Hive) -> None:
    with pytest.raises(Refused, match="not managed"):
        await hive.configurations.ensure_for("carol")
    hive.repositories.commit("carol", {})

    await hive.configurations.ensure_for("carol")


async def test_trouble_with_the_repositories_is_said(hive: Hive) -> None:
    hive.repositories.trouble = OSError("no room")

    with pytest.raises(Refused, match="no room") as refused:
        await hive.configurations.ensure("bob")

    assert refused_as(refused) == (ErrorCode.UNAVAILABLE, None)


# ── what somebody tries ─────────────────────────────────────────────────────────────────────────


async def test_a_tag_of_another_hive_is_never_taken_for_what_is_asked_for(hive: Hive) -> None:
    first = await hive.propose()
    old = (await hive.approval(first)).fetched_sha
    assert old is not None
    await hive.repositories.tag("bob", f"proposal/{first + 1}", old)  # it came with an archive

    with pytest.raises(Refused, match="of another hive; ask again"):
        await hive.propose(notes=b"even more")
    assert (await hive.approval(first + 1)).fetched_sha is None

    third = await hive.propose(notes=b"even more")
    assert (await hive.approval(third)).fetched_sha not in {None, old}


async def test_what_was_there_meanwhile_does_not_come_back_as_a_template(hive: Hive) -> None:
    asked = await hive.applier.request_spawn("carol", None, by="manager")
    sha = hive.repositories.commit("bob", {"agent.toml": b'network = "veth"\n'})
    await hive.repositories.move_main("carol", sha)

    with pytest.raises(Refused, match="would be again what it was") as refused:
        await hive.applier.approve(asked, uid=0)
    assert refused_as(refused) == (ErrorCode.CONFLICT, "changed")


async def test_who_asks_and_takes_back_without_end_is_stopped(
    hive: Hive, mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MAX_ASKED_A_DAY", 3)
    for number in range(3):
        asked = await hive.applier.request_init(f"a{number}", None, by="manager")
        await hive.applier.cancel(asked, by="manager")

    with pytest.raises(Refused, match="has asked 3 times within a day"):
        await hive.applier.request_init("carol", None, by="manager")
    await hive.applier.request_init("dave", None, by="operator")
    mock_clock.jump(24 * HOUR + 1)
    await hive.applier.request_init("carol", None, by="manager")


# ── what the host's configuration says ──────────────────────────────────────────────────────────


async def test_nobody_asks_for_an_agent_that_comes_by_itself(hive: Hive) -> None:
    hive.config = Config(agents={"carol": DeclaredAgent()})

    for ask in (hive.applier.request_spawn, hive.applier.request_init):
        with pytest.raises(Refused, match="declares it, and it comes by itself") as refused:
            await ask("carol", None, by="manager")
        assert refused_as(refused) == (ErrorCode.CONFLICT, "declared")


async def test_nothing_is_built_for_an_agent_whose_system_is_declared(hive: Hive) -> None:
    declared = DeclaredAgent(image="/nix/store/0123-nixos")
    hive.rows["bob"] = replace(hive.rows["bob"], declaration=declared)
    assert await hive.propose()  # with images the rest of its agent.toml counts

    hive.config = Config(deploy=Deploy(builder="nix"), agents={"bob": declared})
    with pytest.raises(Refused, match=r"agents\.bob\.image") as refused:
        await hive.applier.submit_commit("bob", None, None, by="manager")
    assert refused_as(refused) == (ErrorCode.CONFLICT, "declared")

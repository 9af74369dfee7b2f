"""A hive for the deployer's tests: the database is real, what is done to agents and repositories is not.

What stands in for the disk and the machines outlives a deployer, as they do.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apsw
import trio

from hive_core.broker import Broker
from hive_core.builders import Built, Running, Say, Target
from hive_core.config import Config
from hive_core.config import Deploy as DeployConfig
from hive_core.deploy_effects import Hands
from hive_core.deployer import Deployer
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.approval import Approval, Happening, Kind, Status
from hive_core.domain.cage import Shape
from hive_core.domain.deploy import Deploy, DeployKind, Step, tag_of
from hive_core.domain.helper_event import HelperEvent
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest, parse
from hive_core.host.git_output import Change, TagInfo
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.machines import ActivationFailed
from hive_core.store import approvals, deploys
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.wire.errors import ErrorCode, Refused

FIRST, SECOND, THIRD = ("1" * 40, "2" * 40, "3" * 40)
NOW = 1_000_000.0


class Killed(Exception):
    """The daemon would be dead here."""


@dataclass
class Fate:
    """Counts what is done to the world.  At number *dies_at* everything stops; at *fails* it fails."""

    dies_at: int | None = None
    after: bool = False
    """It dies when that was done, and not before."""
    fails: dict[str, BaseException] = field(default_factory=dict)
    """By the name of what is done."""
    waits: dict[str, trio.Event] = field(default_factory=dict)
    begun: dict[str, trio.Event] = field(default_factory=dict)
    count: int = 0
    done: list[str] = field(default_factory=list)
    death: trio.Event = field(default_factory=trio.Event)

    async def meet(self, name: str, effect: Callable[[], Any] = lambda: None) -> Any:
        self.count += 1
        number = self.count
        if name in self.begun:
            self.begun[name].set()
        if number == self.dies_at and not self.after:
            await self._die()
        if name in self.waits:
            await self.waits[name].wait()
        if name in self.fails:
            raise self.fails[name]
        try:
            result = effect()
        finally:
            if number == self.dies_at:
                await self._die()
        self.done.append(name)
        await trio.lowlevel.checkpoint()
        return result

    async def _die(self) -> None:
        self.death.set()
        await trio.sleep_forever()


class Repositories:
    """Commits are their files; a repository is its tags and its main."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.fate = Fate()
        self.commits: dict[str, dict[str, bytes]] = {}
        self.tags: dict[str, dict[str, tuple[str, str | None]]] = {}
        self.mains: dict[str, str] = {}
        self.proposed: dict[str, str] = {}
        self.meta: dict[str, bytes] = {}
        self.log: list[str] = []

    def commit(self, sha: str, **files: str) -> str:
        self.commits[sha] = {name.replace("_", "."): text.encode() for name, text in files.items()}
        return sha

    async def seed(self, agent: str, files: Mapping[str, bytes], uid: int | None) -> bool:
        def seed() -> bool:
            if agent in self.proposed:
                return False
            sha = f"{abs(hash(tuple(sorted(files.items())))):040x}"
            self.commits[sha] = dict(files)
            self.proposed[agent] = sha
            return True

        return bool(await self.fate.meet("seed", seed))

    async def take_in(self, agent: str, commit_ref: str | None, tag: str) -> str:
        def take_in() -> str:
            sha = commit_ref or self.proposed[agent]
            self.tags.setdefault(agent, {}).setdefault(tag, (sha, None))
            return sha

        return str(await self.fate.meet("take_in", take_in))

    async def exists(self, agent: str) -> bool:
        return agent in self.tags

    async def has_proposed(self, agent: str) -> bool:
        return agent in self.proposed

    async def tag(self, agent: str, tag: str, sha: str, note: str | None = None) -> None:
        def put() -> None:
            assert self.tags[agent].setdefault(tag, (sha, note))[0] == sha, f"{tag} was moved"

        await self.fate.meet(f"tag {tag.partition('/')[0]}", put)

    async def move_main(self, agent: str, sha: str) -> None:
        await self.fate.meet("move_main", lambda: self.mains.update({agent: sha}))

    async def main(self, agent: str) -> str | None:
        return self.mains.get(agent)

    async def resolve(self, agent: str, tag: str) -> str | None:
        return self.tags.get(agent, {}).get(tag, (None, None))[0]

    async def read(self, agent: str, sha: str, path: str, max_bytes: int) -> bytes | None:
        return self.commits[sha].get(path)

    async def changes(self, agent: str, base: str | None, sha: str) -> list[Change]:
        return [Change(path, "added", 1, 0, False, "100644") for path in self.commits[sha]]

    async def history(self, agent: str, limit: int) -> list[TagInfo]:
        found = [TagInfo(tag, sha, NOW, "a commit", note) for tag, (sha, note) in self.tags[agent].items()]
        return found[-limit:]

    async def export(self, agent: str, sha: str, into: Path) -> None:
        def export() -> None:
            if not into.exists():
                into.mkdir(parents=True)
                for name, text in self.commits[sha].items():
                    (into / name).write_bytes(text)

        await self.fate.meet("export", export)

    async def write_meta(self, files: Mapping[str, bytes | None], message: str) -> str:
        def write() -> str:
            fresh = {name: text for name, text in {**self.meta, **files}.items() if text is not None}
            if fresh != self.meta:
                self.meta = fresh
                self.log.append(message)
                self.layout.meta.mkdir(parents=True, exist_ok=True)
            return "0" * 40

        return str(await self.fate.meet("write_meta", write))

    async def read_meta(self, name: str) -> bytes | None:
        return self.meta.get(name)

    @property
    def agents_json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.meta.get("agents.json", b'{"agents": {}}'))["agents"]
        return found


class Builder:
    """Builds `image-SHA4`, or what `images` says of an agent."""

    def __init__(self) -> None:
        self.fate = Fate()
        self.laid_out: set[int] = set()
        self.former: list[str | None] = []
        self.images: dict[str, str] = {}
        self.forgotten: list[str] = []
        self.restored: list[dict[str, Running | None]] = []

    async def prepare(self, target: Target, say: Say) -> None:
        await self.fate.meet("prepare", lambda: self.laid_out.add(target.deploy_id))

    async def build(self, target: Target, say: Say) -> Built:
        self.former.append(target.former)

        def build() -> Built:
            assert target.deploy_id in self.laid_out
            say(f"building {target.sha[:4]}")
            return Built(self.images.get(target.agent, f"image-{target.sha[:4]}"))

        built = await self.fate.meet("build", build)
        assert isinstance(built, Built)
        return built

    async def finalize(self, target: Target, built: str | None, say: Say) -> Mapping[str, bytes | None]:
        await self.fate.meet("finalize")
        return {}

    async def abort(self, target: Target) -> None:
        await self.fate.meet("abort", lambda: self.laid_out.discard(target.deploy_id))

    async def forget(self, agent: str) -> Mapping[str, bytes | None]:
        self.forgotten.append(agent)
        return {}

    async def purge(self, agent: str) -> None:
        self.forgotten.append(agent)

    def has_built(self, agent: str, image: str | None) -> bool:
        return image is not None and image.startswith("image-")

    async def restore(self, running: Mapping[str, Running | None]) -> Mapping[str, bytes | None]:
        self.restored.append(dict(running))
        return {}


class Agents:
    """The roster, and what runs of it."""

    def __init__(self) -> None:
        self.fate = Fate()
        self.rows: dict[str, AgentRow] = {}
        self.running: dict[str, Declared] = {}
        self.lists: dict[str, frozenset[str] | None] = {}
        self.broken: set[str] = set()
        """Commits and images with which no machine comes up."""
        self.destroyed: Callable[[str], Awaitable[None]] | None = None

    def add(self, name: str, sha: str | None = None, tag: str | None = None, **more: Any) -> None:
        row = AgentRow(name, Wanted.RUNNING, False, NOW, deployed_sha=sha, deployed_tag=tag, **more)
        self.rows[name], self.running[name] = row, row.declared

    async def spawn(self, name: str, *, declared: Declared) -> None:
        def spawn() -> None:
            if name in self.rows:
                raise Refused(ErrorCode.CONFLICT, f"cannot spawn {name}: it exists already", "exists")
            self.rows[name] = AgentRow(name, Wanted.RUNNING, False, NOW).declared_as(declared)

        await self.fate.meet("spawn", spawn)

    async def activate(self, name: str, declared: Declared, *, say: Say) -> None:
        if name not in self.rows:
            raise ActivationFailed(f"{name} was destroyed meanwhile")
        self.rows[name] = self.rows[name].declared_as(declared)

        def activate() -> None:
            if self.rows[name].wanted is Wanted.STOPPED:
                return
            if {declared.sha, declared.shape.image} & self.broken:
                self.running.pop(name, None)
                raise ActivationFailed("it ended again at once")
            self.running[name] = declared

        await self.fate.meet("activate", activate)

    async def destroy(self, name: str) -> None:
        self.rows.pop(name, None)
        self.running.pop(name, None)
        await self.fate.meet("destroy")

    def allowed(self, name: str) -> Collection[str] | None:
        return self.lists.get(name)

    async def allow(self, name: str, recipients: Collection[str] | None) -> None:
        fresh = frozenset(recipients) if recipients else None
        await self.fate.meet("allow", lambda: self.lists.update({name: fresh}))


class World:
    """All of it.  `deployer` is the one of the newest daemon."""

    def __init__(self, base: Path, store: Store[MailboxOp], broker: Broker) -> None:
        self.layout = Layout(base, base / "run", base)
        self.store, self.broker = store, broker
        self.repositories = Repositories(self.layout)
        self.builder = Builder()
        self.agents = Agents()
        self.told: list[HelperEvent] = []
        self.config = Config(deploy=DeployConfig(timeout_s=600))
        self.deployer = self.new_deployer()

    def fate(self, fate: Fate) -> Fate:
        self.repositories.fate = self.builder.fate = self.agents.fate = fate
        return fate

    def new_deployer(self) -> Deployer:
        agents = self.agents
        hands = Hands(
            rows=lambda: agents.rows,
            spawn=agents.spawn,
            activate=agents.activate,
            destroy=agents.destroy,
            allowed=agents.allowed,
            allow=agents.allow,
            writer_uid=lambda: None,
        )
        self.deployer = Deployer(
            self.store,
            self.repositories,  # type: ignore[arg-type]
            self.builder,
            hands=hands,
            manifest_at=self.manifest_at,
            leave=self.broker.leave_with,
            tell=self.told.append,
            config=lambda: self.config,
            layout=self.layout,
            clock=lambda: NOW,
        )
        return self.deployer

    async def manifest_at(self, agent: str, sha: str) -> Manifest:
        if sha not in self.repositories.commits:
            raise BadProposal(f"there is no commit {sha[:12]}")
        text = self.repositories.commits[sha].get("agent.toml")
        return NOTHING if text is None else parse(text)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    async def approve(
        self, kind: DeployKind, agent: str, sha: str | None = None, commit_ref: str = ""
    ) -> int:
        """Queue what the approval of a request of the manager's would; give the approval's id."""
        kinds = {
            DeployKind.SPAWN: Kind.SPAWN,
            DeployKind.INIT_CONFIG: Kind.INIT_CONFIG,
            DeployKind.APPLY: Kind.APPLY_COMMIT,
            DeployKind.INPUTS: Kind.UPDATE_META_INPUTS,
        }
        asked = Approval(
            0, agent, kinds[kind], commit_ref, NOW, Status.PENDING, False, "manager", fetched_sha=sha
        )

        def queue(db: apsw.Connection) -> int:
            approval_id = approvals.insert(db, asked)
            approvals.advance(db, approval_id, Happening.APPROVE, NOW, uid=0)
            wanted = Deploy(0, agent, kind, Step.QUEUED, NOW, approval_id=approval_id, sha=sha)
            deploys.insert(db, wanted)
            return approval_id

        number = await self.store.write(queue)
        if sha is not None:
            tags = self.repositories.tags.setdefault(agent, {})
            tags[tag_of("proposal", number)] = (sha, None)
        self.deployer.wake()
        return number

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    async def wait_ended(self, count: int | None = None) -> list[Deploy]:
        """Wait until nothing is open; give all deploys."""
        with self.deployer.follow() as (_, follower):
            while True:
                found = await self.store.read(deploys.newest, 100)
                if all(one.finished_at is not None for one in found) and len(found) >= (count or 1):
                    return found
                with trio.move_on_after(5):
                    await follower.receive()

    async def approval(self, number: int) -> Approval:
        found = await self.store.read(approvals.get, number)
        assert found is not None
        return found

    async def letters(self) -> list[dict[str, Any]]:
        def read(db: apsw.Connection) -> list[str]:
            return [
                str(body) for (body,) in db.execute("select body from messages where recipient = 'manager'")
            ]

        return [json.loads(body) for body in await self.store.read(read)]

    async def check(self) -> None:
        """Everything says the same."""
        for one in await self.store.read(deploys.newest, 100):
            ok = one.step is Step.DONE
            assert one.step in {Step.DONE, Step.FAILED}, one
            assert (one.error is None) == ok, one
            if one.approval_id is None:
                continue
            approval = await self.approval(one.approval_id)
            assert approval.finished
            assert approval.status == (Status.APPROVED if ok else Status.FAILED)
            told = [letter for letter in await self.letters() if letter["id"] == one.approval_id]
            assert [letter["status"] for letter in told] == [approval.status]
            if one.kind in {DeployKind.SPAWN, DeployKind.APPLY} and one.agent in self.repositories.tags:
                tags = self.repositories.tags[one.agent]
                failed = tag_of("failed", one.approval_id)
                assert (failed in tags) != ok or one.sha is None, (one, tags)
                assert not ok or tags[one.tag or ""] == (one.sha, None)
        assert self.builder.laid_out == set()
        entries = self.repositories.agents_json
        assert entries.keys() == {name for name, row in self.agents.rows.items() if row.deployed_sha}
        for name, row in self.agents.rows.items():
            if row.deployed_sha is None:
                continue
            assert self.agents.running[name] == row.declared
            assert self.repositories.mains[name] == row.deployed_sha
            entry = entries[name]
            assert (entry["sha"], entry["tag"]) == (row.deployed_sha, row.deployed_tag)
            assert entry["output"] == row.shape.image


@asynccontextmanager
async def world_at(base: Path) -> AsyncIterator[World]:
    base.mkdir(exist_ok=True)
    async with open_store(base / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        broker = Broker(store, announce=lambda _message: None, changed=lambda _agent: None, clock=lambda: NOW)
        await broker.recover()
        await nursery.start(broker.run)
        await broker.register("manager", paused=False)
        yield World(base, store, broker)
        nursery.cancel_scope.cancel()


def with_image(declared: Declared, image: str) -> Declared:
    return replace(declared, shape=replace(declared.shape, image=image))


AS_DEPLOYED = Shape(image="image-1111")

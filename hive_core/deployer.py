"""Carries out what was approved, one deploy after the other.

There is one queue, the rows of deploys that have not ended, and one worker.  Each step is recorded before it
is done, so that a new daemon knows where to go on (`domain.deploy.AFTER_A_KILL`).  What a step does stands in
`deploy_effects.py`.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import apsw
import trio

from hive_core.builders import Builder, BuildFailed
from hive_core.config import Config
from hive_core.deploy_effects import Effects, Hands, ManifestAt, read_before
from hive_core.domain.agent import AgentRow
from hive_core.domain.approval import Happening
from hive_core.domain.cage import CannotStart
from hive_core.domain.deploy import AFTER_A_KILL, ENDED, ORDER, Deploy, DeployKind, Step
from hive_core.domain.helper_event import ConfigReady, HelperEvent, Rebuilt, Spawned, resolution
from hive_core.domain.letter import Leave, Letter
from hive_core.domain.machine import Wanted
from hive_core.host.deploy_log import Audience, DeployLogs, Follower, plain_lines
from hive_core.host.git_output import TagInfo
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.machines import TROUBLE, ActivationFailed, describe
from hive_core.meta_record import MetaRecord
from hive_core.release_files import ReleaseFiles
from hive_core.repositories import Repositories
from hive_core.store import approvals, deploys
from hive_core.store.database import Store
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import SYSTEM

MAX_OPEN: Final = 100
"""Deploys that may wait, for one more to be asked for."""

TRIES: Final = 5
"""Of what is done when it runs already, before that is given up and it goes back."""
RETRY_S: Final = 2.0
"""Before the second try; the time doubles."""

MAX_ERROR_CHARS: Final = 2000
SHOWN_LINES: Final = 50
"""Of a log, to one who begins to read along."""

_EXPECTED: Final = (BuildFailed, BadProposal, ActivationFailed, CannotStart, Refused, *TROUBLE)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lines:
    """New lines of the log of a deploy."""

    deploy_id: int
    lines: tuple[str, ...]


News = Deploy | Lines


class Deployer:
    """The queue, its worker, and what may be asked about them.

    *hands* and *manifest_at* are what deploy_effects needs, *leave* stores letters with the end of a deploy,
    *tell* tells the manager, *clock* gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        repositories: Repositories,
        builder: Builder,
        *,
        hands: Hands,
        manifest_at: ManifestAt,
        leave: Leave,
        tell: Callable[[HelperEvent], None],
        config: Callable[[], Config],
        layout: Layout,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._repositories = repositories
        self._builder = builder
        self._record = MetaRecord(repositories, builder, layout.meta, rows=hands.rows, busy=self._moving)
        releases = ReleaseFiles(layout, repositories)
        self._effects = Effects(repositories, releases, builder, self._record, hands, manifest_at, config)
        self._hands = hands
        self._leave = leave
        self._tell = tell
        self._config = config
        self._clock = clock
        self._logs = DeployLogs(layout.deploy_logs)
        self._audience: Audience[News] = Audience()
        self._woken = trio.Event()
        self._current: Deploy | None = None
        self._scope: trio.CancelScope | None = None
        self._gone: set[str] = set()
        self._ended = trio.Event()

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """There is something new in the queue."""
        self._woken.set()

    def settle(self, agent: str) -> None:
        """What is deployed of *agent* was changed by somebody else: let the meta repository say so, soon."""
        self._record.settle(agent)

    async def rollback(self, agent: str, tag: str | None, *, uid: int) -> Deploy:
        """Queue the return of *agent* to what *tag* had deployed, or to what ran before.

        Raises:
            Refused: NOT_FOUND, when there is no such agent or tag; CONFLICT, when that runs;
                PRECONDITION_FAILED, when nothing ran before; UNAVAILABLE, when too many deploys wait.
        """
        row = self._hands.rows().get(agent)
        if row is None:
            raise Refused(ErrorCode.NOT_FOUND, f"cannot roll back {agent}: there is no such agent")
        if tag is None:
            tag = await self._tag_before(row)
        if tag == row.deployed_tag:
            text = f"cannot roll back {agent} to {tag}: that is what it runs"
            raise Refused(ErrorCode.CONFLICT, text, "running")
        try:
            has_any = await self._repositories.exists(agent)
            sha = await self._repositories.resolve(agent, tag) if has_any else None
        except TROUBLE as error:
            text = f"cannot roll back {agent}: {describe(error)}"
            raise Refused(ErrorCode.UNAVAILABLE, text) from None
        if sha is None:
            text = f"cannot roll back {agent} to {tag}: there is no such tag; hive history {agent} shows them"
            raise Refused(ErrorCode.NOT_FOUND, text)
        wanted = Deploy(0, agent, DeployKind.ROLLBACK, Step.QUEUED, self._clock(), sha=sha, tag=tag, uid=uid)

        def queue(db: apsw.Connection) -> Deploy:
            waiting = len(deploys.open_ones(db))
            if waiting >= MAX_OPEN:
                text = f"cannot roll back {agent}: {waiting} deploys wait already"
                raise Refused(ErrorCode.UNAVAILABLE, text)
            found = deploys.get(db, deploys.insert(db, wanted))
            assert found is not None
            return found

        queued = await self._store.write(queue)
        log.info("Rollback queued deploy=%d agent=%s tag=%s uid=%d", queued.id, agent, tag, uid)
        self._audience.tell(queued)
        self.wake()
        return queued

    async def _tag_before(self, row: AgentRow) -> str:
        """Give the tag of the last that ran and is not what runs: a commit may be deployed twice in a row."""

        def find(db: apsw.Connection) -> str | None:
            deploy = deploys.last_done(db, row.name)
            while deploy is not None:
                before = read_before(deploy).get(row.name)
                if before is None or (declared := before.declared) is None or declared.tag is None:
                    return None
                if (declared.sha, declared.shape.image) != (row.deployed_sha, row.shape.image):
                    return declared.tag
                deploy = deploys.last_done(db, row.name, deploy.id)
            return None

        if (tag := await self._store.read(find)) is None:
            text = f"cannot roll back {row.name}: nothing else was deployed before; name a tag"
            raise Refused(ErrorCode.PRECONDITION_FAILED, text)
        return tag

    async def newest(self, limit: int, agent: str | None = None) -> list[Deploy]:
        """Give the newest deploys, the oldest of them first."""
        return await self._store.read(deploys.newest, limit, agent)

    async def read_log(self, deploy_id: int, lines: int) -> list[str]:
        """Give the last *lines* of what was said in a deploy; none when that is too long ago.

        Raises:
            Refused: NOT_FOUND; UNAVAILABLE, when it cannot be read.
        """
        if await self._store.read(deploys.get, deploy_id) is None:
            text = f"cannot read the log of deploy {deploy_id}: there is no such deploy"
            raise Refused(ErrorCode.NOT_FOUND, text)
        try:
            return await trio.to_thread.run_sync(self._logs.read, deploy_id, lines)
        except OSError as error:
            text = f"cannot read the log of deploy {deploy_id}: {error.strerror}"
            raise Refused(ErrorCode.UNAVAILABLE, text) from None

    @contextmanager
    def follow(self) -> Iterator[tuple[list[News], Follower[News]]]:
        """Read along: give the deploy that is under way with the end of its log, and what comes after."""
        with self._audience.follower() as follower:
            # Read here and now, so that nothing comes in between.
            seen: list[News] = []
            if self._current is not None:
                seen = [self._current]
                try:
                    lines = self._logs.read(self._current.id, SHOWN_LINES)
                    seen.append(Lines(self._current.id, tuple(lines)))
                except OSError as error:
                    log.warning("Log of a deploy cannot be read deploy=%d: %s", self._current.id, error)
            yield seen, follower

    async def history(self, agent: str, limit: int) -> Sequence[TagInfo]:
        """Give the newest tags of *agent*, the newest last.

        Raises:
            Refused: UNAVAILABLE.
        """
        try:
            if not await self._repositories.exists(agent):
                return []
            return await self._repositories.history(agent, limit)
        except TROUBLE as error:
            text = f"cannot read the history of {agent}: {describe(error)}"
            raise Refused(ErrorCode.UNAVAILABLE, text) from None

    async def agent_destroyed(self, agent: str) -> None:
        """End what is being deployed of *agent*, wait until it has ended, and let meta say nothing of it."""
        self._gone.add(agent)
        try:
            while self._current is not None and self._current.agent == agent:
                if self._scope is not None:
                    self._scope.cancel()
                await self._ended.wait()
        finally:
            self._gone.discard(agent)
        self.settle(agent)

    async def agent_purged(self, agent: str) -> None:
        """Keep nothing any more of what was built for *agent*.

        Raises:
            OSError: it cannot be removed.
        """
        await self._builder.purge(agent)

    # ── the worker ──────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what a former daemon left, and carry out whatever comes."""
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._record.run)
            while True:
                self._woken = trio.Event()
                try:
                    waiting = await self._store.read(deploys.open_ones)
                    if waiting:
                        await self._carry_out(waiting[0])
                        continue
                except Refused as error:
                    log.error("Deploys do not go on: %s", error.text)
                    await trio.sleep(RETRY_S)
                    continue
                await self._woken.wait()

    async def _carry_out(self, deploy: Deploy) -> None:
        """Bring *deploy* to its end, from wherever it is.

        Raises:
            Refused: UNAVAILABLE: what comes next cannot be recorded; it goes on from there another time.
        """
        is_new = deploy.step is Step.QUEUED
        self._current, self._ended = deploy, trio.Event()
        try:
            self._logs.begin(deploy.id)
            if not is_new:
                log.info("Deploy taken up deploy=%d agent=%s step=%s", deploy.id, deploy.agent, deploy.step)
                self._say(f"Taken up again, it had come to: {deploy.step}.")
            deploy = await self._advance(deploy, _first_step(deploy))
            while deploy.step not in ENDED:
                deploy = await _STEPS[deploy.step](self, deploy)
        finally:
            self._current, self._scope = None, None
            self._ended.set()

    async def _advance(self, deploy: Deploy, step: Step, **columns: str | None) -> Deploy:
        """Record that *deploy* comes to *step*."""
        after = await self._store.write(deploys.advance, deploy.id, step, self._clock(), **columns)
        self._show(after)
        return after

    def _show(self, deploy: Deploy) -> None:
        if self._current is not None:
            self._current = deploy
        self._audience.tell(deploy)
        log.info("Deploy %s deploy=%d agent=%s", deploy.step, deploy.id, deploy.agent)

    def _say(self, text: str) -> None:
        assert self._current is not None
        lines = plain_lines(text)
        self._logs.append(self._current.id, lines)
        self._audience.tell(Lines(self._current.id, tuple(lines)))

    async def _prepare(self, deploy: Deploy) -> Deploy:
        self._say(f"{deploy.kind} {deploy.agent} {deploy.tag or ''}".rstrip())
        with self._failing() as failure, self._until_destroyed(deploy, failure):
            deploy = await self._effects.choose(deploy)
            await self._effects.prepare(deploy, await self._inputs(deploy), self._say)
        return await self._next(deploy, failure, sha=deploy.sha, tag=deploy.tag)

    async def _build(self, deploy: Deploy) -> Deploy:
        output: str | None = None
        before: dict[str, str | None] = {}
        timeout_s = self._config().deploy.timeout_s
        with self._failing() as failure, self._until_destroyed(deploy, failure):
            with trio.move_on_after(timeout_s) as deadline:
                inputs, former = await self._inputs(deploy), await self._former(deploy)
                output = await self._effects.build(deploy, inputs, former, self._say)
            if deadline.cancelled_caught:
                what = f"cannot build {deploy.agent or 'with newer inputs'}"
                raise BuildFailed(f"{what}: it takes longer than deploy.timeout_s, {timeout_s:g} s")
            before = await self._effects.before(deploy)
        return await self._next(deploy, failure, output=output, **before)

    async def _activate(self, deploy: Deploy) -> Deploy:
        with self._failing() as failure, self._until_destroyed(deploy, failure):
            await self._effects.activate(deploy, self._say)
        return await self._next(deploy, failure)

    async def _finalize(self, deploy: Deploy) -> Deploy:
        pause_s = RETRY_S
        for attempt in range(1, TRIES + 1):
            with self._failing() as failure:
                self._check_there(deploy)
                async with self._record.lock:
                    await self._effects.finalize(deploy, self._say)
            if not failure:
                return await self._end(deploy, Step.DONE, deploy.tag, None)
            if attempt == TRIES or not self._is_there(deploy):
                break
            log.warning("Deploy cannot be finished, tried again deploy=%d: %s", deploy.id, failure[0])
            await trio.sleep(pause_s)
            pause_s *= 2
        return await self._advance(deploy, Step.ABORTING, error=_cut(failure[0]))

    async def _abort(self, deploy: Deploy) -> Deploy:
        """Go back, as far as that is possible, and say what was not."""
        stories = [deploy.error or "it failed"]
        with self._failing() as failure, self._until_destroyed(deploy, []):
            await self._effects.go_back(deploy, self._say)
        stories += [f"what ran before does not come up either: {story}" for story in failure]
        tag: str | None = None
        with self._failing() as failure:
            async with self._record.lock:
                tag = await self._effects.say_failed(deploy, stories[0])
        with self._failing(failure):
            await self._effects.take_away(deploy)
        for story in failure:
            log.error("Deploy leaves something behind deploy=%d: %s", deploy.id, story)
            self._say(story)
        return await self._end(deploy, Step.FAILED, tag, _cut("; ".join(stories)))

    async def _next(self, deploy: Deploy, failure: list[str], **columns: str | None) -> Deploy:
        if failure:
            return await self._advance(deploy, Step.ABORTING, error=_cut(failure[0]), **columns)
        return await self._advance(deploy, ORDER[deploy.step], **columns)

    def _outcome(self, deploy: Deploy) -> str:
        if not deploy.sha:
            return "Done."
        row = self._hands.rows().get(deploy.agent)
        if row is not None and row.wanted is Wanted.STOPPED:
            return f"It is what runs once {row.name} is started."
        return "It runs."

    async def _end(self, deploy: Deploy, step: Step, tag: str | None, error: str | None) -> Deploy:
        """Record the end of *deploy*, of its approval, and what is told of both, in one transaction."""
        self._say(f"It failed: {error}" if error else self._outcome(deploy))
        now = self._clock()

        def end(db: apsw.Connection) -> tuple[Deploy, list[Letter]]:
            columns = {} if error is None else {"error": error}
            ended, letters = deploys.advance(db, deploy.id, step, now, **columns), []
            approval = approvals.get(db, deploy.approval_id) if deploy.approval_id is not None else None
            if approval is not None and not approval.finished:
                happening = Happening.FAIL if error else Happening.SUCCEED
                letters = resolution(approvals.advance(db, approval.id, happening, now, note=error, tag=tag))
            return ended, letters

        ended = await self._leave(SYSTEM, 2, end)
        self._show(ended)
        event = _event(ended, tag)
        if event is not None:
            self._tell(event)
        return ended

    # ── what steps need ─────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _failing(self, into: list[str] | None = None) -> Iterator[list[str]]:
        """Collect why the block failed, if it did.

        A bug fails the deploy and not the daemon, which would meet it again at each start.
        """
        failure: list[str] = [] if into is None else into
        try:
            yield failure
        except Refused as error:
            failure.append(error.text)
        except _EXPECTED as error:
            failure.append(describe(error))
        except Exception as error:
            log.exception("Deploy failed by a bug")
            failure.append(f"cannot go on: {type(error).__name__}, a bug; the log of hive-core says more")

    @contextmanager
    def _until_destroyed(self, deploy: Deploy, failure: list[str]) -> Iterator[None]:
        """Leave the block when the agent is destroyed."""
        with trio.CancelScope() as self._scope:
            if deploy.agent in self._gone:
                self._scope.cancel()
            yield
        if self._scope.cancelled_caught:
            failure.append(f"cannot deploy {deploy.agent}: it was destroyed meanwhile")
        self._scope = None

    def _is_there(self, deploy: Deploy) -> bool:
        return (
            deploy.kind in {DeployKind.INIT_CONFIG, DeployKind.INPUTS} or deploy.agent in self._hands.rows()
        )

    def _check_there(self, deploy: Deploy) -> None:
        if not self._is_there(deploy):
            raise BuildFailed(f"cannot deploy {deploy.agent}: it was destroyed meanwhile")

    async def _inputs(self, deploy: Deploy) -> list[str]:
        """Give the inputs that are to be renewed."""
        if deploy.kind is not DeployKind.INPUTS or deploy.approval_id is None:
            return []
        approval = await self._store.read(approvals.get, deploy.approval_id)
        return [] if approval is None else [str(name) for name in json.loads(approval.commit_ref)]

    async def _former(self, deploy: Deploy) -> str | None:
        """Give what was built when the tag that it goes back to was deployed."""
        if deploy.kind is not DeployKind.ROLLBACK:
            return None
        assert deploy.tag is not None
        done = await self._store.read(deploys.last_with, deploy.agent, deploy.tag)
        return None if done is None else done.output

    async def _moving(self) -> frozenset[str]:
        """Name the agents of which a deploy will say what runs."""
        found = await self._store.read(deploys.open_ones)
        moving = [one for one in found if one.step in {Step.ACTIVATING, Step.FINALIZING, Step.ABORTING}]
        # Newer inputs are about many, and name none.
        return frozenset(agent for one in moving for agent in (one.agent, *read_before(one)))


def _first_step(deploy: Deploy) -> Step:
    going_on = AFTER_A_KILL[deploy.step]
    return Step.PREPARING if going_on is Step.QUEUED else going_on


def _cut(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"


def _event(deploy: Deploy, tag: str | None) -> HelperEvent | None:
    ok = deploy.step is Step.DONE
    match deploy.kind:
        case DeployKind.SPAWN:
            return Spawned(agent=deploy.agent, ok=ok, note=deploy.error, sha=deploy.sha, tag=tag)
        case DeployKind.INIT_CONFIG:
            return ConfigReady(agent=deploy.agent) if ok else None
        case DeployKind.INPUTS:
            return None
    return Rebuilt(agent=deploy.agent, ok=ok, note=deploy.error, sha=deploy.sha, tag=tag)


_STEPS: Final = {
    Step.PREPARING: Deployer._prepare,
    Step.BUILDING: Deployer._build,
    Step.ACTIVATING: Deployer._activate,
    Step.FINALIZING: Deployer._finalize,
    Step.ABORTING: Deployer._abort,
}

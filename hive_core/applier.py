"""Takes requests for approval, keeps them until somebody decides, and records the decision.

A commit that is asked for is taken in and pinned before its request can be approved.  A decision and what
follows from it are one transaction: the row of the deploy that the deployer carries out, or the letter to
whoever asked.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import apsw
import trio

from hive_core.config import Config
from hive_core.configurations import Configurations, refused
from hive_core.domain import approval as rules
from hive_core.domain.agent import AgentRow
from hive_core.domain.approval import Approval, Happening, Kind, Status
from hive_core.domain.deploy import Deploy, DeployKind, Step, tag_of
from hive_core.domain.helper_event import resolution
from hive_core.domain.letter import Leave, Letter
from hive_core.domain.manifest import MANIFEST_NAME, BadManifest
from hive_core.host.quarantine import BadProposal
from hive_core.machines import TROUBLE, describe
from hive_core.repositories import Repositories
from hive_core.store import approvals, deploys, repeats
from hive_core.store.database import Store
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR, SYSTEM
from hive_core.wire.limits import MAX_NOTE_CHARS

LONGEST_NAP_S: Final = 30.0
"""How far the wall clock may be set before it is looked again for what has expired."""

RETRY_S: Final = 5.0
"""Between two looks while the disk refuses."""

MAX_ENDED: Final = 64
"""Requests that are ended in one transaction, when their time is up or their agent gone."""

MAX_MARKED: Final = 100
"""Commits that get a missing tag when the daemon starts."""

DAY_S: Final = 86400.0

TAKEN_IN_AT_ONCE: Final = 2
"""Commits; each is a few processes and perhaps its time limit."""

CUT_OFF: Final = "the daemon ended while it was taken in; ask again"
GONE_AWAY: Final = "whoever asked went away while it was taken in"
DESTROYED: Final = "agent destroyed"

_HEX: Final = re.compile(r"[0-9a-f]{7,40}\Z")

_DEPLOYS: Final = {
    Kind.SPAWN: DeployKind.SPAWN,
    Kind.INIT_CONFIG: DeployKind.INIT_CONFIG,
    Kind.APPLY_COMMIT: DeployKind.APPLY,
    Kind.UPDATE_META_INPUTS: DeployKind.INPUTS,
}

log = logging.getLogger(__name__)


class Applier:
    """All requests for approval.

    *leave* stores letters with a decision; *row_of* gives the row of an agent that is there, or None;
    *why_no_name* says why no agent can have a name; *wake* has the deployer look at its queue; *clock*
    gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        repositories: Repositories,
        configurations: Configurations,
        *,
        leave: Leave,
        row_of: Callable[[str], AgentRow | None],
        why_no_name: Callable[[str], str | None],
        wake: Callable[[], None],
        config: Callable[[], Config],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._repositories = repositories
        self._configurations = configurations
        self._leave = leave
        self.row_of = row_of
        self._why_no_name = why_no_name
        self._wake = wake
        self._config = config
        self._clock = clock
        self._sooner = trio.Event()
        self._to_mark = False
        self._cut_off: list[Approval] = []
        self._taking_in = trio.CapacityLimiter(TAKEN_IN_AT_ONCE)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────

    async def get(self, approval_id: int, verb: str = "show") -> Approval:
        """Give one.

        Raises:
            Refused: NOT_FOUND.
        """
        approval = await self._store.read(approvals.get, approval_id)
        if approval is None:
            raise _unknown(approval_id, verb)
        return approval

    async def pending(self, limit: int) -> list[Approval]:
        """Give the oldest that wait for a decision."""
        return await self._store.read(approvals.pending, limit)

    async def newest(self, limit: int, agent: str | None = None) -> list[Approval]:
        """Give the newest, decided or not, the oldest of them first."""
        return await self._store.read(approvals.newest, limit, agent)

    def running_sha(self, agent: str) -> str | None:
        """The commit that *agent* runs with; None: with none, or it is not there."""
        row = self.row_of(agent)
        return row.deployed_sha if row else None

    # ── asking ──────────────────────────────────────────────────────────────────────────────────

    async def submit_commit(
        self, agent: str, commit_ref: str | None, description: str | None, *, by: str, key: str | None = None
    ) -> int:
        """Ask for a commit of what is proposed for *agent*, or for the newest; give the id of the request.

        A repeated *key* asks for nothing and gives the first id, here and below.

        Raises:
            Refused: NOT_FOUND, CONFLICT, INVALID_ARGUMENT; PRECONDITION_FAILED, when too many wait or the
                commit cannot be taken in: then its request has failed, and says so.
        """
        self._configurations.check_buildable(agent, f"propose a commit for {agent}")
        if commit_ref is not None and not _HEX.match(commit_ref):
            text = f"cannot propose {commit_ref[:80]!r}: name the commit by 7 to 40 hex digits of its hash"
            raise Refused(ErrorCode.INVALID_ARGUMENT, text)
        await self._configurations.ensure(agent)
        asked = self._new(Kind.APPLY_COMMIT, agent, by, description, commit_ref or "")
        asked, is_new = await self._insert(asked, key)
        if is_new:
            await self._take_in(asked)
        return _id_or_failure(asked)

    async def request_spawn(
        self, name: str, description: str | None, *, by: str, key: str | None = None
    ) -> int:
        """Ask for a new agent, from what is proposed for it now, or from a template if nothing is.

        One that was destroyed comes back as it ran, whatever was proposed for it since.

        Raises:
            Refused: as submit_commit.
        """
        self._check_free(name, "ask for")
        with refused(f"ask for {name}"):
            kept = await self._repositories.main(name) if await self._repositories.exists(name) else None
            proposed = await self._repositories.has_proposed(name)
        asked = self._new(Kind.SPAWN, name, by, description)
        asked, is_new = await self._insert(asked, key, alone=True)
        if is_new and (kept is not None or proposed):
            await self._take_in(asked, kept)
        return _id_or_failure(asked)

    async def request_init(
        self, name: str, description: str | None, *, by: str, key: str | None = None
    ) -> int:
        """Ask for a configuration to begin with, for an agent that is not there.

        Raises:
            Refused: as submit_commit, CONFLICT also when there is one.
        """
        self._check_free(name, "ask for a configuration of")
        await self._check_no_config(name, f"ask for a configuration of {name}")
        asked, _ = await self._insert(self._new(Kind.INIT_CONFIG, name, by, description), key, alone=True)
        return asked.id

    async def request_inputs(
        self, inputs: Sequence[str], description: str | None, *, by: str, key: str | None = None
    ) -> int:
        """Ask for newer *inputs* of the hive's flake.

        Raises:
            Refused: as submit_commit; NOT_FOUND for an input that the configuration does not name.
        """
        self._check_builds_with_nix("ask for newer inputs")
        known = self._config().deploy.inputs
        for name in inputs:
            if name not in known:
                text = f"cannot ask for a newer {name!r}: the hive's flake has {', '.join(sorted(known))}"
                raise Refused(ErrorCode.NOT_FOUND, text)
        names = json.dumps(list(dict.fromkeys(inputs)))
        asked, _ = await self._insert(self._new(Kind.UPDATE_META_INPUTS, "", by, description, names), key)
        return asked.id

    def _new(
        self, kind: Kind, agent: str, by: str, description: str | None, commit_ref: str = ""
    ) -> Approval:
        if description is not None and len(description) > MAX_NOTE_CHARS:
            text = f"cannot ask for it: the description has more than {MAX_NOTE_CHARS} characters"
            raise Refused(ErrorCode.INVALID_ARGUMENT, text)
        now = self._clock()
        return Approval(
            id=0,
            agent=agent,
            kind=kind,
            commit_ref=commit_ref,
            requested_at=now,
            status=Status.PENDING,
            finished=False,
            proposer=by,
            description=description or None,
            expires_at=now + self._config().approvals.expire_hours * 3600,
        )

    async def _insert(
        self, asked: Approval, key: str | None, *, alone: bool = False
    ) -> tuple[Approval, bool]:
        """Store *asked*, or find what the same *key* asked for; say whether it is new.

        *alone* refuses it while something else about its agent waits for a decision.
        """
        by, key = asked.proposer, key and f"request {asked.kind} {key}"

        def store(db: apsw.Connection) -> tuple[Approval, bool]:
            first_id = repeats.find(db, by, key)
            if first_id is not None and (first := approvals.get(db, first_id)) is not None:
                return first, False
            _check_room(db, by, asked.requested_at)
            others = approvals.pending_of(db, asked.agent) if alone else []
            if others:
                text = f"cannot ask for {asked.agent}: approval {others[0].id} about it waits for a decision"
                raise Refused(ErrorCode.CONFLICT, text, reason="exists")
            running = approvals.running_sha(db, asked.agent)
            approval_id = approvals.insert(db, replace(asked, base_sha=running))
            repeats.remember(db, by, key, approval_id)
            return replace(asked, id=approval_id, base_sha=running), True

        stored, is_new = await self._store.write(store)
        if is_new:
            self._sooner.set()
            log.info("Approval asked id=%d kind=%s agent=%s by=%s", stored.id, stored.kind, stored.agent, by)
        return stored, is_new

    async def _take_in(self, asked: Approval, kept: str | None = None) -> None:
        """Pin the commit that *asked* is about; when that cannot be, its request fails.

        It is *kept*, which was taken in before, or is to be taken in now.
        """
        sha, error, tag = None, GONE_AWAY, tag_of("proposal", asked.id)
        try:
            async with self._taking_in:
                sha = await self._pinned(asked, tag, kept)
                await self._configurations.manifest_at(asked.agent, sha)
            error = ""
        except BadProposal as bad:
            error = str(bad)
        except BadManifest as bad:
            error = f"{MANIFEST_NAME}: {bad}"
        except TROUBLE as trouble:
            log.error("Proposal not taken in id=%d agent=%s: %s", asked.id, asked.agent, describe(trouble))
            error = f"the repository cannot be read: {describe(trouble)}"
        finally:
            # Also when whoever asked has gone away: a request is never left half taken in.
            with trio.CancelScope(shield=True):
                await self._leave(SYSTEM, 2, partial(_pin_or_fail, asked, sha, tag, error, self._clock()))
                if error and sha is not None:
                    await self._mark(await self.get(asked.id))
        if error:
            log.info("Approval failed id=%d: %s", asked.id, error)
            raise _not_taken_in(asked, error)
        log.info("Approval pinned id=%d agent=%s sha=%s", asked.id, asked.agent, sha)

    async def _pinned(self, asked: Approval, tag: str, kept: str | None) -> str:
        if await self._repositories.resolve(asked.agent, tag) is not None:
            # To take it for this request would pin what nobody has asked for.
            raise BadProposal(f"its repository came with a {tag} of another hive; ask again")
        if kept is None:
            return await self._repositories.take_in(asked.agent, asked.commit_ref or None, tag)
        await self._repositories.tag(asked.agent, tag, kept)
        return kept

    # ── deciding ────────────────────────────────────────────────────────────────────────────────

    async def approve(self, approval_id: int, *, uid: int, digest: str | None = None) -> Approval:
        """Let one be carried out.  Of two decisions the first holds.

        With *digest*, as `domain.approval.digest` gives it, only if it is still what was decided on.

        Raises:
            Refused: NOT_FOUND; CONFLICT with the reason `decided` or `changed`; PRECONDITION_FAILED, when
                it could not be carried out.
        """
        found = await self.get(approval_id, "approve")
        if found.state == rules.PENDING:
            await self._check_possible(found)
        now = self._clock()

        def store(db: apsw.Connection) -> Approval:
            approval = approvals.advance(db, approval_id, Happening.APPROVE, now, uid=uid)
            if digest not in {None, rules.digest(approval, approvals.running_sha(db, approval.agent))}:
                text = f"cannot approve {approval_id}: it is not any more what was shown; look at it again"
                raise Refused(ErrorCode.CONFLICT, text, reason="changed")
            kind = _DEPLOYS[Kind(approval.kind)]
            deploys.insert(
                db,
                Deploy(
                    id=0,
                    agent=approval.agent,
                    kind=kind,
                    step=Step.QUEUED,
                    requested_at=now,
                    approval_id=approval_id,
                    sha=approval.fetched_sha,
                    tag=tag_of("deployed", approval_id) if kind is DeployKind.APPLY else None,
                    uid=uid,
                ),
            )
            return approval

        approved = await self._store.write(store)
        log.info(
            "Approval approved id=%d kind=%s agent=%s sha=%s uid=%d",
            *(approval_id, approved.kind, approved.agent, approved.fetched_sha or "-", uid),
        )
        self._wake()
        return approved

    async def deny(self, approval_id: int, *, uid: int, note: str | None = None) -> Approval:
        """Refuse one; the manager and whoever asked are told, and *note*.

        Raises:
            Refused: NOT_FOUND; CONFLICT with the reason `decided`.
        """
        now = self._clock()

        def store(db: apsw.Connection) -> tuple[Approval, list[Letter]]:
            approval = approvals.advance(db, approval_id, Happening.DENY, now, note=note or None, uid=uid)
            return approval, _told(approval)

        denied = await self._leave(SYSTEM, 2, store)
        log.info("Approval denied id=%d kind=%s agent=%s uid=%d", denied.id, denied.kind, denied.agent, uid)
        await self._mark(denied)
        return denied

    async def cancel(
        self, approval_id: int, *, by: str, uid: int | None = None, key: str | None = None
    ) -> None:
        """Take one back; only the operator, or who asked for it.

        Raises:
            Refused: NOT_FOUND; CONFLICT with the reason `decided`.
        """
        now = self._clock()

        def store(db: apsw.Connection) -> tuple[None, list[Letter]]:
            approval = approvals.get(db, approval_id)
            if approval is not None and repeats.find(db, by, key) == approval_id:
                return None, []
            # An agent learns of no request that is none of its business.
            if approval is None or by not in {OPERATOR, approval.proposer}:
                raise _unknown(approval_id, "cancel")
            foreign = by != approval.proposer
            note = f"taken back by {by}" if foreign else None
            cancelled = approvals.advance(db, approval_id, Happening.CANCEL, now, note=note, uid=uid)
            repeats.remember(db, by, key, approval_id)
            return None, _told(cancelled) if foreign else []

        await self._leave(SYSTEM, 2, store)
        log.info("Approval cancelled id=%d by=%s", approval_id, by)

    async def agent_destroyed(self, name: str) -> None:
        """Fail what waits for a decision about *name*."""
        now = self._clock()

        def store(db: apsw.Connection) -> tuple[list[Approval], list[Letter]]:
            found = approvals.pending_of(db, name)[:MAX_ENDED]
            return _end(db, found, Happening.FAIL, now, lambda _approval: DESTROYED)

        try:
            while ended := await self._leave(SYSTEM, 2 * MAX_ENDED, store):
                for approval in ended:
                    log.info("Approval failed id=%d: %s", approval.id, DESTROYED)
                self._mark_soon()
        except Refused as error:
            # Nothing of it can be approved: the agent is not there.
            log.error("Approvals of %s not ended, they expire: %s", name, error.text)

    async def _check_possible(self, approval: Approval) -> None:
        """Refuse to approve what could not be carried out."""
        what = f"approve {approval.id}"
        match approval.kind:
            case Kind.APPLY_COMMIT:
                if approval.fetched_sha is None:
                    text = f"cannot {what}: its commit is still being taken in; try again"
                    raise Refused(ErrorCode.PRECONDITION_FAILED, text)
                self._configurations.movable(approval.agent, what)
            case Kind.SPAWN:
                self._check_free(approval.agent, f"{what}, a new")
                if approval.fetched_sha is None:
                    await self._check_no_config(approval.agent, what)
                    await self._check_none_kept(approval.agent, what)
            case Kind.INIT_CONFIG:
                self._check_free(approval.agent, f"{what}, a configuration of")
                await self._check_no_config(approval.agent, what)
            case Kind.UPDATE_META_INPUTS:
                self._check_builds_with_nix(what)
            case unknown:
                text = f"cannot {what}: this hive does not know what {unknown[:80]!r} is; deny it"
                raise Refused(ErrorCode.PRECONDITION_FAILED, text)

    async def _mark(self, approval: Approval) -> None:
        """Tag the commit of one that was denied or failed.  The next start tries again what cannot be now."""
        tag = _last_tag(approval)
        if tag is None or approval.fetched_sha is None or tag == approval.tag:
            return
        try:
            if await self._repositories.exists(approval.agent):
                await self._repositories.tag(approval.agent, tag, approval.fetched_sha, approval.note or "")
            await self._store.write(approvals.mark, approval.id, tag)
        except (BadProposal, Refused, *TROUBLE) as error:
            log.error("Commit not tagged %s of %s: %s", tag, approval.agent, error)

    def _mark_soon(self) -> None:
        self._to_mark = True
        self._sooner.set()

    def _check_free(self, name: str, what: str) -> None:
        why = self._why_no_name(name)
        if why is not None:
            raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot {what} agent: {why}")
        self._configurations.check_free(name, f"{what} agent {name}")

    async def _check_no_config(self, name: str, what: str) -> None:
        with refused(what):
            exists = await self._repositories.has_proposed(name)
        if exists:
            text = f"cannot {what}: there is a configuration of {name}; ask for the agent with it"
            raise Refused(ErrorCode.CONFLICT, text, reason="changed")

    async def _check_none_kept(self, name: str, what: str) -> None:
        with refused(what):
            kept = await self._repositories.main(name)
        if kept is not None:
            text = f"cannot {what}: {name} was there meanwhile, and would be again what it was; ask again"
            raise Refused(ErrorCode.CONFLICT, text, reason="changed")

    def _check_builds_with_nix(self, what: str) -> None:
        if self._config().deploy.builder != "nix":
            text = f"cannot {what}: this hive does not build with Nix, so its machines have no inputs"
            raise Refused(ErrorCode.PRECONDITION_FAILED, text)

    # ── time ────────────────────────────────────────────────────────────────────────────────────

    async def recover(self) -> None:
        """See what the last daemon was in the midst of.  Before anybody can ask."""
        self._cut_off = await self._store.read(approvals.cut_off)
        await self._store.write(approvals.give_time, self._clock() + self._expire_s)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Cancel what nobody decides in time, that first whose time was up before we started."""
        self._to_mark = True
        task_status.started()
        while True:
            self._sooner = trio.Event()
            try:
                nap_s = await self._tick()
            except Refused as error:
                log.error("Approvals cannot be ended, the next look tries again: %s", error.text)
                nap_s = RETRY_S
            with trio.move_on_after(min(nap_s, LONGEST_NAP_S)):
                await self._sooner.wait()

    @property
    def _expire_s(self) -> float:
        return self._config().approvals.expire_hours * 3600

    async def _tick(self) -> float:
        """End what is due, and give how long to wait for the next one."""
        while self._cut_off:
            await self._fail_cut_off()
        while await self._expire():
            pass
        if self._to_mark:
            self._to_mark = False
            for approval in await self._store.read(approvals.unmarked, MAX_MARKED):
                await self._mark(approval)
        expires_at = await self._store.read(approvals.next_expiry)
        return LONGEST_NAP_S if expires_at is None else max(expires_at - self._clock(), 0.0)

    async def _fail_cut_off(self) -> None:
        now, some = self._clock(), self._cut_off[:MAX_ENDED]

        def store(db: apsw.Connection) -> tuple[list[Approval], list[Letter]]:
            found = [approvals.get(db, approval.id) for approval in some]
            still = [approval for approval in found if approval and approval.state == rules.PENDING]
            return _end(db, still, Happening.FAIL, now, lambda _approval: CUT_OFF)

        for approval in await self._leave(SYSTEM, 2 * MAX_ENDED, store):
            log.warning("Approval failed id=%d: %s", approval.id, CUT_OFF)
        del self._cut_off[: len(some)]

    async def _expire(self) -> int:
        now = self._clock()
        if not await self._store.read(approvals.due, now, 1):
            return 0

        def store(db: apsw.Connection) -> tuple[list[Approval], list[Letter]]:
            due = approvals.due(db, now, MAX_ENDED)
            return _end(db, due, Happening.EXPIRE, now, _expired)

        expired = await self._leave(SYSTEM, 2 * MAX_ENDED, store)
        for approval in expired:
            log.info("Approval expired id=%d agent=%s", approval.id, approval.agent)
        return len(expired)


def _check_room(db: apsw.Connection, by: str, now: float) -> None:
    # Decided ones are kept for ever, and so is every commit that was asked for.
    before = approvals.asked_at(db, by, rules.MAX_ASKED_A_DAY)
    if by != OPERATOR and before is not None and now - DAY_S < before <= now:
        text = f"cannot ask for it: {by} has asked {rules.MAX_ASKED_A_DAY} times within a day; try tomorrow"
        raise Refused(ErrorCode.PRECONDITION_FAILED, text)
    for count, most, whose in (
        (approvals.count_pending_by(db, by), rules.MAX_PENDING_OF_ONE, f" of {by}"),
        (approvals.count_pending(db), rules.MAX_PENDING, ""),
    ):
        if count >= most:
            text = f"cannot ask for it: {most} requests{whose} wait for a decision; take one back first"
            raise Refused(ErrorCode.PRECONDITION_FAILED, text)


def _pin_or_fail(
    asked: Approval, sha: str | None, tag: str, error: str, now: float, db: apsw.Connection
) -> tuple[None, list[Letter]]:
    if sha is not None:
        approvals.pin(db, asked.id, sha, approvals.running_sha(db, asked.agent), tag)
    if not error:
        return None, []
    failed = approvals.advance(db, asked.id, Happening.FAIL, now, note=error)
    # Whoever still waits for the answer gets the error with it.
    return None, _told(failed) if error == GONE_AWAY else []


def _end(
    db: apsw.Connection,
    found: Sequence[Approval],
    happening: Happening,
    now: float,
    note: Callable[[Approval], str],
) -> tuple[list[Approval], list[Letter]]:
    ended = [approvals.advance(db, each.id, happening, now, note=note(each)) for each in found]
    return ended, [letter for each in ended for letter in _told(each)]


def _told(approval: Approval) -> list[Letter]:
    return resolution(replace(approval, tag=_last_tag(approval)))


def _expired(approval: Approval) -> str:
    waited_s = (approval.expires_at or approval.requested_at) - approval.requested_at
    return f"expired: nobody decided in {waited_s / 3600:.3g} h"


def _last_tag(approval: Approval) -> str | None:
    """Give the tag that its commit gets when it is denied or fails before it was approved."""
    proposed = approval.fetched_sha is not None and approval.tag == tag_of("proposal", approval.id)
    if proposed and approval.status in {Status.DENIED, Status.FAILED}:
        return tag_of(approval.status, approval.id)
    return approval.tag


def _id_or_failure(asked: Approval) -> int:
    """Give the id of what was asked for, also before; raise what came of it then, if that is what came."""
    if asked.status == Status.FAILED and asked.decided_by_uid is None:
        raise _not_taken_in(asked, asked.note or "")
    return asked.id


def _not_taken_in(asked: Approval, error: str) -> Refused:
    verb = "ask for" if asked.kind == Kind.SPAWN else "propose"
    ref = asked.commit_ref[:12] or ("" if verb == "ask for" else "what is proposed for ") + asked.agent
    text = f"cannot {verb} {ref}: {error} (approval {asked.id} has failed)"
    return Refused(ErrorCode.PRECONDITION_FAILED, text)


def _unknown(approval_id: int, verb: str) -> Refused:
    return Refused(ErrorCode.NOT_FOUND, f"cannot {verb} approval {approval_id}: there is no such approval")

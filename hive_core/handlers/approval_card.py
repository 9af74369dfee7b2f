"""What an operator sees of a request before deciding: computed from the commit, never from its words."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import UNSET

from hive_core.domain import consequences as rules
from hive_core.domain.agent import AgentRow
from hive_core.domain.approval import Approval, Kind
from hive_core.domain.declared import effective, manifest_over, overruled
from hive_core.domain.manifest import (
    MANIFEST_NAME,
    NIX_NAME,
    NOTHING,
    BadManifest,
    Manifest,
    restart_needed,
)
from hive_core.domain.visible import one_line, visible
from hive_core.handlers.approvals import approval_row
from hive_core.handlers.deps import Deps, Peer
from hive_core.host.git_output import Change
from hive_core.host.quarantine import BadProposal
from hive_core.machines import TROUBLE, describe
from hive_core.store import agents
from hive_core.store import approvals as rows
from hive_core.wire import approval as wire
from hive_core.wire.errors import ErrorCode, Refused

T = TypeVar("T")

# Together with the row they fit a line of host.sock, as JSON.
MAX_SHOWN_DIFF_BYTES: Final = 400 * 2**10
MAX_CONSEQUENCES_BYTES: Final = 200 * 2**10
MAX_FILES_BYTES: Final = 300 * 2**10


async def show(deps: Deps, _peer: Peer, request: wire.ShowApproval) -> wire.ApprovalReply:
    """Give the card of one.

    Raises:
        Refused: NOT_FOUND; PRECONDITION_FAILED, when what it is compared with is not there any more;
            UNAVAILABLE, when the repository cannot be read.
    """
    approval = await deps.applier.get(request.id)
    row = deps.applier.row_of(approval.agent)
    if approval.fetched_sha is None:
        return wire.ApprovalReply(
            # The digest is of what is compared here, whatever is deployed while we look.
            approval=approval_row(deps, approval, row.deployed_sha if row else None),
            consequences=_fitting([await _of_kind(deps, approval)]),
            files=[],
            restart="switch" if approval.kind == Kind.UPDATE_META_INPUTS else "none",
        )
    with _refused(approval):
        base = await _base_of(deps, approval, request.base, row)
        return await _of_commit(deps, approval, approval.fetched_sha, base, row, with_diff=request.diff)


async def _base_of(
    deps: Deps, approval: Approval, base: Literal["running", "approved", "previous"], row: AgentRow | None
) -> str | None:
    if base == "running":
        return row.deployed_sha if row else None
    find = rows.last_approved if base == "approved" else rows.previous
    found = await deps.store.read(find, approval.id)
    return found.fetched_sha if found else None


async def _of_commit(
    deps: Deps, approval: Approval, sha: str, base: str | None, row: AgentRow | None, *, with_diff: bool
) -> wire.ApprovalReply:
    agent, repositories = approval.agent, deps.repositories
    running = row.deployed_sha if row else None
    changes = await repositories.changes(agent, base, sha)
    why_bad: str | None = None
    after = NOTHING
    try:
        after = await deps.configurations.manifest_at(agent, sha)
    except (BadManifest, BadProposal) as error:
        why_bad = one_line(str(error))
    found: list[rules.Consequence] = []
    if why_bad is not None:
        found.append(rules.Consequence("manifest", f"its agent.toml cannot be used: {why_bad}", "danger"))
    if running is not None and not await repositories.contains(agent, running, sha):
        text = f"is not based on what runs ({running[:12]}): what only that has is undone"
        found.append(rules.Consequence("base", text, "danger"))
    if approval.kind != Kind.APPLY_COMMIT:
        found.append(await _of_kind(deps, approval))
    declaration = row.declaration if row else None
    if why_bad is None:
        before = await _manifest_or_nothing(deps, agent, base)
        found += rules.consequences(
            before and manifest_over(declaration, before), manifest_over(declaration, after), changes
        )
        found += rules.overruled(overruled(declaration, after))
    found.sort(key=lambda one: one.weight != "danger")
    first = {MANIFEST_NAME, NIX_NAME, after.prompt}
    files = [_file(change) for change in sorted(changes, key=lambda change: change.path not in first)]
    shown = _within(files, MAX_FILES_BYTES)
    diff, is_cut = await _diff(deps, agent, base, sha) if with_diff else (None, False)
    touched = changes if base == running else await repositories.changes(agent, running, sha)
    return wire.ApprovalReply(
        approval=approval_row(deps, approval, running),
        base_sha=base or UNSET,
        consequences=_fitting(found),
        files=shown,
        files_left_out=len(files) - len(shown),
        restart=_restart(deps, row, after, touched),
        diff=UNSET if diff is None else diff,
        diff_cut=is_cut,
        manifest=UNSET if why_bad is None else why_bad,
    )


async def _manifest_or_nothing(deps: Deps, agent: str, sha: str | None) -> Manifest | None:
    if sha is None:
        return None
    try:
        return await deps.configurations.manifest_at(agent, sha)
    except (BadManifest, BadProposal):
        return None  # all that the other one declares is new then


async def _of_kind(deps: Deps, approval: Approval) -> rules.Consequence:
    name = one_line(approval.agent)
    match approval.kind:
        case Kind.SPAWN:
            kept = any(row.name == approval.agent for row in await deps.store.read(agents.all_agents))
            source = "a template"
            if approval.fetched_sha is not None:
                was_run = await deps.repositories.main(approval.agent) == approval.fetched_sha
                source = "what it ran with before" if was_run else "what is proposed for it"
            state = ", with the state and the login that are kept of it" if kept else ""
            return rules.Consequence(
                "spawn", f"agent {name} is made from {source} and started{state}", "notice"
            )
        case Kind.INIT_CONFIG:
            return rules.Consequence("init_config", f"{name} gets a configuration to edit; nothing runs")
        case Kind.UPDATE_META_INPUTS:
            text = f"newer {_inputs_in(approval.commit_ref)}; every agent that they change is built anew"
            return rules.Consequence("inputs", text, "notice")
        case Kind.APPLY_COMMIT:
            text = "its commit has not been taken in: nobody knows what it would change"
            return rules.Consequence("commit", text, "danger")
        case unknown:
            text = f"this hive does not know what {one_line(unknown[:80])} is, and cannot do it"
            return rules.Consequence("unknown", text, "danger")


def _inputs_in(commit_ref: str) -> str:
    # The original wrote these too.
    try:
        names = json.loads(commit_ref)
    except ValueError:
        names = None
    if not isinstance(names, list):
        return f"inputs {one_line(commit_ref[:200])}"
    return ", ".join(one_line(str(name)[:80]) for name in names[:32])


def _restart(
    deps: Deps, row: AgentRow | None, after: Manifest, changes: Sequence[Change]
) -> Literal["none", "switch", "restart"]:
    if row is None:
        return "none"
    before, after = effective(row).manifest, manifest_over(row.declaration, after)
    if restart_needed(before, after, [change.path for change in changes]):
        return "restart"
    return "switch" if changes and deps.config().deploy.builder == "nix" else "none"


async def _diff(deps: Deps, agent: str, base: str | None, sha: str) -> tuple[str, bool]:
    raw, is_cut = await deps.repositories.diff(agent, base, sha, wire.MAX_DIFF_BYTES)
    text = visible(raw.decode(errors="surrogateescape"))
    while (size := len(msgspec.json.encode(text))) > MAX_SHOWN_DIFF_BYTES:
        text, is_cut = text[: len(text) * MAX_SHOWN_DIFF_BYTES // size], True
    return text, is_cut


def _file(change: Change) -> wire.FileChange:
    return wire.FileChange(
        path=one_line(change.path),
        change=change.change,
        added=change.added,
        removed=change.removed,
        binary=change.binary,
    )


def _fitting(found: Sequence[rules.Consequence]) -> list[wire.Consequence]:
    """Give the gravest, and say so where some are left out."""
    all_of_them = [wire.Consequence(kind=one.kind, text=one.text, weight=one.weight) for one in found]
    shown = _within(all_of_them, MAX_CONSEQUENCES_BYTES)
    if left_out := len(all_of_them) - len(shown):
        text = f"{left_out} more that are not shown: look at the diff"
        shown.append(wire.Consequence(kind="more", text=text, weight="danger"))
    return shown


def _within(items: Sequence[T], most_bytes: int) -> list[T]:
    """Give as many of *items*, from the first on, as take so many bytes of JSON."""
    size = 0
    for count, item in enumerate(items):
        size += len(msgspec.json.encode(item)) + 1
        if size > most_bytes:
            return list(items[:count])
    return list(items)


@contextmanager
def _refused(approval: Approval) -> Iterator[None]:
    try:
        yield
    except BadProposal as error:
        text = f"cannot show approval {approval.id}: {error}"
        raise Refused(ErrorCode.PRECONDITION_FAILED, text) from None
    except TROUBLE as error:
        text = f"cannot show approval {approval.id}: {describe(error)}"
        raise Refused(ErrorCode.UNAVAILABLE, text) from None

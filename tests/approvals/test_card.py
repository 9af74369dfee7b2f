"""What an operator sees, and what is approved with it, are of one and the same moment."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from hive_core.config import Config
from hive_core.domain import approval as rules
from hive_core.domain.agent import AgentRow
from hive_core.domain.approval import Approval, Kind, Status
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.handlers import approval_card
from hive_core.handlers.deps import Deps, Peer
from hive_core.wire import approval as wire
from tests.approvals.fake_repositories import FakeRepositories

APPROVAL = Approval(
    id=7,
    agent="bob",
    kind=Kind.APPLY_COMMIT,
    commit_ref="",
    requested_at=0.0,
    status=Status.PENDING,
    finished=False,
    proposer="manager",
)


async def test_what_is_deployed_while_a_card_is_made_is_not_approved_with_it() -> None:
    repositories = FakeRepositories()
    before = repositories.commit("bob", {"agent.toml": b""})
    sha = repositories.commit("bob", {"agent.toml": b"# new"})
    rows = {"bob": AgentRow("bob", Wanted.RUNNING, False, 0.0, deployed_sha=before)}

    async def get(_approval_id: int) -> Approval:
        return replace(APPROVAL, fetched_sha=sha)

    async def manifest_at(_agent: str, _sha: str) -> Manifest:
        # A deploy ends just now.
        rows["bob"] = replace(rows["bob"], deployed_sha="f" * 40)
        return NOTHING

    deps = SimpleNamespace(
        repositories=repositories,
        configurations=SimpleNamespace(manifest_at=manifest_at),
        applier=SimpleNamespace(get=get, row_of=rows.get, running_sha=lambda name: rows[name].deployed_sha),
        config=Config,
    )

    card = await approval_card.show(cast("Deps", deps), cast("Peer", None), wire.ShowApproval(id=7))

    shown: Any = card.approval.digest
    assert card.base_sha == before
    assert shown == rules.digest(replace(APPROVAL, fetched_sha=sha), before)
    assert shown != rules.digest(replace(APPROVAL, fetched_sha=sha), rows["bob"].deployed_sha)

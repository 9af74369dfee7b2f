"""Messages about approvals and deploys, an example of each with every field that it may have."""

from collections.abc import Mapping
from typing import Final

import msgspec

from hive_core.wire import approval

SHA: Final = "0123456789abcdef0123456789abcdef01234567"
BASE: Final = "89abcdef0123456789abcdef0123456789abcdef"

ROW: Final = approval.ApprovalRow(
    id=7,
    agent="bob",
    kind="apply_commit",
    commit_ref="0123456",
    fetched_sha=SHA,
    requested_at="2026-09-07T12:34:56Z",
    status="failed",
    resolved_at="2026-09-07T12:44:56Z",
    note="the build ended with exit status 1",
    description="a newer compiler",
    proposer="manager",
    base_sha=BASE,
    expires_at="2026-09-10T12:34:56Z",
    decided_by_uid=1000,
    tag="failed/7",
    finished=True,
    digest="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
)
SHORT_ROW: Final = approval.ApprovalRow(
    id=8, agent="carol", kind="spawn", commit_ref="", requested_at="2026-09-07T12:34:56Z", status="pending"
)
DEPLOY: Final = approval.DeployRow(
    id=5,
    agent="bob",
    kind="apply",
    step="failed",
    requested_at="2026-09-07T12:44:56Z",
    approval_id=7,
    sha=SHA,
    tag="failed/7",
    error="the build ended with exit status 1",
    started_at="2026-09-07T12:44:57Z",
    finished_at="2026-09-07T12:45:57Z",
    steps=[approval.StepRow(step="queued", at="2026-09-07T12:44:56Z")],
)

HOST: Final[Mapping[str, msgspec.Struct]] = {
    "pending": approval.Pending(),
    "pending.reply": approval.Approvals(approvals=[SHORT_ROW]),
    "pending.reply-none": approval.Approvals(approvals=[]),
    "approvals": approval.ApprovalsRequest(limit=5, agent="bob"),
    "approvals.reply": approval.Approvals(approvals=[ROW, SHORT_ROW]),
    "approval": approval.ShowApproval(id=7, base="previous", diff=True),
    "approval.reply": approval.ApprovalReply(
        approval=ROW,
        base_sha=BASE,
        consequences=[
            approval.Consequence(kind="network", text="its machine gets a link to the host's network"),
            approval.Consequence(kind="bind", text="/etc becomes writable for it", weight="danger"),
        ],
        files=[
            approval.FileChange(path="agent.toml", change="changed", added=2, removed=1),
            approval.FileChange(path="logo\\u{202e}.png", change="added", binary=True),
        ],
        files_left_out=3,
        restart="restart",
        diff="--- a/agent.toml\n+++ b/agent.toml\n",
        diff_cut=True,
        manifest="modell: there is no such key",
    ),
    "approval.reply-short": approval.ApprovalReply(
        approval=SHORT_ROW, consequences=[], files=[], restart="none"
    ),
    "approve": approval.Approve(id=7),
    "approve-seen": approval.Approve(
        id=7, digest="e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ),
    "deny": approval.Deny(id=7),
    "deny-note": approval.Deny(id=7, note="too much"),
    "request_spawn": approval.RequestSpawn(name="carol", description="reads the mail"),
    "request_spawn.reply": approval.Requested(id=8),
    "request_init_config": approval.RequestInitConfig(name="carol", description="reads the mail"),
    "request_apply_commit": approval.RequestApplyCommit(
        agent="bob", commit_ref="0123456", description="a newer compiler"
    ),
    "request_update_meta_inputs": approval.RequestUpdateInputs(inputs=["nixpkgs"], description="openssl"),
    "cancel_approval": approval.CancelApproval(id=7),
    "deploys": approval.Deploys(agent="bob", limit=5, follow=True),
    "deploys.reply": approval.DeploysReply(deploys=[DEPLOY]),
    "deploys.reply-lines": approval.DeploysReply(id=5, lines=["building …"]),
    "deploy_log": approval.DeployLog(id=5, lines=50),
    "deploy_log.reply": approval.DeployLogReply(lines=["building …"]),
    "rollback": approval.Rollback(agent="bob", tag="deployed/6"),
    "rollback.reply": approval.RollbackReply(id=6, tag="deployed/6"),
    "history": approval.History(agent="bob", limit=5),
    "history.reply": approval.HistoryReply(
        history=[
            approval.HistoryRow(
                tag="denied/6",
                sha=SHA,
                at="2026-09-07T12:34:56Z",
                subject="A newer compiler",
                note="too much",
                running=True,
            )
        ]
    ),
    "config": approval.ConfigRequest(name="bob"),
    "config.reply": approval.ConfigReply(path="/var/lib/hyperhive/configs/bob/config"),
    "tombstones": approval.Tombstones(),
    "tombstones.reply": approval.TombstonesReply(
        tombstones=[
            approval.TombstoneRow(
                name="bob", destroyed_at="2026-09-07T12:34:56Z", bytes=65536, has_credentials=True
            )
        ]
    ),
    "purge": approval.Purge(name="bob", confirm="bob"),
}

# What clients of the original write, byte for byte.
ORIGINAL: Final[Mapping[bytes, msgspec.Struct]] = {
    b'{"cmd":"pending"}': approval.Pending(),
    b'{"cmd":"approve","id":42}': approval.Approve(id=42),
    b'{"cmd":"deny","id":42}': approval.Deny(id=42),
    b'{"cmd":"approve","id":-9223372036854775808}': approval.Approve(id=-(2**63)),
    b'{"cmd":"request_spawn","name":"a"}': approval.RequestSpawn(name="a"),
}

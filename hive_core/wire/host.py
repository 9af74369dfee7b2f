"""What the operator may ask of the daemon on host.sock, and what comes back.

One JSON object per line.  A request is tagged by `cmd`.  Every reply carries `version` and `ok`;
optional keys are left out, never null.  Times are RFC 3339 in UTC with a Z.

The first group are the verbs of the original: clients of it send exactly these bytes.
"""

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire import allow, approval, dead, question, reminder, retention, rows, search, verb
from hive_core.wire.envelope import DECODE_ERRORS, explain, explain_request
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import AgentName, Label, RowId
from hive_core.wire.limits import MAX_CODE_CHARS, MAX_KEY_CHARS, MAX_LOG_LINES, MAX_ROWS
from hive_core.wire.machine import Check, ImageName, ImageRow, Percent, Size, Tasks, UsageRow
from hive_core.wire.rules import without_patterns

# Known by these names to everybody who speaks on host.sock.
Request = verb.Request
Reply = verb.Reply
Failure = verb.Failure
MessageRow = rows.MessageRow

# ── rows ────────────────────────────────────────────────────────────────────────────────────────


class AgentStatusRow(msgspec.Struct, frozen=True, kw_only=True):
    """One agent as the roster shows it.  The flags are orthogonal; the keys of the original come first."""

    name: str
    running: bool
    failed: bool
    needs_update: bool = False
    needs_login: bool = False
    deployed_sha: str | UnsetType = UNSET
    pending_reminders: int = 0
    paused: bool = False
    parent: str | UnsetType = UNSET
    active_model: str | UnsetType = UNSET
    status_text: str | UnsetType = UNSET
    status_set_at: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    wanted: str = "running"
    """What the operator asked for: `running`, `stopped`, or `gone` and `purged` until that is so."""
    connected: bool = False
    """The harness holds its control stream."""
    isolation: str = "none"
    """`nspawn`, or `none` in the local mode."""
    turn_state: str | UnsetType = UNSET
    turn_state_since: str | UnsetType = UNSET
    unread: int = 0
    pid: int | UnsetType = UNSET
    provider: str | UnsetType = UNSET
    failure: str | UnsetType = UNSET
    """Why it does not run, when it should: the last exit."""
    status: str | UnsetType = UNSET
    """What the harness says: `online`, `paused`, `rate_limited`, `needs_login_idle`, …"""
    effort: str | UnsetType = UNSET
    ctx_tokens: int | UnsetType = UNSET
    """How full the model's context is."""
    window_tokens: int | UnsetType = UNSET
    """How large it is."""
    machine: str | UnsetType = UNSET
    """systemd's name of its machine, where it has one."""
    allowed_recipients: list[str] | UnsetType = UNSET
    """To whom it may write beside the manager; absent: to anyone."""
    dead: int | UnsetType = UNSET
    """Messages to it that are handed out no more, since it failed over them too often."""
    transient: str | UnsetType = UNSET
    """What is being done to it: `starting`, `stopping`, `restarting`, `rebuilding` or `destroying`."""


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """An event of an agent.  *payload* depends on *kind*."""

    id: int
    ts: str
    kind: str
    payload: msgspec.Raw | dict[str, Any]


class Urls(msgspec.Struct, frozen=True, kw_only=True):
    domain: str | UnsetType = UNSET
    home: str | UnsetType = UNSET
    forge: str | UnsetType = UNSET
    matrix: str | UnsetType = UNSET


class LifecycleScope(msgspec.Struct, frozen=True, kw_only=True):
    """Which agents.  Empty without `all` is refused: in the original it meant everything."""

    agents: bool = False
    ci: bool = False
    forge: bool = False
    gateway: bool = False
    matrix: bool = False
    agent_names: list[AgentName] = []
    all: bool = False


# ── verbs of the original ───────────────────────────────────────────────────────────────────────


class List(Request, frozen=True, kw_only=True, tag="list"):
    """Names of the agents."""


class Agents(Reply, frozen=True, kw_only=True):
    agents: list[str]


class AgentStatus(Request, frozen=True, kw_only=True, tag="agent_status"):
    """The roster, a row per agent."""


class AgentStatuses(Reply, frozen=True, kw_only=True):
    agent_statuses: list[AgentStatusRow]


class SubscribeAgentStatus(Request, frozen=True, kw_only=True, tag="subscribe_agent_status"):
    """Follow the roster: a bare success, then one row per change.  A slow reader loses updates."""


class SetPaused(Request, frozen=True, kw_only=True, tag="set_paused"):
    """Hand out no message to an agent, or do so again.  At once, repeatable, also when it is stopped."""

    name: AgentName
    paused: bool


class Start(Request, frozen=True, kw_only=True, tag="start"):
    """Want the agents in scope to run; a failed one gets another chance.  Answers when recorded."""

    scope: LifecycleScope


class Stop(Request, frozen=True, kw_only=True, tag="stop"):
    """Want the agents in scope stopped; *graceful* lets a running turn end first.  Answers when recorded."""

    scope: LifecycleScope
    graceful: bool = False


class Restart(Request, frozen=True, kw_only=True, tag="restart"):
    """Stop one agent and start it again."""

    name: AgentName


class UrlsRequest(Request, frozen=True, kw_only=True, tag="urls"):
    """The hive's domain and browser addresses, as far as there are any."""


class UrlsReply(Reply, frozen=True, kw_only=True):
    urls: Urls


class Spawn(Request, frozen=True, kw_only=True, tag="spawn"):
    """Create an agent and want it to run.  Answers when recorded; `agent_status` shows when it does.

    What is left out is as the hive's configuration says, also later when that changes.
    """

    name: AgentName
    image: ImageName | None = None
    network: Literal["none", "veth"] | None = None
    memory: Size | None = None
    cpu: Percent | None = None
    tasks: Tasks | None = None


class Kill(Request, frozen=True, kw_only=True, tag="kill"):
    """The older CLI's word for a graceful stop of one agent."""

    name: AgentName


class Destroy(Request, frozen=True, kw_only=True, tag="destroy"):
    """Stop an agent and forget it.  Its state is kept, and a spawn of the same name takes it up again;
    with *purge* it is deleted."""

    name: AgentName
    purge: bool = False


# ── our verbs ───────────────────────────────────────────────────────────────────────────────────


class Send(Request, frozen=True, kw_only=True, tag="send"):
    """Send a message as the operator.  The answer means: on disk."""

    to: str
    body: str
    in_reply_to: RowId | None = None
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARS)] | None = None


class Sent(Reply, frozen=True, kw_only=True):
    id: int


class Inbox(Request, frozen=True, kw_only=True, tag="inbox"):
    """What an agent has not finished yet, or the newest messages to `operator`; oldest first.

    Looking leases nothing and writes nothing.
    """

    agent: str
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class MessagesRequest(Request, frozen=True, kw_only=True, tag="messages"):
    """All messages with an id above *since*, else the newest, oldest first."""

    since: RowId | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 50


class Why(Request, frozen=True, kw_only=True, tag="why"):
    """The chain of messages that led to this one, the first cause first."""

    id: RowId


class Messages(Reply, frozen=True, kw_only=True):
    messages: list[MessageRow]


class Events(Request, frozen=True, kw_only=True, tag="events"):
    """An agent's events with an id above *after*, else the newest; with *follow*, on and on."""

    agent: AgentName
    after: RowId | None = None
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100
    kinds: list[Label] | None = None
    follow: bool = False


class EventsReply(Reply, frozen=True, kw_only=True):
    """The rows asked for; when following, one row a line."""

    events: list[EventRow]


class Logs(Request, frozen=True, kw_only=True, tag="logs"):
    """The last lines of an agent's log; with *follow*, on and on."""

    agent: AgentName
    lines: Annotated[int, Meta(ge=1, le=MAX_LOG_LINES)] = 100
    follow: bool = False


class LogsReply(Reply, frozen=True, kw_only=True):
    lines: list[str]


class Watch(Request, frozen=True, kw_only=True, tag="watch"):
    """Follow the whole hive: a bare success, then a line per message, event or changed row."""

    agents: list[AgentName] | None = None


class WatchItem(Reply, frozen=True, kw_only=True):
    """One of `message`, `agent` with `event`, or `agent_statuses` with one row."""

    message: MessageRow | UnsetType = UNSET
    agent: str | UnsetType = UNSET
    event: EventRow | UnsetType = UNSET
    agent_statuses: list[AgentStatusRow] | UnsetType = UNSET


class CancelTurn(Request, frozen=True, kw_only=True, tag="cancel_turn"):
    """Interrupt an agent's running turn."""

    agent: AgentName


class NewSession(Request, frozen=True, kw_only=True, tag="new_session"):
    """Let an agent's next turn begin without the old conversation, once."""

    agent: AgentName


class SetModel(Request, frozen=True, kw_only=True, tag="set_model"):
    """Let an agent use a model from its next turn on."""

    agent: AgentName
    model: Label


class SetEffort(Request, frozen=True, kw_only=True, tag="set_effort"):
    """Let an agent's model think that hard from its next turn on; `default` leaves it to the provider."""

    agent: AgentName
    effort: Label


class Compact(Request, frozen=True, kw_only=True, tag="compact"):
    """Shorten an agent's conversation, after its running turn.  Answers when that is going to happen."""

    agent: AgentName


class Carried(Reply, frozen=True, kw_only=True):
    """The harness carried the command out; *text* is what it says about it."""

    text: str | UnsetType = UNSET


class LoginStart(Request, frozen=True, kw_only=True, tag="login_start"):
    """Begin a login of an agent, or find the open one, and give the page that a person must open."""

    agent: AgentName


class LoginUrl(Reply, frozen=True, kw_only=True):
    url: str


class LoginCode(Request, frozen=True, kw_only=True, tag="login_code"):
    """Give an agent's open login the code that the page showed."""

    agent: AgentName
    code: Annotated[str, Meta(min_length=1, max_length=MAX_CODE_CHARS)]


class LoginCancel(Request, frozen=True, kw_only=True, tag="login_cancel"):
    """End an agent's open login."""

    agent: AgentName


class Stats(Request, frozen=True, kw_only=True, tag="stats"):
    """What the turns took that an agent began in the last day, week or month."""

    agent: AgentName
    window: Literal["24h", "7d", "30d"] = "24h"


class TokenSums(msgspec.Struct, frozen=True, kw_only=True):
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_creation: int = 0


class Count(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    count: int


class StatsReply(Reply, frozen=True, kw_only=True):
    """Lists begin with what is most frequent."""

    since: str
    turns: int
    ok_turns: int
    """Those of them that ended well."""
    ok_rate: float | UnsetType = UNSET
    """Their share; absent when there was no turn."""
    compactions: int
    p50_seconds: float | UnsetType = UNSET
    """Half of the turns took no longer."""
    p95_seconds: float | UnsetType = UNSET
    tokens: TokenSums
    cost_usd: float
    """As far as the provider tells it."""
    ctx_max: int
    """Tokens of the fullest context."""
    tool_calls: int
    tools: list[Count]
    wake_from: list[Count]
    results: list[Count]
    models: list[Count]


class Rebuild(Request, frozen=True, kw_only=True, tag="rebuild"):
    """Stop one agent and start it again with everything as it is declared now.  Answers when recorded."""

    name: AgentName


class SetLimits(Request, frozen=True, kw_only=True, tag="set_limits"):
    """Limit an agent's machine, at once and from then on.  What is left out stays; null is the hive's own."""

    name: AgentName
    memory: Size | UnsetType | None = UNSET
    cpu: Percent | UnsetType | None = UNSET
    tasks: Tasks | UnsetType | None = UNSET


class MachineRequest(Request, frozen=True, kw_only=True, tag="machine"):
    """What an agent's machine has."""

    name: AgentName


class MachineReply(Reply, frozen=True, kw_only=True):
    """Keys are absent where the local mode has nothing of the kind."""

    name: str
    isolation: str
    machine: str | UnsetType = UNSET
    image: str | UnsetType = UNSET
    network: str | UnsetType = UNSET
    uid_base: int | UnsetType = UNSET
    """The host's uid of its root."""
    uid_count: int | UnsetType = UNSET
    memory_max_bytes: int | UnsetType = UNSET
    cpu_quota_percent: int | UnsetType = UNSET
    """100 is one processor."""
    tasks_max: int | UnsetType = UNSET
    addresses: list[str] = msgspec.field(default_factory=list)
    declared: list[str] | UnsetType = UNSET
    """Which of image, network, memory, cpu and tasks were said of this agent; the others are the hive's."""
    declared_in: str | UnsetType = UNSET
    """The file of the host that declares this agent; absent: none does."""


class Top(Request, frozen=True, kw_only=True, tag="top"):
    """What the running machines take."""


class TopReply(Reply, frozen=True, kw_only=True):
    monotonic_usec: int
    """When that was, on the host's clock that is never set."""
    usage: list[UsageRow]


class Doctor(Request, frozen=True, kw_only=True, tag="doctor"):
    """Look whether the host has what machines need."""


class DoctorReply(Reply, frozen=True, kw_only=True):
    checks: list[Check]


class Images(Request, frozen=True, kw_only=True, tag="images"):
    """The images that machines can be started from."""


class ImagesReply(Reply, frozen=True, kw_only=True):
    images: list[ImageRow]


class ImageRm(Request, frozen=True, kw_only=True, tag="image_rm"):
    """Delete an image that no agent uses."""

    name: ImageName


class Status(Request, frozen=True, kw_only=True, tag="status"):
    """The daemon's health."""


class StatusReply(Reply, frozen=True, kw_only=True):
    software: str
    mode: str
    """`nspawn` or `local`."""
    home: str
    pid: int
    started_at: str
    uptime_seconds: float
    agents: int
    running: int
    failed: int
    unread: int
    """Messages that no agent has taken yet."""
    messages: int
    questions: int | UnsetType = UNSET
    """Those that wait for the operator's answer."""
    approvals: int | UnsetType = UNSET
    """Requests that wait for the operator's decision."""
    dead: int | UnsetType = UNSET
    """Messages that are handed out no more."""
    schema: int
    database_bytes: int
    store: str
    """`ok`, or what went wrong at the last write."""
    connections: int
    rss_bytes: int
    vacuum: retention.Vacuumed | UnsetType = UNSET
    """The last sweep of what is old, or the first one while it runs."""


AnyRequest = (
    List
    | AgentStatus
    | SubscribeAgentStatus
    | SetPaused
    | Start
    | Stop
    | Restart
    | UrlsRequest
    | approval.Pending
    | approval.Approve
    | approval.Deny
    | Spawn
    | Kill
    | Destroy
    | Send
    | Inbox
    | MessagesRequest
    | Why
    | Events
    | Logs
    | Watch
    | CancelTurn
    | NewSession
    | SetModel
    | SetEffort
    | Compact
    | LoginStart
    | LoginCode
    | LoginCancel
    | Stats
    | Rebuild
    | SetLimits
    | MachineRequest
    | Top
    | Doctor
    | Images
    | ImageRm
    | question.Questions
    | question.Ask
    | question.Answer
    | question.CancelQuestion
    | reminder.Reminders
    | reminder.CancelReminder
    | reminder.RetryReminder
    | allow.Allow
    | dead.Dead
    | dead.DeadRetry
    | dead.DeadDrop
    | search.Thread
    | search.Search
    | retention.Vacuum
    | retention.BackupCreate
    | retention.Backups
    | retention.BackupVerify
    | retention.Export
    | retention.Import
    | approval.ApprovalsRequest
    | approval.ShowApproval
    | approval.RequestSpawn
    | approval.RequestInitConfig
    | approval.RequestApplyCommit
    | approval.RequestUpdateInputs
    | approval.CancelApproval
    | approval.Deploys
    | approval.DeployLog
    | approval.Rollback
    | approval.History
    | approval.ConfigRequest
    | approval.Tombstones
    | approval.Purge
    | Status
)

COMMANDS: Final[dict[str, type[Request]]] = {
    str(request.__struct_config__.tag): request for request in get_args(AnyRequest)
}

_REQUEST: Final[msgspec.json.Decoder[AnyRequest]] = msgspec.json.Decoder(AnyRequest)
_ANYTHING: Final = msgspec.json.Decoder()
_ENCODER: Final = msgspec.json.Encoder()


def decode_request(line: bytes) -> AnyRequest:
    """Read one line of host.sock.

    Raises:
        Refused: INVALID_ARGUMENT, naming what is wrong and where.
    """
    try:
        return _REQUEST.decode(line)
    except DECODE_ERRORS as error:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT, f"cannot read the request: {_explain(line, error)}"
        ) from None


def encode_line(reply: msgspec.Struct) -> bytes:
    return _ENCODER.encode(reply) + b"\n"


def _explain(line: bytes, error: Exception) -> str:
    try:
        request = _ANYTHING.decode(line)
    except msgspec.ValidationError:
        return explain(error)  # JSON, with a number that no field can hold
    except RecursionError:
        return "the line is nested too deeply"
    except DECODE_ERRORS as not_json:
        return f"the line is not JSON: {explain(not_json)}"
    return without_patterns(explain_request(request, "cmd", COMMANDS, error))

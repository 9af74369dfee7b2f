"""What an agent may ask of the daemon on its own socket, and what it gets.

A request is a map tagged by `type`; a result is a plain map.  Who asks is never in a request: it is
the socket that it came through.  Times are unix seconds and may carry a fraction.
"""

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire import agent_manager, agent_verb
from hive_core.wire.agent_verb import Key
from hive_core.wire.envelope import DECODE_ERRORS, MAX_EXPLAINED_BYTES, explain, explain_request
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR, AgentName, Label, RowId, UnixSeconds
from hive_core.wire.limits import (
    MAX_DEAD_REASON_CHARS,
    MAX_EVENT_BYTES,
    MAX_EVENT_DEPTH,
    MAX_LOG_LINES,
    MAX_PUBLISH_EVENTS,
    MAX_RECV_MESSAGES,
    MAX_REQUEST_BYTES,
    MAX_ROWS,
    MAX_SET_ASIDE,
    MAX_STATUS_CHARS,
)

# Known by these names to everybody who speaks on an agent's socket.
Request = agent_verb.Request
Result = agent_verb.Result


# ── messages ────────────────────────────────────────────────────────────────────────────────────


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A message as its recipient reads it."""

    id: int
    sender: str
    recipient: str
    body: str
    sent_at: float
    delivered_at: float | UnsetType = UNSET
    acked_at: float | UnsetType = UNSET
    in_reply_to: int | UnsetType = UNSET
    thread_id: int | UnsetType = UNSET
    redelivered: bool = False
    """It may have been handed out before, and worked on."""
    broadcast: bool = False
    """It went to everyone, so perhaps nothing needs doing."""


class Send(Request, frozen=True, kw_only=True, tag="send"):
    """Give *body* to an agent, to `operator`, or to `*`.  The result means: on disk.

    A repeat with the same *idempotency_key* returns the first id and stores nothing.
    """

    to: Annotated[
        str, Meta(description="Name of an agent, `operator` (the person), or `*` (every other agent).")
    ]
    body: Annotated[str, Meta(description="The text, at most 64 KiB; for more, send the path of a file.")]
    in_reply_to: Annotated[RowId, Meta(description="Id of the message that this one answers.")] | None = None
    idempotency_key: Key | None = None


class Sent(Result, frozen=True, kw_only=True):
    id: int


class Recv(Request, frozen=True, kw_only=True, tag="recv"):
    """Take the oldest messages, waiting up to *wait_seconds* (capped at 180) for the first.

    They are leased to the caller, and stay so until they are acked or requeued.
    """

    wait_seconds: (
        Annotated[float, Meta(ge=0, description="How long to wait; without it the answer comes at once.")]
        | None
    ) = None
    max: Annotated[int, Meta(ge=1, le=MAX_RECV_MESSAGES, description="How many to take at most.")] = 1


class Messages(Result, frozen=True, kw_only=True):
    messages: list[Message]


class AckTurn(Request, frozen=True, kw_only=True, tag="ack_turn"):
    """Mark as done what was handed out since the last ack; with *ids*, only these.

    What was taken over MCP in the turn that began with one of *ids* is done with it.
    """

    ids: list[RowId] | None = None


class Acked(Result, frozen=True, kw_only=True):
    acked: int


class RequeueInflight(Request, frozen=True, kw_only=True, tag="requeue_inflight"):
    """Make what was handed out and not acked deliverable again, flagged redelivered.

    A harness sends it first when it starts.  With *failed* a turn failed over it, or a harness before this
    one died with it: what turns began with is counted, and after too many failures it is dead.
    """

    failed: bool = False


class Requeued(Result, frozen=True, kw_only=True):
    requeued: int


class SetAside(Request, frozen=True, kw_only=True, tag="set_aside"):
    """Let messages that were handed out and not acked be dead: nothing good comes of handing them out again.

    The operator sees *reason*, and may have them retried.
    """

    ids: Annotated[list[RowId], Meta(min_length=1, max_length=MAX_SET_ASIDE)]
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_DEAD_REASON_CHARS)]


class InboxStatus(Request, frozen=True, kw_only=True, tag="inbox_status"):
    """How many messages wait."""


class Unread(Result, frozen=True, kw_only=True):
    unread: int


class Recent(Request, frozen=True, kw_only=True, tag="recent"):
    """The newest messages addressed to this agent, oldest first.  Leases nothing."""

    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 30


class Wake(Request, frozen=True, kw_only=True, tag="wake"):
    """Put a message with a source label of the caller's choice into the caller's own inbox."""

    from_: Label = msgspec.field(name="from")
    body: str


class RequestNextTurn(Request, frozen=True, kw_only=True, tag="request_next_turn"):
    """Have another turn as soon as this one has ended: a message from `self` that says `continue`.

    When messages are pending, they begin the next turn and nothing is added.
    """


class NextTurn(Result, frozen=True, kw_only=True):
    id: int | UnsetType = UNSET
    """What the next turn begins with; left out when that is a message which is pending."""


class OperatorMsg(Request, frozen=True, kw_only=True, tag="operator_msg"):
    """Put a message from `operator` into the caller's own inbox (an agent's own web page does that)."""

    body: str


# ── questions and open threads ──────────────────────────────────────────────────────────────────


class Ask(Request, frozen=True, kw_only=True, tag="ask"):
    """Ask the operator or another agent a question, without waiting for the answer.

    The answer comes as a message from `system`: `{"event": "question_answered", "id": …, "answer": …}`.
    Of this, `answer`, `cancel_thread` and `remind`, a repeat with the same *idempotency_key* does nothing
    again and gives what the first one gave.
    """

    question: Annotated[str, Meta(description="The question, at most 8 KiB.")]
    options: Annotated[
        list[str], Meta(description="Answers to choose from; any other may be given as well.")
    ] = msgspec.field(default_factory=list)
    multi: Annotated[bool, Meta(description="Several options may be chosen.")] = False
    ttl_seconds: (
        Annotated[float, Meta(gt=0, description="After this time, at most 6 h, the answer is `[expired]`.")]
        | None
    ) = None
    to: Annotated[str, Meta(description="Name of an agent, or `operator` (the person).")] = OPERATOR
    idempotency_key: Key | None = None


class Asked(Result, frozen=True, kw_only=True):
    id: int


class Answer(Request, frozen=True, kw_only=True, tag="answer"):
    """Answer a question that was asked of this agent."""

    id: Annotated[RowId, Meta(description="The id that the question came with.")]
    answer: Annotated[str, Meta(description="One of its options, or any other text.")]
    idempotency_key: Key | None = None


class OpenThreads(Request, frozen=True, kw_only=True, tag="open_threads"):
    """What this agent waits for, and what waits for it; the oldest first.  The manager sees all questions
    and approvals.
    """


class OpenThread(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    kind: str
    """`question`, `reminder` or `approval`."""
    id: int
    text: str
    since: float
    asker: str | UnsetType = UNSET
    """Who asked the question, or for the approval."""
    asked_of: str | UnsetType = UNSET
    """Who is to answer it."""
    due_at: float | UnsetType = UNSET


class Threads(Result, frozen=True, kw_only=True):
    threads: list[OpenThread]
    unread: int
    """Messages that wait."""


class CancelThread(Request, frozen=True, kw_only=True, tag="cancel_thread"):
    """End a question that this agent asked, or drop one of its reminders or requests for approval."""

    kind: Literal["question", "reminder", "approval"]
    id: RowId
    idempotency_key: Key | None = None


class Remind(Request, frozen=True, kw_only=True, tag="remind"):
    """Leave a message for yourself that comes later, from `reminder`."""

    message: Annotated[str, Meta(description="What to be reminded of; above 4 KiB it comes as a file.")]
    delay_seconds: (
        Annotated[float, Meta(ge=0, description="How long from now; this or at_unix_timestamp.")] | None
    ) = None
    at_unix_timestamp: (
        Annotated[float, Meta(ge=0, description="When, as unix seconds; this or delay_seconds.")] | None
    ) = None
    file_path: (
        Annotated[
            str,
            Meta(
                description="A file below your state directory to put the text into, instead of the message."
            ),
        ]
        | None
    ) = None
    idempotency_key: Key | None = None


class Reminded(Result, frozen=True, kw_only=True):
    id: int
    due_at: float


class CountPendingReminders(Request, frozen=True, kw_only=True, tag="count_pending_reminders"):
    """How many reminders this agent has left for itself."""


class PendingReminders(Result, frozen=True, kw_only=True):
    pending: int


# ── about oneself ───────────────────────────────────────────────────────────────────────────────


class Whoami(Request, frozen=True, kw_only=True, tag="whoami"):
    """The name that the daemon knows the caller by."""


class Identity(Result, frozen=True, kw_only=True):
    name: str
    role: str
    version: str


class SetStatus(Request, frozen=True, kw_only=True, tag="set_status"):
    """Show *text* on this agent's row; an empty one removes it."""

    text: Annotated[str, Meta(max_length=MAX_STATUS_CHARS, description="A few words on what you are doing.")]


class Logs(Request, frozen=True, kw_only=True, tag="logs"):
    """The last lines of this agent's own log; for the manager, of any agent's."""

    lines: Annotated[int, Meta(ge=1, le=MAX_LOG_LINES, description="How many lines.")] = 100
    name: Annotated[AgentName, Meta(description="Of this agent, instead of your own.")] | None = None
    """Only the manager may say it."""


class LogLines(Result, frozen=True, kw_only=True):
    lines: list[str]


class Done(Result, frozen=True, kw_only=True):
    """Nothing to say but that it is done."""


# ── for the harness alone ───────────────────────────────────────────────────────────────────────


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the agent's own event file; its id is the cursor.  *payload* is plain JSON."""

    id: RowId
    ts: UnixSeconds
    kind: Label
    payload: dict[str, Any] = {}


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What holds now in the harness; the daemon shows it on the agent's row."""

    turn_state: Label = "idle"
    turn_state_since: UnixSeconds = 0.0
    status: Label = "online"
    provider: Label | None = None
    model: Label | None = None
    effort: Label | None = None
    ctx_tokens: int | None = None
    """How full the model's context is."""
    window_tokens: int | None = None
    """How large it is."""


class Publish(Request, frozen=True, kw_only=True, tag="publish"):
    """Show events live.  They are in the agent's file already; a repeated id is ignored."""

    events: Annotated[list[Event], Meta(max_length=MAX_PUBLISH_EVENTS)] = msgspec.field(default_factory=list)
    now: Snapshot | None = None


class SubscribeControl(Request, frozen=True, kw_only=True, tag="subscribe_control"):
    """Open the stream of commands to the harness.  One holds it: a second one ends the first."""


class CancelTurn(Request, frozen=True, kw_only=True, tag="cancel_turn"):
    """Item of the control stream: interrupt the running turn."""

    id: int


class NewSession(Request, frozen=True, kw_only=True, tag="new_session"):
    """Item of the control stream: the next turn begins without the old conversation, once."""

    id: int


class SetModel(Request, frozen=True, kw_only=True, tag="set_model"):
    """Item of the control stream: use *model* from the next turn on and remember it."""

    id: int
    model: str


class SetEffort(Request, frozen=True, kw_only=True, tag="set_effort"):
    """Item of the control stream: let the model think that hard from the next turn on and remember it.

    `default` leaves it to the provider.
    """

    id: int
    effort: str


class Compact(Request, frozen=True, kw_only=True, tag="compact"):
    """Item of the control stream: shorten the conversation, after the running turn if there is one."""

    id: int


class LoginStart(Request, frozen=True, kw_only=True, tag="login_start"):
    """Item of the control stream: begin a login and answer with the page that a person must open."""

    id: int


class LoginCode(Request, frozen=True, kw_only=True, tag="login_code"):
    """Item of the control stream: give the open login the code that the page showed."""

    id: int
    code: str


class LoginCancel(Request, frozen=True, kw_only=True, tag="login_cancel"):
    """Item of the control stream: end the open login."""

    id: int


class SetPaused(Request, frozen=True, kw_only=True, tag="set_paused"):
    """Item of the control stream: whether the operator has paused this agent.  The stream begins with one."""

    id: int
    paused: bool


class Quiesce(Request, frozen=True, kw_only=True, tag="quiesce"):
    """Item of the control stream: finish the running turn, take no other, then say so."""

    id: int


Command = (
    CancelTurn
    | NewSession
    | SetModel
    | SetEffort
    | Compact
    | LoginStart
    | LoginCode
    | LoginCancel
    | SetPaused
    | Quiesce
)


class ControlDone(Request, frozen=True, kw_only=True, tag="control_done"):
    """Command *id* of the control stream was carried out, or could not be."""

    id: RowId
    ok: bool
    text: str | None = None


AnyRequest = (
    Send
    | Recv
    | AckTurn
    | RequeueInflight
    | SetAside
    | InboxStatus
    | Recent
    | Wake
    | RequestNextTurn
    | OperatorMsg
    | Ask
    | Answer
    | OpenThreads
    | CancelThread
    | Remind
    | CountPendingReminders
    | Whoami
    | SetStatus
    | Logs
    | Publish
    | SubscribeControl
    | ControlDone
    | agent_manager.RequestSpawn
    | agent_manager.RequestInitConfig
    | agent_manager.RequestApplyCommit
    | agent_manager.RequestUpdateInputs
    | agent_manager.OpenConfig
    | agent_manager.ListApprovals
    | agent_manager.ListAgents
    | agent_manager.Kill
    | agent_manager.Start
    | agent_manager.Restart
    | agent_manager.Update
)

TYPES: Final[dict[str, type[Request]]] = {
    str(request.__struct_config__.tag): request for request in get_args(AnyRequest)
}

_REQUEST: Final[msgspec.msgpack.Decoder[AnyRequest]] = msgspec.msgpack.Decoder(AnyRequest)
_ANYTHING: Final = msgspec.msgpack.Decoder()
_COMMAND: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command)


def decode_request(raw: msgspec.Raw | bytes) -> AnyRequest:
    """Read the request inside a call.

    Raises:
        Refused: INVALID_ARGUMENT, naming the request and the field.
    """
    size = len(memoryview(raw))
    if size > MAX_REQUEST_BYTES:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT,
            f"cannot read the request: it has {size} bytes, the limit is {MAX_REQUEST_BYTES}",
        )
    try:
        request = _REQUEST.decode(raw)
    except DECODE_ERRORS as error:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT, f"cannot read the request: {_explain(raw, error)}"
        ) from None
    if isinstance(request, Publish):
        for event in request.events:
            _check_payload(event)
    return request


def decode_command(raw: msgspec.Raw | bytes) -> Command:
    """Read an item of the control stream.

    Raises:
        msgspec.ValidationError: this harness does not know it.
    """
    return _COMMAND.decode(raw)


def _explain(raw: msgspec.Raw | bytes, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if len(memoryview(raw)) > MAX_EXPLAINED_BYTES:
        return explain(error)
    try:
        request = _ANYTHING.decode(raw)
    except DECODE_ERRORS:
        return explain(error)
    return explain_request(request, "type", TYPES, error)


def _check_payload(event: Event) -> None:
    """Msgpack can hold what JSON cannot (extension types, maps with any key), and whoever shows the
    event as JSON later would fail on it, with other agents' events in the same batch.
    """
    try:
        size = len(msgspec.json.encode(event.payload))
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT, f"cannot publish event {event.id}: its payload is not JSON: {error}"
        ) from None
    if size > MAX_EVENT_BYTES:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT,
            f"cannot publish event {event.id}: its payload is {size} bytes, the limit is {MAX_EVENT_BYTES}",
        )
    level: list[Any] = [event.payload]
    for _ in range(MAX_EVENT_DEPTH):
        level = [
            child
            for value in level
            for child in (value.values() if isinstance(value, dict) else value)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise Refused(
        ErrorCode.INVALID_ARGUMENT,
        f"cannot publish event {event.id}: its payload is nested deeper than {MAX_EVENT_DEPTH} levels",
    )

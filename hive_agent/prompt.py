"""The text that wakes a model: who wrote what, and what it should know about it."""

from typing import Final

import msgspec
from msgspec import UNSET

from hive_core.wire.agent import Message
from hive_core.wire.ids import MANAGER, OPERATOR, REMINDER, SELF, SYSTEM, why_no_agent_name
from hive_core.wire.limits import MAX_RECV_MESSAGES

_SENDERS: Final = {
    SELF: "You asked for this turn yourself.",
    SYSTEM: "It comes from the daemon that runs the hive: no answer is expected.",
    REMINDER: "It is a reminder that you set: no answer is expected.",
}
_EVENTS: Final = {
    "question_asked": "Somebody asks you a question: answer it with the tool answer and the question's id.",
    "question_answered": "It is the answer to a question that you asked.",
    "approval_resolved": "A request for approval was decided, or what it asked for has failed: status and "
    "note say how. Tell whoever wanted it.",
    "config_ready": "An agent's configuration to begin with is there: edit, commit, and request_spawn.",
    "spawned": "A new agent is there. Where ok is false it did not come up, and note says why.",
    "rebuilt": "An agent runs with what is declared now. Where ok is false it does not, and note says why.",
    "killed": "An agent was stopped, which somebody wanted: nothing needs doing unless it surprises you.",
    "destroyed": "An agent is gone, which the operator wanted: nothing needs doing.",
    "container_crash": "An agent's machine ended and nobody had asked for it: get_logs with its name may say "
    "why. It is started again unless it has failed too often.",
    "needs_login": "An agent has no login: only the operator can give it one.",
    "logged_in": "An agent has its login: greet it if it is new.",
    "needs_update": "An agent runs with something else than what is declared now: update ends that, when it "
    "can do without the agent for a moment.",
    "declaration_failed": "The host's configuration declares an agent as it cannot be: its note says why; "
    "only the operator can change that.",
    "peer_refused": "A process that is not the agent's knocked at its socket: tell the operator if it "
    "goes on.",
    "message_dead": "An agent failed over a message too often, and it is handed out no more: look why.",
}
_OUTSIDE: Final = "It comes from outside the hive, under a label that nobody can write to."


def render_wake_prompt(message: Message, unread: int) -> str:
    heading = f"Message {message.id} from {message.sender}"
    if message.in_reply_to is not UNSET:
        heading += f", in reply to message {message.in_reply_to}"
    return "\n".join([heading + ":", "", message.body, *(f"\n({hint})" for hint in _hints(message, unread))])


def _hints(message: Message, unread: int) -> list[str]:
    hints = []
    if message.sender == SYSTEM and (event := _event_of(message.body)) in _EVENTS:
        hints.append(_EVENTS[event])
    elif message.sender in _SENDERS:
        hints.append(_SENDERS[message.sender])
    elif message.sender not in {OPERATOR, MANAGER} and why_no_agent_name(message.sender) is not None:
        hints.append(_OUTSIDE)
    if message.redelivered:
        hints.append(
            "This message was handed out before: it may already have been handled. "
            "Check before you do anything a second time."
        )
    if message.broadcast:
        hints.append("This message went to everyone: no action may be needed.")
    if unread > 0:
        drain = f"recv(max={min(unread, MAX_RECV_MESSAGES)})"
        plural = "message is" if unread == 1 else "messages are"
        hints.append(f"{unread} more {plural} pending: {drain} hands them out now, or they come one by one.")
    return hints


class _Event(msgspec.Struct, frozen=True):
    event: str


def _event_of(body: str) -> str:
    """What the daemon tells of; the original and later ones may tell of other things, and otherwise."""
    try:
        return msgspec.json.decode(body, type=_Event).event
    except (msgspec.MsgspecError, RecursionError):
        return ""

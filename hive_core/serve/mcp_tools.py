"""The tools that an agent's model may call: requests of the agent socket, described and told for a model.

Names and arguments are those of the original.  What an argument may be, and what it means, stands in the
request's struct; here is only what a model needs beyond that.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from hive_core.domain.clock import rfc3339
from hive_core.domain.visible import one_line
from hive_core.handlers.deps import Role
from hive_core.handlers.routes import ROUTES
from hive_core.wire import agent, agent_manager
from hive_core.wire.envelope import DECODE_ERRORS, explain
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_KEY_CHARS

KEY_META: Final = "hyperhive/key"
"""In a call's `_meta`: the caller's word that a repeat with the same text is the same call."""
TOOL_USE_META: Final = "claudecode/toolUseId"

_JS_SAFE: Final = 2**53

Render = Callable[[Any], str]


@dataclass(frozen=True)
class Tool:
    """*advice* follows what the request's docstring says; *render* puts the result into words."""

    name: str
    request: type[agent.Request]
    render: Render
    advice: str = ""
    reads_only: bool = False
    managers: frozenset[str] = frozenset()
    """Arguments that only the manager's has."""

    def of(self, role: Role) -> "Tool":
        """Give the tool as *role* has it."""
        return self if role is not Role.MANAGER else replace(self, managers=frozenset())

    @property
    def description(self) -> str:
        said = re.sub(r"\*(\w+)\*", r"`\1`", (self.request.__doc__ or "").partition("\n\n")[0])
        return " ".join(f"{said} {self.advice}".split())

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments, whole in itself."""
        whole = _schema_of(self.request)
        shown = {name: schema for name, schema in whole["properties"].items() if name not in self.managers}
        return whole | {"properties": shown}

    def read(self, arguments: Mapping[str, Any], meta: Mapping[str, Any]) -> agent.Request:
        """Give the request that a call with *arguments* means.

        Raises:
            Refused: INVALID_ARGUMENT, naming the argument.
        """
        known = self.schema["properties"]
        for name in arguments:
            if name not in known:
                raise Refused(ErrorCode.INVALID_ARGUMENT, self._explain_unknown(name, list(known)))
        # Some clients write null for what their model left out; none of ours means anything by it.
        given = {name: value for name, value in arguments.items() if value is not None}
        try:
            request = msgspec.convert(given | {"type": _tag_of(self.request)}, self.request)
        except DECODE_ERRORS as error:
            text = f"cannot call {self.name}: {explain(error)}"
            raise Refused(ErrorCode.INVALID_ARGUMENT, text) from None
        if "idempotency_key" in request.__struct_fields__:
            key = _idempotency_key(meta, request)
            return msgspec.structs.replace(request, idempotency_key=key)
        return request

    def _explain_unknown(self, name: str, known: list[str]) -> str:
        near = difflib.get_close_matches(name[:40], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
        return f"cannot call {self.name}: there is no argument {name[:40]!r}; {hint}"


class Annotations(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    read_only_hint: bool
    destructive_hint: bool = False
    open_world_hint: bool = False


class ListedTool(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A tool as tools/list shows it."""

    name: str
    description: str
    input_schema: dict[str, Any]
    annotations: Annotations


@cache
def tools_for(role: Role) -> Mapping[str, Tool]:
    """The tools that *role* may call, by name."""
    return {tool.name: tool.of(role) for tool in TOOLS if ROUTES[tool.request].admits(role)}


@cache
def listed_for(role: Role) -> list[ListedTool]:
    return [
        ListedTool(
            name=tool.name,
            description=tool.description,
            input_schema=tool.schema,
            annotations=Annotations(read_only_hint=tool.reads_only),
        )
        for tool in tools_for(role).values()
    ]


# ── results as a model reads them ───────────────────────────────────────────────────────────────


def render_messages(result: agent.Messages) -> str:
    return "\n\n".join(map(_render_message, result.messages)) or "(empty)"


def _render_message(message: agent.Message) -> str:
    answers = "" if message.in_reply_to is UNSET else f' in_reply_to="{message.in_reply_to}"'
    # A body cannot end its own element, and so cannot speak in another one's name.
    body = message.body.replace("</message", "&lt;/message")
    text = f'<message id="{message.id}" from="{_attribute(message.sender)}"{answers}>\n{body}\n</message>'
    if message.redelivered:
        text += (
            f"\n(Message {message.id} was handed out before: it may already have been handled. "
            "Check before you do anything a second time.)"
        )
    if message.broadcast:
        text += f"\n(Message {message.id} went to everyone: no action may be needed.)"
    return text


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _render_sent(result: agent.Sent) -> str:
    return f"Accepted as message {result.id}."


def _render_identity(result: agent.Identity) -> str:
    return f"You are {result.name}, {result.role} in this hive (hyperhive {result.version})."


def _render_lines(result: agent.LogLines) -> str:
    return "\n".join(result.lines) or "(empty)"


def _render_next_turn(result: agent.NextTurn) -> str:
    if isinstance(result.id, UnsetType):
        return "Messages are pending: they begin your next turn when this one ends."
    return f"Your next turn begins when this one ends, with message {result.id} from self."


def _render_asked(result: agent.Asked) -> str:
    return f"Asked as question {result.id}. The answer comes as a message from system."


def _render_reminded(result: agent.Reminded) -> str:
    due = rfc3339(result.due_at, fraction=False)
    return f"Reminder {result.id} comes at {due} as a message from reminder."


def _render_threads(result: agent.Threads) -> str:
    threads = [f"{thread.kind} {thread.id}{_parties(thread)}: {thread.text}" for thread in result.threads]
    waiting = "1 message waits" if result.unread == 1 else f"{result.unread} messages wait"
    return "\n".join([*threads, f"{waiting} to be taken."])


def _render_requested(result: agent_manager.Requested) -> str:
    return f"Approval {result.id} waits for the operator. What becomes of it comes as a message from system."


def _render_agents(result: agent_manager.Agents) -> str:
    return "\n".join(map(_render_agent, result.agents)) or "(none)"


def _render_agent(brief: agent_manager.AgentBrief) -> str:
    flags = {
        "failed": brief.failed,
        "paused": brief.paused,
        "needs an update": brief.needs_update,
        "needs a login": brief.needs_login,
    }
    state = "running" if brief.running else "stopped"
    words = [state if isinstance(brief.transient, UnsetType) else brief.transient]
    words += [flag for flag, holds in flags.items() if holds]
    if not isinstance(brief.deployed_sha, UnsetType):
        tag = "" if isinstance(brief.deployed_tag, UnsetType) else f"{brief.deployed_tag} "
        words.append(f"runs {tag}({brief.deployed_sha[:12]})")
    if brief.unread:
        words.append(f"{brief.unread} unread")
    if not isinstance(brief.failure, UnsetType):
        words.append(f"last exit: {_quote(brief.failure)}")
    if not isinstance(brief.status_text, UnsetType):
        words.append(f"says: {_quote(brief.status_text)}")
    return f"{brief.name}: {', '.join(words)}"


def _render_approvals(result: agent_manager.Approvals) -> str:
    return "\n".join(map(_render_approval, result.approvals)) or "(none)"


def _render_approval(brief: agent_manager.ApprovalBrief) -> str:
    words = [f"approval {brief.id}: {brief.kind}"]
    if brief.agent:
        words.append(f"of {brief.agent}")
    if not isinstance(brief.sha, UnsetType):
        words.append(f"at {one_line(brief.sha)[:64]}")
    words.append(f"by {brief.proposer}: {brief.status}")
    if brief.in_work:
        words.append("and being carried out")
    if not isinstance(brief.tag, UnsetType):
        words.append(f"as {brief.tag}")
    text = " ".join(words)
    if not isinstance(brief.description, UnsetType):
        text += f"; for: {_quote(brief.description)}"
    if not isinstance(brief.note, UnsetType):
        text += f"; note: {_quote(brief.note)}"
    return text


def _quote(text: str) -> str:
    """Keep what others wrote on its line and in its quotes, so that it says nothing in our name."""
    return '"' + one_line(text).replace('"', "'") + '"'


def _parties(thread: agent.OpenThread) -> str:
    if isinstance(thread.asker, UnsetType) or isinstance(thread.asked_of, UnsetType):
        return ""
    return f" ({thread.asker} asks {thread.asked_of})"


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


def _idempotency_key(meta: Mapping[str, Any], request: agent.Request) -> str | None:
    """A key for what its caller may repeat, in a space that no other caller's key is in."""
    key = meta.get(KEY_META)
    if isinstance(key, str) and key:
        return f"mcp:{key}" if len(key) <= MAX_KEY_CHARS - 8 else f"mcp#{_digest(key)}"
    tool_use = meta.get(TOOL_USE_META)
    if isinstance(tool_use, str) and tool_use:
        # Not by the id alone: some backends count from 0 in every conversation.
        return f"tool#{_digest(tool_use, *_words_of(request))}"
    return None


def _words_of(request: agent.Request) -> tuple[str, ...]:
    if isinstance(request, agent.Send):
        # Not its encoding: an older daemon may have had the call that is repeated now.
        return request.to, str(request.in_reply_to), request.body
    return (msgspec.json.encode(request).decode(),)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()


def _tag_of(request: type[agent.Request]) -> str:
    return str(request.__struct_config__.tag)


@cache
def _schema_of(request: type[agent.Request]) -> dict[str, Any]:
    whole = msgspec.json.schema(request)
    schema: dict[str, Any] = _plain(whole, whole["$defs"])
    del schema["title"]
    schema.pop("description", None)
    for name in ("type", "idempotency_key"):
        schema["properties"].pop(name, None)
    required = [name for name in schema.pop("required") if name in schema["properties"]]
    return schema | ({"required": required} if required else {}) | {"additionalProperties": False}


def _plain(node: Any, defs: Mapping[str, Any]) -> Any:
    """Give *node* without references, without the null that stands for an absent argument, without bounds
    that no client's numbers can hold, and with patterns as JavaScript reads them too.
    """
    if isinstance(node, list):
        return [_plain(child, defs) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _plain(defs[node["$ref"].rpartition("/")[2]], defs)
    plain = {
        key: _plain(value, defs)
        for key, value in node.items()
        if key != "$defs" and not (key in {"minimum", "maximum"} and abs(value) >= _JS_SAFE)
    }
    if isinstance(plain.get("pattern"), str):
        plain["pattern"] = re.sub(r"\\Z\Z", "$", plain["pattern"])
    if plain.get("default", ...) is None:
        del plain["default"]
    choices = [choice for choice in plain.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        del plain["anyOf"]
        plain |= choices[0]
    return plain


TOOLS: Final = (
    Tool(
        "recv",
        agent.Recv,
        render_messages,
        "Messages reach you by themselves, one a turn; call this to take more of them within a turn. "
        "With wait_seconds=180 it is the way to wait, for an answer as much as for time to pass. "
        "What you take counts as handled when your turn ends well.",
    ),
    Tool(
        "send",
        agent.Send,
        _render_sent,
        "To answer a message, send to whom it is from and give its id as in_reply_to.",
    ),
    Tool(
        "ask",
        agent.Ask,
        _render_asked,
        "Go on with your work meanwhile, or end your turn: the answer begins a new one.",
    ),
    Tool("answer", agent.Answer, lambda _result: "Answered."),
    Tool(
        "remind",
        agent.Remind,
        _render_reminded,
        "Better than waiting, when there is nothing to do until then.",
    ),
    Tool("get_open_threads", agent.OpenThreads, _render_threads, reads_only=True),
    Tool("cancel_thread", agent.CancelThread, lambda _result: "Cancelled."),
    Tool("whoami", agent.Whoami, _render_identity, reads_only=True),
    Tool("get_logs", agent.Logs, _render_lines, reads_only=True, managers=frozenset({"name"})),
    Tool("set_status", agent.SetStatus, lambda _result: "Done.", "The operator sees it."),
    Tool(
        "request_next_turn",
        agent.RequestNextTurn,
        _render_next_turn,
        "Call it when there is more to do than fits this turn.",
    ),
    Tool(
        "request_spawn",
        agent_manager.RequestSpawn,
        _render_requested,
        "Say in the description who wants it and for what. To have its configuration reviewed before "
        "anything runs, call request_init_config first.",
    ),
    Tool(
        "request_init_config",
        agent_manager.RequestInitConfig,
        _render_requested,
        "When it was approved, config_ready comes from system: edit and commit what is there, then call "
        "request_spawn.",
    ),
    Tool(
        "request_apply_commit",
        agent_manager.RequestApplyCommit,
        _render_requested,
        "Commit first, and read your own diff: the operator decides on exactly that commit. A later commit "
        "needs a request of its own.",
    ),
    Tool(
        "open_config",
        agent_manager.OpenConfig,
        lambda _result: "It is there, as NAME/config among the proposed configurations.",
        "Call it before you edit the configuration of an agent for the first time.",
    ),
    Tool("request_update_meta_inputs", agent_manager.RequestUpdateInputs, _render_requested),
    Tool("list_approvals", agent_manager.ListApprovals, _render_approvals, reads_only=True),
    Tool("list_agents", agent_manager.ListAgents, _render_agents, reads_only=True),
    Tool(
        "kill",
        agent_manager.Kill,
        lambda _result: "It is being stopped.",
        "Its state is kept; start brings it back.",
    ),
    Tool("start", agent_manager.Start, lambda _result: "It is being started."),
    Tool("restart", agent_manager.Restart, lambda _result: "It is being restarted."),
    Tool(
        "update",
        agent_manager.Update,
        lambda _result: "It is being rebuilt.",
        "It changes nothing in what is deployed: for that, call request_apply_commit.",
    ),
)

"""Writes the tables and byte examples of docs/protocol.md, from the structs themselves.

    python docs/generate_protocol.py            writes the file
    python docs/generate_protocol.py --check    ends with status 1 if that would change it

Each part stands between `<!-- generated: NAME -->` and `<!-- end -->`; the prose round them is by hand.
"""

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, get_args

import msgspec
from msgspec import inspect as types

from hive_core.domain import helper_event
from hive_core.domain import question as domain_question
from hive_core.handlers.deps import Role
from hive_core.handlers.routes import ROUTES
from hive_core.serve.mcp_tools import Tool, tools_for
from hive_core.wire import (
    agent,
    agent_manager,
    approval,
    envelope,
    host,
    ids,
    limits,
    machine,
    question,
    reminder,
    retention,
)
from hive_core.wire.errors import ErrorCode, Refused

DOCUMENT: Final = Path(__file__).with_name("protocol.md")
COMMAND: Final = "python docs/generate_protocol.py"

# The verbs that clients of the original know.
ORIGINAL_VERBS: Final = frozenset(
    {
        "list", "agent_status", "subscribe_agent_status", "set_paused", "start", "stop", "restart", "urls",
        "pending", "approve", "deny", "spawn", "kill", "destroy",
    }
)  # fmt: skip

DIRECTIONS: Final[Mapping[type, str]] = {
    envelope.Hello: "both",
    envelope.Call: "harness → daemon",
    envelope.Cancel: "harness → daemon",
    envelope.Reply: "daemon → harness",
    envelope.Fault: "daemon → harness",
    envelope.Item: "daemon → harness",
    envelope.End: "daemon → harness",
}

WHEN: Final[Mapping[ErrorCode, str]] = {
    ErrorCode.INVALID_ARGUMENT: "The request does not read as one, or a value is out of bounds.",
    ErrorCode.FORBIDDEN: "This socket, or this uid, may not ask that.",
    ErrorCode.NOT_FOUND: "No agent, message or command has that name or id.",
    ErrorCode.CONFLICT: "It contradicts what is: a name that is taken, an answer given twice. See `reason`.",
    ErrorCode.PRECONDITION_FAILED: "Something else must be done first, such as updating one side.",
    ErrorCode.UNAVAILABLE: "Not now: the daemon stops, a limit is reached, the agent is away. Try later.",
    ErrorCode.INTERNAL: "A fault of the daemon. The text carries an id that its journal has too.",
    ErrorCode.CANCELLED: "The call ended because it was cancelled.",
}

NO_DEFAULT: Final = (msgspec.NODEFAULT, msgspec.NODEFAULT)
NAMED_PATTERNS: Final = {
    ids.AGENT_NAME_PATTERN: "agent name",
    machine.IMAGE_PATTERN: "image name",
    machine.SIZE_PATTERN: "size, as `4G`",
    machine.PERCENT_PATTERN: "percent, as `200%`",
    approval.COMMIT_PATTERN: "7 … 40 hex digits",
    approval.DIGEST_PATTERN: "64 hex digits",
    approval.TAG_PATTERN: "tag, as `deployed/7`",
}


# ── reading the modules ─────────────────────────────────────────────────────────────────────────


def sentence(text: str) -> str:
    """A docstring's text on one line of Markdown, its *names* as code."""
    text = re.sub(r"(?<![\w*])\*(\w+)\*(?![\w*])", r"`\1`", " ".join(text.split()))
    return text.replace("|", "\\|").replace("<", "&lt;")


def attribute_docs(body: Iterable[ast.stmt]) -> dict[str, str]:
    """What the string below each assignment says about its name."""
    return {
        assignment.target.id: text.value.value
        for assignment, text in itertools.pairwise(body)
        if isinstance(assignment, ast.AnnAssign)
        and isinstance(assignment.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def field_docs(struct: type) -> dict[str, str]:
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    return attribute_docs(definition.body)


def description(struct: type) -> str:
    # A struct without a docstring would be given its base's, or one that msgspec makes.
    return sentence(struct.__dict__.get("__doc__") or "")


# ── types, as words ─────────────────────────────────────────────────────────────────────────────


def bounds(low: object, high: object) -> str:
    if low == -(2**63) and high == 2**63 - 1:
        return "signed 64 bit"
    if low is not None and high is not None:
        return f"{low} … {high}"
    if low is not None:
        return f"≥ {low}"
    return f"≤ {high}" if high is not None else ""


def words(kind: types.Type) -> str:  # noqa: PLR0912 (a table)
    match kind:
        case types.IntType(ge=low, le=high):
            return " ".join(filter(None, ["int", bounds(low, high)]))
        case types.FloatType(ge=0, le=253402300799):
            return "unix seconds"
        case types.FloatType(ge=low, le=high):
            return " ".join(filter(None, ["number", bounds(low, high)]))
        case types.StrType(pattern=pattern) if pattern in NAMED_PATTERNS:
            return NAMED_PATTERNS[pattern]
        case types.StrType(min_length=1, max_length=limits.MAX_LABEL_CHARS, pattern=str()):
            return "label"
        case types.StrType(min_length=low, max_length=high):
            return "text" if low is high is None else f"text, {bounds(low or 0, high)} characters"
        case types.Metadata(type=inner):
            return words(inner)
        case types.LiteralType(values=values):
            return " or ".join(f"`{value}`" for value in values)
        case types.BoolType():
            return "bool"
        case types.ListType(item_type=item, max_length=most):
            return f"[{words(item)}]" + (f", at most {most}" if most else "")
        case types.VarTupleType(item_type=item):
            return f"[{words(item)}]"
        case types.DictType():
            return "map"
        case types.StructType(cls=struct):
            return f"[{struct.__name__}](#{struct.__module__.rpartition('.')[2]}-{struct.__name__.lower()})"
        case types.UnionType(types=members):
            real = [m for m in members if not isinstance(m, types.NoneType | types.CustomType)]
            return " or ".join(dict.fromkeys(words(m) for m in real if words(m)))
        case types.RawType():
            return "map"
        case _:
            raise TypeError(f"no words for {kind}")


def name_of(struct: type, field: types.Field) -> str:
    """The key; with a question mark when it may be missing."""
    optional = not field.required
    if always_written(struct):
        # An UNSET default is not written, and is not shown by msgspec.inspect either.
        optional = not field.required and (field.default, field.default_factory) == NO_DEFAULT
    return f"`{field.encode_name}{'?' if optional else ''}`"


def always_written(struct: type) -> bool:
    """The daemon writes this, and its defaults too."""
    config = struct.__struct_config__  # type: ignore[attr-defined]
    return not config.omit_defaults and not config.array_like and struct is not host.LifecycleScope


def default(struct: type, field: types.Field) -> str:
    if always_written(struct):
        return ""
    if field.default_factory not in (msgspec.NODEFAULT, None):
        return " = " + msgspec.json.encode(field.default_factory()).decode()
    if field.default in (None, msgspec.UNSET, msgspec.NODEFAULT):
        return ""
    return f" = {msgspec.json.encode(field.default).decode()}"


def fields_of(struct: type, skip: Iterable[str] = ()) -> list[types.Field]:
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    return [field for field in info.fields if field.encode_name not in skip]


def inline(struct: type, skip: Iterable[str] = ()) -> str:
    """Fields in one cell of a table: `name?` type = default."""
    return "<br>".join(
        f"{name_of(struct, field)} {words(field.type)}{default(struct, field)}"
        for field in fields_of(struct, skip)
    )


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    titles = [title.strip() for title in head.split("|")]
    lines = [titles, ["---"] * len(titles), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def field_table(struct: type, skip: Iterable[str] = ()) -> str:
    docs = field_docs(struct)
    return table(
        "field | type | meaning",
        (
            [
                name_of(struct, field),
                words(field.type) + default(struct, field),
                sentence(docs.get(field.name, "")),
            ]
            for field in fields_of(struct, skip)
        ),
    )


def tag_of(struct: type) -> str:
    return str(struct.__struct_config__.tag)  # type: ignore[attr-defined]


def heading(struct: type) -> str:
    """A heading whose anchor is what `words` links to."""
    module = struct.__module__.rpartition(".")[2]
    name = struct.__name__
    return f'<a id="{module}-{name.lower()}"></a>\n**{name}**. {description(struct)}'.rstrip()


def nested(structs: Iterable[type]) -> str:
    return "\n\n".join(f"{heading(struct)}\n\n{field_table(struct)}" for struct in structs)


# ── the parts ───────────────────────────────────────────────────────────────────────────────────


def envelopes() -> str:
    members = dict.fromkeys((*get_args(envelope.ToDaemon), *get_args(envelope.ToHarness)))
    return table(
        "envelope | direction | items after the tag | meaning",
        (
            [
                f"`{tag_of(struct)}`",
                DIRECTIONS[struct],
                ", ".join(name_of(struct, field) for field in fields_of(struct)),
                description(struct),
            ]
            for struct in members
        ),
    )


def all_limits() -> str:
    docs = attribute_docs(ast.parse(inspect.getsource(limits)).body)
    numbers = {name: value for name, value in vars(limits).items() if name.isupper()}
    return table(
        "limit | value | what",
        (
            [f"`{name}`", f"{value:,}".replace(",", " "), sentence(docs[name])]
            for name, value in numbers.items()
        ),
    )


def agent_requests(role: Role) -> str:
    """The requests of the agent socket that are for *role*."""
    return table(
        "type | fields | result | meaning",
        (
            [
                f"`{tag}`",
                inline(request) or "–",
                "stream of [commands](#commands-to-the-harness)"
                if ROUTES[request].stream
                else inline(ROUTES[request].result) or "empty map",
                description(request),
            ]
            for tag, request in agent.TYPES.items()
            if ROUTES[request].may_call is role
        ),
    )


def tools(role: Role, known: Mapping[str, Tool] | None = None) -> str:
    """The tools of *role*, but for those that are *known*."""
    return table(
        "tool | arguments | structuredContent | what a model reads about it",
        (
            [
                f"`{tool.name}`",
                inline(tool.request, skip=fields_without(tool.request, tool.schema["properties"])) or "–",
                inline(ROUTES[tool.request].result) or "empty",
                sentence(tool.description),
            ]
            for tool in tools_for(role).values()
            if tool != (known or {}).get(tool.name)
        ),
    )


def fields_without(struct: type, names: Iterable[str]) -> set[str]:
    return {field.encode_name for field in fields_of(struct)} - set(names)


def agent_rows() -> str:
    return nested(
        [
            agent.Message,
            agent.OpenThread,
            agent.Event,
            agent.Snapshot,
            agent_manager.ApprovalBrief,
            agent_manager.AgentBrief,
        ]
    )


def commands() -> str:
    return table(
        "type | fields | which means",
        (
            [
                f"`{tag_of(command)}`",
                inline(command),
                description(command).partition(": ")[2],
            ]
            for command in get_args(agent.Command)
        ),
    )


def verbs(chosen: Callable[[str], bool]) -> str:
    def reply(request: type) -> str:
        route = ROUTES[request]
        keys = inline(route.result, skip=("version", "ok")) or "–"
        if route.stream:
            return f"follows; each line:<br>{keys}"
        return keys + ("<br>with `follow`: the same, again and again" if route.following else "")

    return table(
        "cmd | keys | keys of the reply | meaning",
        (
            [f"`{cmd}`", inline(request) or "–", reply(request), description(request)]
            for cmd, request in host.COMMANDS.items()
            if chosen(cmd)
        ),
    )


def host_rows() -> str:
    return nested(
        [
            host.AgentStatusRow,
            host.MessageRow,
            host.EventRow,
            question.QuestionRow,
            reminder.ReminderRow,
            retention.RetentionRow,
            retention.Vacuumed,
            retention.ArchiveRow,
            host.TokenSums,
            host.Count,
            host.Urls,
            host.LifecycleScope,
            machine.UsageRow,
            machine.Check,
            machine.ImageRow,
            approval.ApprovalRow,
            approval.Consequence,
            approval.FileChange,
            approval.DeployRow,
            approval.StepRow,
            approval.HistoryRow,
            approval.TombstoneRow,
        ]
    )


def system_events() -> str:
    """What `system` tells in messages."""
    news = sorted(helper_event.HelperEvent.__subclasses__(), key=tag_of)
    return table(
        "event | keys | meaning",
        (
            [f"`{tag_of(struct)}`", inline(struct), description(struct)]
            for struct in (domain_question.Asked, domain_question.Answered, *news)
        ),
    )


def failure() -> str:
    return field_table(host.Failure)


def errors() -> str:
    return table("code | when", ([f"`{code.value}`", WHEN[code]] for code in ErrorCode))


def frame_examples() -> str:
    examples = [
        ("the harness says hello", envelope.encode_hello("agent", "hive-agent 0.1")),
        ("the daemon answers", envelope.encode_hello("daemon", "hive-core 0.1")),
        ("call 7: send “hi” to bob", envelope.encode_call(7, agent.Send(to="bob", body="hi"))),
        ("the reply: message 42 is on disk", envelope.encode_reply(7, agent.Sent(id=42))),
        (
            "or the refusal",
            envelope.encode_fault(7, ErrorCode.NOT_FOUND, "cannot send: no agent is named bob"),
        ),
        ("call 8: wait for a message", envelope.encode_call(8, agent.Recv(wait_seconds=180))),
        ("give it up", envelope.encode_cancel(8)),
    ]
    blocks = []
    for title, data in examples:
        digits = data.hex(" ")
        lines = [digits[at : at + 96].rstrip() for at in range(0, len(digits), 96)]
        readable = msgspec.json.encode(msgspec.msgpack.decode(data[4:])).decode()
        blocks.append("\n".join([f"# {title}: {readable}", *lines]))
    return "```\n" + "\n\n".join(blocks) + "\n```"


def line_examples() -> str:
    def line(message: msgspec.Struct) -> str:
        return host.encode_line(message).decode().rstrip()

    row = host.AgentStatusRow(name="alice", running=True, failed=False, connected=True, turn_state="idle")
    refusal: str = _refusal(b'{"cmd":"sned","to":"bob","body":"hi"}')
    exchange = [
        ("→", line(host.Send(to="alice", body="hi"))),
        ("←", line(host.Sent(id=42))),
        ("→", line(host.AgentStatus())),
        ("←", line(host.AgentStatuses(agent_statuses=[row]))),
        ("→", '{"cmd":"sned","to":"bob","body":"hi"}'),
        ("←", line(host.Failure(error=refusal, code="invalid_argument"))),
        ("→", line(host.SubscribeAgentStatus())),
        ("←", line(host.Reply())),
        ("←", line(host.AgentStatuses(agent_statuses=[msgspec.structs.replace(row, paused=True)]))),
    ]
    return "```\n" + "\n".join(f"{arrow} {text}" for arrow, text in exchange) + "\n```"


def _refusal(line: bytes) -> str:
    try:
        host.decode_request(line)
    except Refused as refused:
        return refused.text
    raise AssertionError("that was to be refused")


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "envelopes": envelopes,
    "agent requests": lambda: agent_requests(Role.AGENT),
    "manager requests": lambda: agent_requests(Role.MANAGER),
    "tools": lambda: tools(Role.AGENT),
    "manager tools": lambda: tools(Role.MANAGER, tools_for(Role.AGENT)),
    "agent rows": agent_rows,
    "commands": commands,
    "frame examples": frame_examples,
    "original verbs": lambda: verbs(lambda cmd: cmd in ORIGINAL_VERBS),
    "our verbs": lambda: verbs(lambda cmd: cmd not in ORIGINAL_VERBS),
    "host rows": host_rows,
    "system events": system_events,
    "failure": failure,
    "line examples": line_examples,
    "errors": errors,
    "limits": all_limits,
}

_PART: Final = re.compile(r"(<!-- generated: ([a-z ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def render(document: str) -> str:
    """Give *document* with every generated part made anew.

    Raises:
        KeyError: it has a part that this program does not know.
        ValueError: it lacks one, or has it twice.
    """
    names = [match[2] for match in _PART.finditer(document)]
    if sorted(names) != sorted(PARTS):
        raise ValueError(f"the document has the parts {names}, not {list(PARTS)}")
    return _PART.sub(lambda match: f"{match[1]}{PARTS[match[2]]()}\n{match[3]}", document)


def main() -> int:
    old = DOCUMENT.read_text()
    new = render(old)
    if "--check" not in sys.argv[1:]:
        DOCUMENT.write_text(new)
        return 0
    if new != old:
        sys.stderr.write(f"docs/protocol.md is out of date: run {COMMAND}\n")
    return int(new != old)


if __name__ == "__main__":
    sys.exit(main())

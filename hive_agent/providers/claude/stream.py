"""What `claude` prints with --output-format stream-json: a line of bytes becomes one event.  Pure.

Only what somebody acts on has a type; every other line is kept as it came.  Nothing here raises: these
lines change with every release, and models and tools have a say in what they contain.  A line that does
not fit its type still gives the fields that do.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from hive_core.wire.envelope import DECODE_ERRORS

MAX_STDOUT_LINE_BYTES: Final = 16 * 2**20
"""A tool's result with a few pictures in it has several MiB; 300,000 characters of text were recorded."""
MAX_QUOTE_CHARS: Final = 200


class _Read(msgspec.Struct, frozen=True, kw_only=True):
    """Every field has a default, so that whatever came can be read."""


class McpServer(_Read, frozen=True, kw_only=True):
    name: str = ""
    status: str = ""


class Init(_Read, frozen=True, kw_only=True):
    """A turn within the process begins."""

    session_id: str = ""
    model: str = ""
    mcp_servers: list[McpServer] = []
    claude_code_version: str = ""
    messaging_socket_path: str = ""


class TokenCounts(_Read, frozen=True, kw_only=True):
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class AssistantMessage(_Read, frozen=True, kw_only=True):
    id: str = ""
    model: str = ""
    content: Any = None
    usage: TokenCounts | None = None


class Assistant(_Read, frozen=True, kw_only=True):
    """One content block.  The lines of one message share its id and repeat its usage."""

    message: AssistantMessage = AssistantMessage()
    parent_tool_use_id: str | None = None
    error: str | None = None


class UserMessage(_Read, frozen=True, kw_only=True):
    content: Any = None


class User(_Read, frozen=True, kw_only=True):
    """What the model is given to read, such as the results of its tools."""

    message: UserMessage = UserMessage()


class Retry(_Read, frozen=True, kw_only=True):
    """The API refused, and is asked again."""

    attempt: int = 0
    max_retries: int = 0
    retry_delay_ms: float = 0.0
    error_status: int | None = None
    error: str | None = None


class CompactStatus(_Read, frozen=True, kw_only=True):
    status: str | None = None
    compact_result: str | None = None
    compact_error: str | None = None


class CompactMetadata(_Read, frozen=True, kw_only=True):
    trigger: str = ""
    pre_tokens: int | None = None
    post_tokens: int | None = None


class CompactBoundary(_Read, frozen=True, kw_only=True):
    compact_metadata: CompactMetadata = CompactMetadata()


class RateLimitInfo(_Read, frozen=True, kw_only=True):
    status: str = ""
    resetsAt: float | str | None = None  # noqa: N815
    rateLimitType: str | None = None  # noqa: N815
    utilization: float | None = None


class RateLimit(_Read, frozen=True, kw_only=True):
    """The limit of a subscription, which the API tells with its answers."""

    rate_limit_info: RateLimitInfo = RateLimitInfo()


class BackgroundTasks(_Read, frozen=True, kw_only=True):
    """Commands that the model left running; the end of each begins another turn in the process."""

    tasks: list[Any] = []


class Lifecycle(_Read, frozen=True, kw_only=True):
    """How far a line of ours with a uuid has come: queued, started, completed, cancelled."""

    command_uuid: str = ""
    state: str = ""


class PermissionDenied(_Read, frozen=True, kw_only=True):
    tool_name: str = ""
    message: str = ""


class Notice(_Read, frozen=True, kw_only=True):
    content: str = ""


class ModelUse(_Read, frozen=True, kw_only=True):
    inputTokens: int = 0  # noqa: N815
    outputTokens: int = 0  # noqa: N815
    cacheReadInputTokens: int = 0  # noqa: N815
    cacheCreationInputTokens: int = 0  # noqa: N815
    costUSD: float = 0.0  # noqa: N815
    contextWindow: int | None = None  # noqa: N815


class Result(_Read, frozen=True, kw_only=True):
    """A turn within the process ended.  `subtype` says "success" for refusals of the API too."""

    session_id: str = ""
    subtype: str = ""
    is_error: bool | None = None
    terminal_reason: str | None = None
    api_error_status: int | None = None
    result: str | None = None
    errors: list[str] = []
    num_turns: int = 0
    usage: TokenCounts | None = None
    total_cost_usd: float | None = None
    model_uses: dict[str, ModelUse] = msgspec.field(name="modelUsage", default={})
    model_uses_since: dict[str, ModelUse] | None = msgspec.field(
        name="model_usage_since_last_result", default=None
    )
    """Of this turn alone; older versions do not say."""

    @property
    def ok(self) -> bool:
        return not self.is_error if self.is_error is not None else self.subtype == "success"

    @property
    def text(self) -> str:
        return self.result or "; ".join(self.errors) or self.terminal_reason or self.subtype


class ControlRequest(_Read, frozen=True, kw_only=True):
    """claude asks us, and waits for the answer."""

    request_id: str = ""
    request: dict[str, Any] = {}


class ControlResponse(_Read, frozen=True, kw_only=True):
    response: dict[str, Any] = {}


class ControlCancel(_Read, frozen=True, kw_only=True):
    """claude waits no longer for the answer to this request of its."""

    request_id: str = ""


class Other(msgspec.Struct, frozen=True):
    kind: str


class Garbage(msgspec.Struct, frozen=True):
    """Something that is no line of the protocol."""

    text: str


Event = (
    Init
    | Assistant
    | User
    | Retry
    | CompactStatus
    | CompactBoundary
    | RateLimit
    | BackgroundTasks
    | Lifecycle
    | PermissionDenied
    | Notice
    | Result
    | ControlRequest
    | ControlResponse
    | ControlCancel
    | Other
    | Garbage
)


class Line(NamedTuple):
    event: Event
    payload: dict[str, Any]
    """The whole line as it came; empty for garbage."""
    problem: str | None = None
    """What of it could not be read."""

    @property
    def is_control(self) -> bool:
        """Whether it is a matter between claude and us, and no news of the turn."""
        return isinstance(self.event, ControlRequest | ControlResponse | ControlCancel)


_KINDS: Final[Mapping[str, type[_Read]]] = {
    "system/init": Init,
    "system/api_retry": Retry,
    "system/status": CompactStatus,
    "system/compact_boundary": CompactBoundary,
    "system/background_tasks_changed": BackgroundTasks,
    "system/permission_denied": PermissionDenied,
    "system/model_fallback": Notice,
    "system/informational": Notice,
    "assistant": Assistant,
    "user": User,
    "result": Result,
    "rate_limit_event": RateLimit,
    "command_lifecycle": Lifecycle,
    "control_request": ControlRequest,
    "control_response": ControlResponse,
    "control_cancel_request": ControlCancel,
}

_R = TypeVar("_R", bound=_Read)


def parse_line(line: bytes) -> Line:
    """Read one line, without its newline.  Never raises."""
    try:
        payload = msgspec.json.decode(line)
    except DECODE_ERRORS:
        payload = None
    if not isinstance(payload, dict) or not isinstance(payload.get("type"), str):
        return Line(Garbage(_quote(line)), {})
    kind = payload["type"]
    if kind == "system":
        kind = f"system/{payload.get('subtype')}"
    read_as = _KINDS.get(kind)
    if read_as is None:
        return Line(Other(kind), payload)
    try:
        return Line(msgspec.convert(payload, read_as), payload)  # type: ignore[arg-type]
    except DECODE_ERRORS as error:
        event: Any = _salvage(payload, read_as)
        return Line(event, payload, f"{kind}: {str(error)[:MAX_QUOTE_CHARS]}")


def _salvage(payload: dict[str, Any], read_as: type[_R]) -> _R:
    """Read the fields that can be read."""
    read: dict[str, Any] = {}
    for field in msgspec.structs.fields(read_as):
        if field.encode_name not in payload:
            continue
        try:
            read[field.name] = msgspec.convert(payload[field.encode_name], field.type)
        except DECODE_ERRORS:
            if isinstance(field.type, type) and issubclass(field.type, _Read):
                inner = payload[field.encode_name]
                if isinstance(inner, dict):
                    read[field.name] = _salvage(inner, field.type)
    return read_as(**read)


def tool_uses(event: Assistant) -> list[str]:
    """Give the names of the tools that this line calls."""
    content = event.message.content
    if not isinstance(content, list):
        return []
    blocks = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_use"]
    return [name for block in blocks if isinstance(name := block.get("name"), str)]


def tool_results(event: User) -> list[tuple[str, bool]]:
    """Give the uses of tools whose results are in this line, and whether they are what the tool gave."""
    content = event.message.content
    if not isinstance(content, list):
        return []
    blocks = [block for block in content if isinstance(block, dict) and block.get("type") == "tool_result"]
    results = [(block.get("tool_use_id"), not block.get("is_error")) for block in blocks]
    return [(tool_use, good) for tool_use, good in results if isinstance(tool_use, str)]


def said(event: Assistant) -> str:
    """Give the text of this line."""
    content = event.message.content
    if isinstance(content, str):
        return content
    blocks = content if isinstance(content, list) else []
    texts = [block.get("text") for block in blocks if isinstance(block, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _quote(line: bytes) -> str:
    text = " ".join(line[: 4 * MAX_QUOTE_CHARS].decode(errors="replace").split())
    return text if len(text) <= MAX_QUOTE_CHARS else text[:MAX_QUOTE_CHARS] + "…"

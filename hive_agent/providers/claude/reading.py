"""What a run of `claude` amounts to: adds up its events, and says at the end how the turn went.  Pure."""

import math
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from hive_agent.providers.base import Outcome, TurnResult, Usage
from hive_agent.providers.claude.stream import (
    Assistant,
    BackgroundTasks,
    CompactBoundary,
    CompactStatus,
    Event,
    Garbage,
    Init,
    ModelUse,
    Notice,
    PermissionDenied,
    RateLimit,
    Result,
    Retry,
    TokenCounts,
    said,
    tool_uses,
)

SYNTHETIC: Final = "<synthetic>"
"""The model of words that claude itself wrote: refusals of the API, mostly."""
CUMULATIVE_SINCE: Final = (2, 1, 300)
"""From about here on a resumed session's `total_cost_usd` goes on where the last process ended."""
BUSY_STATUSES: Final = frozenset({429, 529})
MAX_TOOL_NAMES: Final = 200
MAX_NOTE_CHARS: Final = 500
FIRST_MILLISECONDS: Final = 1e11
"""From here on a moment is told in milliseconds: in seconds it would be in the year 5138."""

_LIMIT_ON_STDERR: Final = re.compile(r"\b429\b|rate_limit")
# claude's own sentences, and those of the APIs behind it where claude passes them on.
_TOO_LONG: Final = re.compile(
    r"(?:prompt|input) is too long|below the context limit|"
    r"exceeds? (?:the |your )?(?:model's )?(?:maximum )?context (?:limit|window|length)",
    re.IGNORECASE,
)
_LIMIT_OF_2_0: Final = re.compile(r"usage limit reached\|(\d{9,11})\b")


class TurnReading:
    """Takes the events of one process in their order.

    *cost_before* is what the session had cost at the end of the process before, if that is known;
    versions that do not tell the cost of a turn need it.
    """

    def __init__(self, *, resumed: bool = False, cost_before: float | None = None) -> None:
        self._resumed = resumed
        self._cost_before = cost_before
        self.session_id: str | None = None
        self.model: str | None = None
        self.version: tuple[int, ...] = ()
        self.mcp: dict[str, str] = {}
        """How each MCP server does, as claude sees it."""
        self.results = 0
        self.in_turn = False
        """Between an init and its result."""
        self.background_tasks = 0
        self.retrying: Retry | None = None
        """Set while the API is asked again and again."""
        self._tools: dict[str, int] = {}
        self._last: Usage | None = None
        self._last_model: str | None = None
        self._total: Usage | None = None
        self._unsettled: dict[str, Usage] = {}
        self._windows: dict[str, int] = {}
        self._cost: float | None = None
        self._session_cost: float | None = None
        self._result: Result | None = None
        self._error: str | None = None
        self._synthetic_text = ""
        self._limit: RateLimit | None = None
        self._busy = False
        self._limit_words = ""
        self._compact_result: str | None = None
        self._compact_error: str | None = None
        self._boundary: CompactBoundary | None = None

    @property
    def session_cost(self) -> float | None:
        """What the whole session has cost so far, where that is told."""
        return self._session_cost

    @property
    def session_is_unknown(self) -> bool:
        """Whether claude ended at once because the session to resume is not there."""
        result = self._result
        return (
            self.session_id is None
            and result is not None
            and not result.ok
            and any("No conversation found" in error for error in [*result.errors, result.result or ""])
        )

    @property
    def is_held_up(self) -> bool:
        """Whether claude waits by itself for a rate limit, or a busy API, to let it go on."""
        return self.retrying is not None and self._busy

    @property
    def went_well(self) -> bool:
        return self._result is not None and self._result.ok and not self.in_turn

    def take(self, event: Event) -> str | None:
        """Add one event; give a note when there is something that a person should see."""
        match event:
            case Init():
                self._begin(event)
            case Assistant():
                self._hear(event)
            case Result():
                self._settle(event)
            case Retry():
                self.retrying = event
                self._busy = event.error_status in BUSY_STATUSES
            case RateLimit():
                self._limit = event
            case CompactStatus(compact_result=compact_result) if compact_result is not None:
                self._compact_result = compact_result
                self._compact_error = event.compact_error
            case CompactBoundary(compact_metadata=metadata):
                self._boundary = event
                if metadata.post_tokens is not None:
                    self._last = Usage(input=metadata.post_tokens)
            case BackgroundTasks(tasks=tasks):
                self.background_tasks = len(tasks)
        return _render_note(event)

    def overhear(self, text: str) -> None:
        """Take a line of stderr.  It counts when claude ends without a result."""
        if _LIMIT_ON_STDERR.search(text):
            self._limit_words = text

    def end(self, how: str, last_words: str = "", *, stopped: bool = False) -> TurnResult:
        """Say how the turn went, after the process has ended.

        *how* it ended ("exit status 1") and the *last_words* of its stderr are told when it gave no
        result; *stopped* means that we made it end.
        """
        outcome, note, reset_at = self._judge(how, last_words, stopped)
        return self._with_figures(outcome, note, reset_at)

    def end_compaction(self, how: str, last_words: str = "", *, stopped: bool = False) -> TurnResult:
        """As `end`, for a run of /compact: that one says `is_error: false` when it failed, too."""
        outcome, note, reset_at = self._judge(how, last_words, stopped)
        if outcome is Outcome.OK and self._compact_result == "success":
            metadata = self._boundary.compact_metadata if self._boundary else None
            if metadata and metadata.post_tokens is not None:
                before = "?" if metadata.pre_tokens is None else metadata.pre_tokens
                return self._with_figures(outcome, f"compacted: {before} → {metadata.post_tokens} tokens")
            return self._with_figures(outcome, note)
        if outcome is Outcome.OK:
            why = self._compact_error or self._synthetic_text or (self._result.text if self._result else "")
            outcome = _judge_compaction(why)
            note = f"cannot compact: {why or 'claude does not say why'}"[:MAX_NOTE_CHARS]
            reset_at = self._reset_at(why)
        return self._with_figures(outcome, note, reset_at)

    # ── events ──────────────────────────────────────────────────────────────────────────────────

    def _begin(self, init: Init) -> None:
        self.session_id = init.session_id or self.session_id
        self.model = init.model or self.model
        self.version = _parse_version(init.claude_code_version)
        self.mcp = {server.name: server.status for server in init.mcp_servers}
        self.in_turn = True

    def _hear(self, event: Assistant) -> None:
        message = event.message
        if event.error is not None:
            self._error = event.error
        if message.model == SYNTHETIC:
            self._synthetic_text = said(event)
            return
        if event.parent_tool_use_id is not None:
            return
        self.retrying, self._busy, self._error = None, False, None
        for name in tool_uses(event):
            key = name if name in self._tools or len(self._tools) < MAX_TOOL_NAMES else "…"
            self._tools[key] = self._tools.get(key, 0) + 1
        if message.usage is not None:
            usage = _usage(message.usage)
            self._last, self._last_model = usage, message.model
            self._unsettled[message.id] = usage

    def _settle(self, result: Result) -> None:
        self.results += 1
        self.in_turn = False
        if result.ok:
            # What an earlier turn of the process stumbled over is no matter any more.
            self.retrying, self._busy, self._error = None, False, None
        self._result = result
        usage = _usage(result.usage) if result.usage else Usage()
        if usage == Usage() and result.model_uses_since:
            # Compacting, and an answer that was cut off: the turn's own figures are 0, but it did cost.
            usage = _usage_of_models(result.model_uses_since)
        self._add(usage)
        self._unsettled.clear()
        for model, use in result.model_uses.items():
            if use.contextWindow:
                self._windows[model] = use.contextWindow
        self._count_cost(result)

    def _count_cost(self, result: Result) -> None:
        total = result.total_cost_usd
        before = self._session_cost
        if total is not None:
            self._session_cost = total
        if result.model_uses_since is not None:
            spent: float | None = sum(use.costUSD for use in result.model_uses_since.values())
        elif total is None:
            return
        elif before is None:
            spent = self._first_cost(total)
        else:
            spent = total - before if total >= before else total
        if spent is not None:
            self._cost = (self._cost or 0.0) + spent

    def _first_cost(self, total: float) -> float | None:
        if not self._resumed or self.version < CUMULATIVE_SINCE:
            return total
        if self._cost_before is None:
            return None
        return total - self._cost_before if total >= self._cost_before else total

    def _add(self, usage: Usage) -> None:
        total = self._total or Usage()
        self._total = Usage(
            input=total.input + usage.input,
            output=total.output + usage.output,
            cache_read=total.cache_read + usage.cache_read,
            cache_creation=total.cache_creation + usage.cache_creation,
        )

    # ── the end ─────────────────────────────────────────────────────────────────────────────────

    def _judge(self, how: str, last_words: str, stopped: bool) -> tuple[Outcome, str | None, float | None]:
        result = self._result
        if result is None and stopped:
            return Outcome.INTERRUPTED, "interrupted", None
        if result is None or (self.in_turn and not stopped):
            is_limited = bool(self._limit_words) or self._busy
            last_words = self._limit_words or last_words
            note = f"claude ended without a result: {how}"
            note = f"{note}: {last_words}"[:MAX_NOTE_CHARS] if last_words else note
            return Outcome.RATE_LIMITED if is_limited else Outcome.FAILED, note, None
        if result.ok:
            return Outcome.OK, None, None
        reason, text = result.terminal_reason or "", result.text[:MAX_NOTE_CHARS]
        if reason.startswith("aborted"):
            return Outcome.INTERRUPTED, "interrupted", None
        if reason in ("prompt_too_long", "blocking_limit") or _is_too_long(text):
            return Outcome.PROMPT_TOO_LONG, text, None
        if self._is_limited or _LIMIT_OF_2_0.search(text):
            return Outcome.RATE_LIMITED, text, self._reset_at(text)
        if self._error == "authentication_failed" or result.api_error_status == 401:
            return Outcome.NEEDS_LOGIN, text, None
        if self._error == "billing_error":
            text = f"the account cannot pay: {text}"
        return Outcome.FAILED, text, None

    @property
    def _is_limited(self) -> bool:
        status = self._result.api_error_status if self._result else None
        if status is not None:
            return status in BUSY_STATUSES
        return self._is_rejected or self._error == "rate_limit" or self._busy

    @property
    def _is_rejected(self) -> bool:
        return self._limit is not None and self._limit.rate_limit_info.status == "rejected"

    def _reset_at(self, text: str) -> float | None:
        if self._is_rejected and self._limit is not None:
            return _moment(self._limit.rate_limit_info.resetsAt)
        told = _LIMIT_OF_2_0.search(text)
        return float(told[1]) if told else None

    def _with_figures(self, outcome: Outcome, note: str | None, reset_at: float | None = None) -> TurnResult:
        for usage in self._unsettled.values():  # it was ended before it could say
            self._add(usage)
        self._unsettled.clear()
        return TurnResult(
            outcome=outcome,
            note=note,
            last=self._last,
            total=self._total,
            window=self._window(),
            cost_usd=self._cost,
            tools=dict(self._tools),
            reset_at=reset_at,
        )

    def _window(self) -> int | None:
        plain = {_plain_model(model): window for model, window in self._windows.items()}
        for model in (self._last_model, self.model):
            if model is not None and (window := self._windows.get(model) or plain.get(_plain_model(model))):
                return window
        return next(iter(plain.values())) if len(plain) == 1 else None


def _usage(counts: TokenCounts) -> Usage:
    return Usage(
        input=counts.input_tokens,
        output=counts.output_tokens,
        cache_read=counts.cache_read_input_tokens,
        cache_creation=counts.cache_creation_input_tokens,
    )


def _usage_of_models(uses: dict[str, ModelUse]) -> Usage:
    return Usage(
        input=sum(use.inputTokens for use in uses.values()),
        output=sum(use.outputTokens for use in uses.values()),
        cache_read=sum(use.cacheReadInputTokens for use in uses.values()),
        cache_creation=sum(use.cacheCreationInputTokens for use in uses.values()),
    )


def _plain_model(model: str) -> str:
    """Give *model* without what 2.1.197 puts behind it: `claude-sonnet-4-6[1m]`."""
    return model.partition("[")[0]


def _parse_version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", text)
    return tuple(int(part) for part in match.groups()) if match else ()


def _judge_compaction(why: str) -> Outcome:
    """Tell from its words why a compaction failed: claude gives nothing else."""
    if _is_too_long(why):
        return Outcome.PROMPT_TOO_LONG
    if re.search(r"API Error: .*\b(429|529)\b|You've hit your .*limit", why):
        return Outcome.RATE_LIMITED
    if re.search(r"Failed to authenticate|Not logged in|Invalid API key|API Error: 401", why):
        return Outcome.NEEDS_LOGIN
    return Outcome.FAILED


def _moment(told: float | str | None) -> float | None:
    """Give unix seconds for a moment that is told in seconds, in milliseconds or as ISO 8601."""
    moment = _read_moment(told) if isinstance(told, str) else told
    if moment is None or not math.isfinite(moment):
        return None
    return moment / 1000 if moment > FIRST_MILLISECONDS else moment


def _read_moment(text: str) -> float | None:
    with suppress(ValueError):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _is_too_long(text: str) -> bool:
    return _TOO_LONG.search(text) is not None


def _render_note(event: Event) -> str | None:
    match event:
        case Retry():
            return _render_retry(event)
        case RateLimit(rate_limit_info=info) if info.status != "allowed":
            return _render_limit(event)
        case PermissionDenied(tool_name=tool, message=text):
            return f"A tool was denied: {tool}: {text}"[:MAX_NOTE_CHARS]
        case Notice(content=content) if content:
            return content[:MAX_NOTE_CHARS]
        case Garbage(text=text):
            return f"Not understood: {text}"
        case _:
            return None


def _render_retry(retry: Retry) -> str:
    why = {429: "rate limited", 529: "overloaded"}.get(retry.error_status or 0)
    why = why or f"{retry.error or 'trouble'} {retry.error_status or ''}".strip()
    wait_s = retry.retry_delay_ms / 1000
    return f"The API is asked again in {wait_s:.1f} s, {retry.attempt} of {retry.max_retries}: {why}"


def _render_limit(limit: RateLimit) -> str:
    info = limit.rate_limit_info
    which = (info.rateLimitType or "plan").replace("_", " ")
    if info.status == "rejected":
        return f"The {which} limit is reached"
    used = "" if info.utilization is None else f": {info.utilization:.0%} used"
    return f"The {which} limit is near{used}"

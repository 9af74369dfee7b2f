"""The live traffic of a hive as lines: who writes to whom, and what happens in the turns.

12:03:04  operator → alice    say bob: hello
12:03:04  alice    ▶ turn starts (from operator, 0 more waiting)
12:03:04  alice    ⚙ send → bob
12:03:04  alice    ■ turn ends, ok, 0.2 s
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from hive_core.cli import human
from hive_core.cli.output import cells, pad, paint, shorten
from hive_core.cli.safe import visible
from hive_core.cli.states import FAILED, STARTING, STOPPING, STYLE, state_of

NAME_COLUMNS: Final = 8
WIDEST_NAME: Final = 20


class Line(NamedTuple):
    """One thing that happened, before it is laid out."""

    at: object
    """RFC 3339, or None for now."""
    who: str
    mark: str
    text: str
    style: str = ""
    to: str | None = None


class Traffic:
    """Turns the items of `watch` into lines of text.

    *columns* is the width to which a line is cut; without it nothing is cut, and a newline in a text is
    written as two characters.  With *full*, long texts go on in further lines instead.
    """

    def __init__(self, *, columns: int | None = None, full: bool = False) -> None:
        self._columns = columns
        self._full = full
        self._names = NAME_COLUMNS
        self._states: dict[str, str] = {}
        self._turns: dict[str, object] = {}

    def know(self, rows: Iterable[dict[str, Any]]) -> None:
        """Take the roster as it stands, so that only its changes are shown."""
        for row in rows:
            self._states[row["name"]] = state_of(row)
            self._widen(row["name"])

    def render(self, item: dict[str, Any]) -> list[str]:
        """Give the lines that *item* is worth; often none."""
        return [text for line in self._lines(item) for text in self._laid_out(line)]

    def _lines(self, item: dict[str, Any]) -> Iterator[Line]:
        if message := item.get("message"):
            yield Line(
                message.get("sent_at"),
                str(message.get("sender", "?")),
                "→",
                str(message.get("body", "")),
                "bold",
                to=str(message.get("recipient", "?")),
            )
        if event := item.get("event"):
            yield from self._event(str(item.get("agent", "?")), event)
        for row in item.get("agent_statuses", ()):
            yield from self._changed(row)

    def _changed(self, row: dict[str, Any]) -> Iterator[Line]:
        name, state = str(row["name"]), state_of(row)
        if self._states.get(name) == state:
            return
        self._states[name] = state
        if state in {STARTING, STOPPING}:
            return
        why = f": {row['failure']}" if state == FAILED and row.get("failure") else ""
        yield Line(None, name, "●", f"{state.replace('_', ' ')}{why}", STYLE[state])

    def _event(self, agent: str, event: dict[str, Any]) -> Iterator[Line]:
        at, kind = event.get("ts"), event.get("kind")
        payload = event.get("payload")
        if not isinstance(payload, dict):
            payload = {}
        if kind == "turn_start":
            self._turns[agent] = at
            more = payload.get("unread", 0)
            yield Line(
                at, agent, "▶", f"turn starts (from {payload.get('from', '?')}, {more} more waiting)", "cyan"
            )
        elif kind == "turn_end":
            took = _seconds_between(self._turns.pop(agent, None), at)
            outcome = "ok" if payload.get("ok") else "failed"
            words = [f"turn ends, {outcome}", took, payload.get("note")]
            style = "cyan" if payload.get("ok") else "red"
            yield Line(at, agent, "■", ", ".join(str(word) for word in words if word), style)
        elif kind == "stream":
            for mark, text, style in spoken(payload):
                yield Line(at, agent, mark, text, style)
        elif kind == "note":
            yield Line(at, agent, "·", str(payload.get("text", "")), "dim")
        elif kind == "status_changed":
            yield Line(at, agent, "·", f"status: {payload.get('status', '?')}", "dim")
        elif kind == "model_changed":
            yield Line(at, agent, "·", f"model: {payload.get('model', '?')}", "dim")
        elif kind == "effort_changed":
            yield Line(at, agent, "·", f"effort: {payload.get('effort') or 'default'}", "dim")
        elif kind not in {"turn_state_changed", "token_usage_changed"}:
            yield Line(at, agent, "·", str(kind), "dim")

    def _laid_out(self, line: Line) -> list[str]:
        when = human.clock(line.at) if line.at else datetime.now().strftime("%H:%M:%S")
        who = self._name(line.who)
        lead = f"{who} {line.mark} "
        if line.to is not None:
            lead += f"{self._name(line.to)} "
        indent = len(when) + 2 + cells(lead)
        painted = f"{paint(when, 'dim')}  {_painted_lead(line, lead, who)}"
        first, *others = self._cut(line.text, indent)
        body_style = line.style if line.to is None else ""
        return [painted + paint(first, body_style)] + [
            " " * indent + paint(text, body_style) for text in others
        ]

    def _cut(self, text: str, indent: int) -> list[str]:
        if self._full:
            return visible(text, multiline=True).rstrip("\n").split("\n")
        if self._columns is None:
            return [visible(text)]
        lines = visible(text, multiline=True).strip("\n").split("\n")
        shown = " ".join(lines[0].split())
        rest = len(lines) - 1
        more = f" … (+{rest} line{'s' if rest > 1 else ''})" if rest else ""
        return [shorten(shown, self._columns - indent - len(more)) + more]

    def _name(self, name: str) -> str:
        shown = visible(name)
        self._widen(shown)
        return pad(shown, self._names)

    def _widen(self, name: str) -> None:
        self._names = max(self._names, min(cells(name), WIDEST_NAME))


def _painted_lead(line: Line, lead: str, who: str) -> str:
    if line.to is not None:
        return paint(lead, line.style)
    return paint(who, "bold") + paint(lead[len(who) :], line.style)


def spoken(payload: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Mark, text and style of what an assistant says and does in one event of claude's stream."""
    message = payload.get("message")
    if payload.get("type") != "assistant" or not isinstance(message, dict):
        return
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for block in content if isinstance(content, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "text" and str(block.get("text", "")).strip():
            yield "│", str(block["text"]), ""
        elif block.get("type") == "tool_use":
            yield "⚙", _tool(block), "magenta"


def _tool(block: dict[str, Any]) -> str:
    name = str(block.get("name", "?"))
    if name.startswith("mcp__"):
        name = name.rpartition("__")[2]
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        return name
    if "to" in arguments:
        return f"{name} → {arguments['to']}"
    hint = next((value for value in arguments.values() if isinstance(value, str)), "")
    return f"{name}: {hint}" if hint else name


def _seconds_between(start: object, end: object) -> str | None:
    began, ended = human.parse_time(start), human.parse_time(end)
    return human.duration(max(0.0, (ended - began).total_seconds())) if began and ended else None

"""What an operator reads before a decision: who asks for what, what would be different, and the diff.

Everything that is laid out in lines here is folded by us, so that a long text cannot begin a line of the
terminal with words of its own choice.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from hive_core.cli import human, output
from hive_core.cli.safe import visible

Row = dict[str, Any]

SHA_CHARS: Final = 12

KINDS: Final = {
    "spawn": "a new agent",
    "init_config": "a configuration to begin with",
    "apply_commit": "a new configuration",
    "update_meta_inputs": "newer inputs of the hive's flake",
}
RESTART: Final = {
    "none": "its machine goes on as it is",
    "switch": "its machine is changed while it runs",
    "restart": "its machine is restarted, after its running turn",
}
COMPARED: Final = {
    "running": "with what runs",
    "approved": "with what was approved last",
    "previous": "with what was proposed before",
}
WEIGHT_STYLE: Final = {"danger": "bold red", "notice": "yellow"}
_CHANGE_STYLE: Final = {"added": "green", "deleted": "red", "mode": "yellow"}
_HUNK: Final = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")


def sha(text: object) -> str | None:
    return str(text)[:SHA_CHARS] if text else None


def status(row: Row) -> str:
    """The word for where it is; one that was approved is being deployed until that ended."""
    word = str(row.get("status", ""))
    # A row without the key is the original's, which does not tell.
    return "deploying" if word == "approved" and row.get("finished") is False else word


def inputs(row: Row) -> str | None:
    """Which inputs a request for newer ones is about; None: it is about something else."""
    return str(row.get("commit_ref", "")) if row.get("kind") == "update_meta_inputs" else None


def runs_already(row: Row) -> bool:
    """Whether it is about the commit that its agent ran when it was asked for."""
    commit = row.get("fetched_sha")
    return row.get("kind") == "apply_commit" and commit is not None and commit == row.get("base_sha")


def show(reply: Row, *, base: str = "running") -> None:
    """Write the reply to `approval`."""
    if output.on_terminal():
        _show_card(reply, base)
    else:
        _write_records(reply)
    if reply.get("diff"):
        output.say("")
        for line in diff_lines(str(reply["diff"]), output.width() if output.on_terminal() else None):
            output.say(line)
        if reply.get("diff_cut"):
            output.note("the diff is cut here: it is longer than the daemon shows")


def _facts(reply: Row, base: str) -> list[tuple[str, object]]:
    row = reply["approval"]
    now = datetime.now().astimezone()
    # In full: commits that begin alike to twelve digits are made in minutes.
    commit = row.get("fetched_sha")
    compared = sha(reply.get("base_sha"))
    restart, changes_one = str(reply.get("restart")), row.get("kind") == "apply_commit"
    uid = row.get("decided_by_uid")
    return [
        ("asked by", f"{row.get('proposer', 'unknown')}, {_when(row.get('requested_at'), now)}"),
        ("says", row.get("description")),
        ("expires", _left(row, now)),
        ("commit", commit),
        ("inputs", inputs(row)),
        (
            "compared",
            f"{COMPARED[base]}: {compared}" if compared else "with nothing: none ran yet" if commit else None,
        ),
        (
            "decided",
            f"{_when(row['resolved_at'], now)}{'' if uid is None else f', by uid {uid}'}"
            if "resolved_at" in row
            else None,
        ),
        ("note", row.get("note")),
        ("tag", row.get("tag") if row.get("status") != "pending" else None),
        ("effect", RESTART.get(restart) if changes_one or restart != "none" else None),
    ]


def _show_card(reply: Row, base: str) -> None:
    row = reply["approval"]
    number = output.paint(f"#{row['id']}", "yellow")
    kind = str(row.get("kind", ""))
    agent = output.paint(visible(row.get("agent") or "the hive"), "bold")
    output.say(f"{number}  {agent}: {visible(KINDS.get(kind, kind))}  ({visible(status(row))})")
    output.facts([(f"  {key}", value) for key, value in _facts(reply, base)])
    if found := reply.get("consequences"):
        output.say("")
        output.say("What would be different:")
        _grid([_consequence(one) for one in found])
    elif row.get("fetched_sha") and row["fetched_sha"] == reply.get("base_sha"):
        output.say("")
        output.say("No file would be different: it is the same commit.")
    if files := reply.get("files"):
        output.say("")
        output.say("Files:")
        _grid([_file(one) for one in files])
        if left_out := reply.get("files_left_out"):
            output.say(f"  and {left_out} more that are not listed")


def _consequence(one: Row) -> list[tuple[object, str]]:
    weight = str(one.get("weight", "info"))
    style = WEIGHT_STYLE.get(weight, "")
    return [
        (weight.upper() if weight == "danger" else weight, style),
        (one["kind"], style),
        (one["text"], ""),
    ]


def _file(one: Row) -> list[tuple[object, str]]:
    return [(one["change"], _CHANGE_STYLE.get(str(one["change"]), "")), (_counts(one), ""), (one["path"], "")]


def _counts(one: Row) -> str:
    return "binary" if one.get("binary") else f"+{one.get('added', 0)} -{one.get('removed', 0)}"


def _grid(rows: Sequence[Sequence[tuple[object, str]]]) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for column in range(len(rows[0])):
        grid.add_column(no_wrap=column < len(rows[0]) - 1, overflow="fold")
    for row in rows:
        first, *rest = (Text(visible(value), style) for value, style in row)
        grid.add_row(Text("  ") + first, *rest)
    output.console().print(grid)


def _write_records(reply: Row) -> None:
    row = reply["approval"]
    for key in (
        *("id", "agent", "kind", "status", "proposer", "requested_at", "expires_at", "commit_ref"),
        *("fetched_sha", "description", "resolved_at", "decided_by_uid", "note", "tag", "digest"),
    ):
        if key in row:
            output.record([key, row[key]])
    for key in ("base_sha", "restart", "manifest", "files_left_out"):
        if key in reply:
            output.record([key, reply[key]])
    for one in reply.get("consequences", ()):
        output.record(["consequence", one.get("weight", "info"), one["kind"], one["text"]])
    for one in reply.get("files", ()):
        output.record(["file", one["change"], _counts(one), one["path"]])


def _when(rfc3339: object, now: datetime) -> str:
    return f"{human.moment(rfc3339, now)} ({human.age(rfc3339, now)} ago)"


def _left(row: Row, now: datetime) -> str | None:
    expires = human.parse_time(row.get("expires_at"))
    if expires is None or row.get("status") != "pending":
        return None
    return f"in {human.duration(max(0.0, (expires - now).total_seconds()))}"


# ── diff ────────────────────────────────────────────────────────────────────────────────────────


def diff_lines(diff: str, columns: int | None) -> Iterator[str]:
    """Give the lines of a unified diff; where *columns* are given, coloured and folded.

    What is a header is told by the counts of its hunk: a file may have lines that look like one.
    """
    old = new = 0
    for line in diff.removesuffix("\n").split("\n"):
        style = ""
        if old > 0 or new > 0:
            match line[:1]:
                case "+":
                    new, style = new - 1, "green"
                case "-":
                    old, style = old - 1, "red"
                case "\\":
                    style = "dim"
                case _:
                    old, new = old - 1, new - 1
        elif hunk := _HUNK.match(line):
            old, new = (int(1 if count is None else count) for count in hunk.groups())
            style = "cyan"
        elif not line.startswith("\\"):
            style = "bold"
        if columns is None:
            yield visible(line, multiline=True)
        else:
            first, *rest = _folded(visible(line.expandtabs()), columns)
            yield output.paint(first, style)
            yield from (output.paint(FOLD, "dim") + output.paint(part, style) for part in rest)


FOLD: Final = "  ↪ "
"""Begins what goes on from the line above."""


def _folded(line: str, columns: int) -> list[str]:
    room = max(columns, 20)
    if output.cells(line) <= room:
        return [line]
    from rich.cells import chop_cells

    return list(chop_cells(line, room - len(FOLD)))

"""What goes to stdout, in three dresses.

On a terminal: tables, colours, local times, texts cut to the width.  Into a pipe: one line per thing,
columns separated by a tab, no heading, nothing cut, times as they came.  With --json: one document.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from hive_core.cli.safe import visible

NOTHING: Final = "-"
"""Stands for an empty value, so that every line has as many columns."""


def on_terminal() -> bool:
    return sys.stdout.isatty()


def in_colour() -> bool:
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns


def say(text: str) -> None:
    """Write one line that is our own words, or went through visible()."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Write one line beside the output: to a person, never into a pipe."""
    sys.stderr.write(text + "\n")


def dump(value: object) -> None:
    """Write one JSON document: indented on a terminal, else on one line."""
    if on_terminal():
        say(encode(value, indent=2))
    else:
        say(encode(value))


def dump_line(value: object) -> None:
    """Write one line of JSON at once, for whoever reads the other end of the pipe."""
    say(encode(value))
    sys.stdout.flush()


def encode(value: object, indent: int | None = None) -> str:
    separators = (",", ":") if indent is None else None
    # json escapes everything beyond ASCII and all control characters but DEL.
    return json.dumps(value, indent=indent, separators=separators).replace("\x7f", "\\u007f")


def record(values: Sequence[object]) -> None:
    """Write one line of tab-separated columns."""
    say("\t".join(NOTHING if value is None or value == "" else visible(value) for value in values))


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[object]],
    style: Callable[[str, str], str] = lambda _heading, _cell: "",
) -> None:
    """Write *rows* under *headings* on a terminal, or as records into a pipe.

    *style* names the rich style of a cell.  The last column is cut where the terminal ends.
    """
    if not on_terminal():
        for row in rows:
            record(row)
        return
    console().print(grid(headings, rows, style))


def grid(headings: Sequence[str], rows: Sequence[Sequence[object]], style: Callable[[str, str], str]) -> Any:
    """Give the rich table that `table` shows on a terminal."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings, 1):
        # Only a column that may wrap gives way to the others; its cells do not.
        last = number == len(headings)
        made.add_column(
            heading, no_wrap=not last, overflow="ellipsis", min_width=None if last else len(heading)
        )
    for row in rows:
        cells = [NOTHING if value is None or value == "" else visible(value) for value in row]
        made.add_row(
            *(
                Text(cell, style(head, cell), no_wrap=True, overflow="ellipsis")
                for head, cell in zip(headings, cells, strict=True)
            )
        )
    return made


def facts(pairs: Sequence[tuple[str, object]], style: Callable[[str, str], str] = lambda *_: "") -> None:
    """Write key and value a line; empty values are left out on a terminal."""
    if not on_terminal():
        for pair in pairs:
            record(pair)
        return
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in pairs:
        if value is not None and value != "":
            text = visible(value)
            grid.add_row(Text(key), Text(text, style(key, text)))
    console().print(grid)


def console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=width())


_PAINT: Final = {"bold": "1", "dim": "2"} | {
    "red": "31",
    "green": "32",
    "yellow": "33",
    "magenta": "35",
    "cyan": "36",
}


def paint(text: str, style: str) -> str:
    """Colour *text*, if this goes to a terminal that shall have colours."""
    if not style or not text or not in_colour():
        return text
    codes = ";".join(_PAINT[word] for word in style.split())
    return f"\x1b[{codes}m{text}\x1b[0m"


def cells(text: str) -> int:
    """How many columns of a terminal *text* takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - cells(text))


def shorten(text: str, columns: int) -> str:
    """Cut *text* to *columns*, with an ellipsis where something is missing."""
    columns = max(columns, 8)
    if cells(text) <= columns:
        return text
    if text.isascii():
        return text[: columns - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, columns - 1) + "…"


def flush() -> None:
    sys.stdout.flush()

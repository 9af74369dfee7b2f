"""Choices of the operator that outlive the harness: one line in a file each, as the original kept them."""

import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_LINE_CHARS: Final = 1000


def read_line(path: Path) -> str | None:
    """Give the first line of *path*, or None, which is logged unless it is simply not there."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline(MAX_LINE_CHARS).strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.warning("File %s cannot be read: %s", path, error)
        return None


def write_line(path: Path, line: str) -> None:
    """Put *line* into *path*, whole or not at all.  Failing to is only logged."""
    unfinished = path.with_name(path.name + ".new")
    try:
        unfinished.write_text(line + "\n", encoding="utf-8")
        os.replace(unfinished, path)  # noqa: PTH105
    except OSError as error:
        log.warning("Choice cannot be remembered: %s", error)


def remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("File %s cannot be removed: %s", path, error)

"""Log lines: to stderr, with the journal's priority prefix when systemd reads it."""

import logging
import os
import sys
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error")

_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class _Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Give it as one line that no terminal obeys: names and errors in it may be an agent's words."""
        text = super().formatMessage(record)
        return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")


class _JournalFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 2)}>"
        # Each line of a traceback needs the prefix, or the journal files it under another priority.
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def set_up_log(level: str) -> None:
    """Send everything at or above *level* to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())

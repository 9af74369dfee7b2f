"""Text that an agent wrote, for a person who decides on it: nothing in it hides, and nothing reorders it.

Stricter than what the command line does to messages (`cli/safe.py`), in which people use emoji that are
joined by invisible characters: in a configuration whatever cannot be seen is spelled out.
"""

import re
from typing import Final

# Printable to Python, and yet nothing to see: Unicode calls them default-ignorable; the last are blanks.
_IGNORABLE: Final = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
    "\u2800\U00016fe4\U0001d159"
)
_PLAIN: Final = frozenset("\n\t")
_SUSPECT: Final = re.compile(rf"[^ -~]|[{_IGNORABLE}]")
_UNSEEN: Final = re.compile(f"[{_IGNORABLE}]")


def visible(text: str) -> str:
    r"""Write each character of *text* that acts or cannot be seen as `\u{202e}`; newlines and tabs stay.

    Those are controls (a carriage return too), what sets the direction of text, spaces other than the
    ordinary one, characters without width, tags, variations, lone surrogates, and what has no meaning yet.
    Letters that are read from right to left stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return _SUSPECT.sub(_mark, text)


def one_line(text: str) -> str:
    r"""Do the same and write newlines and tabs as `\n` and `\t`."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _mark(match: re.Match[str]) -> str:
    char = match[0]
    if char in _PLAIN or (char.isprintable() and not _UNSEEN.match(char)):
        return char
    return f"\\u{{{ord(char):x}}}"

"""What others wrote, made harmless for a terminal.

Bodies, status texts, log lines and events come from agents, and an agent may want the operator's
terminal to lie: escape sequences recolour, move and answer back; bidirectional overrides and
invisible characters make one text look like another.
"""

from typing import Final

_SPACES: Final = (
    "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
_JOINERS: Final = "\u200c\u200d"
# Not printable to Python, yet plain text: other widths of a space, and what joins emoji and Persian letters.
_PLAIN: Final = frozenset(_SPACES + _JOINERS)
_PLAIN_LINES: Final = _PLAIN | {"\n", "\t"}
_NAMED: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def visible(text: object, *, multiline: bool = False) -> str:
    r"""Write *text* with every control, direction and invisible character as `\x1b`, `\u202e`, ….

    The result is one line; with *multiline*, newlines and tabs stay as they are.
    """
    text = str(text)
    if text.isprintable():
        return text
    plain = _PLAIN
    if multiline:
        text = text.replace("\r\n", "\n")
        plain = _PLAIN_LINES
    return "".join(char if char.isprintable() or char in plain else _spelled(char) for char in text)


def _spelled(char: str) -> str:
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

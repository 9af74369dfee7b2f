"""One validated type per kind of name and number.

A name that passed here is safe as a path component, as an argument of a command (it never begins
with a hyphen) and as part of a machine's name.
"""

import re
from typing import Annotated, Final, NewType

from msgspec import Meta

from hive_core.wire.limits import MAX_LABEL_CHARS

AGENT_NAME_RULE: Final = "a-z, 0-9 and -, 1 to 63 characters, not beginning or ending with a hyphen"
AGENT_NAME_PATTERN: Final = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"

AgentName = Annotated[str, Meta(pattern=AGENT_NAME_PATTERN)]
"""`[a-z0-9]`, then `[a-z0-9-]`, 1 to 63, no trailing hyphen."""

RowId = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""Ids are positive, but the original's clients may send any signed 64-bit number: it is then not found."""

Label = Annotated[
    str,
    Meta(min_length=1, max_length=MAX_LABEL_CHARS, pattern=r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]+\Z"),
]
"""Free text that names a source, such as `ci` or `mail from bob`: one line, no control characters."""

UnixSeconds = Annotated[float, Meta(ge=0, le=253402300799)]
"""A moment that has a date, up to the year 9999: no NaN, nothing that rendering could stumble over."""

Uid = NewType("Uid", int)

OPERATOR: Final = "operator"
SYSTEM: Final = "system"
SELF: Final = "self"
"""An agent that asked for another turn of its own."""
REMINDER: Final = "reminder"
"""The sender of reminders."""
EVERYONE: Final = "*"
MANAGER: Final = "manager"
"""The agent that hears what happens to the others.  Nobody else can have its name."""

RESERVED_NAMES: Final = frozenset({OPERATOR, SYSTEM, SELF, "manager", REMINDER, "all"})

_AGENT_NAME: Final = re.compile(AGENT_NAME_PATTERN)


def why_no_agent_name(name: str) -> str | None:
    """Say why *name* cannot be given to an agent, or None if it can."""
    if not _AGENT_NAME.match(name):
        return f"{name[:80]!r} is no agent name: use {AGENT_NAME_RULE}"
    if name in RESERVED_NAMES:
        return f"{name!r} is reserved"
    return None

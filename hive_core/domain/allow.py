"""To whom an agent may write.  None is the ordinary case: to anyone.

A list binds what the agent begins: messages, broadcasts, replies and questions, and what it answers to
another agent.  The manager is always allowed.  The operator is reached only when listed, but for the
answer to a question that the operator asked.
"""

from collections.abc import Sequence
from typing import Final

from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import EVERYONE, MANAGER

Allowed = frozenset[str] | None

MOST_SHOWN: Final = 10
"""Names in a refusal."""


def permit(
    sender: str, to: str, recipients: Sequence[str], allowed: Allowed, verb: str = "send"
) -> list[str]:
    """Give those of *recipients*, which is whom *to* means, that *sender* may reach.

    Raises:
        Refused: FORBIDDEN, when none is left.
    """
    if allowed is None:
        return list(recipients)
    permitted = [name for name in recipients if name in allowed or name == MANAGER]
    if not permitted:
        whom = " to *" if to == EVERYONE else ""
        raise Refused(
            ErrorCode.FORBIDDEN,
            f"cannot {verb}{whom}: {sender} may write to {_list(allowed)} only;"
            f" the operator changes that with: hive allow {sender} …",
        )
    return permitted


def _list(allowed: frozenset[str]) -> str:
    names = [*sorted(allowed - {MANAGER}), MANAGER]
    if len(names) > MOST_SHOWN:
        rest = len(names) - MOST_SHOWN
        names = [*names[: MOST_SHOWN - 1], f"{rest} more", MANAGER]
    return ", ".join(names)

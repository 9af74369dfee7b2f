"""What a person is told instead of a regular expression."""

from typing import Final

from hive_core.wire.ids import AGENT_NAME_PATTERN, AGENT_NAME_RULE
from hive_core.wire.machine import IMAGE_PATTERN, PERCENT_PATTERN, SIZE_PATTERN

RULES: Final = {
    AGENT_NAME_PATTERN: AGENT_NAME_RULE,
    IMAGE_PATTERN: "the name of an image, without blanks",
    SIZE_PATTERN: "a size such as 512M or 4G",
    PERCENT_PATTERN: "a share of processors such as 200%, which is two of them",
}


def without_patterns(text: str) -> str:
    """Give the words of msgspec for a string that does not match, with the rule in place of its pattern."""
    for pattern, rule in RULES.items():
        text = text.replace(f"`str` matching regex {pattern!r}", rule)
    return text

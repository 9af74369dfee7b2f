"""The providers there are.  A new one is one module and one line here."""

from collections.abc import Mapping
from typing import Final

from hive_agent.providers.base import (
    BadProvider,
    Capabilities,
    Outcome,
    Program,
    Provider,
    TurnPrompt,
    TurnResult,
    Usage,
)
from hive_agent.providers.claude import Claude
from hive_agent.providers.scripted import Scripted

PROVIDERS: Final[Mapping[str, type[Provider]]] = {
    Scripted.name: Scripted,
    Claude.name: Claude,
}

__all__ = [
    "PROVIDERS",
    "BadProvider",
    "Capabilities",
    "Outcome",
    "Program",
    "Provider",
    "TurnPrompt",
    "TurnResult",
    "Usage",
]

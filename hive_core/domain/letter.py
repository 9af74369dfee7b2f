"""A message of the hive's own, and what stores it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Connection = Any
"""A connection to the database: rules know none."""


@dataclass(frozen=True, slots=True)
class Letter:
    """To be stored together with what it tells of."""

    to: str
    body: str
    cause_id: int | None = None


class Leave(Protocol):
    """Broker.leave_with: run a function in a transaction, and store the letters it gives in the same one."""

    def __call__(
        self, sender: str, most: int, fn: Callable[[Connection], tuple[T, list[Letter]]]
    ) -> Awaitable[T]: ...

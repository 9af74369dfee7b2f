"""An event of an agent, as everybody but its harness sees it."""

from dataclasses import dataclass

import msgspec


@dataclass(frozen=True, slots=True)
class Event:
    """*id* rises by one per event of an agent and is the cursor; *ts* is unix seconds; *payload* is JSON."""

    id: int
    ts: float
    kind: str
    payload: msgspec.Raw

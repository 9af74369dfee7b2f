"""Tells the manager what happens to the other agents, and the operator where there is no manager.

What it says is bounded: an agent that crashes, flips its login or is knocked at in a loop costs whoever
reads about it a few messages an hour.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from hive_core.domain.helper_event import (
    AS_FOUND,
    Allowance,
    Condition,
    Destroyed,
    HelperEvent,
    PeerRefused,
    changes,
    is_for_the_operator,
    is_news_to_the_operator,
    render_body,
)
from hive_core.wire.ids import MANAGER, OPERATOR

PER_HOUR: Final = Allowance(20, 3600.0)
"""Of one kind of event of one agent."""
PER_MINUTE: Final = Allowance(1, 60.0)
"""Whoever is refused can try again as fast as it can connect."""

log = logging.getLogger(__name__)


class Herald:
    """*send* leaves a message from the daemon: recipient, body.  *has_manager* says whether there is one."""

    def __init__(self, send: Callable[[str, str], None], has_manager: Callable[[], bool]) -> None:
        self._send = send
        self._has_manager = has_manager
        self._conditions: dict[str, Condition] = {}
        self._allowances: dict[tuple[str, type[HelperEvent]], Allowance] = {}

    def tell(self, event: HelperEvent) -> None:
        """Send *event*, unless as many of its kind were sent already as anybody wants to read."""
        # The manager cannot do anything about itself.
        has_manager = event.agent != MANAGER and self._has_manager()
        to = MANAGER if has_manager and not is_for_the_operator(event) else OPERATOR
        if to == MANAGER or is_news_to_the_operator(event):
            self._send_if_allowed(to, event)
        if isinstance(event, Destroyed):
            self.forget(event.agent)

    def notice(self, agent: str, now: Condition) -> None:
        """Tell what is new in what is known *now* of *agent*."""
        before = self._conditions.get(agent, AS_FOUND)
        self._conditions[agent] = before.and_now(now)
        for event in changes(agent, before, now):
            self.tell(event)

    def refuse_peer(self, agent: str, uid: int, unit: str | None) -> bool:
        """Somebody was refused at the socket of *agent*; say whether that is worth a line of the log."""
        to = MANAGER if self._has_manager() else OPERATOR
        return self._send_if_allowed(to, PeerRefused(agent=agent, uid=uid, unit=unit))

    def forget(self, agent: str) -> None:
        self._conditions.pop(agent, None)
        for key in [key for key in self._allowances if key[0] == agent]:
            del self._allowances[key]

    def _send_if_allowed(self, to: str, event: HelperEvent) -> bool:
        kind = event.agent, type(event)
        unused = PER_MINUTE if isinstance(event, PeerRefused) else PER_HOUR
        left = self._allowances.get(kind, unused).use(trio.current_time())
        if left is None:
            log.debug("Event not told again agent=%s kind=%s", event.agent, type(event).__name__)
            return False
        self._allowances[kind] = left
        self._send(to, render_body(event))
        return True

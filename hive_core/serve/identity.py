"""Who may speak at an agent's socket: who can open it, and is what the kernel says an agent's process is."""

import logging
import os
from collections.abc import Callable
from typing import Final

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import UID_RANGE
from hive_core.wire.stream import Credentials

Admit = Callable[[Credentials], str | None]
"""Says why a process is not served, None if it is."""

log = logging.getLogger(__name__)


class LocalIdentity:
    """In a local hive an agent is whoever has the daemon's own user."""

    def of(self, row: AgentRow) -> Admit:
        def admit(process: Credentials) -> str | None:
            if process.uid == os.geteuid():
                return None
            log.warning("Peer refused at the socket of %s uid=%d pid=%d", row.name, process.uid, process.pid)
            return f"cannot serve you: uid {process.uid} is not the uid of agent {row.name}"

        return admit


class MachineIdentity:
    """An agent is a process of its machine: of one of the machine's users, and in its unit.

    *is_member* says whether a process is in the machine of an agent, *unit_of* where it is instead;
    *refused* hears of everybody who is turned away, and says whether that is worth a line of the log.
    """

    def __init__(
        self,
        is_member: Callable[[str, int], bool],
        unit_of: Callable[[int], str | None],
        refused: Callable[[str, int, str | None], bool],
    ) -> None:
        self._is_member = is_member
        self._unit_of = unit_of
        self._refused = refused

    def of(self, row: AgentRow) -> Admit:
        name, base = row.name, row.uid_base

        def admit(process: Credentials) -> str | None:
            is_user = base is not None and base <= process.uid < base + UID_RANGE
            if is_user and self._is_member(name, process.pid):
                return None
            unit = self._unit_of(process.pid)
            if self._refused(name, process.uid, unit):
                log.warning(LINE, name, process.uid, process.pid, unit)
            why = f"its process {process.pid} is not in" if is_user else f"uid {process.uid} is none of"
            return f"cannot serve you: {why} the machine of agent {name}"

        return admit


LINE: Final = "Peer refused at the socket of %s uid=%d pid=%d unit=%s"

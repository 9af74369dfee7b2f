"""What to do about one machine, from what is wanted and what is seen.

The wish is a row and survives everything; what is seen is the world.  `plan` brings them together and
is all the rule there is: the supervisor performs its answer, looks again, and asks again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from hive_core.config import Machines


class Wanted(StrEnum):
    """The operator's wish, as it stands in the row."""

    RUNNING = "running"
    STOPPED = "stopped"
    GONE = "gone"
    """Destroyed: no machine, no socket; the state is kept."""
    PURGED = "purged"
    """Destroyed, and its state is to be deleted."""


GOING: Final = frozenset({Wanted.GONE, Wanted.PURGED})
"""Nothing brings an agent back from here but a spawn."""


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    REMOVE = "remove"
    """Close its socket, forget it; when purged, delete its state."""
    WAIT = "wait"
    """Nothing to do until something changes, or `after_s` has passed."""


class Transient(StrEnum):
    """What is being done to a machine just now.  An end that falls into one is no crash."""

    STARTING = "starting"
    STOPPING = "stopping"
    RESTARTING = "restarting"
    REBUILDING = "rebuilding"
    DESTROYING = "destroying"


class Fresh(StrEnum):
    """Why a running machine is to be stopped once and started again."""

    RESTART = "restart"
    REBUILD = "rebuild"
    """With everything that was declared applied again; the start always does that, the word is for people."""


@dataclass(frozen=True)
class Plan:
    action: Action
    after_s: float | None = None


@dataclass(frozen=True)
class Exits:
    """The exits of a machine that should have run, as monotonic seconds, and the newest one's story."""

    times: tuple[float, ...] = ()
    last: str = ""

    def and_one(self, now: float, story: str, window_s: float) -> "Exits":
        recent = tuple(time for time in self.times if now - time < window_s)
        return Exits((*recent, now), story)


NO_EXITS: Final = Exits()


def has_failed(exits: Exits, config: Machines) -> bool:
    """Say whether it ended so often that it stays down until the operator starts it."""
    return len(exits.times) >= config.restart_limit


def restart_delay_s(exits: Exits, config: Machines) -> float:
    """How long to wait after the newest exit: it doubles with each recent one."""
    doublings = min(max(len(exits.times) - 1, 0), 30)
    return min(float(config.restart_delay_s * 2**doublings), config.restart_delay_max_s)


def transient(wanted: Wanted, action: Action, fresh: Fresh | None) -> Transient | None:
    """Say what *action* looks like from outside, while it is carried out."""
    if wanted in GOING:
        return Transient.DESTROYING
    if action not in {Action.START, Action.STOP}:
        return None
    match fresh:
        case Fresh.RESTART if wanted is Wanted.RUNNING:
            return Transient.RESTARTING
        case Fresh.REBUILD if wanted is Wanted.RUNNING:
            return Transient.REBUILDING
    return Transient.STARTING if action is Action.START else Transient.STOPPING


def plan(wanted: Wanted, *, alive: bool, restart: bool, exits: Exits, now: float, config: Machines) -> Plan:
    """Say what to do next about a machine that is *alive* or not.

    *restart* asks for one stop in between.  *now* and the times of *exits* are seconds of one clock.
    """
    if wanted is not Wanted.RUNNING:
        if alive:
            return Plan(Action.STOP)
        return Plan(Action.WAIT if wanted is Wanted.STOPPED else Action.REMOVE)
    if alive:
        return Plan(Action.STOP if restart else Action.WAIT)
    if not exits.times or restart:
        return Plan(Action.START)
    if has_failed(exits, config):
        return Plan(Action.WAIT)
    left = exits.times[-1] + restart_delay_s(exits, config) - now
    return Plan(Action.WAIT, left) if left > 0 else Plan(Action.START)

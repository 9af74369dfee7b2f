"""How long things are kept, and what of them goes.

Only what is finished goes, by its age: a message that was acked, an event or a turn's account, a generation
of a machine.  What somebody still waits for, and what was decided or asked, is never too old.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DAY_S: Final = 86400.0

FOR_EVER: Final = "kept for ever, as configured"

EVENTS: Final = "events"
TURN_STATS: Final = "turn stats"
"""The files of an agent."""
GENERATIONS: Final = "generations"
"""The closures that an agent's machine had, where it is a NixOS one."""


@dataclass(frozen=True)
class Policy:
    """Days that things are kept; 0 is for ever.

    With *stream_events_days* only the bulk of the events goes, the raw stream of the model, after that time;
    the others stay for ever.
    """

    messages_days: int = 30
    events_days: int = 7
    stream_events_days: int = 0
    turn_stats_days: int = 90
    generations: int = 5


@dataclass(frozen=True)
class Cutoffs:
    """Unix seconds; what is older goes, and nothing where there is None."""

    messages: float | None = None
    events: float | None = None
    streams: float | None = None
    turn_stats: float | None = None
    generations: int | None = None
    """How many of the newest stay, whatever their age."""


@dataclass(frozen=True)
class Count:
    """How many there are; *at_least* when counting them all took too long."""

    number: int = 0
    at_least: bool = False


@dataclass(frozen=True)
class Messages:
    """Messages by what they are: *old* ones are acked and past the cutoff, and these alone go."""

    old: Count = Count()
    young: Count = Count()
    """Acked, and not old."""
    waiting: Count = Count()
    """Not acked, agents' and the operator's."""
    dead: Count = Count()
    """Handed out in vain too often, and set aside."""


@dataclass(frozen=True)
class AgentFile:
    """What the child that looks at an agent's file says: *old* rows of it would go."""

    agent: str
    file: str
    old: Count = Count()
    young: Count | None = None
    """What would stay; None: not counted."""
    trouble: str | None = None


@dataclass(frozen=True)
class Inventory:
    messages: Messages = Messages()
    approvals: int = 0
    questions: int = 0
    reminders: int = 0
    files: tuple[AgentFile, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a plan: how many of *what* go, how many stay, and *why*.  None is: not counted."""

    what: str
    goes: Count | None
    stays: Count | None
    why: str
    agent: str | None = None
    trouble: bool = False


def cutoffs(policy: Policy, now: float) -> Cutoffs:
    """Give the moments before which things are old."""

    def before(days: int) -> float | None:
        return now - days * DAY_S if days else None

    by_kind = bool(policy.stream_events_days)
    return Cutoffs(
        messages=before(policy.messages_days),
        events=None if by_kind else before(policy.events_days),
        streams=before(policy.stream_events_days),
        turn_stats=before(policy.turn_stats_days),
        generations=policy.generations,
    )


def plan(policy: Policy, inventory: Inventory) -> list[Row]:
    """Say of everything that is kept what goes, what stays and why."""
    messages = inventory.messages
    nothing = Count()
    age = _days(policy.messages_days)
    rows = [
        Row("acked messages", messages.old, messages.young, f"acked longer than {age} ago go"),
        Row("waiting messages", nothing, messages.waiting, "not acked: never too old"),
        Row("dead messages", nothing, messages.dead, "set aside until they are retried or dropped"),
        Row("questions", nothing, Count(inventory.questions), "kept for ever"),
        Row("approvals", nothing, Count(inventory.approvals), "kept for ever"),
        Row("reminders", nothing, Count(inventory.reminders), "go when they are delivered or cancelled"),
    ]
    if not policy.messages_days:
        rows[0] = Row("acked messages", nothing, messages.young, FOR_EVER)
    for file in inventory.files:
        if file.trouble is not None:
            rows.append(Row(file.file, None, None, f"left alone: {file.trouble}", file.agent, trouble=True))
        else:
            rows.append(Row(file.file, file.old, file.young, _why(policy, file.file), file.agent))
    return rows


def surplus_generations(
    generations: Sequence[int], *, current: int | None, booted: int | None, keep: int
) -> list[int]:
    """Give those of *generations* that go: all but the newest *keep*, the current and the booted one."""
    newest = set(sorted(generations)[-keep:] if keep else [])
    return sorted(set(generations) - newest - {current, booted})


def _why(policy: Policy, what: str) -> str:
    if what == GENERATIONS:
        return f"beyond the newest {policy.generations} go, but for the current and the booted one"
    streams = what == EVENTS and bool(policy.stream_events_days)
    if streams:
        return f"of kind stream and older than {_days(policy.stream_events_days)} go"
    days = policy.events_days if what == EVENTS else policy.turn_stats_days
    return f"older than {_days(days)} go" if days else FOR_EVER


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"

"""The steps in which something approved becomes what runs, and where each goes on after a kill."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class DeployKind(StrEnum):
    SPAWN = "spawn"
    """A new agent, from a template or from what was proposed for it."""
    INIT_CONFIG = "init_config"
    """A proposal to begin with, for an agent that is not there yet."""
    APPLY = "apply"
    ROLLBACK = "rollback"
    INPUTS = "inputs"
    """Newer inputs of the hive's flake, and every agent built anew that they change."""


class Step(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    """Tags, the manifest read, what a builder needs laid out.  Nothing that runs is touched."""
    BUILDING = "building"
    ACTIVATING = "activating"
    """The agent's row says the new, and its machine is brought to it."""
    FINALIZING = "finalizing"
    """It runs: tags, branches and the meta repository say so."""
    DONE = "done"
    ABORTING = "aborting"
    """It did not work: what ran before runs again, and everything says so."""
    FAILED = "failed"


ENDED: Final = frozenset({Step.DONE, Step.FAILED})

ORDER: Final[dict[Step, Step]] = {
    Step.QUEUED: Step.PREPARING,
    Step.PREPARING: Step.BUILDING,
    Step.BUILDING: Step.ACTIVATING,
    Step.ACTIVATING: Step.FINALIZING,
    Step.FINALIZING: Step.DONE,
    Step.ABORTING: Step.FAILED,
}
"""What follows when a step went well.  When one before FINALIZING did not, ABORTING does."""

AFTER_A_KILL: Final[dict[Step, Step]] = {
    Step.QUEUED: Step.QUEUED,
    Step.PREPARING: Step.PREPARING,
    Step.BUILDING: Step.PREPARING,
    Step.ACTIVATING: Step.ACTIVATING,
    Step.FINALIZING: Step.FINALIZING,
    Step.ABORTING: Step.ABORTING,
}
"""Where a new daemon takes it up.  Every step may be done twice; a build is done again from the start,
since what it had laid out may be half."""


@dataclass(frozen=True, slots=True)
class Deploy:
    """One of them.  Times are unix seconds."""

    id: int
    agent: str
    kind: DeployKind
    step: Step
    requested_at: float
    approval_id: int | None = None
    sha: str | None = None
    """The commit to be deployed; of an update of inputs, None."""
    from_sha: str | None = None
    """What ran when its activation began."""
    tag: str | None = None
    """The tag that it is to get, or of a rollback the one that it goes back to."""
    output: str | None = None
    """What was built: the name of an image, or the path of a closure."""
    before_json: str | None = None
    """What the agent's row said when its activation began, for going back to."""
    error: str | None = None
    """Why it goes back, or went back."""
    uid: int | None = None
    """Who approved it or asked for the rollback."""
    started_at: float | None = None
    finished_at: float | None = None
    steps: tuple[tuple[Step, float], ...] = ()
    """When it came to each."""


def tag_of(kind: str, number: int) -> str:
    """Give the tag `proposal/7`, `approved/7`, `building/7`, `deployed/7`, `failed/7` or `denied/7`."""
    return f"{kind}/{number}"

"""What the deployer asks of whatever makes a machine's system: tree_builder.py, or nix_builder.py."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hive_core.domain.manifest import Manifest

Say = Callable[[str], None]
"""Takes a line of the build's log."""


class BuildFailed(Exception):
    """It cannot be built.  The text is for the person who proposed it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be built.  All that it names lies where the builder may read it."""

    deploy_id: int
    agent: str
    sha: str
    manifest: Manifest
    former: str | None = None
    """What was built of this commit when it was deployed before, of a rollback: used again if it is there."""
    inputs: tuple[str, ...] = ()
    """Inputs of the hive's flake that are renewed first.  The agents of one deploy share what they become."""


@dataclass(frozen=True, slots=True)
class Built:
    image: str | None
    """What the agent's machine starts from: the name of a tree or the path of a closure; None: the hive's."""


@dataclass(frozen=True, slots=True)
class Running:
    """What an agent runs that a builder made."""

    sha: str
    image: str


class Builder(Protocol):
    """Each step may be done twice, also after a kill in its midst."""

    async def prepare(self, target: Target, say: Say) -> None:
        """Lay out what the build needs, and touch nothing that runs.

        Raises:
            BuildFailed: it cannot be built.
            TROUBLE: the host does not play along.
        """
        ...

    async def build(self, target: Target, say: Say) -> Built:
        """Build what was prepared.  Raises as prepare does."""
        ...

    async def finalize(self, target: Target, built: str | None, say: Say) -> Mapping[str, bytes | None]:
        """It runs: keep it from being collected.  *built* is the image of `Built`.

        Gives what the meta repository's files are now, by name, or None for one that is to go; they go into
        the commit of this deploy.  What was laid out stays until `abort`, which is called in the end too.
        """
        ...

    async def abort(self, target: Target) -> None:
        """Take away what was laid out for the deploy of *target*, of whichever agents."""
        ...

    async def forget(self, agent: str) -> Mapping[str, bytes | None]:
        """The agent was destroyed.  What was built for it is kept, as it may come back.

        Gives what the meta repository's files are without it, as `finalize` does.
        """
        ...

    async def purge(self, agent: str) -> None:
        """Keep nothing for a destroyed agent any more; harmless when nothing is kept.

        Raises:
            OSError: it cannot be removed.
        """
        ...

    def has_built(self, agent: str, image: str | None) -> bool:
        """Say whether *image*, from which the agent's machine starts, was built for it and finalized."""
        ...

    async def restore(self, running: Mapping[str, Running | None]) -> Mapping[str, bytes | None]:
        """These agents run what was built for them earlier, without a deploy; None: nothing that we built.

        Gives what the meta repository's files are then, as far as they can be had; the next deploy has the
        rest.
        """
        ...

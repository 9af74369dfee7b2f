"""The configuration of each agent: made when somebody wants to look at it or change it, and read."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from hive_core.config import Config
from hive_core.domain import template
from hive_core.domain.agent import AgentRow
from hive_core.domain.deploy import tag_of
from hive_core.domain.machine import GOING
from hive_core.domain.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, NOTHING, BadManifest, Manifest, parse
from hive_core.host.quarantine import BadProposal
from hive_core.machines import TROUBLE, describe
from hive_core.repositories import Repositories
from hive_core.wire.errors import ErrorCode, Refused

_FIRST: Final = 0
"""The number of the tags of what nobody proposed: the template that an agent runs with from the beginning."""

log = logging.getLogger(__name__)


class Configurations:
    """*row_of* gives the row of an agent that is there, or None; *owner* is whose new ones are, None for us.

    *note_deployed* says in an agent's row what it runs with: name, commit, tag, manifest.
    """

    def __init__(
        self,
        repositories: Repositories,
        *,
        row_of: Callable[[str], AgentRow | None],
        owner: Callable[[], int | None],
        note_deployed: Callable[[str, str, str, Manifest], Awaitable[None]],
        config: Callable[[], Config],
    ) -> None:
        self._repositories = repositories
        self._row_of = row_of
        self._owner = owner
        self._note_deployed = note_deployed
        self._config = config
        self._ensuring = trio.Lock()

    def movable(self, agent: str, what: str) -> AgentRow:
        """Give the row of *agent*, which is to be changed.

        Raises:
            Refused: NOT_FOUND; CONFLICT, when it is being destroyed.
        """
        row = self._row_of(agent)
        if row is None:
            text = f"cannot {what}: agent {agent!r} is not managed by this hive"
            raise Refused(ErrorCode.NOT_FOUND, text)
        if row.wanted in GOING:
            raise Refused(ErrorCode.CONFLICT, f"cannot {what}: {agent} is being destroyed", "going")
        return row

    def check_free(self, name: str, what: str) -> None:
        """See that there is no agent *name*, and that none comes by itself.

        Raises:
            Refused: CONFLICT.
        """
        if self._row_of(name) is not None:
            raise Refused(ErrorCode.CONFLICT, f"cannot {what}: it exists already", "exists")
        if name in self._config().agents:
            text = f"cannot {what}: the host's configuration declares it, and it comes by itself"
            raise Refused(ErrorCode.CONFLICT, text, "declared")

    def check_buildable(self, agent: str, what: str) -> None:
        """See that *agent* may be changed, and that what is built of its configuration is what it runs.

        Raises:
            Refused: as movable; CONFLICT with the reason `declared`, when the host's configuration says what
                its system is.
        """
        declaration = self.movable(agent, what).declaration
        if (
            declaration is not None
            and declaration.image is not None
            and self._config().deploy.builder == "nix"
        ):
            text = (
                f"cannot {what}: its system is declared in the host's configuration (agents.{agent}.image),"
                " which wins; change it there"
            )
            raise Refused(ErrorCode.CONFLICT, text, "declared")

    async def manifest_at(self, agent: str, sha: str) -> Manifest:
        """Give the agent.toml of a commit that was taken in; without one nothing is declared.

        Raises:
            BadManifest: it cannot be used.
            BadProposal: it is no plain file, or larger than 64 KiB.
            TROUBLE: the repository cannot be read.
        """
        text = await self._repositories.read(agent, sha, MANIFEST_NAME, MAX_MANIFEST_BYTES)
        manifest = NOTHING if text is None else parse(text)
        if self._config().deploy.builder == "nix":
            for key in ("image", "packages"):
                if getattr(manifest, key):
                    raise BadManifest(f"{key}: this hive builds machines from agent.nix; set it there")
        return manifest

    async def ensure(self, agent: str) -> None:
        """Let there be a proposed configuration of *agent*, and what it runs with as `deployed/0`.

        Where it has run without one, that is a template of what it was declared; nothing restarts.

        Raises:
            Refused: NOT_FOUND, CONFLICT; UNAVAILABLE, when the repositories cannot be made.
        """
        async with self._ensuring:
            row = self.movable(agent, f"make a configuration of {agent}")
            with refused(f"make a configuration of {agent}"):
                if not await self._repositories.has_proposed(agent):
                    files = template.files(agent, row.shape, self._config().deploy.builder)
                    await self._repositories.seed(agent, files, self._owner())
                    log.info("Configuration made agent=%s", agent)
                if row.deployed_sha is None:
                    await self._plant(row)

    async def ensure_for(self, name: str) -> None:
        """Let there be a proposed configuration of *name*, an agent or one that is to be.

        Raises:
            Refused: as ensure.
        """
        if self._row_of(name) is None:
            with refused(f"look for a configuration of {name}"):
                if await self._repositories.has_proposed(name):
                    return
        await self.ensure(name)

    async def _plant(self, row: AgentRow) -> None:
        """Say that *row* runs with what is proposed for it, if that is the template."""
        agent, first = row.name, tag_of("proposal", _FIRST)
        try:
            sha = await self._repositories.resolve(agent, first)
            sha = sha or await self._repositories.take_in(agent, None, first)
            manifest = await self.manifest_at(agent, sha)
            same = parse(template.files(agent, row.shape, self._config().deploy.builder)[MANIFEST_NAME])
        except (BadProposal, BadManifest) as error:
            log.info("Nothing of what is proposed for %s runs: %s", agent, error)
            return
        if manifest != same or await self._repositories.main(agent) not in {None, sha}:
            return
        tag = tag_of("deployed", _FIRST)
        await self._repositories.tag(agent, tag, sha)
        await self._repositories.move_main(agent, sha)
        await self._note_deployed(agent, sha, tag, manifest)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Refuse to do *what* where the repositories are in trouble."""
    try:
        yield
    except (BadProposal, *TROUBLE) as error:
        raise Refused(ErrorCode.UNAVAILABLE, f"cannot {what}: {describe(error)}") from None

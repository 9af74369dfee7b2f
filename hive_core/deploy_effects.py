"""What each kind of deploy does in each of its steps.  Every one of these may be done twice.

`deployer.py` decides when, and records it before.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Final, Protocol

import msgspec

from hive_core.builders import Builder, BuildFailed, Say, Target
from hive_core.config import Config
from hive_core.domain import manifest as manifests
from hive_core.domain import template
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import CannotStart, Shape
from hive_core.domain.deploy import Deploy, DeployKind, tag_of
from hive_core.domain.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, NOTHING, BadManifest, Manifest
from hive_core.domain.visible import one_line
from hive_core.host.quarantine import BadProposal
from hive_core.machines import TROUBLE, ActivationFailed, describe
from hive_core.meta_record import MetaRecord
from hive_core.release_files import ReleaseFiles
from hive_core.repositories import Repositories
from hive_core.wire.errors import Refused
from hive_core.wire.ids import MANAGER

FIRST_TAG: Final = tag_of("deployed", 0)

log = logging.getLogger(__name__)


class Activate(Protocol):
    """Supervisor.activate."""

    def __call__(self, name: str, declared: Declared, *, say: Say) -> Awaitable[None]: ...


class Spawn(Protocol):
    """Supervisor.spawn."""

    def __call__(self, name: str, *, declared: Declared) -> Awaitable[None]: ...


@dataclass(frozen=True)
class Hands:
    """What is done to agents, by parts that deploys do not know."""

    rows: Callable[[], Mapping[str, AgentRow]]
    """The agents that are there and are not being destroyed."""
    spawn: Spawn
    activate: Activate
    destroy: Callable[[str], Awaitable[None]]
    """Want it gone; its state stays."""
    allowed: Callable[[str], Collection[str] | None]
    allow: Callable[[str, Collection[str] | None], Awaitable[None]]
    writer_uid: Callable[[], int | None]
    """Whose proposed repositories are; None: ours."""


ManifestAt = Callable[[str, str], Awaitable[Manifest]]
"""Configurations.manifest_at: agent, commit; raises BadManifest."""


class Before(msgspec.Struct, frozen=True):
    """What an agent was before its activation began."""

    declared: Declared | None
    """None: it was not there."""
    recipients: list[str] | None = None


_BEFORE: Final = msgspec.json.Decoder(dict[str, Before])


@dataclass(frozen=True, slots=True)
class Subject:
    """One agent that a deploy is about."""

    agent: str
    sha: str
    tag: str
    manifest: Manifest


Outputs = Mapping[str, str | None]
"""By agent, what was built for it."""


class Effects:
    """What a deploy does to the agents it is about.

    *builder* makes what their machines start from, *record* is of what runs; *manifest_at* reads the
    agent.toml of a commit.
    """

    def __init__(
        self,
        repositories: Repositories,
        releases: ReleaseFiles,
        builder: Builder,
        record: MetaRecord,
        hands: Hands,
        manifest_at: ManifestAt,
        config: Callable[[], Config],
    ) -> None:
        self._repositories = repositories
        self._releases = releases
        self._builder = builder
        self._record = record
        self._hands = hands
        self._manifest_at = manifest_at
        self._config = config

    # ── what it is about ────────────────────────────────────────────────────────────────────────

    async def choose(self, deploy: Deploy) -> Deploy:
        """See that it can be done at all, and give it with what exactly it is about: sha, tag.

        Raises:
            BuildFailed, BadProposal: it cannot.
        """
        return await _CHOICES[deploy.kind](self, deploy)

    async def _choose_init(self, deploy: Deploy) -> Deploy:
        name = deploy.agent
        if name in self._hands.rows() or await self._repositories.has_proposed(name):
            raise BuildFailed(f"cannot begin a configuration of {name}: there is one already")
        return deploy

    async def _choose_spawn(self, deploy: Deploy) -> Deploy:
        name, number = deploy.agent, deploy.approval_id or 0
        if name in self._hands.rows():
            raise BuildFailed(f"cannot spawn {name}: it exists already")
        sha = deploy.sha or await self._kept_or_template(name, number)
        first = await self._repositories.resolve(name, FIRST_TAG) in {None, sha}
        return replace(deploy, sha=sha, tag=FIRST_TAG if first else tag_of("deployed", number))

    async def _kept_or_template(self, name: str, number: int) -> str:
        """Give what ran when it was destroyed, or a commit with nothing but the template."""
        repositories, tag = self._repositories, tag_of("proposal", number)
        kept = await repositories.main(name) if await repositories.exists(name) else None
        if kept is not None:
            await repositories.tag(name, tag, kept)
            return kept
        files = template.files(name, Shape(), self._config().deploy.builder)
        await repositories.seed(name, files, self._hands.writer_uid())
        sha = await repositories.take_in(name, None, tag)
        # What was approved is the template: the manager may have been faster with something else.
        changes = await repositories.changes(name, None, sha)
        same = {change.path for change in changes} == files.keys()
        for path, text in files.items():
            same = same and await repositories.read(name, sha, path, MAX_MANIFEST_BYTES) == text
        if not same:
            raise BuildFailed(
                f"cannot spawn {name}: a configuration was made for it after this was asked for; ask again"
            )
        return sha

    async def _choose_apply(self, deploy: Deploy) -> Deploy:
        self._existing(deploy.agent, "deploy")
        return replace(deploy, tag=tag_of("deployed", deploy.approval_id or 0))

    async def _choose_rollback(self, deploy: Deploy) -> Deploy:
        self._existing(deploy.agent, "roll back")
        return deploy

    async def _choose_inputs(self, deploy: Deploy) -> Deploy:
        if self._config().deploy.builder != "nix":
            raise BuildFailed(
                "cannot renew inputs: this hive starts its machines from images and has no flake"
                " (deploy.builder)"
            )
        if not any(self._is_built(row) for row in self._hands.rows().values()):
            raise BuildFailed(
                "cannot renew inputs: no machine is built of them yet; the first deploy takes the newest"
            )
        return deploy

    def _is_built(self, row: AgentRow) -> bool:
        return row.deployed_sha is not None and self._builder.has_built(row.name, row.shape.image)

    def _existing(self, name: str, verb: str) -> AgentRow:
        row = self._hands.rows().get(name)
        if row is None:
            raise BuildFailed(f"cannot {verb} {name}: it was destroyed meanwhile")
        return row

    async def subjects(self, deploy: Deploy) -> list[Subject]:
        """Give the agents that *deploy* is about, as they are to be.

        Raises:
            BuildFailed: the agent.toml of one cannot be used.
        """
        if deploy.kind is DeployKind.INIT_CONFIG:
            return []
        if deploy.kind is DeployKind.INPUTS:
            found = []
            begun = read_before(deploy) if deploy.before_json else None
            for row in self._hands.rows().values():
                if row.name not in begun if begun is not None else not self._is_built(row):
                    continue  # it came later, or is made of something else
                if row.deployed_sha is not None and row.deployed_tag is not None:
                    found.append(Subject(row.name, row.deployed_sha, row.deployed_tag, row.manifest))
            return found
        assert deploy.sha is not None
        assert deploy.tag is not None
        declared = await self.manifest_of(deploy.agent, deploy.sha)
        return [Subject(deploy.agent, deploy.sha, deploy.tag, declared)]

    async def manifest_of(self, agent: str, sha: str) -> Manifest:
        try:
            return await self._manifest_at(agent, sha)
        except BadManifest as error:
            raise BuildFailed(f"cannot deploy {agent}: its {MANIFEST_NAME}: {error}") from None

    # ── the steps ───────────────────────────────────────────────────────────────────────────────

    async def prepare(self, deploy: Deploy, inputs: Collection[str], say: Say) -> None:
        """Say in the repository that it begins, and lay out what the build needs.

        *inputs* are those of the hive's flake that are renewed.
        """
        for subject in await self.subjects(deploy):
            if deploy.approval_id is not None and deploy.kind is not DeployKind.INPUTS:
                for word in ("approved", "building"):
                    tag = tag_of(word, deploy.approval_id)
                    await self._repositories.tag(subject.agent, tag, subject.sha)
            target = replace(_target(deploy, subject), inputs=tuple(inputs))
            await self._builder.prepare(target, say)

    async def build(
        self, deploy: Deploy, inputs: Collection[str], former: str | None, say: Say
    ) -> str | None:
        """Build it, lay out its release, and give what is to be in the column `output`.

        *former* is what was built for it when it was deployed before, of a rollback.
        """
        outputs: dict[str, str | None] = {}
        for subject in await self.subjects(deploy):
            target = replace(_target(deploy, subject), former=former, inputs=tuple(inputs))
            outputs[subject.agent] = (await self._builder.build(target, say)).image
            await self._releases.lay_out(subject.agent, subject.sha, subject.manifest)
        return _render_outputs(deploy, outputs)

    async def before(self, deploy: Deploy) -> dict[str, str | None]:
        """Give the columns that say what is there before the activation begins."""
        rows = self._hands.rows()
        found: dict[str, Before] = {}
        for subject in await self.subjects(deploy):
            row, allowed = rows.get(subject.agent), self._hands.allowed(subject.agent)
            if deploy.kind is DeployKind.SPAWN and row is not None:
                raise BuildFailed(f"cannot spawn {subject.agent}: it exists already")
            found[subject.agent] = Before(
                None if row is None else row.declared,
                None if allowed is None else sorted(allowed),
            )
        own = found.get(deploy.agent)
        return {
            "from_sha": own.declared.sha if own and own.declared else None,
            "before_json": msgspec.json.encode(found).decode(),
        }

    async def activate(self, deploy: Deploy, say: Say) -> None:
        """Let the agents be what was built."""
        if deploy.kind is DeployKind.INIT_CONFIG:
            files = template.files(deploy.agent, Shape(), self._config().deploy.builder)
            await self._repositories.seed(deploy.agent, files, self._hands.writer_uid())
            return
        outputs = read_outputs(deploy)
        for subject in await self.subjects(deploy):
            before = read_before(deploy)[subject.agent]
            was = before.declared or Declared(Shape())
            shape = manifests.shape_after(was.shape, was.manifest, subject.manifest)
            image = outputs.get(subject.agent)
            if image is not None:
                shape = replace(shape, image=image)
            declared = Declared(shape, subject.manifest, subject.sha, subject.tag)
            row = self._hands.rows().get(subject.agent)
            if before.declared is None and row is None:
                await self._hands.spawn(subject.agent, declared=declared)
            elif row is None:
                raise BuildFailed(f"cannot deploy {subject.agent}: it was destroyed meanwhile")
            elif before.declared is None and (row.deployed_sha, row.deployed_tag) != (
                subject.sha,
                subject.tag,
            ):
                raise BuildFailed(f"cannot spawn {subject.agent}: it exists already")
            recipients = subject.manifest.recipients
            if recipients is not None:
                await self._hands.allow(subject.agent, {*recipients, MANAGER})
            elif was.manifest.recipients is not None:
                await self._hands.allow(subject.agent, None)
            await self._hands.activate(subject.agent, declared, say=say)

    async def finalize(self, deploy: Deploy, say: Say) -> None:
        """It runs: say so in the repositories, and let go of what nobody needs any more."""
        subjects = await self.subjects(deploy)
        outputs, before = read_outputs(deploy), read_before(deploy)
        files: dict[str, bytes | None] = {}
        for subject in subjects:
            await self._repositories.tag(subject.agent, subject.tag, subject.sha)
            await self._repositories.move_main(subject.agent, subject.sha)
            target = _target(deploy, subject)
            files |= await self._builder.finalize(target, outputs.get(subject.agent), say)
        if subjects:
            await self._record.write(_message(deploy, outputs), [one.agent for one in subjects], files)
        for subject in subjects:
            was = before[subject.agent].declared
            await self._releases.prune(subject.agent, {subject.sha, was.sha if was else None})
        await self._clear(deploy)

    async def go_back(self, deploy: Deploy, say: Say) -> None:
        """Let the agents be again what they were before the activation began, if it did.

        Raises:
            ActivationFailed and the rest of what activate raises: that does not come up either.  Of several
                agents each was tried; the text has all stories.
        """
        stories: list[str] = []
        for agent, before in read_before(deploy).items():
            row = self._hands.rows().get(agent)
            if row is None:
                continue  # it was destroyed: nothing of it runs
            if before.declared is None:
                # Ours, or of somebody else who was faster.
                if row.deployed_sha == deploy.sha and row.deployed_tag == deploy.tag:
                    await self._hands.destroy(agent)
                continue
            declared = before.declared
            try:
                if declared.sha is not None:
                    await self._releases.lay_out(agent, declared.sha, declared.manifest)
                await self._hands.allow(agent, before.recipients)
                await self._hands.activate(agent, declared, say=say)
            except (ActivationFailed, BadProposal, CannotStart, Refused, *TROUBLE) as error:
                if deploy.kind is not DeployKind.INPUTS:
                    raise
                stories.append(f"{agent}: {describe(error)}")
        if stories:
            raise ActivationFailed("; ".join(stories))

    async def say_failed(self, deploy: Deploy, error: str) -> str | None:
        """Say in the repositories that it failed, and what runs; give the tag that says so.

        Raises as git does.
        """
        tag: str | None = None
        if await self._is_tagged(deploy):
            assert deploy.sha is not None
            if deploy.approval_id is not None:
                tag = tag_of("failed", deploy.approval_id)
                await self._repositories.tag(deploy.agent, tag, deploy.sha, error)
            row = self._hands.rows().get(deploy.agent)
            if row is not None and row.deployed_sha is not None:
                await self._repositories.move_main(deploy.agent, row.deployed_sha)
        agents = list(read_before(deploy))
        if agents:
            # The end of what could not be finished may have said the new already.
            files = await self._record.restored(agents)
            await self._record.write(
                f"abort {deploy.agent or 'inputs'} {deploy.tag or ''}".rstrip(), agents, files
            )
        return tag

    async def take_away(self, deploy: Deploy) -> None:
        """Take away what was laid out for one that failed."""
        await self._clear(deploy)
        if deploy.sha is None:
            return
        row, before = self._hands.rows().get(deploy.agent), read_before(deploy).get(deploy.agent)
        former = before.declared.sha if before and before.declared else None
        if before is not None and deploy.sha not in {row.deployed_sha if row else None, former}:
            await self._releases.remove(deploy.agent, deploy.sha)

    async def _clear(self, deploy: Deploy) -> None:
        # Once, and not for each agent that is left: all of them may have been destroyed meanwhile.
        await self._builder.abort(Target(deploy.id, deploy.agent, deploy.sha or "", NOTHING))

    async def _is_tagged(self, deploy: Deploy) -> bool:
        if deploy.sha is None or deploy.kind in {DeployKind.INIT_CONFIG, DeployKind.INPUTS}:
            return False
        return await self._repositories.exists(deploy.agent)


_CHOICES: Final[Mapping[DeployKind, Callable[[Effects, Deploy], Awaitable[Deploy]]]] = {
    DeployKind.SPAWN: Effects._choose_spawn,
    DeployKind.INIT_CONFIG: Effects._choose_init,
    DeployKind.APPLY: Effects._choose_apply,
    DeployKind.ROLLBACK: Effects._choose_rollback,
    DeployKind.INPUTS: Effects._choose_inputs,
}


def read_before(deploy: Deploy) -> dict[str, Before]:
    return _BEFORE.decode(deploy.before_json) if deploy.before_json else {}


def read_outputs(deploy: Deploy) -> Outputs:
    if deploy.kind is DeployKind.INPUTS:
        return dict(json.loads(deploy.output or "{}"))
    return {deploy.agent: deploy.output}


def _render_outputs(deploy: Deploy, outputs: Outputs) -> str | None:
    return json.dumps(outputs) if deploy.kind is DeployKind.INPUTS else outputs.get(deploy.agent)


def _target(deploy: Deploy, subject: Subject) -> Target:
    return Target(deploy.id, subject.agent, subject.sha, subject.manifest)


def _message(deploy: Deploy, outputs: Outputs) -> str:
    """`deploy NAME TAG SHA12 [OUTPUT-BASENAME]`."""
    verb = "rollback" if deploy.kind is DeployKind.ROLLBACK else "deploy"
    if deploy.kind is DeployKind.INPUTS:
        return f"{verb} inputs {' '.join(sorted(outputs))}".rstrip()
    output = outputs.get(deploy.agent)
    words = [verb, deploy.agent, deploy.tag or "", (deploy.sha or "")[:12]]
    return one_line(" ".join([*words, *([PurePath(output).name] if output else [])]))

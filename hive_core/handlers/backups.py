"""Archives of the hive and of single agents."""

import time
from functools import partial
from pathlib import Path
from typing import Final

import apsw
import msgspec
from msgspec import UNSET

from hive_core.backup import Archive
from hive_core.domain.clock import rfc3339
from hive_core.domain.manifest import MANIFEST_NAME, NOTHING, BadManifest, Manifest
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.host.quarantine import BadProposal
from hive_core.repositories import MAX_TAGS
from hive_core.store import agents, moving
from hive_core.wire import retention as wire
from hive_core.wire.errors import ErrorCode, Refused

MAX_NUMBER: Final = 10**9
"""Of an approval, in the tags of a repository from elsewhere."""


async def create(deps: Deps, _peer: Peer, _request: wire.BackupCreate) -> wire.ArchiveReply:
    # Marks are stored when there is company; those of before shall be in it.
    await deps.store.write(lambda _db: None)
    return wire.ArchiveReply(archive=_row(await deps.backups.create()))


async def archives(deps: Deps, _peer: Peer, _request: wire.Backups) -> wire.BackupsReply:
    found = await deps.backups.all()
    return wire.BackupsReply(archives=within_line([_row(each) for each in found], newest=True))


async def verify(deps: Deps, peer: Peer, request: wire.BackupVerify) -> wire.ArchiveReply:
    found = await deps.backups.verify(_path(request.path), peer_uid=peer.uid)
    return wire.ArchiveReply(archive=_row(found))


async def export(deps: Deps, _peer: Peer, request: wire.Export) -> wire.ArchiveReply:
    """Put one agent aside, also while it runs.

    Raises:
        Refused: NOT_FOUND; UNAVAILABLE.
    """
    deps.supervisor.agent(request.agent)
    luggage = await deps.store.read(moving.pack_rows, request.agent)
    made = await deps.backups.export(request.agent, msgspec.json.encode(luggage), len(luggage.messages))
    return wire.ArchiveReply(archive=_row(made))


async def take_in(deps: Deps, peer: Peer, request: wire.Import) -> wire.ArchiveReply:
    """Make an agent of an archive; a spawn of its name starts it.

    Raises:
        Refused: CONFLICT, when there is one of its name or there was one whose state is kept;
            INVALID_ARGUMENT, when the archive cannot be used; NOT_FOUND, FORBIDDEN; UNAVAILABLE,
            when there are no users left for a machine.
    """

    async def take_rows(agent: str, uid_base: int | None, text: bytes) -> None:
        luggage = moving.decode_luggage(text)
        manifest, last_number = await _deployed(deps, agent, luggage)
        first_id = deps.broker.take_ids(len(luggage.messages) + len(luggage.dead))

        def store(db: apsw.Connection) -> None:
            if any(row.name == agent for row in agents.all_agents(db)):
                raise Refused(
                    ErrorCode.CONFLICT, f"cannot import {agent}: there is one of this name", "exists"
                )
            moving.unpack_rows(
                *(db, agent, uid_base, luggage, first_id, time.time()),
                manifest=manifest,
                last_number=last_number,
            )

        await deps.store.write(store)
        deps.dead_letters.note_imported(agent, len(luggage.dead))

    made = await deps.backups.take_in(
        _path(request.path),
        request.name,
        peer_uid=peer.uid,
        uid_for=partial(deps.supervisor.uids_for, verb="import"),
        take_rows=take_rows,
    )
    return wire.ArchiveReply(archive=_row(made))


async def _deployed(deps: Deps, agent: str, luggage: moving.Luggage) -> tuple[Manifest, int]:
    """Give what the commit declares that *agent* ran with, and the highest number in its tags.

    Raises:
        ValueError: it is not in the repository that came along, or cannot be used here.
        CommandError, OSError, trio.TooSlowError: that cannot be read.
    """
    repositories, sha = deps.repositories, luggage.deployed_sha
    known = await repositories.history(agent, MAX_TAGS)
    last_number = max((int(one.tag.partition("/")[2]) for one in known), default=0)
    if last_number > MAX_NUMBER:
        raise ValueError(
            f"its repository has a tag with the number {last_number}, which no approval ever has"
        )
    if sha is None:
        return NOTHING, last_number
    if not any((one.tag, one.sha) == (luggage.deployed_tag, sha) for one in known):
        raise ValueError("what was deployed of it is not in its repository")
    try:
        return await deps.configurations.manifest_at(agent, sha), last_number
    except (BadManifest, BadProposal) as error:
        raise ValueError(f"its {MANIFEST_NAME}: {error}") from None


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot open {text!r}: it is no absolute path")
    return path


def _row(archive: Archive) -> wire.ArchiveRow:
    manifest = archive.manifest
    return wire.ArchiveRow(
        path=str(archive.path),
        kind="unknown" if manifest is None else manifest.kind,
        size_bytes=archive.size_bytes,
        created_at=rfc3339(0.0 if manifest is None else manifest.created_at, fraction=False),
        schema=0 if manifest is None else manifest.schema,
        agents=[] if manifest is None else manifest.agents,
        messages=0 if manifest is None else manifest.messages,
        problem=UNSET if archive.problem is None else archive.problem,
    )

"""Puts a hive, or one agent of it, aside in one file, and makes it of such a file again.

A backup is taken while everything runs: first the database as it is at one moment, then what the agents have.
An agent's files and repositories may so be ahead of the database but never behind it, which is what a crash
leaves as well: a message that was not acked by then comes again, and says so.
"""

import logging
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

import apsw
import msgspec
import trio

from hive_core.host import agent_files, agent_upkeep, archive
from hive_core.host.archive import BadArchive, Manifest, Part
from hive_core.host.process import CommandError, User
from hive_core.host.sockets import only_daemon
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.repository_copies import RepositoryCopies
from hive_core.store.copy import check_database, copy_database, uids_of
from hive_core.store.schema import MIGRATIONS, SchemaError
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import MANAGER, why_no_agent_name
from hive_core.wire.version import VERSION

SUFFIX: Final = ".tar.gz"
DATABASE: Final = "broker.sqlite"
HOME: Final = "home.tar"
"""What else is in the state directory."""
ROWS: Final = "rows.json"
"""What the database knows of an agent."""
NOT_IN_HOME: Final = (
    *("agents", "backups", "builds", "db", "hive-core.lock", "staging"),
    # These are packed by others; what was released is laid out anew.
    *("applied", "configs", "meta", "releases"),
    *(f"{name}.sqlite{suffix}" for name in ("broker", "search") for suffix in ("", "-wal", "-shm")),
)
DIRECTORIES: Final = ("state", "claude")
MARK: Final = "importing"
"""In the directory of an import that is under way: the agent's name."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    path: Path
    size_bytes: int
    manifest: Manifest | None
    problem: str | None = None


class Backups:
    """The archives of one hive.

    *agents* are those whose state is kept; *uid_of* gives the user that an agent's files belong to, None for
    the daemon's own, and raises LookupError for one that is gone.  *writer_uid* is whose proposed
    repositories are to be.
    """

    def __init__(
        self,
        layout: Layout,
        repositories: Repositories,
        *,
        agents: Callable[[], Awaitable[Sequence[str]]],
        uid_of: Callable[[str], Awaitable[int | None]],
        writer_uid: Callable[[], int | None] = lambda: None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._agents = agents
        self._uid_of = uid_of
        self._writer_uid = writer_uid
        self._copies = RepositoryCopies(layout, repositories)
        self._wall_clock = wall_clock
        self._one = trio.Lock()

    @property
    def directory(self) -> Path:
        return self._layout.state / "backups"

    async def recover(self) -> None:
        """Take away what an import has left that was killed: nobody knows of an agent there."""
        for mark in self.directory.glob(f".work-*/{MARK}"):
            try:
                agent = mark.read_text()
                if agent != MANAGER and why_no_agent_name(agent):
                    continue
                try:
                    await self._uid_of(agent)
                except LookupError:
                    log.warning("Import was cut off, what it left is deleted agent=%s", agent)
                    await self._remove(agent)
            except (OSError, CommandError, trio.TooSlowError) as error:
                log.error("What a cut off import left cannot be deleted: %s", error)

    async def create(self) -> Archive:
        """Put the whole hive aside.

        Raises:
            Refused: UNAVAILABLE, when it cannot be read or written.
        """
        return await self._write("hive", [])

    async def export(self, agent: str, rows: bytes, messages: int) -> Archive:
        """Put the files of *agent* aside, with its *rows*, of which *messages* are such.

        Raises:
            Refused: UNAVAILABLE, when they cannot be read or written.
        """
        return await self._write("agent", [agent], rows, messages)

    async def _write(
        self, kind: str, agents: Sequence[str], rows: bytes | None = None, messages: int = 0
    ) -> Archive:
        verb = "back up" if kind == "hive" else f"export {agents[0]}"
        now = self._wall_clock()
        async with self._one:
            try:
                work = await trio.to_thread.run_sync(self._fresh_work)
                try:
                    return await self._write_with(work, kind, agents, rows, messages, now)
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(lambda: shutil.rmtree(work, ignore_errors=True))
            except (OSError, CommandError, trio.TooSlowError, apsw.Error) as error:
                log.error("Backup failed kind=%s: %s", kind, error)
                raise Refused(ErrorCode.UNAVAILABLE, f"cannot {verb}: {error}") from None

    async def _write_with(
        self, work: Path, kind: str, agents: Sequence[str], rows: bytes | None, messages: int, now: float
    ) -> Archive:
        paths: dict[str, Path] = {}
        if rows is not None:
            paths[ROWS] = work / ROWS
            paths[ROWS].write_bytes(rows)
        if kind == "hive":
            paths[DATABASE] = work / DATABASE
            messages = await trio.to_thread.run_sync(copy_database, self._layout.database, paths[DATABASE])
            paths[HOME] = work / HOME
            await _pack(self._layout.state, paths[HOME], without=NOT_IN_HOME, plain=True)
            agents = await self._agents()
        packed: list[str] = []
        owners: dict[str, int] = {}
        for agent in agents:
            try:
                uid = await self._uid_of(agent)
            except LookupError:
                if kind != "hive":
                    raise CommandError("it was purged meanwhile") from None
                continue  # and nobody else's rights are used on what is left of it
            packed.append(agent)
            dirs = self._layout.agent(agent)
            for name, directory in zip(DIRECTORIES, (dirs.state, dirs.claude), strict=True):
                part = f"agents/{agent}/{name}.tar"
                paths[part] = work / f"{agent}.{name}.tar"
                await _pack(directory, paths[part], uid=uid)
        if kind == "hive":
            copies, owners = await self._copies.pack_all(work)
        else:
            copies, _ = await self._copies.pack(agents[0], work)
        paths |= copies

        def write() -> Archive:
            parts: dict[str, Part] = {name: archive.hash_part(path) for name, path in paths.items()}
            manifest = Manifest(
                format=archive.FORMAT,
                kind=kind,
                software=f"hive-core {VERSION}",
                schema=len(MIGRATIONS),
                created_at=now,
                agents=packed,
                messages=messages,
                owners=owners,
                parts=parts,
            )
            path = self._free_name("hive" if kind == "hive" else agents[0], now)
            archive.write_archive(path, manifest, paths)
            return Archive(path, path.stat().st_size, manifest)

        made = await trio.to_thread.run_sync(write)
        log.info("Backup written kind=%s path=%s bytes=%d", kind, made.path, made.size_bytes)
        return made

    def _fresh_work(self) -> Path:
        """Make a directory to work in, and delete what a daemon that was killed left of its own."""
        self.directory.mkdir(exist_ok=True, mode=0o700)
        for left in self.directory.glob(".work-*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.directory.glob(".*.part"):
            left.unlink(missing_ok=True)
        return Path(tempfile.mkdtemp(prefix=".work-", dir=self.directory))

    def _free_name(self, what: str, now: float) -> Path:
        moment = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
        number = 0
        while True:
            path = self.directory / f"{what}-{moment}{f'-{number}' if number else ''}{SUFFIX}"
            if not path.exists():
                return path
            number += 1

    async def all(self) -> list[Archive]:
        """The archives in the directory of backups, oldest first.

        Raises:
            Refused: UNAVAILABLE, when it cannot be read.
        """

        def look() -> list[Archive]:
            if not self.directory.is_dir():
                return []
            return [_look_at(path) for path in self.directory.glob(f"*{SUFFIX}") if path.is_file()]

        try:
            found = await trio.to_thread.run_sync(look)
        except OSError as error:
            raise Refused(ErrorCode.UNAVAILABLE, f"cannot list the backups: {error}") from None
        return sorted(found, key=lambda one: (one.manifest.created_at if one.manifest else 0.0, one.path))

    async def verify(self, path: Path, *, peer_uid: int) -> Archive:
        """Read an archive whole; what is wrong with it is its *problem*.

        Raises:
            Refused: NOT_FOUND; FORBIDDEN, when it is neither in the directory of backups nor the peer's.
        """
        with self._open(path, peer_uid, "verify") as file:
            return await trio.to_thread.run_sync(verify, path, file)

    async def take_in(
        self,
        path: Path,
        name: str | None,
        *,
        peer_uid: int,
        uid_for: Callable[[str], Awaitable[int | None]],
        take_rows: Callable[[str, int | None, bytes], Awaitable[None]],
    ) -> Archive:
        """Make an agent of an archive of one, under *name* or the one that it had.

        *uid_for* says whose its files are to be; *take_rows* stores what the database shall know of it. Both
        may raise Refused, *take_rows* also ValueError.

        Raises:
            Refused: it is no such archive, the agent has files already, or they cannot be written.
        """
        try:
            with self._open(path, peer_uid, "import") as file:
                async with self._one:
                    work = await trio.to_thread.run_sync(self._fresh_work)
                    try:
                        agent, manifest = await self._take_from(work, file, name, uid_for, take_rows)
                    finally:
                        shutil.rmtree(work, ignore_errors=True)
        except (BadArchive, OSError, ValueError, CommandError, trio.TooSlowError) as error:
            raise Refused(ErrorCode.INVALID_ARGUMENT, f"cannot import {path}: {error}") from None
        made = msgspec.structs.replace(manifest, agents=[agent])
        log.info("Agent imported agent=%s messages=%d", agent, manifest.messages)
        return Archive(path, 0, made)

    async def _take_from(
        self,
        work: Path,
        file: IO[bytes],
        name: str | None,
        uid_for: Callable[[str], Awaitable[int | None]],
        take_rows: Callable[[str, int | None, bytes], Awaitable[None]],
    ) -> tuple[str, Manifest]:
        manifest = await trio.to_thread.run_sync(archive.extract, file, work)
        if manifest.kind != "agent" or len(manifest.agents) != 1:
            raise BadArchive("it holds a whole hive; hive-core restore makes one of it")
        agent = name or manifest.agents[0]
        if why_no_agent_name(agent) or ROWS not in manifest.parts:
            raise BadArchive("it holds no agent")
        if self._layout.agent(agent).base.exists() or self._copies.are_there(agent):
            raise Refused(ErrorCode.CONFLICT, f"cannot import {agent}: its files are there already", "exists")
        (work / MARK).write_text(agent)
        try:
            uid = await uid_for(agent)
            await _unpack_agent(self._layout, work, manifest.agents[0], agent, uid)
            await self._copies.take_in(work, manifest.agents[0], agent, self._writer_uid())
            await take_rows(agent, uid, (work / ROWS).read_bytes())
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._remove(agent)
            raise
        return agent, manifest

    async def _remove(self, agent: str) -> None:
        await agent_files.remove(self._layout.agent(agent).base)
        await self._copies.remove(agent)

    def _open(self, path: Path, peer_uid: int, verb: str) -> IO[bytes]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Refused(ErrorCode.NOT_FOUND, f"cannot {verb} {path}: {error.strerror}") from None
        found = os.fstat(fd)
        # We may read more than who asks: it must be ours to show, or theirs.
        theirs = peer_uid in {0, os.geteuid(), found.st_uid} or path.parent == self.directory
        if not stat.S_ISREG(found.st_mode) or not theirs:
            os.close(fd)
            why = "it is not your file" if stat.S_ISREG(found.st_mode) else "it is no file"
            raise Refused(ErrorCode.FORBIDDEN, f"cannot {verb} {path}: {why}")
        return os.fdopen(fd, "rb")


def verify(path: Path, file: IO[bytes]) -> Archive:
    """Read an archive whole and look whether its database is sound."""
    size = os.fstat(file.fileno()).st_size
    manifest = None
    try:
        with tempfile.TemporaryDirectory(prefix="hive-verify-") as work:
            manifest = archive.extract(file, Path(work), only=DATABASE)
            _check_schema(manifest)
            if manifest.kind == "hive":
                _, messages = check_database(Path(work) / DATABASE)
                if messages != manifest.messages:
                    raise BadArchive(f"it has {messages} messages instead of {manifest.messages}")
    except (BadArchive, SchemaError, OSError) as error:
        return Archive(path, size, manifest, str(error))
    return Archive(path, size, manifest)


async def restore(layout: Layout, path: Path, *, isolated: bool = False) -> Manifest:
    """Make a hive of a backup, where there is none and no daemon runs.

    It is there whole or not at all.  *isolated*: its agents have machines, and the files users of their own.

    Raises:
        AlreadyServed, BadArchive, SchemaError, OSError, CommandError: it cannot be; the text says why.
    """
    with path.open("rb") as file:
        manifest = archive.read_manifest(file)
        if manifest.kind != "hive":
            raise BadArchive("it holds one agent; hive import makes one of it")
        _check_schema(manifest)
        layout.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        layout.run.mkdir(parents=True, exist_ok=True, mode=0o751)
        with only_daemon(layout.run):
            _refuse_used(layout)
            fresh = layout.state.with_name(f".{layout.state.name}.restoring")
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True, mode=0o700)
            try:
                await _restore_into(Layout(layout.home, layout.run, fresh), file, manifest, isolated=isolated)
                (layout.state / "hive-core.lock").unlink(missing_ok=True)
                fresh.rename(layout.state)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
    return manifest


async def _restore_into(layout: Layout, file: IO[bytes], manifest: Manifest, *, isolated: bool) -> None:
    work = layout.state / ".work"
    work.mkdir(mode=0o700)
    file.seek(0)
    await trio.to_thread.run_sync(archive.extract, file, work)
    _, messages = await trio.to_thread.run_sync(check_database, work / DATABASE)
    if messages != manifest.messages:
        raise BadArchive(f"it has {messages} messages instead of {manifest.messages}")
    await agent_upkeep.unpack(layout.state, work / HOME, ours=True)
    uids = await trio.to_thread.run_sync(uids_of, work / DATABASE)
    for agent in manifest.agents:
        await _unpack_agent(layout, work, agent, agent, uids.get(agent) if os.geteuid() == 0 else None)
    copies = RepositoryCopies(layout, Repositories(layout, isolated=isolated))
    await copies.unpack_all(work, manifest.owners)
    (work / DATABASE).rename(layout.state / DATABASE)
    shutil.rmtree(work)


async def _unpack_agent(layout: Layout, work: Path, was: str, agent: str, uid: int | None) -> None:
    dirs = layout.agent(agent)
    for name, directory in zip(DIRECTORIES, (dirs.state, dirs.claude), strict=True):
        part = work / "agents" / was / f"{name}.tar"
        if part.exists():
            dirs.base.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory.mkdir(mode=0o700)
            if uid is not None:
                os.chown(directory, uid, uid)
            await agent_upkeep.unpack(directory, part, user=None if uid is None else User(uid, uid))


async def _pack(
    directory: Path, target: Path, *, without: Sequence[str] = (), plain: bool = False, uid: int | None = None
) -> None:
    with target.open("xb") as file:
        await agent_upkeep.pack(
            directory, file, without=without, plain=plain, user=None if uid is None else User(uid, uid)
        )


def _refuse_used(layout: Layout) -> None:
    if not layout.state.exists():
        return
    with only_daemon(layout.state):
        pass
    there = sorted(path.name for path in layout.state.iterdir() if path.name != "hive-core.lock")
    if there:
        raise FileExistsError(f"{layout.state} is not empty: there is {there[0]}")


def _check_schema(manifest: Manifest) -> None:
    if manifest.schema > len(MIGRATIONS):
        raise SchemaError(
            f"it was written by a newer hyperhive (schema {manifest.schema}, this one knows "
            f"{len(MIGRATIONS)}); update hyperhive"
        )


def _look_at(path: Path) -> Archive:
    size = 0
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return Archive(path, size, archive.read_manifest(file))
    except (BadArchive, OSError) as error:
        return Archive(path, size, None, str(error))

"""A repository that is not ours, taken apart and put together again where nothing but its objects can matter.

A quarantine is a directory of git's with objects and no references.  What is taken from one is sound and all
there, and can be laid out as plain files.
"""

import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn

import trio

from hive_core.host import proposals
from hive_core.host.git import Git
from hive_core.host.git_output import SUBMODULE, TAG, File, parse_files, visible_path
from hive_core.host.process import CommandError
from hive_core.host.proposals import Contents
from hive_core.host.quarantine_worker import MAX_OBJECT_BYTES

MAX_FILES: Final = 5000
"""In one commit."""
MAX_COMMIT_BYTES: Final = 64 * 2**20
"""Of all files of one commit."""
MAX_DEPTH: Final = 32
MAX_PATH_BYTES: Final = 1024
MAX_REACHABLE: Final = 100_000
"""Commits, directories and files in all the history of a commit."""
MAX_MESSAGE_BYTES: Final = 16 * 2**10
"""Of a commit without its files: what it says, and of whom."""
MAX_INDEXING_S: Final = 120.0
"""For all packs of a repository; git's own limit is for each."""
MAX_LISTED_BYTES: Final = MAX_FILES * (MAX_PATH_BYTES + 80)
"""Of what git lists of one commit."""

_SHA: Final = re.compile(r"[0-9a-f]{40}\Z")


class BadProposal(Exception):
    """What was proposed cannot be used.  The text is for whoever proposed it."""


class Quarantine:
    """*staging* is where they are made, *git* whose they are; *isolated*: what is read belongs to others."""

    def __init__(self, staging: Path, *, git: Callable[[], Git], isolated: bool) -> None:
        self._staging = staging
        self._git = git
        self._isolated = isolated
        self._is_tidy = False

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Path]:
        """Give an empty directory of git's that is gone afterwards."""
        runner = self._git()
        await self._tidy()
        path = self._staging / f"take-{secrets.token_hex(8)}"
        runner.own(path, mode=0o700)
        try:
            yield path
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: shutil.rmtree(path, ignore_errors=True))

    async def read(self, directory: Path, quarantine: Path, *, refs: bool = False) -> Contents:
        runner = self._git()
        try:
            contents = await proposals.read(
                directory, quarantine, as_owner=self._isolated, user=runner.user, refs=refs
            )
            with trio.move_on_after(MAX_INDEXING_S) as deadline:
                for name in contents.packs:
                    await self._index(quarantine, name)
            if deadline.cancelled_caught:
                raise BadProposal(
                    f"cannot take a commit: git needs over {MAX_INDEXING_S:g} s for the packs of its"
                    " repository; git gc makes one of them"
                )
        except proposals.CannotRead as error:
            raise BadProposal(f"cannot take a commit: {error}") from None
        return contents

    async def _index(self, quarantine: Path, name: str) -> None:
        """Let git read a pack and make an index of it; whether its objects are sound it says at the fetch."""
        path = quarantine / "objects" / "pack" / name
        try:
            await self._git().run(quarantine, "index-pack", "--threads=1", str(path))
        except (CommandError, trio.TooSlowError) as error:
            why = _why(error)
            raise BadProposal(f"cannot take a commit: a pack of its repository is unusable: {why}") from None

    async def find(self, quarantine: Path, commit_ref: str | None, contents: Contents) -> str:
        """Give the full hash of a commit that came.

        There are no references: nothing but an object is called like one.
        """
        if commit_ref is None:
            if contents.head is None:
                raise BadProposal("cannot take a commit: its repository has none that is checked out")
            wanted = contents.head
        else:
            wanted = commit_ref.lower()
        try:
            said = await self._git().run(
                quarantine, "rev-parse", "--verify", "--end-of-options", f"{wanted}^{{commit}}"
            )
        except CommandError as error:
            if "ambiguous" in str(error):
                raise BadProposal(
                    f"cannot take {wanted}: several objects begin so; give more of it"
                ) from None
            raise BadProposal(f"cannot take {wanted}: there is no such commit in its repository") from None
        sha = said.decode().strip()
        if not _SHA.match(sha):
            raise BadProposal(f"cannot take {wanted}: there is no such commit in its repository")
        return sha

    async def look_through(self, quarantine: Path, sha: str, contents: Contents) -> None:
        """Refuse a commit whose files could not be laid out, or that has too much behind it."""
        runner = self._git()
        short = sha[:12]
        try:
            size = int(await runner.run(quarantine, "cat-file", "-s", sha))
            if size > MAX_MESSAGE_BYTES:
                raise BadProposal(
                    f"cannot take {short}: its message has {size} bytes, and may have {MAX_MESSAGE_BYTES}"
                )
            listed, too_much = await runner.run_cut(
                quarantine, "ls-tree", "-r", "-l", "-z", sha, max_output_bytes=MAX_LISTED_BYTES
            )
            if too_much:
                raise BadProposal(f"cannot take {short}: it has more than {MAX_FILES} files")
            check_files(sha, parse_files(listed))
            reached, too_much = await runner.run_cut(
                quarantine,
                *(
                    "rev-list",
                    "--objects",
                    "--no-object-names",
                    f"--filter=blob:limit={MAX_OBJECT_BYTES + 1}",
                ),
                *("--filter-print-omitted", "--end-of-options", sha),
                max_output_bytes=MAX_REACHABLE * 42,
            )
        except (CommandError, trio.TooSlowError) as error:
            refuse_incomplete(short, error, contents)
        if too_much:
            raise BadProposal(f"cannot take {short}: it has more than {MAX_REACHABLE} objects in its history")
        omitted = re.search(rb"^~([0-9a-f]{40})$", reached, re.MULTILINE)
        if omitted:
            raise BadProposal(_too_large(short, omitted[1].decode()))

    async def rebuild(self, source: Path, work: Path, *, bare: bool) -> Path:
        """Make a repository of our own of one that is not, below the empty directory *work*."""
        runner = self._git()
        quarantine, new = work / "quarantine", work / "new"
        for path in (quarantine, new):
            runner.own(path, mode=0o755)
        contents = await self.read(source, quarantine, refs=True)
        refs = {
            name: sha for name, sha in contents.refs.items() if TAG.match(name.removeprefix("refs/tags/"))
        }
        main = contents.refs.get("refs/heads/main") or contents.head
        if main is not None:
            refs["refs/heads/main"] = main
        if not refs or (main is None and not bare):
            raise BadProposal("cannot take it over: it has no commit")
        created = "".join(f"create {name} {sha}\n" for name, sha in refs.items())
        try:
            await runner.run(quarantine, "update-ref", "--stdin", said_to=created.encode())
            top = new if bare else new / ".git"
            work_tree = None if bare else new
            kind = ["--bare"] if bare else []
            await runner.run(top, "init", "--quiet", "--template=", *kind, work_tree=work_tree)
            await runner.run(
                top,
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--update-head-ok"),
                *("--end-of-options", str(quarantine)),
                *("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"),
            )
        except CommandError as error:
            raise BadProposal(f"cannot take it over: {_why(error)}") from None
        return new

    async def _tidy(self) -> None:
        """Take away what an earlier daemon was doing when it was killed."""
        if self._is_tidy:
            return
        self._is_tidy = True
        self._staging.mkdir(parents=True, exist_ok=True)
        if self._isolated:
            self._staging.chmod(0o711)
        for path in self._staging.glob("take-*"):
            await trio.to_thread.run_sync(shutil.rmtree, path, True)


def refuse_incomplete(short: str, error: Exception, contents: Contents | None) -> NoReturn:
    if contents is not None and contents.too_large:
        raise BadProposal(_too_large(short, contents.too_large[0])) from None
    raise BadProposal(
        f"cannot take {short}: its repository does not have all of it, or it is unsound: {_why(error)}"
    ) from None


def check_files(sha: str, files: list[File]) -> None:
    """Refuse files that could not be laid out.

    Raises:
        BadProposal: the text names the first.
    """
    short = sha[:12]
    if len(files) > MAX_FILES:
        raise BadProposal(f"cannot take {short}: it has {len(files)} files, and may have {MAX_FILES}")
    for file in files:
        parts = file.path.split(b"/")
        if file.mode == SUBMODULE:
            raise BadProposal(
                f"cannot take {short}: {visible_path(file.path)} is a submodule; put its files there instead"
            )
        if (
            len(parts) > MAX_DEPTH
            or len(file.path) > MAX_PATH_BYTES
            or any(part in {b"", b".", b".."} or part.lower() == b".git" or len(part) > 255 for part in parts)
        ):
            raise BadProposal(
                f"cannot take {short}: {visible_path(file.path)} is too deep, too long or no usable path"
            )
        if file.size > MAX_OBJECT_BYTES:
            raise BadProposal(_too_large(short, visible_path(file.path)))
    total = sum(file.size for file in files)
    if total > MAX_COMMIT_BYTES:
        raise BadProposal(
            f"cannot take {short}: its files are {total >> 20} MiB, and may be {MAX_COMMIT_BYTES >> 20}"
        )


def _too_large(short: str, what: str) -> str:
    return (
        f"cannot take {short}: {what} is larger than {MAX_OBJECT_BYTES >> 20} MiB; "
        "propose a commit that never had it"
    )


def _why(error: Exception) -> str:
    text = str(error) if isinstance(error, CommandError) else "it takes too long"
    lines = [line for line in text.splitlines() if line.strip()] or [text]
    return "".join(char if char.isprintable() else "?" for char in lines[-1])[-300:]

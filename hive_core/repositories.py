"""The git repositories of agents: what was proposed, what was applied, and the record of deploys.

Whoever wants something of git asks here.  A proposed repository is the manager's: a child of ours reads it
(`host/quarantine.py`), git never does.

Whoever calls may meet, beside what is said of each method, process.CommandError (git failed, the text says
why), OSError (there is no git, no user for it, or no room) and trio.TooSlowError: nothing is half done then,
and the same call again goes on from there.
"""

import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from hive_core.host import agent_files, agent_upkeep, git, process, proposals
from hive_core.host.git import EMPTY_TREE, Git
from hive_core.host.git_files import has_objects, lay_out, swap, sweep_locks
from hive_core.host.git_objects import blob_hash, remote_of, repository
from hive_core.host.git_output import (
    LINK,
    TAG,
    Change,
    File,
    TagInfo,
    made_at,
    parse_changes,
    parse_files,
    parse_tag,
    visible_path,
)
from hive_core.host.process import CommandError, User
from hive_core.host.quarantine import (
    MAX_COMMIT_BYTES,
    MAX_FILES,
    MAX_LISTED_BYTES,
    BadProposal,
    Quarantine,
    check_files,
    refuse_incomplete,
)
from hive_core.host.quarantine_worker import MAX_OBJECT_BYTES
from hive_core.layout import Layout
from hive_core.wire.ids import AGENT_NAME_PATTERN

MAX_CHANGES: Final = 2 * MAX_FILES
"""All that two commits can have: whoever decides has to hear of every file."""
MAX_APPLIED_BYTES: Final = 4 * 2**30
"""Of all that was ever proposed for an agent, as git keeps it."""
MAX_NOTE_BYTES: Final = 64 * 2**10
MAX_DIFF_BYTES: Final = 16 * 2**20
MAX_TAGS: Final = 50_000

_AGENT: Final = re.compile(AGENT_NAME_PATTERN)
_SHA: Final = re.compile(r"[0-9a-f]{40}\Z")
_HEX: Final = re.compile(r"[0-9a-fA-F]{7,40}\Z")
_META_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_NOTHING: Final = "0" * 40
_IN_ORDER: Final = ("proposal", "denied", "approved", "building", "failed", "deployed")


class Repositories:
    """*isolated*: we are root; git runs as a user of its own, and proposals belong to other users."""

    def __init__(self, layout: Layout, *, isolated: bool) -> None:
        self._layout = layout
        self._isolated = isolated
        self._git_found: Git | None = None
        self._locks: dict[str, trio.Lock] = {}
        self._meta_lock = trio.Lock()
        self._quarantine = Quarantine(layout.staging, git=self._git, isolated=isolated)
        self._swept: set[Path] = set()

    # ── what is proposed ────────────────────────────────────────────────────────────────────────

    async def seed(self, agent: str, files: Mapping[str, bytes], uid: int | None) -> bool:
        """Make the proposed repository with one commit of *files* on `main`, as user *uid*.

        False: there is one already, and nothing happened.
        """
        directory = self._layout.config_of(_checked(agent))
        async with self._lock(agent):
            if await self.has_proposed(agent):
                return False
            await trio.to_thread.run_sync(self._make_config, directory, uid)
            shown = self._applied_shown(agent)
            made = repository(files, message=f"The configuration of {agent}", now=time.time(), applied=shown)
            return await proposals.seed(directory, made, uid=uid if self._isolated else None)

    async def has_proposed(self, agent: str) -> bool:
        """Say whether there is a repository, or whatever else is called .git, where the proposed one is."""
        return os.path.lexists(self._layout.config_of(_checked(agent)) / ".git")

    async def take_in(self, agent: str, commit_ref: str | None, tag: str) -> str:
        """Copy a commit of the proposed repository into the applied one, and tag it; its full hash.

        *commit_ref* is 7 to 40 hex digits; None: the commit that is checked out.  The same *tag* again is
        taken for the same request again: it stays at what was taken first, and nothing is read.

        Raises:
            BadProposal: there is no such commit, or it cannot be taken.
        """
        if commit_ref is not None and not _HEX.match(commit_ref):
            raise BadProposal(
                f"cannot take {commit_ref[:80]!r}: name the commit by 7 to 40 hex digits of its hash; "
                "branches and tags may move"
            )
        name = _checked_tag(tag)
        async with self._lock(_checked(agent)):
            if (there := await self._resolve(agent, tag)) is not None:
                return there
            async with self._quarantine.opened() as quarantine:
                contents = await self._quarantine.read(self._layout.config_of(agent), quarantine)
                sha = await self._quarantine.find(quarantine, commit_ref, contents)
                await self._quarantine.look_through(quarantine, sha, contents)
                await self._make_applied(agent)
                await self._check_room(agent)
                await self._fetch(agent, quarantine, sha, name)
            return sha

    # ── what is applied ─────────────────────────────────────────────────────────────────────────

    async def exists(self, agent: str) -> bool:
        """Say whether there is an applied repository, and something in it."""
        if not self._is_made(agent):
            return False
        return bool(await self._run(agent, "for-each-ref", "--count=1", "--format=%(refname)", "refs/"))

    async def tag(self, agent: str, tag: str, sha: str, note: str | None = None) -> None:
        """Put *tag* at a commit, annotated when there is a *note*; the same again does nothing.

        Raises:
            CommandError: it is at another commit, or there is no such commit.
        """
        name, _ = _checked_tag(tag), _checked_sha(sha)
        async with self._lock(agent):
            there = await self._resolve(agent, tag)
            if there == sha:
                return
            if there is not None:
                raise CommandError(f"cannot tag {sha[:12]} of {agent} {tag}: that is {there[:12]} already")
            if note is None:
                await self._run(agent, "update-ref", "--create-reflog", name, sha, _NOTHING)
            else:
                await self._annotate(agent, tag, sha, note)

    async def move_main(self, agent: str, sha: str) -> None:
        """Let `main` be at a commit that is there."""
        async with self._lock(agent):
            await self._run(agent, "update-ref", "refs/heads/main", _checked_sha(sha))

    async def main(self, agent: str) -> str | None:
        """Give the commit that `main` is at, None if there is none."""
        return await self._commit_at(agent, "refs/heads/main")

    async def resolve(self, agent: str, tag: str) -> str | None:
        """Give the commit that *tag* is at, None if there is none."""
        return await self._resolve(agent, tag)

    async def read(self, agent: str, sha: str, path: str, max_bytes: int) -> bytes | None:
        """Give a regular file of a commit, None if there is none of that name.

        Raises:
            BadProposal: it is larger than *max_bytes*, or no regular file.
        """
        wanted = os.fsencode(path)
        if b"\0" in wanted or any(part in {b"", b".", b".."} for part in wanted.split(b"/")):
            return None
        listed = await self._run(agent, "ls-tree", "-l", "-z", _checked_sha(sha), "--", path)
        found = [file for file in parse_files(listed) if file.path == wanted]
        if not found:
            return None
        (file,) = found
        if file.kind != "blob" or file.mode == LINK:
            raise BadProposal(f"cannot use {visible_path(wanted)}: it is no regular file")
        if file.size > max_bytes:
            raise BadProposal(
                f"cannot use {visible_path(wanted)}: it has {file.size} bytes, and may have {max_bytes}"
            )
        return await self._run(agent, "cat-file", "blob", file.sha, max_output_bytes=max_bytes)

    async def changes(self, agent: str, base: str | None, sha: str) -> list[Change]:
        """List what differs between two commits, *base* None: from nothing; at most MAX_CHANGES."""
        before = EMPTY_TREE if base is None else _checked_sha(base)
        said = await self._run(
            agent,
            *("diff-tree", "-r", "-z", "--raw", "--numstat", "--no-abbrev", *_PLAIN, "--end-of-options"),
            *(before, _checked_sha(sha)),
            max_output_bytes=4 * MAX_LISTED_BYTES,
        )
        return parse_changes(said)[:MAX_CHANGES]

    async def diff(self, agent: str, base: str | None, sha: str, max_bytes: int) -> tuple[bytes, bool]:
        """Give the differences of two commits as a patch of at most *max_bytes*, and whether it was cut."""
        before = EMPTY_TREE if base is None else _checked_sha(base)
        return await self._git().run_cut(
            self._applied(agent),
            *("diff-tree", "-p", "--no-color", "--full-index", *_PLAIN, "--end-of-options"),
            *(before, _checked_sha(sha)),
            max_output_bytes=min(max_bytes, MAX_DIFF_BYTES),
        )

    async def contains(self, agent: str, ancestor: str, sha: str) -> bool:
        """Say whether *ancestor* is *sha*, or in its history."""
        newer = (_checked_sha(ancestor), f"^{_checked_sha(sha)}")
        return not await self._run(agent, "rev-list", "--max-count=1", *newer, "--")

    async def history(self, agent: str, limit: int) -> list[TagInfo]:
        """Give the newest tags, the newest last."""
        if not self._is_made(agent):
            return []
        fields = (
            *("refname:lstrip=2", "objecttype", "objectname", "*objectname", "creatordate:unix"),
            *("contents:subject", "*contents:subject"),
        )
        parts = "%00".join(f"%({field})" for field in fields)
        # Of a commit the message is the proposer's, and the subject enough of it.
        parts += "%00%(if:equals=tag)%(objecttype)%(then)%(contents)%(end)"
        said = await self._run(
            agent, "for-each-ref", f"--format={parts}%00%01", "refs/tags/", max_output_bytes=64 * 2**20
        )
        found = [parse_tag(record) for record in said.split(b"\0\x01\n")]
        logs = self._applied(agent) / "logs" / "refs" / "tags"
        times = await trio.to_thread.run_sync(
            lambda: {info.tag: made_at(logs / info.tag, info.at) for info in found if info is not None}
        )
        infos = [
            TagInfo(info.tag, info.sha, times[info.tag], info.subject, info.note)
            for info in found
            if info is not None
        ]
        return sorted(infos, key=_age)[-limit:] if limit > 0 else []

    async def export(self, agent: str, sha: str, into: Path) -> None:
        """Lay the files of a commit out as directory *into*, which appears whole or not at all.

        Links are files with what they lead to as text.  What is there already is taken for the same.

        Raises:
            BadProposal: there is too much of it.
        """
        if into.exists():
            return
        listed = await self._run(
            agent, "ls-tree", "-r", "-l", "-z", _checked_sha(sha), max_output_bytes=MAX_LISTED_BYTES
        )
        files = parse_files(listed)
        check_files(sha, files)
        texts = await self._read_all(agent, files)
        await trio.to_thread.run_sync(lay_out, into, [(file, texts[file.sha]) for file in files])

    async def remove(self, agent: str) -> None:
        """Delete all that there is of *agent*: applied, releases and proposed."""
        layout = self._layout
        async with self._lock(_checked(agent)):
            for path in (
                *(layout.applied_of(agent), layout.adopted / "applied" / agent, layout.releases / agent),
                layout.config_of(agent).parent,
            ):
                await agent_files.remove(path)
            self._swept.discard(layout.applied_of(agent))

    # ── the record of deploys ───────────────────────────────────────────────────────────────────

    async def write_meta(self, files: Mapping[str, bytes | None], message: str) -> str:
        """Let meta hold *files*, None: not any more, and commit if that changes anything; its commit."""
        for name in files:
            if not _META_NAME.match(name):
                raise ValueError(f"{name!r} is no name of a file in meta")
        async with self._meta_lock:
            runner = self._git()
            top = await self._make_meta(runner)
            head = await self._meta_head(runner)
            entries: dict[bytes, bytes] = {}
            if head is not None:
                listed = await runner.run(top, "ls-tree", "-z", head, max_output_bytes=MAX_LISTED_BYTES)
                entries = {line.split(b"\t", 1)[1]: line for line in listed.split(b"\0") if line}
            after = dict(entries)
            for name, held in files.items():
                key = name.encode()
                if held is None:
                    after.pop(key, None)
                    continue
                after[key] = f"100644 blob {blob_hash(held)}\t{name}".encode()
                if after[key] != entries.get(key):
                    await runner.run(top, "hash-object", "-w", "--stdin", said_to=held)
            if after != entries or head is None:
                listing = b"".join(entry + b"\0" for entry in after.values())
                tree = await runner.run(top, "mktree", "-z", said_to=listing)
                parents = [] if head is None else ["-p", head]
                arguments = ("commit-tree", *parents, tree.decode().strip())
                made = await runner.run(top, *arguments, said_to=message.encode() + b"\n")
                head, before = made.decode().strip(), head or _NOTHING
                await runner.run(top, "update-ref", "refs/heads/main", head, before)
            # Also what was cut off here the last time.
            work_tree = self._layout.meta
            await runner.run(top, "read-tree", "--reset", "-u", head, work_tree=work_tree)
            return head

    async def read_meta(self, name: str) -> bytes | None:
        """Give a file of meta as it was committed last, None if there is none."""
        if not _META_NAME.match(name):
            return None
        async with self._meta_lock:
            if not has_objects(self._layout.meta / ".git"):
                return None
            runner = self._git()
            top = await self._make_meta(runner)
            head = await self._meta_head(runner)
            if head is None:
                return None
            found = parse_files(await runner.run(top, "ls-tree", "-l", "-z", head, "--", name))
            if len(found) != 1 or found[0].kind != "blob":
                return None
            return await runner.run(top, "cat-file", "blob", found[0].sha, max_output_bytes=MAX_OBJECT_BYTES)

    # ── what the original left ──────────────────────────────────────────────────────────────────

    async def adopt(self, agent: str, source: Path, put_aside: Path) -> None:
        """Make the applied repository of what the one in *source*/.git has: `main`, and our kinds of tags.

        *source* is moved to *put_aside*, or is there already.

        Raises:
            BadProposal: it cannot be read, or is unsound; it stays where it is.
        """
        async with self._lock(_checked(agent)), self._quarantine.opened() as work:
            new = await self._quarantine.rebuild(source, work, bare=True)
            swap(source, put_aside, new, self._layout.applied_of(agent))

    async def adopt_meta(self, source: Path, put_aside: Path) -> None:
        """Make meta of the repository in *source*/.git, with its history and the files of its last commit.

        *source* is moved to *put_aside*, or is there already.

        Raises:
            BadProposal: it cannot be read, or is unsound; it stays where it is.
        """
        async with self._meta_lock, self._quarantine.opened() as work:
            new = await self._quarantine.rebuild(source, work, bare=False)
            await self._git().run(
                new / ".git", "read-tree", "--reset", "-u", "refs/heads/main", work_tree=new
            )
            swap(source, put_aside, new, self._layout.meta)

    # ── archives ────────────────────────────────────────────────────────────────────────────────

    @property
    def isolated(self) -> bool:
        return self._isolated

    async def owner(self) -> User | None:
        """Give the user that applied repositories and meta belong to; None: ours."""
        return self._git().user

    @asynccontextmanager
    async def held(self, agent: str | None) -> AsyncIterator[User | None]:
        """Let the applied repository of *agent*, None: meta, stay as it is inside; give its owner."""
        async with self._meta_lock if agent is None else self._lock(_checked(agent)):
            yield await self.owner()

    async def take_over_applied(self, agent: str, source: Path) -> None:
        """Make the applied repository, where there is none, of what the one in *source*/.git has.

        That is `main`, and our kinds of tags.

        Raises:
            BadProposal: it cannot be read, or is unsound.
        """
        async with self._lock(_checked(agent)), self._quarantine.opened() as work:
            new = await self._quarantine.rebuild(source, work, bare=True)
            self._make_applied_root()
            new.rename(self._layout.applied_of(agent))

    async def take_over_proposed(self, agent: str, source: Path, uid: int | None, between: Path) -> None:
        """Make the proposed repository, as user *uid*, of `main` of the one in *source*/.git.

        Without one, of the commit that is checked out.  *between* is where a file may be made.

        Raises:
            BadProposal: it cannot be read, or is unsound.
        """
        directory, shown = self._layout.config_of(_checked(agent)), self._applied_shown(agent)
        async with self._lock(agent), self._quarantine.opened() as work:
            new, runner = await self._quarantine.rebuild(source, work, bare=False), self._git()
            top = new / ".git"
            listed = await runner.run(
                top, "ls-tree", "-r", "-l", "-z", "refs/heads/main", max_output_bytes=MAX_LISTED_BYTES
            )
            check_files("main", parse_files(listed))
            await runner.run(top, "read-tree", "--reset", "-u", "refs/heads/main", work_tree=new)
            for key, value in remote_of(shown).items():
                await runner.run(top, "config", key, value)
            with between.open("xb") as file:
                await agent_upkeep.pack(new, file, plain=True, user=runner.user)
            await trio.to_thread.run_sync(self._make_config, directory, uid)
            as_writer = User(uid, uid) if uid is not None and self._isolated else None
            await agent_upkeep.unpack(directory, between, user=as_writer)

    async def _check_room(self, agent: str) -> None:
        counts = (await self._run(agent, "count-objects", "-v")).decode().splitlines()
        found = dict(line.split(": ", 1) for line in counts)
        size = (int(found["size"]) + int(found["size-pack"])) * 1024
        if size > MAX_APPLIED_BYTES:
            raise BadProposal(
                f"cannot take a commit: what was proposed for {agent} before takes over"
                f" {MAX_APPLIED_BYTES >> 20} MiB; an operator has to make room in {self._applied(agent)}"
            )

    async def _fetch(self, agent: str, quarantine: Path, sha: str, name: str) -> None:
        try:
            await self._run(
                agent,
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance"),
                *("--end-of-options", str(quarantine), f"{sha}:{name}"),
            )
        except (CommandError, trio.TooSlowError) as error:
            if not (quarantine / "HEAD").exists():
                raise
            refuse_incomplete(sha[:12], error, None)

    # ── the applied repository ──────────────────────────────────────────────────────────────────

    async def _run(
        self,
        agent: str,
        *arguments: str,
        said_to: bytes | None = None,
        max_output_bytes: int = git.MAX_OUTPUT_BYTES,
    ) -> bytes:
        return await self._git().run(
            self._applied(agent), *arguments, said_to=said_to, max_output_bytes=max_output_bytes
        )

    def _applied(self, agent: str) -> Path:
        path = self._layout.applied_of(_checked(agent))
        sweep_locks(path, self._swept)
        return path

    def _is_made(self, agent: str) -> bool:
        return has_objects(self._layout.applied_of(_checked(agent)))

    def _make_applied_root(self) -> None:
        # Not git's: it could put a link in the place of a repository, for us to follow as root.
        self._layout.applied.mkdir(parents=True, exist_ok=True)
        self._layout.applied.chmod(0o755)

    async def _make_applied(self, agent: str) -> None:
        if self._is_made(agent):
            return
        runner = self._git()
        path = self._layout.applied_of(agent)
        self._make_applied_root()
        runner.own(path, mode=0o755)
        await runner.run(path, "init", "--quiet", "--bare", "--template=")

    async def _resolve(self, agent: str, tag: str) -> str | None:
        return await self._commit_at(agent, _checked_tag(tag))

    async def _commit_at(self, agent: str, name: str) -> str | None:
        if not self._is_made(agent):
            return None
        said = await self._run(
            agent, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", name
        )
        for line in said.decode().splitlines():
            found, *hashes = line.split()
            if found == name:
                return hashes[-1]
        return None

    async def _annotate(self, agent: str, tag: str, sha: str, note: str) -> None:
        text = note.replace("\0", "").encode(errors="replace")[:MAX_NOTE_BYTES]
        await self._run(
            agent,
            *("tag", "--annotate", "--create-reflog", "--cleanup=verbatim", "--file=-"),
            *("--end-of-options", tag, sha),
            said_to=text.rstrip() + b"\n",
        )

    async def _read_all(self, agent: str, files: list[File]) -> dict[str, bytes]:
        """Give what is in *files*, by hash."""
        wanted = sorted({file.sha for file in files})
        said = await self._run(
            *(agent, "cat-file", "--batch"),
            said_to="".join(f"{sha}\n" for sha in wanted).encode(),
            max_output_bytes=MAX_COMMIT_BYTES + 128 * (len(wanted) + 1),
        )
        texts: dict[str, bytes] = {}
        at = 0
        for sha in wanted:
            end = said.index(b"\n", at)
            found, kind, size = said[at:end].decode().split(" ")
            if (found, kind) != (sha, "blob"):
                raise CommandError(f"git cat-file: {sha} is {said[at:end].decode()}")
            at = end + 1 + int(size) + 1
            texts[sha] = said[end + 1 : at - 1]
        return texts

    # ── meta ────────────────────────────────────────────────────────────────────────────────────

    async def _make_meta(self, runner: Git) -> Path:
        top = self._layout.meta / ".git"
        if not has_objects(top):
            runner.own(self._layout.meta, mode=0o755)
            work_tree = self._layout.meta
            await runner.run(top, "init", "--quiet", "--template=", work_tree=work_tree)
        sweep_locks(top, self._swept)
        return top

    async def _meta_head(self, runner: Git) -> str | None:
        said = await runner.run(
            self._layout.meta / ".git", "for-each-ref", "--format=%(objectname)", "refs/heads/main"
        )
        return said.decode().strip() or None

    # ── the host ────────────────────────────────────────────────────────────────────────────────

    def _git(self) -> Git:
        if self._git_found is None:
            user = process.find_user(git.USER) if self._isolated else None
            self._git_found = Git(user)
        return self._git_found

    def _applied_shown(self, agent: str) -> str:
        """Say where whoever proposes for *agent* finds its applied repository."""
        return f"/applied/{agent}" if self._isolated else str(self._layout.applied_of(agent))

    def _make_config(self, directory: Path, uid: int | None) -> None:
        directory.parent.mkdir(parents=True, exist_ok=True)
        if self._isolated:
            directory.parent.chmod(0o755)
        if not directory.exists():
            directory.mkdir()
            if self._isolated:
                if uid is not None:
                    os.chown(directory, uid, uid)
                directory.chmod(0o755)

    def _lock(self, agent: str) -> trio.Lock:
        return self._locks.setdefault(agent, trio.Lock())


_PLAIN: Final = ("--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=none")


def _age(info: TagInfo) -> tuple[float, int, int]:
    kind, _, number = info.tag.partition("/")
    return info.at, int(number), _IN_ORDER.index(kind)


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def _checked(agent: str) -> str:
    """Give *agent* if it can be a name: whatever else was asked for never reaches the disk."""
    if not _AGENT.match(agent):
        raise ValueError(f"{agent[:80]!r} is no agent name")
    return agent


def _checked_tag(tag: str) -> str:
    if not TAG.match(tag):
        raise ValueError(f"{tag[:80]!r} is no tag of ours")
    return f"refs/tags/{tag}"


def _checked_sha(sha: str) -> str:
    if not _SHA.match(sha):
        raise ValueError(f"{sha[:80]!r} is no full hash of a commit")
    return sha

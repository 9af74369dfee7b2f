"""The repositories of agents in memory: commits are dictionaries of files."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from hive_core.host.git_output import Change
from hive_core.host.quarantine import BadProposal
from hive_core.layout import Layout
from hive_core.repositories import Repositories

Files = Mapping[str, bytes]


class FakeRepositories(Repositories):
    """What is proposed is put there with `commit`, each commit on the one before."""

    def __init__(self) -> None:
        super().__init__(Layout(Path("/h"), Path("/r"), Path("/s")), isolated=False)
        self.commits: dict[str, Files] = {}
        self.parents: dict[str, str | None] = {}
        self.proposed: dict[str, str | None] = {}
        self.tags: dict[tuple[str, str], tuple[str, str | None]] = {}
        self.mains: dict[str, str] = {}
        self.owners: dict[str, int | None] = {}
        self.trouble: Exception | None = None
        """What the next questions end in."""
        self.taking: trio.Event | None = None
        """What a take_in waits for."""
        self.entered = trio.Event()

    def commit(self, agent: str, files: Files | None = None, **others: bytes) -> str:
        """Propose a commit and give its hash."""
        files = {**(files or {}), **{f"{name}.md": content for name, content in others.items()}}
        parent = self.proposed.get(agent)
        text = json.dumps([agent, parent, {name: content.hex() for name, content in files.items()}])
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha], self.parents[sha], self.proposed[agent] = files, parent, sha
        return sha

    def tags_of(self, agent: str) -> list[str]:
        return sorted(tag for name, tag in self.tags if name == agent)

    def _try(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    async def seed(self, agent: str, files: Files, uid: int | None) -> bool:
        self._try()
        if agent in self.proposed:
            return False
        self.commit(agent, files)
        self.owners[agent] = uid
        return True

    async def take_in(self, agent: str, commit_ref: str | None, tag: str) -> str:
        self.entered.set()
        if self.taking is not None and tag != "proposal/0":
            await self.taking.wait()
        self._try()
        newest = self.proposed.get(agent)
        found = [sha for sha in self.commits if sha.startswith(commit_ref or newest or "?")]
        if len(found) != 1:
            raise BadProposal(f"there is no commit {commit_ref} in what is proposed for {agent}")
        await self.tag(agent, tag, found[0])
        return found[0]

    async def exists(self, agent: str) -> bool:
        return any(name == agent for name, _ in self.tags)

    async def has_proposed(self, agent: str) -> bool:
        self._try()
        return agent in self.proposed

    async def tag(self, agent: str, tag: str, sha: str, note: str | None = None) -> None:
        self._try()
        before = self.tags.setdefault((agent, tag), (sha, note))
        assert before == (sha, note), "a tag was moved"

    async def move_main(self, agent: str, sha: str) -> None:
        self.mains[agent] = sha

    async def main(self, agent: str) -> str | None:
        return self.mains.get(agent)

    async def resolve(self, agent: str, tag: str) -> str | None:
        return self.tags.get((agent, tag), (None,))[0]

    async def read(self, agent: str, sha: str, path: str, max_bytes: int) -> bytes | None:
        self._try()
        content = self.commits[sha].get(path)
        if content is not None and len(content) > max_bytes:
            raise BadProposal(f"{path} is larger than {max_bytes} bytes")
        return content

    async def changes(self, agent: str, base: str | None, sha: str) -> list[Change]:
        old, new = self.commits[base] if base else {}, self.commits[sha]
        return [
            Change(path=path, change="added", added=1, removed=0, binary=False, mode="100644")
            for path in sorted(new)
            if old.get(path) != new[path]
        ]

    async def contains(self, agent: str, ancestor: str, sha: str) -> bool:
        line: Sequence[str | None] = [sha]
        while line[-1] is not None:
            line = [*line, self.parents[line[-1]]]
        return ancestor in line

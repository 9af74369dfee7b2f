"""Runs git, and nothing else does: with a configuration of ours alone, few rights and tight limits.

It is given repositories of ours only, never one that an agent can write: `proposals` takes those apart.  All
the same what they hold was made by agents, so that nothing git would do on behalf of a repository is left
switched on: no hooks, filters, attributes, programs, replacements, or transport but to a directory.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hive_core.host import process
from hive_core.host.process import User

USER: Final = "hive-git"
"""The system user that it runs as where we are root."""

TIMEOUT_S: Final = 60.0
MAX_CPU_S: Final = 60
MAX_MEMORY_BYTES: Final = 2 * 2**30
"""Of address space: it maps whole packs."""
MAX_FILE_BYTES: Final = 512 * 2**20
MAX_OUTPUT_BYTES: Final = 2**20

EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
"""Git knows it without having it."""

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    # Of what a commit says of its own files; else it could hide them from a diff.
    f"attr.tree={EMPTY_TREE}",
    "core.symlinks=false",
    "core.autocrlf=false",
    "core.protectNTFS=true",
    "core.protectHFS=true",
    "core.quotePath=true",
    "core.bigFileThreshold=32m",
    "core.logAllRefUpdates=always",
    "core.fsync=committed",
    "core.fsyncMethod=batch",
    "core.commitGraph=false",
    "core.pager=cat",
    "protocol.allow=never",
    "protocol.file.allow=always",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "fetch.writeCommitGraph=false",
    "fetch.fsckObjects=true",
    # Warnings elsewhere: names that are no names, which would be met again when files are laid out.
    *(
        f"fetch.fsck.{kind}=error"
        for kind in ("hasDot", "hasDotdot", "hasDotgit", "fullPathname", "emptyName", "nullSha1")
    ),
    "gc.auto=0",
    "maintenance.auto=false",
    "pack.threads=1",
    "index.threads=1",
    "commit.gpgSign=false",
    "tag.gpgSign=false",
    "diff.external=",
    "diff.renames=false",
    "diff.noprefix=false",
    "diff.mnemonicPrefix=false",
    "init.defaultBranch=main",
)

_ENVIRONMENT: Final = {
    # Nobody's: where it lies there is no configuration either.
    "HOME": "/nonexistent",
    "XDG_CONFIG_HOME": "/nonexistent",
    "LC_ALL": "C",
    "TZ": "UTC",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_ALLOW_PROTOCOL": "file",
    "GIT_ASKPASS": "/bin/false",
    "SSH_ASKPASS": "/bin/false",
    "GIT_SSH_COMMAND": "/bin/false",
    "GIT_EDITOR": "/bin/false",
    "GIT_AUTHOR_NAME": "hyperhive",
    "GIT_AUTHOR_EMAIL": "hyperhive@localhost",
    "GIT_COMMITTER_NAME": "hyperhive",
    "GIT_COMMITTER_EMAIL": "hyperhive@localhost",
}


class Git:
    """Git as *user*, who owns the repositories; None: as who we are."""

    def __init__(self, user: User | None = None) -> None:
        self.user = user

    def own(self, path: Path, *, mode: int) -> None:
        """Make directory *path* if it is missing, as git's.

        Raises:
            OSError: it cannot be made, or is a link.
        """
        path.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if self.user is not None:
                os.fchown(fd, self.user.uid, self.user.gid)
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    async def run(
        self,
        repository: Path,
        *arguments: str,
        said_to: bytes | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        work_tree: Path | None = None,
        at: float | None = None,
    ) -> bytes:
        """Run `git ARGUMENTS` in *repository*, a bare one or a .git, and return what it wrote.

        *at*, in unix seconds, is when it takes place: what it makes bears that date.

        Raises:
            process.CommandError: it failed, or wrote more than *max_output_bytes*.
            OSError: there is no git, or no such user.
            trio.TooSlowError: it did not end in TIMEOUT_S.
        """
        said, too_much = await self.run_cut(
            repository,
            *arguments,
            said_to=said_to,
            max_output_bytes=max_output_bytes,
            work_tree=work_tree,
            at=at,
        )
        if too_much:
            raise process.CommandError(f"git {arguments[0]}: wrote more than {max_output_bytes} bytes")
        return said

    async def run_cut(
        self,
        repository: Path,
        *arguments: str,
        said_to: bytes | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        work_tree: Path | None = None,
        at: float | None = None,
    ) -> tuple[bytes, bool]:
        """Do the same, and give at most *max_output_bytes*, and whether there was more."""
        date = f"{int(time.time() if at is None else at)} +0000"
        try:
            return await process.run_cut(
                [*_limited(), *_git(repository, work_tree), *arguments],
                timeout_s=TIMEOUT_S,
                max_output_bytes=max_output_bytes,
                env=_ENVIRONMENT | {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
                cwd=Path("/"),
                said_to=said_to,
                user=self.user,
            )
        except process.CommandError as error:
            # Without the settings, which say nothing about what went wrong.
            _, _, why = str(error).partition(" ".join(arguments))
            raise process.CommandError(f"git {arguments[0]}{why}") from None


def _limited() -> Sequence[str]:
    return (
        "prlimit",
        f"--as={MAX_MEMORY_BYTES}",
        f"--cpu={MAX_CPU_S}",
        f"--fsize={MAX_FILE_BYTES}",
        "--nofile=256",
        "--core=0",
        "--",
    )


def _git(repository: Path, work_tree: Path | None) -> list[str]:
    settings = [part for setting in _SETTINGS for part in ("-c", setting)]
    trees = [] if work_tree is None else [f"--work-tree={work_tree}"]
    return ["git", "--no-pager", *settings, f"--git-dir={repository}", *trees]

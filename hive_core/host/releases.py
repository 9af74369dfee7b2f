"""What was deployed of an agent, as files: what its machine is shown of it, and what of it matters there.

NAME/SHA is the release of a commit, which somebody else lays out and never changes: `config`, the files of
the commit, and `extra-mcp.json`.  A machine sees the directory NAME, in which links lead to the release that
holds.  So its paths stay the same from deploy to deploy, and nothing is deleted under a machine that runs.
"""

import hashlib
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart
from hive_core.domain.manifest import NOT_READ, Manifest

CONFIG: Final = "config"
EXTRA_MCP: Final = "extra-mcp.json"
CURRENT: Final = "current"
SHOWN: Final = (CURRENT, CONFIG, EXTRA_MCP)
"""The names in an agent's directory that are no releases."""

MAX_FILES: Final = 20_000
MAX_BYTES: Final = 256 * 2**20


class Releases:
    """The releases of all agents, below *root*.  Blocking, for as long as it takes to read one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._used: dict[str, tuple[object, str]] = {}

    def of(self, agent: str) -> Path:
        """Where the machine of *agent* finds what was deployed."""
        return self._root / agent

    def is_there(self, row: AgentRow) -> bool:
        return row.deployed_sha is not None and (self.of(row.name) / row.deployed_sha / CONFIG).is_dir()

    def show(self, row: AgentRow) -> bool:
        """Let the links lead to the release that *row* names, if it was laid out; say whether it was.

        Raises:
            OSError: they cannot be made.
        """
        if not self.is_there(row):
            return False
        assert row.deployed_sha is not None
        directory = self.of(row.name)
        for name, target in (
            (CONFIG, f"{CURRENT}/{CONFIG}"),
            (EXTRA_MCP, f"{CURRENT}/{EXTRA_MCP}"),
            (CURRENT, row.deployed_sha),
        ):
            _link(directory / name, target)
        return True

    def used(self, row: AgentRow) -> str:
        """Give a hash of the files that a running machine has read, or may have; empty: it reads none.

        That is the prompt, and when there are MCP servers, every file but what the machine is made from.

        Raises:
            CannotStart: they are not there.
        """
        manifest = row.manifest
        if manifest.prompt is None and not manifest.mcp_servers:
            return ""
        if not self.is_there(row):
            raise CannotStart(
                f"cannot start {row.name}: what was deployed of it is missing in {self.of(row.name)};"
                " deploy it again"
            )
        key = (row.deployed_sha, manifest.prompt, bool(manifest.mcp_servers))
        key_then, used = self._used.get(row.name, (None, ""))
        if key_then != key:
            used = self._read(row)
            self._used[row.name] = (key, used)
        return used

    def _read(self, row: AgentRow) -> str:
        assert row.deployed_sha is not None
        config, prompt = self.of(row.name) / row.deployed_sha / CONFIG, row.manifest.prompt
        if prompt is not None and not _is_file(config / prompt):
            raise CannotStart(
                f"cannot start {row.name}: its prompt, {prompt}, is no file of what was deployed"
            )
        try:
            files = _files(config) if row.manifest.mcp_servers else iter([prompt or ""])
            return _hash(config, files)
        except OSError as error:
            text = f"cannot start {row.name}: {error.filename}: {error.strerror or error}"
            raise CannotStart(text) from None


def environment(manifest: Manifest, where: str) -> dict[str, str]:
    """Give what tells a harness of *manifest*, whose release it finds at *where*."""
    told: dict[str, str] = {}
    if manifest.mcp_servers:
        told["HIVE_EXTRA_MCP"] = f"{where}/{EXTRA_MCP}"
    if manifest.prompt is not None:
        told["HIVE_PROMPT_FILE"] = f"{where}/{CONFIG}/{manifest.prompt}"
    return told


def passed_on(names: Collection[str]) -> dict[str, str]:
    """Give what tells a harness which variables its model's programs get too."""
    return {"HIVE_PASS_ON": " ".join(sorted(names))} if names else {}


def _link(path: Path, target: str) -> None:
    """Let *path* be a link to *target*: readers see the old one or the new one."""
    with suppress(OSError):
        if path.readlink() == Path(target):
            return
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fresh.symlink_to(target)
    try:
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _files(config: Path) -> Iterator[str]:
    """Give the files below *config*, in an order of their own, without those that nothing reads."""
    for directory, names, files in os.walk(config):
        names.sort()
        for file in sorted(files):
            path = os.path.relpath(Path(directory, file), config)
            if path not in NOT_READ:
                yield path


def _hash(config: Path, files: Iterator[str]) -> str:
    hashed = hashlib.sha256()
    left = MAX_BYTES
    for number, name in enumerate(files):
        fd = os.open(config / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            seen = os.fstat(fd)
            left -= seen.st_size
            if left < 0 or number == MAX_FILES:
                raise OSError(0, "it is too much", str(config))
            encoded = os.fsencode(name)
            hashed.update(b"%d:%s:%d:%d:" % (len(encoded), encoded, seen.st_mode & 0o111, seen.st_size))
            hashed.update(file.read(seen.st_size))
    return hashed.hexdigest()

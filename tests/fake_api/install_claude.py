"""Puts the real claude, at the version that we know, where the tests look for it.

    python tests/fake_api/install_claude.py        prints its path; does nothing when it is there

It comes through npm, as whatever registry that is configured for; node is not needed to run it.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "2.1.329"
PACKAGE = "@anthropic-ai/claude-code-linux-x64"
SHA256 = "30e2724e2aecb1bf5dc9f3130901afb71c5fa229051c190a6d7ad9aff6378d6d"
TIMEOUT_S = 600


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hyperhive-tests" / f"claude-{VERSION}"


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


def install() -> Path:
    """Install it unless it is there.

    Raises:
        subprocess.SubprocessError: npm failed.
        RuntimeError: what came is something else.
    """
    target = cache_directory()
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = find_claude()
        if found is not None:
            return found
        with tempfile.TemporaryDirectory(dir=target.parent) as directory:
            argv = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", directory]
            subprocess.run([*argv, f"{PACKAGE}@{VERSION}"], check=True, timeout=TIMEOUT_S, stdout=sys.stderr)
            binary = Path(directory) / "node_modules" / PACKAGE / "claude"
            with binary.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != SHA256:
                raise RuntimeError(f"{PACKAGE}@{VERSION} is not the one we know: sha256 {digest}")
            shutil.rmtree(target, ignore_errors=True)
            Path(directory).rename(target)
            Path(directory).mkdir()  # for the context manager to remove
    found = find_claude()
    assert found is not None
    return found


if __name__ == "__main__":
    reason = why_not() if find_claude() is None else None
    if reason is not None:
        print(f"the real claude is not installed: {reason}", file=sys.stderr)
    else:
        print(install())

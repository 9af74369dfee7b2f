"""Repositories as agents make them, with real git; and a canary that nobody may touch."""

import hashlib
import os
import subprocess
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hive_core.layout import Layout

SECRET: Final = "the canary sings of what only the host knows"


class Proposal:
    """The proposed repository of an agent, for the agent to do with as it likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "-b", "main")

    @property
    def dot_git(self) -> Path:
        return self.path / ".git"

    def git(self, *arguments: str, stdin: bytes | None = None, **env: str) -> str:
        own = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": "m@hive" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
            },
        }
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env={"PATH": os.environ["PATH"], **own, **env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            check=True,
        )
        return done.stdout.decode().strip()

    def commit(self, files: Mapping[str, str | bytes | None], message: str = "a change") -> str:
        """Commit *files*, None: deleted; give the commit."""
        for name, held in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if held is None:
                path.unlink()
            else:
                path.write_bytes(held.encode() if isinstance(held, str) else held)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def put(self, kind: str, held: bytes) -> str:
        """Write a loose object without git's opinion of it."""
        whole = f"{kind} {len(held)}\0".encode() + held
        name = hashlib.sha1(whole).hexdigest()
        self.put_raw(name, zlib.compress(whole, 1))
        return name

    def put_raw(self, name: str, held: bytes) -> Path:
        path = self.dot_git / "objects" / name[:2] / name[2:]
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(held)
        return path

    def put_commit(self, tree: str, *parents: str) -> str:
        who = "m <m@hive> 1700000000 +0000"
        lines = [f"tree {tree}", *(f"parent {one}" for one in parents), f"author {who}", f"committer {who}"]
        return self.put("commit", ("\n".join(lines) + "\n\nby hand\n").encode())

    def put_tree(self, *entries: tuple[str, str, str]) -> str:
        """*entries*: mode, name and hash of each, in git's order."""
        return self.put(
            "tree", b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(sha) for mode, name, sha in entries)
        )


def everything_in(directory: Path) -> bytes:
    """Give the bytes of all objects that a repository of ours has, and of all its other files."""
    environ = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    objects = b""
    if (directory / "objects").is_dir():
        objects = subprocess.run(
            ["git", f"--git-dir={directory}", "cat-file", "--batch", "--batch-all-objects"],
            env=environ,
            capture_output=True,
            check=True,
        ).stdout
    files = [path.read_bytes() for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return b"\n".join([objects, *files])


def open_layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "home", tmp_path / "home" / "run", tmp_path / "home" / "state")
    made.make()
    return made

"""A Nix store of the tests' own with a daemon, and small flakes in the place of hyperhive and nixpkgs."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hive_core.builders import Target
from hive_core.config import Config, Deploy
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host.nix import Nix
from hive_core.layout import Layout
from hive_core.nix_builder import AGENTS_NAME, NixBuilder

SOMEBODY: Final = "nobody" if os.geteuid() == 0 else None
"""Who evaluates: another user than root, as hive-nix is."""

HYPERHIVE: Final = """\
{
  inputs.nixpkgs.url = "path:/nowhere";
  outputs = { self, nixpkgs }: {
    lib.agentSystem = { name, modules, identity }:
      let
        module = import (builtins.head modules);
        agent = if builtins.isFunction module then module { inherit identity; } else module;
      in {
        config.system.build.toplevel = derivation ({
          name = "nixos-system-${name}";
          system = identity.system;
          builder = "/bin/sh";
          args = [ "-c" "PATH=/usr/bin:/bin; ${agent.script or ""} mkdir -p $out; printf %s \\"$text\\" > $out/text; echo ${nixpkgs.version} > $out/version; echo '#!/bin/sh' > $out/init; chmod 755 $out/init; echo built $name" ];
          text = toString agent.text;
        });
      };
  };
}
"""
NIX_CONF: Final = """\
sandbox = false
substituters =
build-users-group =
"""


def why_not() -> str | None:
    """Say why nothing can be built here, or nothing."""
    missing = [tool for tool in ("nix", "nix-daemon", "git", "prlimit", "setpriv") if not shutil.which(tool)]
    if missing:
        return f"builds need {', '.join(missing)}: apt install nix-bin git util-linux"
    said = subprocess.run(["nix", "--version"], capture_output=True, text=True).stdout.split()[-1]
    version = tuple(int(part) for part in said.split(".")[:2])
    return None if version >= (2, 8) else f"nix {said} is too old"


class Host:
    """What a hive with nix needs of its host, in one directory that other users may look into."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = {
            "NIX_STORE_DIR": f"{root}/store",
            "NIX_STATE_DIR": f"{root}/var",
            "NIX_LOG_DIR": f"{root}/log",
            "NIX_CONF_DIR": f"{root}/conf",
            "NIX_DAEMON_SOCKET_PATH": f"{root}/socket",
        }
        (root / "conf").mkdir()
        (root / "var").mkdir()
        (root / "conf/nix.conf").write_text(NIX_CONF)
        self.new_input("hyperhive", HYPERHIVE)
        self.new_input("nixpkgs", '{ outputs = _: { version = "one"; }; }\n')

    def new_input(self, name: str, flake: str) -> None:
        directory = self.root / "inputs" / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "flake.nix").write_text(flake)

    @property
    def inputs(self) -> dict[str, str]:
        return {name: f"path:{self.root}/inputs/{name}" for name in ("hyperhive", "nixpkgs")}

    def nix(self, memory_max_bytes: int = 4 * 2**30) -> Nix:
        remote = {"NIX_REMOTE": f"unix://{self.environment['NIX_DAEMON_SOCKET_PATH']}"}
        return Nix(SOMEBODY, environment=self.environment | remote, memory_max_bytes=memory_max_bytes)

    def run(self, *argv: str) -> str:
        """Run a tool of nix's beside the daemon."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.root), **self.environment, "NIX_REMOTE": "local"}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=50)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def collect(self) -> None:
        """Let the store delete what nothing keeps."""
        for _ in range(20):
            # It looks at all processes, and gives up over links of them that are too long.
            with suppress(AssertionError):
                self.run("nix-store", "--gc")
                return
        self.run("nix-store", "--gc")

    def everything(self) -> bytes:
        """All that is in the store."""
        files = [
            path for path in (self.root / "store").rglob("*") if path.is_file() and not path.is_symlink()
        ]
        return b"".join(path.read_bytes() for path in files)


@contextmanager
def open_host() -> Iterator[Host]:
    root = Path(tempfile.mkdtemp(prefix="hn"))
    root.chmod(0o755)
    host = Host(root)
    # Told to be local: it would take its own socket for the daemon to ask.
    env = {"PATH": os.environ["PATH"], "HOME": str(root), **host.environment, "NIX_REMOTE": "local"}
    with (root / "daemon.log").open("wb") as log:
        daemon = subprocess.Popen(["nix-daemon"], env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            until = time.monotonic() + 20
            while not (root / "socket").exists():
                assert time.monotonic() < until, (root / "daemon.log").read_text()
                time.sleep(0.01)
            yield host
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(timeout=20)
            subprocess.run(["chmod", "-R", "u+w", str(root)], check=False)
            shutil.rmtree(root, ignore_errors=True)


class Hive:
    """A state directory with agents whose configurations are committed by the tests."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        state = host.root / "hives" / name
        state.mkdir(parents=True)
        self.layout = Layout(state, state / "run", state)
        self.profiles = host.root / "var/profiles/per-agent" / name
        self.config = Config(deploy=Deploy(builder="nix", inputs=host.inputs))
        self.meta: dict[str, bytes] = {}
        self.said: list[str] = []
        self._next_id = 0
        self.builder = self.new_builder()

    def new_builder(self, memory_max_bytes: int = 4 * 2**30) -> NixBuilder:
        """As after a start of the daemon."""

        async def read_meta(name: str) -> bytes | None:
            return self.meta.get(name)

        return NixBuilder(
            self.host.nix(memory_max_bytes),
            self.layout,
            lambda: self.config,
            read_meta,
            profiles=self.profiles,
        )

    def commit(self, agent: str, files: Mapping[str, str], *, links: Mapping[str, str] | None = None) -> str:
        """Make another commit in its applied repository, with a tag and no branch at it."""
        bare = self.layout.applied_of(agent)
        if not bare.exists():
            git(self.layout.home, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
        with tempfile.TemporaryDirectory() as work:
            for name, text in files.items():
                path = Path(work, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            for name, target in (links or {}).items():
                Path(work, name).symlink_to(target)
            git(self.layout.home, "--git-dir", str(bare), "--work-tree", work, "add", "--all", ".")
            git(
                self.layout.home,
                "--git-dir",
                str(bare),
                "--work-tree",
                work,
                "commit",
                "-qm",
                "x",
                "--allow-empty",
            )
        sha = git(bare, "rev-parse", "main")
        git(bare, "tag", "--force", f"building/{sha[:7]}", sha)
        git(bare, "update-ref", "-d", "refs/heads/main")
        return sha

    def target(self, agent: str, sha: str, manifest: Manifest = NOTHING, **more: object) -> Target:
        self._next_id += 1
        return Target(self._next_id, agent, sha, manifest, **more)  # type: ignore[arg-type]

    async def build(self, target: Target) -> str:
        await self.builder.prepare(target, self.said.append)
        built = await self.builder.build(target, self.said.append)
        assert built.image is not None
        return built.image

    async def finish(self, target: Target, built: str) -> None:
        """As the deployer does: what finalize gives goes into meta, with what runs."""
        files = await self.builder.finalize(target, built, self.said.append)
        self.write_meta(files)
        self.note(target, built)
        await self.builder.abort(target)

    def note(self, target: Target, built: str) -> None:
        agents = self.agents
        agents[target.agent] = {"sha": target.sha, "tag": "t", "builder": "nix", "output": built}
        self.meta[AGENTS_NAME] = json.dumps({"agents": agents}).encode()

    def write_meta(self, files: Mapping[str, bytes | None]) -> None:
        for name, text in files.items():
            if text is None:
                self.meta.pop(name, None)
            else:
                self.meta[name] = text

    async def deploy(self, agent: str, text: str) -> tuple[str, str]:
        """Deploy an agent.nix with *text*; give the commit and the closure."""
        sha = self.commit(agent, {"agent.nix": text})
        target = self.target(agent, sha)
        built = await self.build(target)
        await self.finish(target, built)
        return sha, built

    @property
    def agents(self) -> dict[str, dict[str, str]]:
        agents: dict[str, dict[str, str]] = json.loads(self.meta.get(AGENTS_NAME, b"{}")).get("agents", {})
        return agents

    @property
    def locked(self) -> dict[str, str]:
        """The commit of each agent, as meta's lock has it."""
        nodes = json.loads(self.meta["flake.lock"])["nodes"]
        return {
            name.removeprefix("agent-"): nodes[node]["locked"]["rev"]
            for name, node in nodes["root"]["inputs"].items()
            if name.startswith("agent-")
        }

    def generation(self, agent: str) -> str:
        """Where its profile leads."""
        return str((self.profiles / agent / "system").resolve())

    def left(self) -> list[str]:
        """What is left of builds."""
        builds = self.layout.builds
        return (
            sorted(path.name for path in builds.iterdir() if path.name != "home") if builds.exists() else []
        )

    def everything(self) -> bytes:
        """All that is in the hive's own directory, and what it said."""
        files = [path for path in self.layout.home.rglob("*") if path.is_file() and not path.is_symlink()]
        said = "\n".join(self.said).encode()
        return said + b"".join([*self.meta.values(), *(path.read_bytes() for path in files)])


def git(where: Path, *words: str) -> str:
    env = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(["git", *words], cwd=where, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()

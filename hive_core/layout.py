"""Where everything lies: two directories, one that may vanish with a reboot and one that may not."""

from dataclasses import dataclass
from pathlib import Path

from hive_core.config import Config, default_home
from hive_core.wire.ids import MANAGER


@dataclass(frozen=True)
class AgentDirs:
    """Where the things of one agent are."""

    run: Path
    """Its socket, and the lock of its harness."""
    base: Path
    """What the daemon keeps for it: the log, and the directories below."""

    @property
    def socket(self) -> Path:
        return self.run / "mcp.sock"

    @property
    def lock(self) -> Path:
        return self.run / "harness.lock"

    @property
    def log(self) -> Path:
        return self.base / "harness.log"

    @property
    def state(self) -> Path:
        """The agent's own; it may do there what it likes."""
        return self.base / "state"

    @property
    def claude(self) -> Path:
        """The login and the conversations of its claude."""
        return self.base / "claude"

    def make(self) -> None:
        """Make what is missing, as ours: the agent of a local hive is its user."""
        self.run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.base.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.state.mkdir(exist_ok=True, mode=0o700)
        self.claude.mkdir(exist_ok=True, mode=0o700)


@dataclass(frozen=True)
class Layout:
    """The paths of one hive."""

    home: Path
    run: Path
    state: Path

    @property
    def host_socket(self) -> Path:
        return self.run / "host.sock"

    @property
    def database(self) -> Path:
        """broker.sqlite; where newer versions of the original kept it, if it is only there."""
        path, other = self.state / "broker.sqlite", self.state / "db" / "broker.sqlite"
        return other if other.exists() and not path.exists() else path

    @property
    def agents(self) -> Path:
        return self.state / "agents"

    @property
    def configs(self) -> Path:
        """What the manager proposes for each agent: NAME/config."""
        return self.state / "configs"

    @property
    def applied(self) -> Path:
        """What of it was approved and deployed."""
        return self.state / "applied"

    @property
    def meta(self) -> Path:
        return self.state / "meta"

    @property
    def releases(self) -> Path:
        """NAME/SHA: what was deployed, laid out as files, for machines to look at."""
        return self.state / "releases"

    @property
    def deploy_logs(self) -> Path:
        """What builds said: ID.log."""
        return self.state / "deploys"

    @property
    def staging(self) -> Path:
        """Where proposals are taken apart and builds prepared; nothing in it outlives a start."""
        return self.state / "staging"

    @property
    def builds(self) -> Path:
        """What nix works in, by deploy: ID.  It stays until that deploy has ended."""
        return self.state / "builds"

    @property
    def adopted(self) -> Path:
        """What an installation of the original had, as it was; whatever of it is used was copied."""
        return self.state / "adopted"

    def applied_of(self, name: str) -> Path:
        """The bare repository with all that was proposed, deployed or denied of *name*."""
        return self.applied / name

    def release_of(self, name: str, sha: str) -> Path:
        return self.releases / name / sha

    def agent(self, name: str) -> AgentDirs:
        """*name* has been validated: it is one safe path component."""
        run = self.run / "manager" if name == MANAGER else self.run / "agents" / name
        return AgentDirs(run, self.agents / name)

    def config_of(self, name: str) -> Path:
        """The proposed configuration of *name*: the agent reads it, the manager writes it."""
        return self.configs / name / "config"

    def make(self) -> None:
        """Make what is missing.  A home that did not exist is closed to others."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path, mode in ((self.run, 0o751), (self.run / "agents", 0o751), (self.state, 0o700)):
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)


def host_layout(config: Config) -> Layout:
    """Where the hive of a host is, for the daemon that root runs."""
    run = Path(config.run_dir).absolute() if config.run_dir else Path("/run/hyperhive")
    state = Path(config.state_dir).absolute() if config.state_dir else Path("/var/lib/hyperhive")
    return Layout(state, run, state)


def local_layout(config: Config) -> Layout:
    """Everything below one directory."""
    home = Path(config.home).expanduser().absolute() if config.home else default_home()
    run = Path(config.run_dir).expanduser().absolute() if config.run_dir else home / "run"
    state = Path(config.state_dir).expanduser().absolute() if config.state_dir else home / "state"
    return Layout(home, run, state)

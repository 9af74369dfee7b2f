"""The daemon's configuration: one TOML file, one struct, no other source than the command line.

Every value knows where it came from, so that `hive-core config` can say so.
"""

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from hive_core.declarable import (
    Bind,
    CredentialName,
    HostPath,
    Limits,
    McpServer,
    ServerName,
    Value,
    VariableName,
)
from hive_core.wire.ids import MANAGER, AgentName, Label, why_no_agent_name
from hive_core.wire.machine import ImageName
from hive_core.wire.rules import without_patterns

SYSTEM_CONFIG: Final = Path("/etc/hyperhive/config.toml")
"""What hive-core.service reads."""

Seconds = Annotated[float, Meta(ge=0, le=86400)]


class Harness(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every agent's harness starts with."""

    provider: Annotated[str, Meta(min_length=1)] = "scripted"
    """Which program thinks: `scripted` needs no model and no key."""
    model: str = ""
    """The model an agent uses until it is told another; empty: the provider's own."""
    linger_s: Annotated[float, Meta(ge=1)] = 900.0
    """How long a local harness outlives its daemon."""
    environment: dict[str, str] = {}
    """What a machine's harness finds in its environment, such as ANTHROPIC_BASE_URL."""
    environment_file: str = ""
    """The same as lines of NAME=VALUE, for secrets; read at each start."""


class Machines(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How machines are started, restarted and stopped."""

    stop_grace_s: Seconds = 10.0
    """From the polite signal to the killing one."""
    quiesce_s: Seconds = 120.0
    """How long a graceful stop waits for a running turn."""
    restart_limit: Annotated[int, Meta(ge=1, le=100)] = 5
    """Exits within restart_window_s after which a machine is failed."""
    restart_window_s: Seconds = 120.0
    """An exit that is longer ago does not count."""
    restart_delay_s: Annotated[float, Meta(gt=0, le=3600)] = 0.5
    """Before the first restart; it doubles with each exit."""
    restart_delay_max_s: Seconds = 20.0
    """Beyond which it does not double."""
    start_timeout_s: Annotated[float, Meta(ge=1, le=3600)] = 90.0
    """From the start of a machine to its word that it is up."""
    start_parallel: Annotated[int, Meta(ge=1, le=64)] = 4
    """Machines that may be starting at once."""
    prefix: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9]{0,6}-\Z")] = "h-"
    """What the names of our machines begin with, so that no other machine is ever touched."""
    image: str = ""
    """The image of agents that name none; empty: the only one there is."""
    network: Literal["none", "veth"] = "none"
    """The network of agents that name none."""
    subnet: str = "10.213.0.0/16"
    """Addresses of veth links: two per agent."""
    memory_max: str = "4G"
    """The memory of agents that declare none, as `512M` or `4G`."""
    cpu_quota: str = "200%"
    """Their share of processors: 100% is one."""
    tasks_max: Annotated[int, Meta(ge=64, le=4194304)] = 2048
    """Their processes and threads."""
    uid_first: Annotated[int, Meta(ge=65536, le=2147352576)] = 0x40000000
    """Where the uid ranges of machines begin; each has 65536."""
    uid_ranges: Annotated[int, Meta(ge=1, le=16384)] = 4096
    """How many ranges there are: no more agents than that."""
    harness_dir: str = ""
    """What is bound into each machine at /opt/hyperhive; empty: where this hive-core is installed."""


class Broker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How messages are handed out."""

    max_deliveries: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Turns that fail over a message, harnesses that die with it counted in, before it is a dead letter."""


Days = Annotated[int, Meta(ge=0, le=36500)]


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many days things are kept; 0 is for ever.  What is not acked, was asked or decided always stays."""

    messages_days: Days = 30
    """Acked messages, from the ack."""
    events_days: Days = 7
    """What agents did, event by event."""
    stream_events_days: Days = 0
    """Above 0: of the events only the raw stream of the model goes, after this time, the others never."""
    turn_stats_days: Days = 90
    """What turns took."""
    generations: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Generations of a machine that are kept beside the current and the booted one."""


class Approvals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests for a change of an agent's shape are kept."""

    expire_hours: Annotated[float, Meta(ge=0.01, le=8760)] = 72.0
    """After which one that nobody decided is cancelled."""
    manager: bool = False
    """Create the agent `manager` when the daemon starts and there is none."""


class Deploy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How what was approved is built."""

    builder: Literal["tree", "nix"] = "tree"
    """What an agent's machine is made of: an image that agent.toml names, or the closure of its agent.nix."""
    packages_hook: str = ""
    """A program that gives an image with more packages in it; docs/approvals.md says how it is called."""
    timeout_s: Annotated[float, Meta(ge=10, le=86400)] = 3600.0
    """How long a build may take."""
    inputs: dict[str, str] = {}
    """The inputs of the hive's flake: name and URL.  `hyperhive` and `nixpkgs` are needed by `nix`."""


class DeclaredAgent(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """An agent that this file declares, beside those that operators spawn: it is made when it is not there,
    changed when its table does, and destroyed, its state kept, when that is gone.

    A key that is not there says nothing: then its agent.toml, `hive limits` or the hive's defaults hold.
    One that is there wins over all of them.
    """

    auto_start: bool = True
    """What is wanted when it is made, and when this changes: that it runs, or not."""
    image: ImageName | None = None
    """What its machine starts from: the name of an image, or a closure below /nix/store."""
    network: Literal["none", "veth"] | None = None
    """A link to this host's network, or none."""
    description: Label | None = None
    """What it is for."""
    provider: Label | None = None
    """Which program thinks."""
    model: Label | None = None
    """The model it uses until it is told another."""
    recipients: Annotated[list[AgentName], Meta(max_length=256)] | None = None
    """To whom it may write beside the manager; an empty list: to nobody else."""
    limits: Limits = Limits()
    environment: dict[VariableName, Value] = {}
    """What its harness and its model's programs find in their environment; each variable wins by itself."""
    environment_file: HostPath | None = None
    """The same as lines of NAME=VALUE, for secrets; read at each start, and wins over all others."""
    mcp_servers: dict[ServerName, McpServer] = {}
    """Programs in its machine that give its model more tools: `command`, `args`, `env`; each by itself."""
    binds: Annotated[list[Bind], Meta(max_length=32)] = []
    """What of this host its machine sees: `source`, `path` in the machine, `writable`; instead of all that
    its agent.toml asks for."""
    credentials: dict[CredentialName, HostPath] = {}
    """Files of this host that its machine's root finds below /run/hive/credentials; copied at each start."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    home: str = ""
    """Local mode: the directory that holds run/ and state/."""
    run_dir: str = ""
    """Sockets; empty: HOME/run, or /run/hyperhive without --local."""
    state_dir: str = ""
    """The database and the agents; empty: HOME/state, or /var/lib/hyperhive without --local."""
    admin_group: str = "hive-admin"
    """Members may use host.sock.  Where the group is missing only root and the daemon's own user may."""
    domain: str = ""
    """The hive's name in browser addresses; empty: there are none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least of what is logged."""
    drain_s: Seconds = 3.0
    """How long open connections may take to end when the daemon stops."""
    harness: Harness = Harness()
    machines: Machines = Machines()
    broker: Broker = Broker()
    retention: Retention = Retention()
    approvals: Approvals = Approvals()
    deploy: Deploy = Deploy()
    agents: dict[AgentName, DeclaredAgent] = {}
    """Agents that are there because this file says so, by name."""


NEEDS_RESTART: Final = frozenset(
    {
        *("home", "run_dir", "state_dir", "admin_group", "drain_s"),
        *("machines.prefix", "machines.harness_dir"),
        # What running machines were given by them would no longer be what they are declared to have.
        *("machines.uid_first", "machines.uid_ranges", "machines.subnet"),
        "deploy.builder",
    }
)
"""Dotted keys that SIGHUP does not change."""


class ConfigError(Exception):
    """The configuration cannot be used.  The text names the file and the key."""


def load_config(path: Path | None, overrides: Mapping[str, str]) -> tuple[Config, dict[str, str]]:
    """Read *path*, if any, and let *overrides* (dotted keys, from the command line) win.

    Returns the configuration, and for each dotted key where its value came from.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value has the wrong type.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text())
        except PermissionError:
            raise ConfigError(f"cannot read {path}: permission denied; run it as root") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from None
        _refuse_unknown(table, Config, str(path), "")
        _check_agents(table.get("agents"), str(path))
    keys = _keys(Config, "")
    origins = dict.fromkeys(keys, "default")
    origins |= dict.fromkeys(_given(table, "", keys), str(path))
    for key, value in overrides.items():
        _set(table, key, value)
        origins[key] = "command line"
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"cannot use {path or 'the command line'}: {error}") from None
    return config, {key: origins[key] for key in keys}


def flatten(config: msgspec.Struct, prefix: str = "") -> dict[str, Any]:
    """Give the values of *config* by dotted key, in the order of the struct."""
    flat: dict[str, Any] = {}
    for name in config.__struct_fields__:
        value = getattr(config, name)
        flat |= (
            flatten(value, f"{prefix}{name}.")
            if isinstance(value, msgspec.Struct)
            else {prefix + name: value}
        )
    return flat


def merge(fresh: Config, old: Config, keep: Collection[str]) -> Config:
    """Give *fresh* with the values that *old* has for the dotted keys *keep*."""
    table = msgspec.to_builtins(fresh)
    for key, value in flatten(old).items():
        if key in keep:
            _set(table, key, value)
    return msgspec.convert(table, Config)


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """`$XDG_STATE_HOME/hyperhive`, for a daemon without root."""
    base = environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "hyperhive"


def _keys(struct: type[msgspec.Struct], prefix: str) -> list[str]:
    keys: list[str] = []
    for field in msgspec.structs.fields(struct):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            keys += _keys(field.type, f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def _given(table: Mapping[str, Any], prefix: str, keys: Collection[str]) -> list[str]:
    given: list[str] = []
    for key, value in table.items():
        # A key may itself be a table of values.
        if isinstance(value, dict) and prefix + key not in keys:
            given += _given(value, f"{prefix}{key}.", keys)
        else:
            given.append(prefix + key)
    return given


def _refuse_unknown(table: Mapping[str, Any], struct: type[msgspec.Struct], source: str, prefix: str) -> None:
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    for key, value in table.items():
        if key not in fields:
            # Look in every section: the commonest slip is a right key in the wrong table.
            agent = ".".join(prefix.split(".")[:2]) + "." if prefix.startswith("agents.") else ""
            candidates = (
                [*_keys(DeclaredAgent, agent), f"{agent}limits"]
                if agent
                else [*_keys(Config, ""), "harness", "machines"]
            )
            near = difflib.get_close_matches(prefix + key, candidates, n=1, cutoff=0.5) or [
                candidate for candidate in candidates if candidate.rpartition(".")[2] == key
            ]
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"cannot use {source}: unknown key {prefix + key!r}{hint}")
        inner = fields[key]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct) and isinstance(value, dict):
            _refuse_unknown(value, inner, source, f"{prefix}{key}.")


def _check_agents(agents: object, source: str) -> None:
    """Name the agent and the key that cannot be; of a table of tables msgspec would not say which."""
    for name, table in agents.items() if isinstance(agents, dict) else ():
        shown = ascii(name)[1:-1][:80]
        why = None if name == MANAGER else why_no_agent_name(name)
        if why is not None:
            raise ConfigError(f"cannot use {source}: agents.{shown}: {why}")
        if isinstance(table, dict):
            _refuse_unknown(table, DeclaredAgent, source, f"agents.{name}.")
        try:
            msgspec.convert(table, DeclaredAgent)
        except msgspec.ValidationError as error:
            what, _, where = str(error).rpartition(" - at `")
            inside = where.removeprefix("key` in `").removeprefix("$").rstrip("`") if what else ""
            key = f"agents.{shown}{inside}"
            raise ConfigError(f"cannot use {source}: {key}: {without_patterns(what or str(error))}") from None


def _set(table: dict[str, Any], dotted: str, value: object) -> None:
    *path, last = dotted.split(".")
    for part in path:
        table = table.setdefault(part, {})
    table[last] = value

"""Agents that the host's configuration declares: what it says of one wins, and what is to be done about them.

What an agent has comes from four places.  For each key the first that says something holds:

1. `[agents.NAME]` of the host's configuration
2. agent.toml of the commit that was deployed
3. what an operator said, with `hive spawn` or `hive limits`
4. the hive's configuration, for all

2 and 3 are in an agent's row together (`manifest.shape_after` tells how), and what 1 says is beside them.
So whatever is deployed or said later, a key of 1 stays as it is, and when 1 says it no more, it is again as
the row has it.  Of variables and MCP servers each name is a key of its own; a list is one key.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from hive_core.config import Config, ConfigError, DeclaredAgent
from hive_core.declarable import Limits
from hive_core.domain import manifest as manifests
from hive_core.domain.address import parse_subnet
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import Shape, parse_percent, parse_size
from hive_core.domain.manifest import BadManifest, Manifest, said_shape
from hive_core.wire.ids import MANAGER

_WORDS: Final = ("description", "image", "network", "provider", "model")
_MAX_CREDENTIALS: Final = 64
_READ: Final[tuple[tuple[str, Callable[[str], object]], ...]] = (
    ("memory_max", parse_size),
    ("cpu_quota", parse_percent),
    ("subnet", parse_subnet),
)
"""Keys of `[machines]` with more to them than their type says."""


# ── what wins ───────────────────────────────────────────────────────────────────────────────────


def effective(row: AgentRow) -> Declared:
    """Give what the agent of *row* is to be, all in all."""
    return dataclasses.replace(
        row.declared,
        shape=shape_over(row.declaration, row.shape),
        manifest=manifest_over(row.declaration, row.manifest),
    )


def manifest_over(declaration: DeclaredAgent | None, manifest: Manifest) -> Manifest:
    """Give *manifest* with what *declaration* says in its place."""
    if declaration is None:
        return manifest
    said = _said(declaration)
    words = {name: _first(getattr(said, name), getattr(manifest, name)) for name in _WORDS}
    return msgspec.structs.replace(
        manifest,
        **words,
        recipients=_first(said.recipients, manifest.recipients),
        limits=Limits(
            **{
                name: _first(getattr(said.limits, name), getattr(manifest.limits, name))
                for name in Limits.__struct_fields__
            }
        ),
        environment=manifest.environment | said.environment,
        mcp_servers=manifest.mcp_servers | said.mcp_servers,
        binds=said.binds or manifest.binds,
    )


def shape_over(declaration: DeclaredAgent | None, shape: Shape) -> Shape:
    """Give *shape* with what *declaration* says in its place."""
    if declaration is None:
        return shape
    said = said_shape(_said(declaration))
    names = [field.name for field in dataclasses.fields(Shape)]
    return Shape(**{name: _first(getattr(said, name), getattr(shape, name)) for name in names})


def overruled(declaration: DeclaredAgent | None, manifest: Manifest) -> list[tuple[str, str]]:
    """Give each key of *manifest* that *declaration* says otherwise, and what that says, as JSON."""
    if declaration is None:
        return []
    asked, wins = _flat(manifest), _flat(_said(declaration))
    # The host's, too, where agent.toml has no such name: a list is one key, a name of a table another.
    return [(key, _shown(wins[key])) for key in asked if key in wins and asked[key] != wins[key]]


def _said(declaration: DeclaredAgent) -> Manifest:
    """Give what *declaration* says of that which an agent.toml may say, too."""
    names = {*DeclaredAgent.__struct_fields__} & {*Manifest.__struct_fields__}
    return Manifest(**{name: getattr(declaration, name) for name in names})


def _first(said: Any, otherwise: Any) -> Any:
    return otherwise if said is None else said


def _flat(manifest: Manifest) -> dict[str, object]:
    """Give what *manifest* says, key by key."""
    flat: dict[str, object] = {}
    for name, value in msgspec.to_builtins(manifest).items():
        inner = value if name in {"limits", "environment", "mcp_servers"} else None
        flat |= {name: value} if inner is None else {f"{name}.{key}": one for key, one in inner.items()}
    return flat


def _shown(value: object) -> str:
    return msgspec.json.encode(value).decode()


# ── looking at it ───────────────────────────────────────────────────────────────────────────────


def usable(config: Config, source: str) -> Config:
    """Give *config*, of *source*, with the binds of its agents normalised.

    Raises:
        ConfigError: what it says of an agent cannot be had, or is kept for the hive, or with what it says for
            all no machine would start; the text names the key.
    """
    for key, read in _READ:
        try:
            read(getattr(config.machines, key))
        except ValueError as error:
            raise ConfigError(f"cannot use {source}: machines.{key}: {error}") from None
    agents = {}
    for name, declaration in config.agents.items():
        try:
            checked = manifests.checked(_said(declaration))
        except BadManifest as error:
            raise ConfigError(f"cannot use {source}: agents.{name}.{error}") from None
        if len(declaration.credentials) > _MAX_CREDENTIALS:
            raise ConfigError(
                f"cannot use {source}: agents.{name}.credentials: there are over {_MAX_CREDENTIALS}"
            )
        agents[name] = msgspec.structs.replace(declaration, binds=checked.binds)
    return msgspec.structs.replace(config, agents=agents)


def fingerprint(declaration: DeclaredAgent) -> str:
    """Give a hash of what *declaration* says."""
    return hashlib.sha256(msgspec.json.encode(declaration, order="deterministic")).hexdigest()


# ── what is to be done ──────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True, slots=True)
class Spawn:
    """It is not there, and is to be."""

    agent: str
    declaration: DeclaredAgent


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """It is there, and what is said of it is different; None: it is only declared no more."""

    agent: str
    declaration: DeclaredAgent | None
    wants: bool | None = None
    """Whether it is to run from now on; None: as before."""


@dataclasses.dataclass(frozen=True, slots=True)
class Destroy:
    """It is not declared any more; its state stays."""

    agent: str


def plan(rows: Mapping[str, AgentRow], agents: Mapping[str, DeclaredAgent]) -> list[Spawn | Change | Destroy]:
    """Say what brings *rows*, of the agents that are there, to what is declared of *agents*.

    Agents that nobody declared are never among it; nor is one whose table was tried and could not be had.
    A hive keeps its manager: when it is declared no more, it is an ordinary one again.
    """
    actions: list[Spawn | Change | Destroy] = []
    for name in sorted({*rows, *agents}):
        row, declaration = rows.get(name), agents.get(name)
        if row is None:
            assert declaration is not None
            actions.append(Spawn(name, declaration))
        elif declaration is None:
            if row.declaration is not None:
                actions.append(Change(name, None) if name == MANAGER else Destroy(name))
        elif declaration != row.declaration and row.refused_declaration != fingerprint(declaration):
            actions.append(Change(name, declaration, _wants(row.declaration, declaration)))
    return actions


def _wants(former: DeclaredAgent | None, declaration: DeclaredAgent) -> bool | None:
    if former is None or former.auto_start == declaration.auto_start:
        return None
    return declaration.auto_start

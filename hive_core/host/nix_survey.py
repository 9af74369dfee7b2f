"""Looks at how this host builds with nix, for the doctor to judge.  It changes nothing."""

import grp
import json
import os
import pwd
import socket
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from hive_core.config import Config
from hive_core.domain import meta_flake
from hive_core.domain.meta_flake import BadFlake
from hive_core.host import process
from hive_core.host.nix import USER, Nix, NoNix
from hive_core.host.process import CommandError

DEADLINE_S: Final = 10.0
MAX_OUTPUT_BYTES: Final = 256 * 1024
CONNECT_S: Final = 5.0

_SHOW_CONFIG: Final = (("show-config",), ("config", "show"))
"""What prints the configuration, of older and of newer versions."""
_TROUBLE: Final = (OSError, CommandError, trio.TooSlowError)


@dataclass(frozen=True, kw_only=True)
class SeenNix:
    """What was seen of it."""

    version: str | None
    problem: str | None
    """Why it cannot be used; None when it can."""
    sandbox: str | None
    """`true`, `relaxed` or `false`; None: nobody says."""
    trusted: tuple[str, ...]
    """Of the names and groups of trusted-users those that our user is."""
    is_allowed: bool
    """Our user may ask nix-daemon for builds."""
    inputs_problem: str | None
    missing_inputs: tuple[str, ...]
    """Directories in deploy.inputs that have no flake."""


async def look(config: Config, nix: Nix | None = None) -> SeenNix | None:
    """Look at nix, where the hive builds with it; *nix* is how it is run, None: as the daemon runs it."""
    if config.deploy.builder != "nix":
        return None
    nix = nix or Nix(user=USER, in_units=True)
    version: str | None = None
    problem: str | None = None
    try:
        version = await nix.check()
        await trio.to_thread.run_sync(_connect, nix.socket)
    except NoNix as error:
        problem = str(error)
    except _TROUBLE as error:
        problem = f"cannot build with nix: {str(error) or 'it takes too long'}"
    settings = await _settings(nix)
    mine = await trio.to_thread.run_sync(_names_of, nix.user)
    return SeenNix(
        version=version,
        problem=problem,
        sandbox=_word(settings.get("sandbox")),
        trusted=_matching(_words(settings.get("trusted-users")), mine),
        is_allowed=not settings or bool(_matching(_words(settings.get("allowed-users")), mine)),
        inputs_problem=_why_no_inputs(config),
        missing_inputs=await trio.to_thread.run_sync(_missing, config),
    )


def _connect(path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(CONNECT_S)
        try:
            client.connect(str(path))
        except OSError as error:
            why = error.strerror or "no answer"
            raise NoNix(
                f"cannot build with nix: nix-daemon does not answer at {path}: {why};"
                " start it: systemctl restart nix-daemon.socket"
            ) from None


async def _settings(nix: Nix) -> Mapping[str, Any]:
    """Give what nix.conf says, by name; nothing where nix does not tell."""
    env = {"LC_ALL": "C.UTF-8", "NIX_USER_CONF_FILES": "", "HOME": "/nonexistent", **nix.environment}
    for words in _SHOW_CONFIG:
        argv = ["nix", "--extra-experimental-features", "nix-command", *words, "--json"]
        try:
            said = await process.run(argv, timeout_s=DEADLINE_S, max_output_bytes=MAX_OUTPUT_BYTES, env=env)
            found: dict[str, Any] = json.loads(said)
        except (*_TROUBLE, ValueError):
            continue
        return {name: entry.get("value") for name, entry in found.items() if isinstance(entry, dict)}
    return {}


def _word(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else None


def _words(value: object) -> list[str]:
    if isinstance(value, str):
        return value.split()
    return [str(one) for one in value] if isinstance(value, list) else []


def _names_of(user: str | None) -> frozenset[str]:
    """Give what nix.conf may call *user*: its name, its groups, and everybody."""
    try:
        entry = pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(user)
    except KeyError:
        return frozenset({"*"})
    groups = {
        found.gr_name
        for found in grp.getgrall()
        if entry.pw_name in found.gr_mem or found.gr_gid == entry.pw_gid
    }
    return frozenset({"*", entry.pw_name, *(f"@{name}" for name in groups)})


def _matching(words: Collection[str], mine: Collection[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word in mine)


def _why_no_inputs(config: Config) -> str | None:
    try:
        meta_flake.render(config.deploy.inputs, {}, "any")
    except BadFlake as error:
        return str(error)
    return None


def _missing(config: Config) -> tuple[str, ...]:
    paths = sorted(meta_flake.paths_of(config.deploy.inputs.values()))
    return tuple(path for path in paths if not Path(path, "flake.nix").is_file())

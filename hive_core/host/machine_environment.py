"""What a machine's harness finds in its environment, as a file that its systemd reads."""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from hive_core.config import DeclaredAgent, Harness
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host import credentials, releases
from hive_core.wire.ids import MANAGER

MAX_FILE_BYTES: Final = 64 * 2**10

RUN: Final = "/run/hive"
"""Where a machine finds its agent's directory of sockets."""

RELEASE: Final = "/etc/hyperhive/release"
"""Where a machine finds what was deployed of its agent."""

REPOSITORIES: Final = {"HIVE_CONFIGS": "/agents", "HIVE_APPLIED": "/applied", "HIVE_META": "/meta"}
"""Where the manager sees them in its machine."""

_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IMPOSSIBLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_QUOTED: Final = re.compile(r"""(["'])(.*)\1\Z""")


class BadEnvironment(Exception):
    """The configuration says nothing that could be an environment.  The text names what is wrong."""


def gather(
    agent: str,
    state: str,
    harness: Harness,
    manifest: Manifest = NOTHING,
    declaration: DeclaredAgent | None = None,
) -> dict[str, str]:
    """Give the environment of the harness of *agent*, whose state is at *state* in its machine.

    What *manifest*, in which all that is said of this agent is together, says wins over what the hive's
    configuration says for all; the operator's file of secrets wins over both, and over that the agent's own
    of *declaration*, which is what the host's configuration says of it.

    Raises:
        BadEnvironment: a name or a value cannot be one, or the file cannot be read.
    """
    own = {
        "HIVE_LABEL": agent,
        "HIVE_AGENT_STATE": state,
        "HIVE_PROVIDER": manifest.provider or harness.provider,
        "CLAUDE_CONFIG_DIR": "/root/.claude",
        **releases.environment(manifest, RELEASE),
    }
    if agent == MANAGER:
        own |= REPOSITORIES
    model = manifest.model or harness.model
    if model:
        own["HIVE_DEFAULT_MODEL"] = model
    own |= told_of_host(declaration, RUN)
    secrets = read_file(harness.environment_file) | secrets_of(declaration)
    given = harness.environment | manifest.environment | secrets
    # A secret that has the same name stays the harness's.
    own |= passed_on(manifest, declaration, secrets)
    for name, value in given.items():
        if not _NAME.match(name):
            raise BadEnvironment(f"{name[:40]!r} is no name of a variable")
        if _IMPOSSIBLE.search(value):
            raise BadEnvironment(f"the value of {name} has control characters")
    return given | own


def secrets_of(declaration: DeclaredAgent | None) -> dict[str, str]:
    """Give what is in the file of secrets that *declaration* names.

    Raises:
        BadEnvironment: it cannot be read.
    """
    return read_file(declaration.environment_file or "") if declaration is not None else {}


def told_of_host(declaration: DeclaredAgent | None, run: str) -> dict[str, str]:
    """Give what tells a harness where the things are that *declaration* gives it, which lie at *run*."""
    told: dict[str, str] = {}
    if declaration is not None and declaration.mcp_servers:
        told["HIVE_EXTRA_MCP"] = f"{run}/{releases.EXTRA_MCP}"
    if declaration is not None and declaration.credentials:
        told[_CREDENTIALS] = f"{run}/{credentials.DIRECTORY}"
    return told


def passed_on(
    manifest: Manifest, declaration: DeclaredAgent | None, secrets: Collection[str]
) -> dict[str, str]:
    """Give what tells a harness which variables its model's programs get, too."""
    names = {*manifest.environment} - {*secrets}
    if declaration is not None and declaration.credentials:
        names.add(_CREDENTIALS)
    return releases.passed_on(names)


def render(environment: Mapping[str, str]) -> str:
    """Give *environment* as an EnvironmentFile of systemd."""
    return "".join(f'{name}="{_escape(value)}"\n' for name, value in sorted(environment.items()))


def parse(text: str) -> dict[str, str]:
    """Read lines of NAME=VALUE; comments and empty lines are passed over, quotes round a value come off.

    Raises:
        BadEnvironment: a line is none of these.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line[0] in "#;":
            continue
        name, equals, value = line.removeprefix("export ").partition("=")
        if not equals or not _NAME.match(name.strip()):
            raise BadEnvironment(f"line {number} is not NAME=VALUE")
        quoted = _QUOTED.match(value.strip())
        found[name.strip()] = quoted[2] if quoted else value.strip()
    return found


def _escape(value: str) -> str:
    return re.sub(r'(["\\`$])', r"\\\1", value)


def read_file(name: str) -> dict[str, str]:
    """Read a file of NAME=VALUE; of no name: nothing.

    Raises:
        BadEnvironment: it cannot be read, or is something else.
    """
    if not name:
        return {}
    path = Path(name).expanduser()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise BadEnvironment(f"{path} is over {MAX_FILE_BYTES} bytes")
        return parse(text.decode())
    except OSError as error:
        raise BadEnvironment(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadEnvironment(f"{path} is not UTF-8") from None
    except BadEnvironment as error:
        raise BadEnvironment(f"{path}: {error}") from None

"""What a machine's harness finds in its environment, as a file that its systemd reads."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hive_core.config import Harness

MAX_FILE_BYTES: Final = 64 * 2**10

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_IMPOSSIBLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_QUOTED: Final = re.compile(r"""(["'])(.*)\1\Z""")


class BadEnvironment(Exception):
    """The configuration says nothing that could be an environment.  The text names what is wrong."""


def gather(agent: str, state: str, harness: Harness) -> dict[str, str]:
    """Give the environment of the harness of *agent*, whose state is at *state* in its machine.

    Raises:
        BadEnvironment: a name or a value cannot be one, or the file cannot be read.
    """
    own = {
        "HIVE_LABEL": agent,
        "HIVE_AGENT_STATE": state,
        "HIVE_PROVIDER": harness.provider,
        "CLAUDE_CONFIG_DIR": "/root/.claude",
    }
    if harness.model:
        own["HIVE_DEFAULT_MODEL"] = harness.model
    given = dict(harness.environment)
    if harness.environment_file:
        given |= _read(Path(harness.environment_file).expanduser())
    for name, value in given.items():
        if not _NAME.match(name):
            raise BadEnvironment(f"{name[:40]!r} is no name of a variable")
        if _IMPOSSIBLE.search(value):
            raise BadEnvironment(f"the value of {name} has control characters")
    return given | own


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


def _read(path: Path) -> dict[str, str]:
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

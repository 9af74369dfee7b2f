"""Whether claude has something to log in with.  Looks at files and variables, asks nobody."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from hive_core.wire.envelope import DECODE_ERRORS

VARIABLES: Final = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN")
MAX_FILE_BYTES: Final = 2**20


class _OAuth(msgspec.Struct, frozen=True):
    accessToken: str = ""  # noqa: N815
    refreshToken: str | None = None  # noqa: N815


class _File(msgspec.Struct, frozen=True):
    claudeAiOauth: _OAuth = _OAuth()  # noqa: N815


class Credentials:
    """Those that a turn was refused with count as none, until they are others."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """*environment* is that of claude."""
        self._values = [environment[name] for name in VARIABLES if environment.get(name)]
        self._path = credentials_file(environment)
        self._refused: bytes | None = None

    def are_there(self) -> bool:
        there = self._digest()
        return there is not None and there != self._refused

    def refuse(self) -> None:
        """Remember that those of now are of no use."""
        self._refused = self._digest()

    def _digest(self) -> bytes | None:
        """Give what tells these credentials from others; None where there are none."""
        token = _read_token(self._path)
        values = [*self._values, *([token] if token else [])]
        return hashlib.sha256("\0".join(values).encode(errors="surrogatepass")).digest() if values else None


def credentials_file(environment: Mapping[str, str]) -> Path:
    told = environment.get("CLAUDE_CONFIG_DIR")
    return (Path(told) if told else Path(environment["HOME"]) / ".claude") / ".credentials.json"


def _read_token(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            read: Any = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_File)
    except (OSError, *DECODE_ERRORS):
        return None
    token: str = read.claudeAiOauth.accessToken or read.claudeAiOauth.refreshToken or ""
    return token or None

"""MCP servers that the agent's declaration adds to the hive's own."""

import re
from pathlib import Path
from typing import Final

import msgspec

from hive_core.wire.envelope import DECODE_ERRORS

MAX_FILE_BYTES: Final = 2**20
RESERVED: Final = "hyperhive"

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ExtraServer(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    command: str
    args: list[str] = []
    env: dict[str, str] = {}
    allowed_tools: list[str] = msgspec.field(default_factory=lambda: ["*"])

    def rules(self, key: str) -> list[str]:
        """Give the permission rules for what may be called without asking."""
        if "*" in self.allowed_tools:
            return [f"mcp__{key}"]
        return [f"mcp__{key}__{tool}" for tool in self.allowed_tools if _NAME.fullmatch(tool)]


def read_extra_servers(path: Path | None) -> tuple[dict[str, ExtraServer], list[str]]:
    """Give the servers of the file, and notes about what is wrong with it.  A bad file has none."""
    if path is None:
        return {}, []
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            return {}, [f"Extra MCP servers are left out: {path} is longer than {MAX_FILE_BYTES} bytes"]
        servers = msgspec.json.decode(text, type=dict[str, ExtraServer])
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [f"Extra MCP servers are left out: {path}: {error.strerror}"]
    except DECODE_ERRORS as error:
        return {}, [f"Extra MCP servers are left out: {path}: {str(error)[:300]}"]
    notes = []
    for key in list(servers):
        if key == RESERVED or not _NAME.fullmatch(key):
            del servers[key]
            why = "that name is the hive's own" if key == RESERVED else "that is no name of a server"
            notes.append(f"Extra MCP server {key[:64]!r} is left out: {why}")
    return servers, notes

"""The parts of a declared agent that its own agent.toml and the host's config.toml say in the same words."""

from typing import Annotated

import msgspec
from msgspec import Meta

from hive_core.wire.machine import Percent, Size, Tasks

VariableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}\Z")]
Value = Annotated[str, Meta(max_length=16 * 1024, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*\Z")]
"""Of a variable, or an argument: no control characters but tab and newline."""
ServerName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")]
CredentialName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z")]
HostPath = Annotated[str, Meta(pattern=r"^/[A-Za-z0-9/._+@=~,-]{0,1023}\Z")]
"""Without what systemd would read as syntax of its own."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What its machine may take."""

    memory: Size | None = None
    """The most memory, as `512M` or `4G`."""
    cpu: Percent | None = None
    """Its share of processors: 100% is one."""
    tasks: Tasks | None = None
    """Its processes and threads."""


class Bind(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A directory or file of the host that its machine sees."""

    source: HostPath
    path: HostPath | None = None
    """Where, in the machine; None: at the same place."""
    writable: bool = False


class McpServer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A program in the machine that gives its model more tools."""

    command: Value
    args: Annotated[list[Value], Meta(max_length=64)] = []
    env: dict[VariableName, Value] = {}

"""What every request and every reply on host.sock is."""

import msgspec
from msgspec import UNSET, UnsetType

from hive_core.wire.limits import HOST_VERSION


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="cmd", omit_defaults=True):
    pass


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Success and nothing more; also the first line of a verb that follows."""

    version: int = HOST_VERSION
    ok: bool = True


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is no, or something broke."""

    version: int = HOST_VERSION
    ok: bool = False
    error: str
    code: str
    reason: str | UnsetType = UNSET
    last_id: int | UnsetType = UNSET
    """Where a reader that was cut off may take up again."""

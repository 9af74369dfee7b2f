"""What host.sock says about machines, and how a person writes their limits."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.limits import MAX_PATH_CHARS, MAX_TASKS, MIN_TASKS

IMAGE_PATTERN: Final = r"^[^\x00-\x20\x7f]+\Z"
SIZE_PATTERN: Final = r"^[0-9]{1,15}[KMGTkmgt]?\Z"
PERCENT_PATTERN: Final = r"^[0-9]{1,6}%?\Z"

ImageName = Annotated[str, Meta(min_length=1, max_length=MAX_PATH_CHARS, pattern=IMAGE_PATTERN)]
"""The name of a tree, or the path of a NixOS closure."""
Size = Annotated[str, Meta(pattern=SIZE_PATTERN)]
"""`512M` or `4G`; a number alone is bytes."""
Percent = Annotated[str, Meta(pattern=PERCENT_PATTERN)]
"""`200%` is two processors."""
Tasks = Annotated[int, Meta(ge=MIN_TASKS, le=MAX_TASKS)]


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cpu_usec: int
    """Processor time since its start: two looks give a share."""
    memory_bytes: int
    tasks: int


class Check(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    status: Literal["ok", "warn", "fail"]
    text: str
    mend: str | UnsetType = UNSET
    """What to do about it."""


class ImageRow(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    kind: str
    """`tree` or `nix`."""
    path: str
    used_by: list[str] = []

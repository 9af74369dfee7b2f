"""What every request and every result on an agent's socket is."""

from typing import Annotated

import msgspec
from msgspec import Meta

from hive_core.wire.limits import MAX_KEY_CHARS

Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY_CHARS)]
"""Of a call: a repeat with the same one does nothing again and gives what the first one gave."""


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    pass


class Result(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass

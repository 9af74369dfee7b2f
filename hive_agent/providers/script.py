"""A JSON script for the scripted provider: what each turn emits, sends and ends with.

{"turns": [{"events": [{"delay": 0.1, "stream": {"type": "assistant", …}},
                       {"note": "half way"},
                       {"send": {"to": "bob", "body": "hi"}},
                       {"error": "boom"}],
            "ok": true}]}
"""

from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

MAX_SCRIPT_BYTES: Final = 16 * 2**20


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ScriptedSend(_Strict, frozen=True, kw_only=True):
    to: str
    body: str
    in_reply_to: int | None = None


class Step(_Strict, frozen=True, kw_only=True):
    """Wait *delay* seconds, then do at most one thing."""

    delay: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    stream: dict[str, Any] | None = None
    note: str | None = None
    send: ScriptedSend | None = None
    error: str | None = None
    """The turn fails here, for this reason."""

    def __post_init__(self) -> None:
        deeds = [self.stream, self.note, self.send, self.error]
        if sum(deed is not None for deed in deeds) > 1:
            raise ValueError("a step does one of stream, note, send, error")


class ScriptedTurn(_Strict, frozen=True, kw_only=True):
    events: list[Step] = []
    ok: bool = True
    note: str | None = None


class Script(_Strict, frozen=True, kw_only=True):
    turns: list[ScriptedTurn]


class BadScript(Exception):
    """The script cannot be played.  The text names the file and the place in it."""


def read_script(path: Path) -> Script:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SCRIPT_BYTES)
        return msgspec.json.decode(text, type=Script)
    except OSError as error:
        raise BadScript(f"script {path}: {error.strerror}") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadScript(f"script {path}: {error}") from None

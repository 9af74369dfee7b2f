"""The model that turns run with, remembered in one line of a file."""

import logging
import os
from pathlib import Path

import msgspec

from hive_agent.events import Emit
from hive_core.wire.ids import Label

log = logging.getLogger(__name__)


class BadModel(Exception):
    """No name of a model.  The text begins "cannot …"."""


class ModelChoice:
    """File first, then what the harness was started with, then the provider's own."""

    def __init__(self, path: Path, emit: Emit, *, fallback: str) -> None:
        self._path = path
        self._emit = emit
        self._current = _read(path) or fallback

    def current(self) -> str:
        return self._current

    def choose(self, model: str) -> None:
        """Use *model* from the next turn on and remember it.  Failing to remember only warns.

        Raises:
            BadModel: that is no name.
        """
        if not is_model_name(model):
            raise BadModel(
                f"cannot use {model[:80]!r} as a model: a name has 1 to 64 characters and no space"
            )
        try:
            _write(self._path, model)
        except OSError as error:
            log.warning("Model cannot be remembered: %s", error)
        if model != self._current:
            self._current = model
            self._emit("model_changed", {"model": model})


def is_model_name(text: str) -> bool:
    try:
        msgspec.convert(text, Label)
    except msgspec.ValidationError:
        return False
    # It becomes an argument of a command: it must not look like an option, nor like two words.
    return not text.startswith("-") and not any(map(str.isspace, text))


def _read(path: Path) -> str | None:
    try:
        with path.open(encoding="utf-8") as file:
            model = file.readline(1000).strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        log.warning("Model file cannot be read: %s", error)
        return None
    if not is_model_name(model):
        log.warning("Model file %s names no model", path)
        return None
    return model


def _write(path: Path, model: str) -> None:
    unfinished = path.with_name(path.name + ".new")
    unfinished.write_text(model + "\n", encoding="utf-8")
    os.replace(unfinished, path)  # noqa: PTH105

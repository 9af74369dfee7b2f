"""What turns run with: the model and the effort, each remembered in one line of a file."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

import msgspec

from hive_agent.events import Emit
from hive_agent.remembered import read_line, remove, write_line
from hive_core.wire.ids import Label

log = logging.getLogger(__name__)

DEFAULT_EFFORT: Final = "default"
"""The word that takes a chosen effort back."""


class BadModel(Exception):
    """No name of a model.  The text begins "cannot …"."""


class BadEffort(Exception):
    """No effort that the provider knows.  The text begins "cannot …"."""


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
        write_line(self._path, model)
        if model != self._current:
            self._current = model
            self._emit("model_changed", {"model": model})


class EffortChoice:
    """How hard the model thinks: one of *known*, the provider's words, or None for its own default."""

    def __init__(
        self, path: Path, emit: Emit, *, known: Collection[str], fallback: str | None = None
    ) -> None:
        self._path = path
        self._emit = emit
        self._known = known
        chosen = read_line(path)
        if chosen is not None and chosen not in known:
            log.warning("Effort file %s names no effort of this provider", path)
        if fallback is not None and fallback not in known:
            log.warning("Effort %r is none of this provider", fallback[:80])
        self._current = next((word for word in (chosen, fallback) if word in known), None)

    def current(self) -> str | None:
        return self._current

    def choose(self, effort: str) -> None:
        """Use *effort* from the next turn on and remember it; `default` forgets it.

        Raises:
            BadEffort: the provider does not know it.
        """
        if not self._known:
            raise BadEffort("cannot set the effort: this provider has no such choice")
        if effort == DEFAULT_EFFORT:
            remove(self._path)
        elif effort in self._known:
            write_line(self._path, effort)
        else:
            words = ", ".join([*self._known, DEFAULT_EFFORT])
            raise BadEffort(f"cannot use {effort[:80]!r} as an effort: there are {words}")
        chosen = None if effort == DEFAULT_EFFORT else effort
        if chosen != self._current:
            self._current = chosen
            self._emit("effort_changed", {"effort": chosen})


def is_model_name(text: str) -> bool:
    try:
        msgspec.convert(text, Label)
    except msgspec.ValidationError:
        return False
    # It becomes an argument of a command: it must not look like an option, nor like two words.
    return not text.startswith("-") and not any(map(str.isspace, text))


def _read(path: Path) -> str | None:
    model = read_line(path)
    if model is None:
        return None
    if not is_model_name(model):
        log.warning("Model file %s names no model", path)
        return None
    return model

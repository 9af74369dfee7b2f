"""What a model is told before any message: what it is in the hive, how to work there, and its task."""

import os
import re
import stat
from importlib import resources
from pathlib import Path
from typing import Final

from hive_agent.config import Config
from hive_core.wire.ids import MANAGER

MAX_TASK_BYTES: Final = 64 * 2**10
DEFAULT_PRONOUNS: Final = "they/them"
TASK_HEADING: Final = "# Your task"

_PLACE: Final = re.compile(r"\{(label|operator_pronouns|configs|applied|meta)\}")


def render_system_prompt(config: Config, task: str = "") -> str:
    """Give what every agent is told, to the manager its duties too, and *task* at the end."""
    names = ["agent.md", "manager.md"] if config.label == MANAGER else ["agent.md"]
    prompts = resources.files("hive_agent").joinpath("prompts")
    told = "\n".join(prompts.joinpath(name).read_text(encoding="utf-8") for name in names)
    values = {
        "label": config.label or "agent",
        "operator_pronouns": config.operator_pronouns or DEFAULT_PRONOUNS,
        "configs": str(config.configs),
        "applied": str(config.applied),
        "meta": str(config.meta),
    }
    # Together: what the one says is not looked through for the other.
    rendered = _PLACE.sub(lambda found: values[found[1]], told)
    return f"{rendered}\n{TASK_HEADING}\n\n{task.strip()}\n" if task.strip() else rendered


def read_task(path: Path | None) -> tuple[str, list[str]]:
    """Give the text of the file, and notes about what is wrong with it.  One that cannot be read has none."""
    if path is None:
        return "", []
    try:
        # What is no plain file could keep us waiting for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return "", [f"The task is left out: {path} is no plain file"]
            text = file.read(MAX_TASK_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        return "", [f"The task is left out: {path}: {why}"]
    notes = []
    if len(text) > MAX_TASK_BYTES:
        text = text[:MAX_TASK_BYTES]
        notes.append(f"The task is cut: {path} is longer than {MAX_TASK_BYTES} bytes")
    # A character that was cut in two at the end is not worth a sign.
    return text.decode(errors="replace").rstrip("\ufffd"), notes

"""Files that nobody else may read, whatever our umask is and whoever may enter the directory."""

import os
from pathlib import Path


def make_private(path: Path) -> None:
    """Make the file *path* with mode 0600 if it is missing; SQLite gives its journals the same mode.

    What keeps it from being made, whoever opens it next finds out and says.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError:
        return

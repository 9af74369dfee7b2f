"""A file that says by being there that something holds, for whoever cannot ask the harness."""

from pathlib import Path

from hive_agent.remembered import remove, write_line


class Mark:
    def __init__(self, path: Path) -> None:
        self._path = path
        # One that an earlier harness could not take away.
        self.remove()

    def put(self, until: float) -> None:
        """Let it be there; it says in unix seconds until when."""
        write_line(self._path, f"{until:.0f}")

    def remove(self) -> None:
        remove(self._path)

"""Programs that write down how they were called, and answer what they are told to."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

_RECORDER = """\
#!{python} -IS
import json, os, sys
with open({log!r}, "a") as log:
    log.write(json.dumps([{name!r}, *sys.argv[1:]]) + "\\n")
{body}
"""


class ProgramsOnPath:
    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        directory.mkdir()
        self._directory = directory
        self._log = directory / "calls"
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def add(self, name: str, body: str = "") -> None:
        """*body* is Python that the program runs after its call was written down."""
        path = self._directory / name
        path.write_text(_RECORDER.format(python=sys.executable, log=str(self._log), name=name, body=body))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

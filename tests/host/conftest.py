"""Programs of the host, played by small scripts that come first on PATH."""

from collections.abc import Callable
from pathlib import Path

import pytest


class FakeProgram:
    """A script in the place of a program; what it was called with is kept."""

    def __init__(self, path: Path, log: Path) -> None:
        self._path = path
        self._log = log

    @property
    def calls(self) -> list[str]:
        """The arguments of each call, those of other fake programs left out."""
        if not self._log.exists():
            return []
        name = self._path.name
        lines = self._log.read_text().splitlines()
        return [line.removeprefix(name).strip() for line in lines if line.split(" ", 1)[0] == name]


Fake = Callable[..., FakeProgram]


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Give what makes a fake program: its name, and its body in sh."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    log = tmp_path / "calls"

    def make(name: str, body: str = "") -> FakeProgram:
        path = directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
        path.chmod(0o755)
        return FakeProgram(path, log)

    return make

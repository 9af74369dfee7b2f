import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hive_core.cli import output
from hive_core.cli.__main__ import main

from .fake_host import FakeHost


class Result(NamedTuple):
    code: int
    out: str
    err: str


RunHive = Callable[..., Result]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HIVE_SOCKET", "HIVE_HOME", "HIVE_DEBUG", "NO_COLOR", "_HIVE_COMPLETE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("TERM", "xterm")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    with FakeHost(tmp_path / "host.sock") as host:
        monkeypatch.setenv("HIVE_SOCKET", str(host.path))
        yield host


@pytest.fixture
def hive(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunHive:
    """Run one command in this process, its output going into a pipe."""

    def run(*argv: str, stdin: bytes = b"") -> Result:
        with io.TextIOWrapper(io.BytesIO(stdin)) as text, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", text)
            code = main(argv)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the output go to a terminal of 80 columns without colours."""
    monkeypatch.setattr(output, "on_terminal", lambda: True)
    monkeypatch.setattr(output, "width", lambda: 80)
    monkeypatch.setenv("NO_COLOR", "1")

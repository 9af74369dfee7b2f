"""hive-core image and hive-core doctor: what they say, and how they end."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hive_core import admin
from hive_core.__main__ import main
from hive_core.config import Config
from hive_core.domain.cage import CannotStart
from hive_core.host import doctor, images
from hive_core.host.images import Image, Kind
from hive_core.wire.machine import Check

OK = Check(name="systemd", status="ok", text="version 252")
WARN = Check(name="cgroups", status="warn", text="no memory", mend="cat x")
FAIL = Check(name="images", status="fail", text="none", mend="hive image build debian\nor add one")

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("HIVE_CONFIG", raising=False)
    monkeypatch.setattr(admin, "SYSTEM_CONFIG", tmp_path / "config.toml")
    return lambda *argv: CliRunner().invoke(main, argv)


class FakeImages:
    def __init__(self, *, harness: Path, prefix: str) -> None:
        self.given = (harness, prefix)

    def list(self) -> list[Image]:
        return [Image("debian", Kind.TREE, Path("/m/debian"))]

    async def add(self, name: str, source: str) -> None:
        raise CannotStart(f"cannot add image {name}: {source} has no /usr")

    async def build(
        self, kind: str, *, name: str, include: Sequence[str], progress: Callable[[str], None]
    ) -> None:
        progress(f"{kind} {name} {','.join(include)}")

    async def remove(self, name: str) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def fake_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "Images", FakeImages)


def doctor_finds(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> list[Config]:
    asked: list[Config] = []

    async def check(config: Config) -> Sequence[Check]:
        asked.append(config)
        return checks

    monkeypatch.setattr(doctor, "check", check)
    return asked


def test_doctor_says_what_failed_and_how_to_mend_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor_finds(monkeypatch, OK, WARN, FAIL)

    result = run("doctor")

    assert result.exit_code == 1
    assert result.stdout == (
        "✓ systemd — version 252\n! cgroups — no memory\n    cat x\n"
        "✗ images — none\n    hive image build debian\n    or add one\n"
    )


def test_doctor_without_a_failure_ends_well(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor_finds(monkeypatch, OK, WARN)

    result = run("doctor", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout) == [
        {"name": "systemd", "status": "ok", "text": "version 252"},
        {"name": "cgroups", "status": "warn", "text": "no memory", "mend": "cat x"},
    ]


def test_doctor_looks_with_the_configuration_of_the_service(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.toml").write_text('admin_group = "wheel"\n')
    asked = doctor_finds(monkeypatch, OK)

    run("doctor")

    assert [config.admin_group for config in asked] == ["wheel"]


@pytest.mark.usefixtures("fake_images")
@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        (["ls"], 0, "debian\ttree\t/m/debian\n", ""),
        (["add", "a", "/x"], 1, "", "hive-core: cannot add image a: /x has no /usr\n"),
        (["rm", "a"], 1, "", "hive-core: cannot go on: [Errno 28] No space left on device\n"),
        (
            ["build", "debian", "--name", "n", "--include", "git, nodejs"],
            0,
            "n is an image now; hive spawn alice --image n\n",
            "debian n git,nodejs\n",
        ),
    ],
)
def test_images(argv: list[str], code: int, out: str, err: str, run: Run) -> None:
    result = run("image", *argv)

    assert (result.exit_code, result.stdout, result.stderr) == (code, out, err)


def test_a_configuration_that_cannot_be_read_ends_as_for_serve(run: Run, tmp_path: Path) -> None:
    result: Any = run("doctor", "--config", str(tmp_path / "none.toml"))

    assert result.exit_code == admin.EXIT_CONFIG
    assert result.stderr.startswith("hive-core: cannot read ")

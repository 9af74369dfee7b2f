"""The manual pages, the completions and the page of the configuration say what the programs say."""

import importlib.util
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from hive_core.cli.app import COMMANDS
from hive_core.config import Config, DeclaredAgent, flatten

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_manual", ROOT / "docs/generate_manual.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_files_are_what_the_programs_say(generator: ModuleType) -> None:
    if stale := sorted(generator.stale()):
        pytest.fail(f"out of date: {', '.join(stale)}; run  {generator.COMMAND}", pytrace=False)


def test_every_command_is_in_the_manual() -> None:
    page = (ROOT / "docs/man/hive.1").read_text().replace("\\-", "-")

    for name in COMMANDS:
        assert f"\n.SS hive {name}" in page


def test_every_key_of_the_configuration_is_explained(generator: ModuleType) -> None:
    keys = {key.name: key for key in generator.keys_of(Config)}

    of_agents = {f"agents.NAME.{key}" for key in flatten(DeclaredAgent())}
    assert keys.keys() == flatten(Config()).keys() - {"agents"} | of_agents
    for key in keys.values():
        assert key.doc
        assert key.kind


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not installed")
@pytest.mark.parametrize("page", sorted((ROOT / "docs/man").iterdir()), ids=lambda path: path.name)
def test_man_renders_a_page_without_a_warning(page: Path) -> None:
    shown = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(page)], capture_output=True, check=True, timeout=30
    )

    assert shown.stderr == b""
    assert b"SEE ALSO" in shown.stdout


def test_a_package_carries_them_all() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = table["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    script = (ROOT / "systemd/install.sh").read_text()

    for file in [*(ROOT / "docs/man").iterdir(), *(ROOT / "docs/completions").iterdir()]:
        assert str(file.relative_to(ROOT)) in shipped
        assert file.name in script

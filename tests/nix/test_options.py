"""docs/options.md has every option, and no other."""

import importlib.util
import re
from types import ModuleType

import pytest

from .nix_kit import ROOT, evaluated, needs_lib

PAGE = ROOT / "docs/options.md"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_options", ROOT / "docs/generate_options.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_the_page() -> list[str]:
    return re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)


@needs_lib
def test_the_page_is_what_the_modules_say(generator: ModuleType) -> None:
    if not generator.same(generator.render(evaluated("options")), PAGE.read_text()):
        pytest.fail(f"docs/options.md is out of date; run  {generator.COMMAND}", pytrace=False)


@needs_lib
def test_each_option_is_described_and_each_in_the_page_exists() -> None:
    options = [option for part in evaluated("options").values() for option in part]

    assert [option["name"] for option in options if not option["description"].strip()] == []
    assert sorted(in_the_page()) == sorted(option["name"] for option in options)


def test_the_page_has_each_option_once() -> None:
    names = in_the_page()

    assert len(names) == len(set(names)) > 80


@needs_lib
def test_the_guide_names_no_option_that_there_is_not() -> None:
    known = {option["name"] for part in evaluated("options").values() for option in part}
    plain = {re.sub(r"<name>", "*", name) for name in known}
    text = (ROOT / "docs/nixos.md").read_text()

    for name in re.findall(r"`((?:services\.)?hyperhive\.[A-Za-z_.<>]+)`", text):
        looked = name.replace("<name>", "*").rstrip(".*")
        assert any(each == looked or each.startswith(f"{looked}.") for each in plain), name

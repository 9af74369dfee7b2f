"""The rules of the repository that no linter knows."""

import configparser
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["hive_core", "hive_agent"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LOCKS = ["requirements.lock", "requirements-dev.lock"]

# In pieces, so that this file passes its own test.
REGISTRIES = ["pypi" + ".org", "python" + "hosted", "npm" + "js.", "crates" + ".io", "ana" + "conda.org"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def package_name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return match[0].lower()


def dependencies() -> Iterator[tuple[str, str]]:
    """Each direct dependency and the lock file that must have it."""
    metadata = project()
    for requirement in [*metadata["project"]["dependencies"], *metadata["dependency-groups"]["build"]]:
        yield package_name(requirement), "requirements.lock"
    for requirement in metadata["dependency-groups"]["dev"]:
        if isinstance(requirement, str):
            yield package_name(requirement), "requirements-dev.lock"


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def requirements(lock: str) -> list[str]:
    """The entries of a lock file, each with its hashes on one line."""
    text = re.sub(r"\\\n\s*", " ", (ROOT / lock).read_text())
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


# ── modules ─────────────────────────────────────────────────────────────────────────────────────


def test_no_module_has_a_name_that_says_nothing() -> None:
    empty = {"util", "utils", "helper", "helpers", "common", "manager", "managers", "misc"}

    assert [relative(path) for path in MODULES if {path.stem, path.parent.name} & empty] == []


def test_no_module_is_longer_than_600_lines() -> None:
    sizes = {relative(path): len(path.read_text().splitlines()) for path in MODULES}

    assert {name: size for name, size in sizes.items() if size > 600} == {}


def test_importing_hive_core_loads_nothing() -> None:
    assert (ROOT / "hive_core/__init__.py").read_text() == ""


def test_every_part_of_hive_core_is_named_where_imports_are_restricted() -> None:
    """import-linter forbids what is listed, so a list that lacks a new module would allow it."""
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    parts = {
        f"hive_core.{path.stem}"
        for path in (ROOT / "hive_core").iterdir()
        if path.name not in {"__init__.py", "__pycache__"}
    }

    def listed(contract: str, key: str) -> set[str]:
        return {name for name in contracts[f"importlinter:contract:{contract}"][key].split() if "." in name}

    assert listed("cli", "forbidden_modules") == parts - {"hive_core.cli", "hive_core.wire"}
    assert listed("agent", "forbidden_modules") == parts - {"hive_core.wire"}
    assert listed("core", "source_modules") == parts - {"hive_core.cli"}


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def test_no_file_names_a_place_of_one_machine_or_a_registry() -> None:
    words = re.compile("|".join([r"(?<![\w.])/" + r"work(?![\w-])", *map(re.escape, REGISTRIES)]))

    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if match := words.search(line):
                found.append(f"{relative(path)}:{number}: {match[0]}")
    assert found == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_file_names_no_index(lock: str) -> None:
    text = (ROOT / lock).read_text()

    assert [
        word for word in ("://", "--index-url", "--extra-index-url", "--find-links") if word in text
    ] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_requirement_has_a_version_and_a_hash(lock: str) -> None:
    entries = requirements(lock)

    assert entries
    assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize(("name", "lock"), list(dependencies()))
def test_every_direct_dependency_is_locked_and_has_its_reason(name: str, lock: str) -> None:
    reason = re.search(
        rf"^\| `{re.escape(name)}` \| (.{{10,}}) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )

    assert name in {package_name(entry) for entry in requirements(lock)}
    assert reason, f"CONTRIBUTING.md gives no reason for {name}"


def test_no_reason_is_given_for_what_is_no_longer_used() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("| package | reason |")[2]

    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == {name for name, _ in dependencies()}


# ── make ────────────────────────────────────────────────────────────────────────────────────────


def test_every_target_of_make_is_in_its_help() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))

    assert targets == explained

"""The linters are tests: what `make lint` would say fails here, in its own words."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)  # mypy without its cache


def run(*argv: str) -> None:
    done = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(argv[1:])}\n\n{done.stdout}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run(sys.executable, "-m", "ruff", "check", "--quiet", "--output-format=concise", ".")


def test_the_code_is_formatted() -> None:
    run(sys.executable, "-m", "ruff", "format", "--check", "--output-format=concise", ".")


def test_the_types_hold() -> None:
    run(sys.executable, "-m", "mypy", "--no-error-summary")


def test_the_layers_are_kept() -> None:
    # import-linter has no __main__; its command stands beside the interpreter.
    run(sys.executable, str(Path(sys.executable).with_name("lint-imports")), "--no-logo")

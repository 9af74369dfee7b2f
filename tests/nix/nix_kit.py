"""Asks nix about flake.nix and nix/, without a network and without a store that anybody writes."""

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NIX = ROOT / "nix"
STUB = NIX / "tests/nixpkgs-stub"
GOLDENS = Path(__file__).parent / "goldens"

LIB = os.environ.get("HIVE_NIXPKGS_LIB", "")
"""A checkout of nixpkgs, or of its lib alone."""

needs_nix = pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="nix is not installed here")
needs_lib = pytest.mark.skipif(
    shutil.which("nix-instantiate") is None or not LIB,
    reason="without nix, or HIVE_NIXPKGS_LIB=CHECKOUT of nixpkgs or of its lib",
)

SETTINGS = """\
build-users-group =
experimental-features = nix-command flakes
flake-registry =
substituters =
"""


class Refused(Exception):
    """Nix says no.  The text is what it wrote."""


def nix(*argv: str, cwd: Path = ROOT, input: str | None = None, **environ: str) -> str:
    """Run one of nix's programs to its end.

    Raises:
        Refused: it ended with another status than 0.
    """
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=os.environ | {"NIX_CONFIG": SETTINGS} | environ,
        input=input,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def evaluate(*argv: str) -> Any:
    return json.loads(nix("nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", *argv))


@functools.cache
def evaluated(attribute: str) -> Any:
    """Give *attribute* of nix/tests/eval.nix; nobody changes it."""
    return evaluate(str(NIX / "tests/eval.nix"), "-A", attribute)


def check_golden(name: str, text: str) -> None:
    """Compare; with HIVE_WRITE_GOLDENS=1 take *text* for right."""
    path = GOLDENS / name
    # What changes with each version, and with what it is hashed into.
    text = re.sub(r"/nix/store/[a-z0-9]{32}-hyperhive-[0-9.]+", "/nix/store/HASH-hyperhive-VERSION", text)
    text = re.sub(r"Triggers=[0-9a-f]{64}", "Triggers=SHA256", text)
    if os.environ.get("HIVE_WRITE_GOLDENS"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.relative_to(ROOT)}; HIVE_WRITE_GOLDENS=1 writes it anew"


def named(results: Mapping[str, str]) -> str:
    """Give what each configuration was refused for, for a failed test to show."""
    return "\n\n".join(f"{name}:\n{text}" for name, text in results.items())

"""Writes docs/options.md, from the evaluation of the NixOS modules.

    python docs/generate_options.py            writes the file
    python docs/generate_options.py --check    ends with status 1 if that would change it

It needs nix, and HIVE_NIXPKGS_LIB: a checkout of nixpkgs, or of its lib alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
EVAL: Final = HERE.parent / "nix/tests/eval.nix"
PAGE: Final = HERE / "options.md"
COMMAND: Final = "python docs/generate_options.py"
TIMEOUT_S: Final = 120.0
WIDTH: Final = 110

HEAD: Final = f"""\
# Options of the NixOS modules

`nixosModules.host` has `services.hyperhive`; `nixosModules.agent`, for an agent's system, has `hyperhive`.
[nixos.md](nixos.md) shows them at work.  What is below `services.hyperhive.settings` are the keys of
config.toml, as [configuration.md](configuration.md) has them.

This page is made by `{COMMAND}`.
"""
PARTS: Final = {
    "host": "Host: `services.hyperhive`",
    "agent": "Agent: `hyperhive`",
}


def evaluate(attribute: str) -> Any:
    """Give *attribute* of nix/tests/eval.nix.

    Raises:
        subprocess.CalledProcessError: nix refuses; its stderr says why.
    """
    asked = ["--eval", "--strict", "--json", "--store", "dummy://", str(EVAL), "-A", attribute]
    done = subprocess.run(
        ["nix-instantiate", *asked],  # noqa: S607
        env=os.environ | {"NIX_CONFIG": "build-users-group ="},
        capture_output=True,
        text=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    return json.loads(done.stdout)


def render(options: Mapping[str, Iterable[Mapping[str, Any]]]) -> str:
    """Give the page for *options*, by the keys of PARTS."""
    parts = [HEAD]
    for part, title in PARTS.items():
        parts.append(f"## {title}\n")
        parts += map(_option, sorted(options[part], key=lambda option: option["name"].split(".")))
    return "\n".join(parts)


def same(page: str, other: str) -> bool:
    """Whether they say the same, whatever words this version of nixpkgs has for types."""

    def without_types(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("- type: ")]

    return without_types(page) == without_types(other)


def _option(option: Mapping[str, Any]) -> str:
    description = textwrap.fill(
        " ".join(option["description"].split()), WIDTH, break_long_words=False, break_on_hyphens=False
    )
    lines = [f"### `{option['name']}`\n", f"{description}\n"]
    facts = {"type": option["type"], "default": option["default"], "example": option["example"]}
    lines += [f"- {name}: {_code(text)}" for name, text in facts.items() if text is not None]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """On one line, whatever backticks are in it."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall(r"`+", line)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; status 1 if something would change"
    )
    args = parser.parse_args()
    if not os.environ.get("HIVE_NIXPKGS_LIB"):
        parser.error("HIVE_NIXPKGS_LIB has to name a checkout of nixpkgs, or of its lib")
    try:
        page = render(evaluate("options"))
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)  # noqa: T201
        return 1
    if args.check:
        return int(not PAGE.exists() or not same(PAGE.read_text(), page))
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())

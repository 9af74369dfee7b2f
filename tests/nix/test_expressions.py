"""Every file of Nix can be read, and the flake has the shape that nix wants."""

import re
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hive_core.domain import meta_flake, template
from hive_core.domain.cage import Shape

from .nix_kit import LIB, NIX, ROOT, STUB, Refused, needs_lib, needs_nix, nix

FILES = [ROOT / "flake.nix", *sorted(NIX.rglob("*.nix"))]
LOOKED_AT = ("flake.nix", "nix", "systemd", "hive_core/wire/version.py")
"""Of the source; the rest is only built, and a copy of it would be hashed again for each test."""
MAX_LINES = 300


@needs_nix
def test_every_file_is_nix() -> None:
    for path in FILES:
        nix("nix-instantiate", "--parse", str(path))


def test_no_file_is_longer_than_one_can_read() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in FILES if NIX / "tests" not in path.parents}

    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


def test_they_are_written_as_nixfmt_would_begin() -> None:
    for path in FILES:
        text = path.read_text()
        assert "\t" not in text, path
        assert re.search(r"[ ]+$", text, re.MULTILINE) is None, path
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path


def test_the_flake_has_one_input() -> None:
    text = (ROOT / "flake.nix").read_text()

    assert re.findall(r"^  inputs.*? =", text, re.MULTILINE) == ["  inputs.nixpkgs.url ="]


def test_what_the_package_replaces_in_the_units_is_in_them() -> None:
    """And then none of them names /opt/hyperhive any more, outside of comments."""
    text = (NIX / "package.nix").read_text()
    for unit, output in (("hive-core.service", "out"), ("hive-agent.service", "guest")):
        begun = text.index(f"substituteInPlace ${output}/lib/systemd/system/{unit}")
        command = text[begun:].partition("\n\n")[0]
        replaced = re.findall(r'--replace-fail "(.*?)"', command)
        assert len(replaced) >= 2
        left = (ROOT / "systemd" / unit).read_text()
        for part in replaced:
            assert part in left, unit
            left = left.replace(part, "")
        assert re.findall(r"^[^#\n].*/opt/hyperhive", left, re.MULTILINE) == []


@pytest.fixture
def flake(tmp_path: Path) -> Path:
    """A copy of what nix looks at, and of the stub in the place of nixpkgs."""
    source = tmp_path / "source"
    for name in LOOKED_AT:
        here = ROOT / name
        if here.is_dir():
            shutil.copytree(here, source / name)
        else:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, source / name)
    stub = tmp_path / "nixpkgs"
    shutil.copytree(STUB, stub)
    shutil.copy(NIX / "tests/stubs.nix", stub)
    return source


def look(flake: Path, *verb: str) -> str:
    """Run `nix flake` on it in a store of its own.  Nothing is built."""
    stub = flake.parent / "nixpkgs"
    return nix(
        *("nix", "flake", *verb, "--no-write-lock-file", "--override-input", "nixpkgs", f"path:{stub}"),
        f"path:{flake}",
        **own_store(flake.parent),
    )


def own_store(directory: Path) -> dict[str, str]:
    """The environment of a store that anybody may write."""
    return {
        "HOME": str(directory),
        "NIX_STORE_DIR": f"{directory}/nix/store",
        "NIX_STATE_DIR": f"{directory}/nix/var",
        "NIX_REMOTE": "",
    }


def add_lib(flake: Path) -> None:
    path = Path(LIB)
    shutil.copytree(path / "lib" if (path / "lib").is_dir() else path, flake.parent / "nixpkgs/lib")


@needs_nix
def test_the_flake_is_as_nix_wants_it(flake: Path) -> None:
    look(flake, "check", "--no-build")

    shown = re.sub(r"\x1b\[[0-9;]*m", "", look(flake, "show"))
    for output in ("checks", "devShells", "formatter", "nixosModules", "overlays", "packages", "templates"):
        assert f"{output}\n" in shown, shown
    for leaf in ("agent: NixOS module", "host: NixOS module", "default: Nixpkgs overlay", "agent: template"):
        assert leaf in shown, shown


@needs_lib
def test_its_check_has_all_cases_in_it(flake: Path) -> None:
    add_lib(flake)
    look(flake, "check", "--no-build")
    cases = flake / "nix/tests/cases.nix"
    cases.write_text(cases.read_text().replace('memoryMax = "lots"', 'memoryMax = "1G"'))

    with pytest.raises(Refused, match=r"host\.bad\.size: is not refused"):
        look(flake, "check", "--no-build")


BROKEN: dict[str, Callable[[str], str]] = {
    "overlay": lambda text: text.replace("final: prev: import", "final: import"),
    "module": lambda text: text.replace("{ lib, pkgs, ... }:", "{ lib, pkgs }:"),
    "template": lambda text: text.replace('description = "the repository', 'about = "the repository'),
    "package": lambda text: text.replace("./nix/package.nix", "./nix/packages.nix"),
    "system": lambda text: text.replace("forEach (pkgs: rec {", "(pkgs: rec {"),
}


@needs_nix
@pytest.mark.parametrize("mistake", BROKEN)
def test_a_mistake_in_the_flake_is_found(flake: Path, mistake: str) -> None:
    text = (flake / "flake.nix").read_text()
    broken = BROKEN[mistake](text)
    assert broken != text
    (flake / "flake.nix").write_text(broken)

    with pytest.raises(Refused):
        look(flake, "check", "--no-build")


REPOSITORIES: dict[str, Callable[[], dict[str, bytes]]] = {
    "the template's": lambda: {path.name: path.read_bytes() for path in (NIX / "templates/agent").iterdir()},
    "a new agent's": lambda: template.files("alice", Shape(), "nix"),
}


@needs_lib
@pytest.mark.parametrize("whose", REPOSITORIES)
def test_the_flake_of_a_hive_makes_a_system_of_an_agents_repository(
    flake: Path, tmp_path: Path, whose: str
) -> None:
    add_lib(flake)
    applied, meta = tmp_path / "applied", tmp_path / "meta"
    applied.mkdir()
    meta.mkdir()
    for name, content in REPOSITORIES[whose]().items():
        (applied / name).write_bytes(content)
    sha = committed(applied)
    inputs = {"hyperhive": f"path:{flake}", "nixpkgs": f"path:{flake.parent / 'nixpkgs'}"}
    text = meta_flake.render(inputs, {"alice": meta_flake.Pin(str(applied), sha)}, "aarch64-linux")
    (meta / "flake.nix").write_text(text)
    system = f"path:{meta}#nixosConfigurations.alice.config"

    def ask(path: str) -> str:
        return nix("nix", "eval", "--no-write-lock-file", f"{system}.{path}", **own_store(tmp_path))

    assert ask("networking.hostName") == '"alice"\n'
    assert ask("nixpkgs.hostPlatform") == '"aarch64-linux"\n'
    environment = ask('environment.etc."hyperhive/environment".text')
    assert "alice@hyperhive" in environment
    assert ("HIVE_DEFAULT_MODEL" in environment) is (whose == "the template's")
    assert ask("system.build.toplevel.name") == '"nixos-system-alice"\n'


def committed(repository: Path) -> str:
    """Make *repository* one of git, and give the hash of its only commit."""

    def git(*argv: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x", *argv],
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()

    git("init", "--quiet", "--initial-branch=main")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    return git("rev-parse", "HEAD")


@needs_lib
def test_the_flake_of_the_template_is_a_host_with_a_hive(flake: Path, tmp_path: Path) -> None:
    add_lib(flake)
    host = tmp_path / "host"
    shutil.copytree(NIX / "templates/host", host)
    (host / "hardware-configuration.nix").write_text("{ }\n")
    stub = f"path:{flake.parent / 'nixpkgs'}"

    def ask(path: str) -> str:
        return nix(
            *("nix", "eval", "--raw", "--no-write-lock-file"),
            *("--override-input", "nixpkgs", stub, "--override-input", "hyperhive", f"path:{flake}"),
            f"path:{host}#nixosConfigurations.hive.config.{path}",
            **own_store(tmp_path),
        )

    config = tomllib.loads(ask('environment.etc."hyperhive/config.toml".text'))
    assert config["agents"].keys() == {"alice", "bob"}
    assert config["deploy"]["inputs"].keys() == {"hyperhive", "nixpkgs"}
    assert ask("services.hyperhive.package.pname") == "hyperhive"
    assert ask("system.build.toplevel.name").startswith("nixos-system-")


@needs_lib
def test_two_hundred_agents_are_evaluated_in_seconds() -> None:
    expression = (
        "let e = import ./nix/tests/eval.nix { }; in builtins.stringLength (e.hostOf {"
        " services.hyperhive.enable = true; services.hyperhive.agents = builtins.listToAttrs (map"
        ' (n: { name = "a${toString n}"; value.source.image = "debian"; }) (builtins.genList (n: n) 200)); }'
        ').etc."hyperhive/config.toml"'
    )
    begun = time.monotonic()

    size = nix("nix-instantiate", "--eval", "--store", "dummy://", "-E", expression)

    assert int(size) > 200 * 40
    assert time.monotonic() - begun < 20

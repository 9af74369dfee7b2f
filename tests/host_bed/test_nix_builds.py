"""Closures that a real nix built, on a host with systemd: what evaluates them sees little, and a machine boots one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import trees
from .bed import Bed, open_bed
from .hive_kit import CONFIG, HiveHost
from .nix_kit import BUILDER, STORE, TREE, set_up_nix

SCRIPT = (Path(__file__).parent / "nix_deploy.py").read_text()
COMMIT = """\
set -eu
bare=/var/lib/hyperhive/applied/$1
mkdir -p $bare
cd $(mktemp -d)
cat > agent.nix
git init -q -b main
git add -A
git -c user.name=x -c user.email=x@y commit -qm x
git clone -q --bare . $bare.new
rm -rf $bare
mv $bare.new $bare
chown -R hive-git: $bare
git rev-parse HEAD
"""


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-nixb") as bed:
        bed.install_product()
        set_up_nix(bed)
        yield HiveHost(bed).set_up(CONFIG + BUILDER)


def as_daemon() -> list[str]:
    """What runs a command with no more rights than the daemon's own unit has."""
    unit = (trees.ROOT / "systemd/hive-core.service").read_text().splitlines()
    kinds = (
        "Capability",
        "NoNew",
        "Protect",
        "Private",
        "Restrict",
        "ReadWrite",
        "IPAddress",
        "Lock",
        "Memory",
    )
    values: dict[str, list[str]] = {"ReadWritePaths": ["/var/lib/hyperhive"]}
    for line in unit:
        if line.startswith((*kinds, "SystemCall")):
            name, _, value = line.partition("=")
            values.setdefault(name, []).append(value)
    assert len(values) > 15
    # Other than in a file, the last one given would be the only one.
    properties = [f"--property={name}={' '.join(given)}" for name, given in values.items()]
    return ["systemd-run", "--quiet", "--wait", "--pipe", "--collect", *properties, "--"]


def deploy(bed: Bed, agent: str, expression: str) -> dict[str, Any]:
    sha = bed.run(["sh", "-c", COMMIT, "sh", agent], input=f"{{ text = {expression}; }}").stdout.strip()
    argv = [*as_daemon(), "/opt/hyperhive/bin/python3", "-I", "-c", SCRIPT, agent, sha]
    said: dict[str, Any] = json.loads(bed.run(argv, timeout_s=60).stdout)
    return said


def test_a_machine_starts_from_what_was_built(hive: HiveHost) -> None:
    said = deploy(hive.bed, "alice", '"of agent.nix"')
    assert "closure" in said, said

    hive.hive("spawn", "alice", "--image", said["closure"])

    assert hive.inside("alice", "cat", "/etc/toplevel") == "of agent.nix"
    assert hive.inside("alice", "readlink", "/run/booted-system") == f"{said['closure']}\n"
    hive.wait_as_wanted("alice")
    profile = hive.run(["readlink", "-f", "/nix/var/nix/profiles/per-agent/alice/system"]).stdout
    assert profile == f"{said['closure']}\n"
    roots = hive.run(["nix-store", "--query", "--roots", said["closure"]]).stdout
    assert "/per-agent/alice/system-1-link" in roots
    assert "/gcroots/hive/alice-booted" in roots


def switch(hive: HiveHost, closure: str) -> str:
    """Give what the switch said: True, False or an error."""
    script = (
        "import sys, trio\n"
        "from hive_core.host import live_switch\n"
        "try:\n    print(trio.run(live_switch.switch, 'h-alice', sys.argv[1]))\n"
        "except live_switch.CommandError as error:\n    print(error)\n"
    )
    return hive.run(["/opt/hyperhive/bin/python3", "-I", "-c", script, closure], timeout_s=60).stdout.strip()


def test_a_running_machine_is_switched_to_another_closure(hive: HiveHost) -> None:
    if "alice" not in hive.rows():
        hive.hive("spawn", "alice", "--image", deploy(hive.bed, "alice", '"of agent.nix"')["closure"])
    leader = hive.leader("alice")
    newer, bad = (deploy(hive.bed, "alice", f'"{text}"')["closure"] for text in ("newer", "bad"))

    assert switch(hive, newer) == "True"
    assert hive.inside("alice", "cat", "/etc/switched") == f"{newer} test\n"
    assert "exit status 4: newly failed: x.service" in switch(hive, bad)
    assert switch(hive, TREE) == "False"

    assert hive.leader("alice") == leader
    units = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "hive-switch-*"]
    assert hive.inside("alice", *units) == ""


@pytest.mark.parametrize("place", ["/srv/x", "/var/lib/x", "/home/x", "/etc/x", "/opt/x", "/tmp/x"])
def test_what_everybody_may_read_is_not_there_for_it(hive: HiveHost, place: str) -> None:
    bed = hive.bed
    bed.run(["sh", "-c", f"mkdir -p {place}; echo canary-of-the-host > {place}/c; chmod -R a+rX {place}"])

    said = deploy(
        bed,
        "bob",
        f'builtins.fetchTree {{ type = "path"; path = "{place}"; narHash = "sha256-1CHgGZHF1H1dvg5r2r+fw7u7SmhFFeU18PjjYfCQI20="; }}',
    )

    assert "No such file or directory" in said["failed"]
    found = bed.run(
        ["grep", "-rl", "canary-of-the-host", "--include=c", STORE], check=False, timeout_s=60
    ).stdout
    assert found == ""
    assert bed.run(["systemctl", "list-units", "--plain", "--no-legend", "hive-nix-*"]).stdout == ""
    assert bed.run(["sh", "-c", "ls /var/lib/hyperhive/builds"]).stdout in {"", "home\n"}

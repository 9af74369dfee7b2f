"""The files and drop-ins of an evaluated NixOS configuration, on a host that is none: the daemon starts from them.

Needs nix and HIVE_NIXPKGS_LIB outside of the bed.
"""

import os
from collections.abc import Iterator

import pytest
from nix.nix_kit import evaluate, evaluated, needs_lib

from .bed import open_bed
from .hive_kit import HiveHost, wait_until

pytestmark = needs_lib


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-nixos") as bed:
        host = HiveHost(bed)
        bed.install_product()
        # What systemd.packages, tmpfiles.packages and the like of NixOS do.
        host.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"])
        rendered = evaluated("host.good.bed")
        for name, text in rendered["etc"].items():
            path = bed.path(f"/etc/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name, text in rendered["units"].items():
            path = bed.path(f"/etc/systemd/system/{name}.d/overrides.conf")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        tmpfiles = bed.path("/etc/tmpfiles.d/00-nixos.conf")
        tmpfiles.parent.mkdir(parents=True, exist_ok=True)
        tmpfiles.write_text("\n".join(rendered["rules"]) + "\n")
        host.run(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/00-nixos.conf"])
        host.run(["hive", "image", "add", "debian", "/srv/guest"], timeout_s=60)
        host.run(["systemctl", "daemon-reload"])
        host.run(["systemctl", "start", "hive-core"], timeout_s=30)
        yield host


def test_its_agents_are_there_and_talk(hive: HiveHost) -> None:
    hive.wait_as_wanted("alice", "bob", timeout_s=60)
    since = hive.last_message()

    hive.send("alice", "say bob: hello from a NixOS configuration")

    wait_until(
        lambda: any("hello from a NixOS" in row["body"] for row in hive.messages(since)[1:]), "bob hears it"
    )
    assert hive.run(["systemctl", "--failed", "--plain", "-q"]).stdout == ""


def switch(hive: HiveHost, agents: str) -> None:
    """What `nixos-rebuild switch` does of a host whose configuration says *agents*: another file, and a reload."""
    rendered = evaluate(
        "-E",
        "(import ./nix/tests/eval.nix { }).hostOf { services.hyperhive = { enable = true;"
        ' settings.machines.harness_dir = "/opt/hyperhive";'
        ' agents.alice.source.image = "debian"; agents.bob.source.image = "debian";'
        f" {agents} }}; }}",
    )
    hive.bed.path("/etc/hyperhive/config.toml").write_text(rendered["etc"]["hyperhive/config.toml"])
    hive.run(["systemctl", "reload", "hive-core"], timeout_s=30)


def leaders(hive: HiveHost) -> dict[str, int]:
    hive.wait_as_wanted("alice", "bob", timeout_s=60)
    rows = hive.rows()
    return {name: rows[name]["pid"] for name in ("alice", "bob")}


def test_a_switch_restarts_only_what_it_must(hive: HiveHost) -> None:
    hive.wait_as_wanted("alice", "bob", timeout_s=60)
    before = leaders(hive)

    switch(hive, 'agents.alice.limits.memoryMax = "1G"; agents.bob.settings.recipients = [ "alice" ];')
    wait_until(lambda: hive.unit("alice", "MemoryMax") == str(2**30), "the limit holds")
    wait_until(lambda: hive.row("bob").get("allowed_recipients") == ["alice", "manager"], "so do they")
    assert leaders(hive) == before

    key = hive.bed.path("/etc/bob-key")
    key.write_text("secret")
    key.chmod(0o400)
    switch(
        hive,
        'agents.bob.credentials.key = "/etc/bob-key"; agents.bob.settings.environment.STAGE = "two";'
        ' agents.alice.limits.memoryMax = "1G";',
    )
    wait_until(lambda: hive.row("bob").get("pid") not in {None, before["bob"]}, "bob is started anew", 60)
    after = leaders(hive)
    assert after["alice"] == before["alice"]
    assert hive.inside("bob", "stat", "-c", "%a %u", "/run/hive/credentials/key").split() == ["400", "0"]
    assert hive.inside("bob", "cat", "/run/hive/credentials/key") == "secret"
    harness = "cat /proc/$(systemctl show hive-agent -p MainPID --value)/environ"
    environ = hive.inside("bob", "sh", "-c", harness).split("\0")
    assert {"STAGE=two", "CREDENTIALS_DIRECTORY=/run/hive/credentials"} <= set(environ)

    refused = hive.hive("destroy", "bob", check=False)
    assert refused.returncode != 0
    assert "declared in /etc/hyperhive/config.toml" in refused.stderr
    shown = hive.look("show", "bob")
    assert shown["declared_in"] == "/etc/hyperhive/config.toml"


def test_a_switch_that_restarts_the_daemon_restarts_no_agent(hive: HiveHost) -> None:
    before, daemon = leaders(hive), hive.daemon_pid()

    hive.run(["systemctl", "restart", "hive-core"], timeout_s=30)

    wait_until(lambda: hive.daemon_pid() not in {0, daemon}, "another daemon runs")
    assert leaders(hive) == before


def test_one_that_is_taken_out_is_gone_and_its_state_stays(hive: HiveHost) -> None:
    before = leaders(hive)
    run = hive.bed.path("/run/hyperhive/agents/bob/credentials")
    assert run.is_dir()

    switch(hive, 'agents.bob.enable = false; agents.alice.limits.memoryMax = "1G";')

    wait_until(lambda: list(hive.rows()) == ["alice"], "bob is gone", 60)
    assert not run.exists()
    assert hive.bed.path("/var/lib/hyperhive/agents/bob/state").is_dir()
    assert hive.row("alice")["pid"] == before["alice"]
    assert hive.run(["systemctl", "--failed", "--plain", "-q"]).stdout == ""

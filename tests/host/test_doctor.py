"""Each check of the doctor on hosts that nobody has."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from msgspec import UNSET

from hive_core.config import Config, Deploy, Machines
from hive_core.host import doctor, doctor_nix, survey
from hive_core.host.doctor import CHECKS, check
from hive_core.host.nix_survey import SeenNix
from hive_core.host.survey import Host, SeenImage
from hive_core.wire.machine import Check
from hive_core.wire.version import VERSION

SOUND: Final = Host(
    systemd=252,
    booted_by_systemd=True,
    missing_programs=(),
    nft=True,
    machined=None,
    cgroup2=True,
    controllers=frozenset({"cpu", "memory", "pids", "io"}),
    max_user_namespaces=10000,
    inotify_instances=1048576,
    images_dir="/var/lib/machines",
    images_fs="ext4",
    idmap="yes",
    seccomp=True,
    unit_loaded=True,
    unit_state="active",
    run_dir_preserved=True,
    run_dir="/run/hyperhive",
    run_dir_mode=0o751,
    run_dir_owner=0,
    group_members=("ada",),
    missing_users=(),
    git="2.39.5",
    state_dir="/var/lib/hyperhive",
    free_bytes=50 * 2**30,
    harness_dir="/opt/hyperhive",
    harness_version=VERSION,
    harness_problem="",
    images=(SeenImage(name="debian", problem=None),),
    shadowing=(),
    taken_uids=(("the user root", 0, 1), ("ada in /etc/subuid", 100000, 65536)),
    ip_forward=True,
    forward_drops=(),
    docker=False,
    veth_links=False,
)
NIX: Final = Config(deploy=Deploy(builder="nix", inputs={"hyperhive": "path:/h", "nixpkgs": "path:/n"}))
SOUND_NIX: Final = SeenNix(
    version="2.8",
    problem=None,
    sandbox="true",
    trusted=(),
    is_allowed=True,
    inputs_problem=None,
    missing_inputs=(),
)


def checks(config: Config | None = None, **seen: Any) -> dict[str, Check]:
    host = dataclasses.replace(SOUND, **seen)
    found = [point(host, config or Config()) for point in CHECKS]
    return {made.name: made for made in found if made is not None}


def the_only_one_not_ok(config: Config | None = None, **seen: Any) -> Check:
    (found,) = [made for made in checks(config, **seen).values() if made.status != "ok"]
    return found


def test_a_sound_host_passes_every_check() -> None:
    assert {made.status for made in checks(NIX, nix=SOUND_NIX).values()} == {"ok"}
    assert len(checks(NIX, nix=SOUND_NIX)) == len(CHECKS)
    assert not [name for name in checks() if "nix" in name], "this hive builds nothing with it"


@pytest.mark.parametrize(
    ("seen", "name", "status", "text"),
    [
        ({"problem": "cannot build with nix: it is not there; get it"}, "nix", "fail", "it is not there"),
        ({"is_allowed": False}, "nix", "fail", "allowed-users leave hive-nix out"),
        ({"sandbox": "false"}, "nix sandbox", "warn", "sees files of this host"),
        ({"sandbox": "relaxed"}, "nix sandbox", "warn", "is relaxed"),
        ({"sandbox": None}, "nix sandbox", "warn", "does not say"),
        ({"trusted": ("@users",)}, "nix trust", "fail", "trusted-users has @users"),
        ({"inputs_problem": "it has no nixpkgs; say it"}, "deploy.inputs", "fail", "it has no nixpkgs"),
        ({"missing_inputs": ("/h",)}, "deploy.inputs", "fail", "no flake in /h"),
    ],
)
def test_what_a_hive_that_builds_with_nix_needs(
    seen: dict[str, Any], name: str, status: str, text: str
) -> None:
    made = the_only_one_not_ok(NIX, nix=dataclasses.replace(SOUND_NIX, **seen))

    assert (made.name, made.status) == (name, status)
    assert text in made.text


@pytest.mark.parametrize(
    ("seen", "name", "text"),
    [
        ({"systemd": None}, "systemd", "none on PATH"),
        ({"systemd": 248}, "systemd", "249 is needed"),
        ({"booted_by_systemd": False}, "systemd", "does not run this host"),
        ({"missing_programs": ("machinectl", "busctl")}, "programs", "not on PATH: machinectl, busctl"),
        ({"machined": "Connection refused"}, "machined", "Connection refused"),
        ({"cgroup2": False}, "cgroups", "v2"),
        ({"max_user_namespaces": 0}, "user namespaces", "is 0"),
        ({"max_user_namespaces": None}, "user namespaces", "has none"),
        ({"idmap": "no", "images_fs": "zfs"}, "id-mapped mounts", "/var/lib/machines (zfs)"),
        ({"seccomp": False}, "system-call filters", "io_uring"),
        ({"run_dir_preserved": False}, "hive-core.service", "sockets of running machines"),
        ({"unit_state": "failed"}, "hive-core.service", "has failed"),
        ({"run_dir_owner": 1000}, "/run/hyperhive", "uid 1000"),
        ({"run_dir_mode": 0o750}, "/run/hyperhive", "no agent gets through"),
        ({"run_dir_mode": 0o777}, "/run/hyperhive", "others may write"),
        ({"free_bytes": 2**20}, "disk", "0.0 GiB are free"),
        ({"harness_version": None, "harness_problem": "no python"}, "harness", "no python"),
        ({"images": ()}, "images", "none in /var/lib/machines"),
        ({"images": (SeenImage(name="arch", problem="it has no Python"),)}, "images", "it has no Python"),
        ({"shadowing": ("/etc/systemd/nspawn/h-a.nspawn",)}, "settings", "h-a.nspawn"),
        ({"taken_uids": (("eve in /etc/subuid", 0x40000000, 65536),)}, "uids", "eve in /etc/subuid"),
    ],
)
def test_what_machines_cannot_do_without_fails(seen: dict[str, Any], name: str, text: str) -> None:
    made = the_only_one_not_ok(**seen)

    assert (made.name, made.status) == (name, "fail")
    assert text in made.text
    assert made.mend is not UNSET


@pytest.mark.parametrize(
    ("seen", "name", "text"),
    [
        ({"systemd": 250}, "systemd", "tested from 252 on"),
        ({"controllers": frozenset({"pids"})}, "cgroups", "controllers: cpu, memory"),
        ({"idmap": "unknown: no user namespace"}, "id-mapped mounts", "could not be tried"),
        ({"unit_loaded": None}, "hive-core.service", "cannot be asked"),
        ({"unit_loaded": False}, "hive-core.service", "not installed"),
        ({"unit_state": "inactive"}, "hive-core.service", "is inactive"),
        ({"run_dir_mode": None, "run_dir_owner": None}, "/run/hyperhive", "does not exist"),
        ({"group_members": None}, "group hive-admin", "only root"),
        ({"free_bytes": 2**30}, "disk", "1.0 GiB are free"),
        ({"free_bytes": None}, "disk", "nobody can say"),
        ({"harness_version": "0.0.9"}, "harness", "0.0.9"),
        ({"images": None}, "images", "cannot be looked at"),
        (
            {"images": (SeenImage(name="a", problem=None), SeenImage(name="b", problem=None))},
            "images",
            "each spawn must say --image",
        ),
        (
            {"images": (SeenImage(name="a", problem=None), SeenImage(name="b", problem="b has no Python"))},
            "images",
            "a; but b has no Python",
        ),
        ({"inotify_instances": 128}, "inotify", "enough for some 18 machines"),
        ({"inotify_instances": None}, "inotify", "does not say"),
    ],
)
def test_what_is_worth_knowing_is_a_warning(seen: dict[str, Any], name: str, text: str) -> None:
    made = the_only_one_not_ok(**seen)

    assert (made.name, made.status) == (name, "warn")
    assert text in made.text


def test_an_empty_group_is_no_fault_but_says_how_to_get_in() -> None:
    made = checks(group_members=())["group hive-admin"]

    assert (made.status, made.mend) == ("ok", "usermod -aG hive-admin YOU")


def test_with_a_default_several_images_are_no_question() -> None:
    two = (SeenImage(name="a", problem=None), SeenImage(name="b", problem=None))
    config = Config(machines=Machines(image="b"))

    assert checks(config, images=two)["images"].status == "ok"


def test_a_default_image_that_is_missing_fails() -> None:
    config = Config(machines=Machines(image="b"))
    seen = (SeenImage(name="a", problem=None), SeenImage(name="b", problem="there is no image b"))

    made = the_only_one_not_ok(config, images=seen)

    assert (made.name, made.status, made.text) == ("images", "fail", "there is no image b")


def test_the_packet_filter_is_needed_where_veth_is_the_default() -> None:
    veth = Config(machines=Machines(network="veth"))

    assert checks(nft=False)["network"].status == "ok"
    assert the_only_one_not_ok(veth, nft=False).name == "network"
    assert "switches net.ipv4.ip_forward on" in checks(veth, ip_forward=False)["network"].text


DOCKERS: Final = "ip filter FORWARD"


@pytest.mark.parametrize(
    ("drops", "docker", "mend"),
    [
        (DOCKERS, True, "iptables -I DOCKER-USER -s 10.213.0.0/16 -j ACCEPT"),
        ("inet mine fwd", False, "iptables -I FORWARD -s 10.213.0.0/16 -j ACCEPT"),
        (
            "inet firewalld filter_FORWARD",
            False,
            "firewall-cmd --permanent --zone=trusted --add-source=10.213.0.0/16",
        ),
    ],
)
def test_a_firewall_before_the_links_of_machines_is_a_warning(drops: str, docker: bool, mend: str) -> None:
    made = the_only_one_not_ok(forward_drops=(drops,), docker=docker, veth_links=True)

    assert (made.name, made.status) == ("network", "warn")
    assert f"but {drops} of the packet filter may drop" in made.text
    assert mend in str(made.mend)


def test_a_firewall_is_nobodys_business_where_no_machine_has_a_link() -> None:
    veth = Config(machines=Machines(network="veth"))

    assert checks(forward_drops=(DOCKERS,))["network"].status == "ok"
    assert the_only_one_not_ok(veth, forward_drops=(DOCKERS,)).name == "network"


def test_a_pool_that_was_moved_is_looked_at_where_it_is() -> None:
    moved = Config(machines=Machines(uid_first=65536, uid_ranges=1))

    assert checks(moved)["uids"].status == "fail"  # ada's 100000 are in it
    assert checks(Config(machines=Machines(uid_first=655360, uid_ranges=1)))["uids"].status == "ok"


# ── looking ─────────────────────────────────────────────────────────────────────────────────────


async def test_this_host_can_be_looked_at_whatever_it_is() -> None:
    found = await check(Config())

    assert len(found) == len(CHECKS) - len(doctor_nix.CHECKS)
    harness = next(made for made in found if made.name == "harness")
    assert (harness.status, harness.text) == ("ok", f"{VERSION} in {sys.prefix}, as hive-core")


async def test_a_host_that_has_nothing_can_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = Config(machines=Machines(harness_dir=str(tmp_path)), admin_group="no-such-group")

    seen = await survey.look(config, tmp_path)

    assert (seen.systemd, seen.booted_by_systemd, seen.cgroup2) == (None, False, False)
    assert seen.missing_programs == survey.PROGRAMS
    assert seen.machined == "there is no busctl"
    assert (seen.harness_version, seen.harness_problem) == (None, f"there is no {tmp_path}/bin/python3")
    assert (seen.group_members, seen.run_dir_mode, seen.unit_loaded) == (None, None, None)
    assert [point(seen, config) for point in doctor.CHECKS]


async def test_files_are_read_where_they_are(tmp_path: Path) -> None:
    for name, text in {
        "etc/subuid": "eve:1000000:65536\nbroken\nbob:x:y\n",
        "etc/systemd/nspawn/h-alice.nspawn": "",
        "etc/systemd/nspawn/hm1nd.nspawn": "",
        "etc/systemd/nspawn/other.nspawn": "",
        "sys/class/net/ve-hm1nd/mtu": "1500",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory pids\n",
        "proc/sys/user/max_user_namespaces": "7\n",
        "proc/sys/fs/inotify/max_user_instances": "128\n",
        "proc/sys/net/ipv4/ip_forward": "1\n",
        "proc/self/mounts": "a / ext4 rw 0 0\nb /var btrfs rw 0 0\nc /var/lib/mach tmpfs rw 0 0\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "run/hyperhive").mkdir(mode=0o751, parents=True)
    (tmp_path / "run/hyperhive").chmod(0o751)

    seen = await survey.look(Config(), tmp_path)

    assert ("eve in /etc/subuid", 1000000, 65536) in seen.taken_uids
    settings = tmp_path / "etc/systemd/nspawn"
    assert seen.shadowing == (str(settings / "h-alice.nspawn"), str(settings / "hm1nd.nspawn"))
    assert seen.veth_links
    assert seen.controllers == {"cpu", "memory", "pids"}
    assert seen.inotify_instances == 128
    assert (seen.max_user_namespaces, seen.ip_forward, seen.images_fs) == (7, True, "btrfs")
    assert seen.run_dir_mode == 0o751


NFT_LIST_CHAINS: Final = """{"nftables": [{"metainfo": {"version": "1.0.6"}},
{"chain": {"family": "inet", "table": "hyperhive", "name": "forward", "hook": "forward", "policy": "drop"}},
{"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
{"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
{"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "accept"}},
{"chain": {"family": "inet", "table": "firewalld", "name": "filter_FORWARD", "hook": "forward", "policy": "accept"}},
{"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}]}"""


@pytest.mark.parametrize(
    ("said", "drops", "docker"),
    [
        (NFT_LIST_CHAINS, ("ip filter FORWARD", "inet firewalld filter_FORWARD"), True),
        ("", (), False),
        ('{"nftables": [3]}', (), False),
        ("[]", (), False),
    ],
)
async def test_the_chains_of_others_are_asked_of_nft(
    said: str, drops: tuple[str, ...], docker: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nft").write_text(f"#!/bin/sh\n[ \"$*\" = '-j list chains' ] && echo '{said}'\n")
    (tmp_path / "nft").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")

    seen = await survey.look(Config(), tmp_path)

    assert (seen.forward_drops, seen.docker) == (drops, docker)


@pytest.mark.root
@pytest.mark.parametrize(("path", "answer"), [("/proc", {"no"}), ("/", {"yes", "no"})])
def test_the_kernel_is_asked_for_id_mapped_mounts(path: str, answer: set[str]) -> None:
    command = [sys.executable, "-I", "-m", "hive_core.host.idmap_probe", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    assert said in answer or said.startswith("unknown: ")

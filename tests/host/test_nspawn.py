"""What systemd is told of machines, pinned.

A change here changes what an agent can do.  When it is wanted, write the files again and read the difference:

    HIVE_WRITE_GOLDEN=1 python -m pytest tests/host/test_nspawn.py
"""

import configparser
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Machines
from hive_core.domain.cage import Cage, CannotStart, Network, Shape, resolve
from hive_core.host import nspawn
from hive_core.host.binds import Mount
from hive_core.host.images import Image, Kind
from hive_core.host.nspawn import Sources, digest, read_digest, render_settings, signed

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(__file__).parent / "goldens"
WRITE = "HIVE_WRITE_GOLDEN" in os.environ

BASE = 0x40000000
ALICE = resolve("alice", BASE, Shape(image="debian"), Machines())
MANAGER = resolve("manager", BASE + 65536, Shape(image="debian"), Machines())
NETWORKED = replace(ALICE, network=Network.VETH)

TREE = Image(
    "debian",
    Kind.TREE,
    Path("/var/lib/machines/debian"),
    python="3.11",
    directories=("etc", "home", "opt", "root", "usr", "var"),
)
CLOSURE = Image(
    "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-alice",
    Kind.NIX,
    Path("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-nixos-system-alice"),
    init="prepare-root",
)


def sources(agent: str) -> Sources:
    state, run = Path("/var/lib/hyperhive"), Path("/run/hyperhive")
    common = {
        "state": state / "agents" / agent / "state",
        "claude": state / "agents" / agent / "claude",
        "harness": Path("/opt/hyperhive"),
    }
    if agent == "manager":
        shown = {name: state / name for name in ("configs", "applied", "meta")}
        return Sources(run=run / "manager", unit=run / "manager/hive-agent.service", **common, **shown)
    here = run / "agents" / agent
    return Sources(
        run=here, unit=here / "hive-agent.service", config=state / "configs" / agent / "config", **common
    )


DEPLOYED = replace(
    sources("alice"),
    release=Path("/var/lib/hyperhive/releases/alice"),
    binds=(
        Mount(Path("/srv/data"), "/srv/data", False, "idmap,norbind"),
        Mount(Path("/srv/out"), "/out", True, "rootidmap,norbind"),
    ),
)
RENDERED = {
    "tree.nspawn": lambda: render_settings(ALICE, TREE, sources("alice"), "hive"),
    "tree-veth.nspawn": lambda: render_settings(NETWORKED, TREE, sources("alice"), "hive"),
    "manager.nspawn": lambda: render_settings(MANAGER, TREE, sources("manager"), "hive"),
    "deployed.nspawn": lambda: render_settings(ALICE, TREE, DEPLOYED, "hive"),
    "nix.nspawn": lambda: render_settings(ALICE, CLOSURE, sources("alice"), "hive"),
    "50-hive.conf": lambda: nspawn.render_drop_in(ALICE, Path("/opt/hyperhive/bin/python3")),
}


def settings(cage: Cage = ALICE, image: Image = TREE, paths: Sources | None = None) -> dict[str, list[str]]:
    """The values of each key, of whatever section."""
    values: dict[str, list[str]] = {}
    for line in render_settings(cage, image, paths or sources(cage.agent)).splitlines():
        key, equals, value = line.partition("=")
        if equals:
            values.setdefault(key, []).append(value)
    return values


@pytest.mark.parametrize("name", RENDERED)
def test_what_systemd_is_told_is_what_was_reviewed(name: str) -> None:
    golden = GOLDENS / name
    text = RENDERED[name]()
    if WRITE:
        GOLDENS.mkdir(exist_ok=True)
        golden.write_text(text)

    assert text == golden.read_text()


def test_there_is_no_golden_file_that_nothing_renders() -> None:
    assert {path.name for path in GOLDENS.iterdir()} == set(RENDERED)


def test_the_unit_in_the_repository_is_the_one_that_machines_get() -> None:
    shipped = ROOT / "systemd/hive-agent.service"
    if WRITE:
        shipped.write_text(nspawn.render_guest_unit())

    assert shipped.read_text() == nspawn.render_guest_unit()


@pytest.mark.parametrize("name", [name for name in RENDERED if name.endswith(".nspawn")])
def test_settings_have_three_sections_and_no_other_lines(name: str) -> None:
    parser = configparser.ConfigParser(strict=False, delimiters="=", comment_prefixes="#", interpolation=None)

    parser.read_string(RENDERED[name]())

    assert parser.sections() == ["Exec", "Files", "Network"]


def test_every_capability_is_either_kept_or_dropped() -> None:
    dropped = settings()["DropCapability"][0].split()

    assert not {f"CAP_{name}" for name in nspawn.KEPT} & set(dropped)
    assert len(nspawn.KEPT) + len(set(dropped)) == 41  # CHECKPOINT_RESTORE, of Linux 5.9, is number 40


def test_the_kept_capabilities_are_what_the_machines_init_shows() -> None:
    # As /proc/1/status of a machine that was looked at.
    assert nspawn.kept_mask() == 0x802C05FF


def test_a_machine_sees_its_own_files_and_no_other_agents() -> None:
    written = settings()["Bind"]
    read = settings()["BindReadOnly"]

    assert written == [
        "/var/lib/hyperhive/agents/alice/state:/agents/alice/state",
        "/var/lib/hyperhive/agents/alice/claude:/root/.claude",
    ]
    assert "/run/hyperhive/agents/alice:/run/hive:norbind" in read
    assert "/var/lib/hyperhive/configs/alice/config:/agents/alice/config" in read


def test_the_manager_writes_proposals_and_reads_what_was_applied() -> None:
    values = settings(MANAGER)

    assert values["Bind"] == [
        "/var/lib/hyperhive/agents/manager/state:/state",
        "/var/lib/hyperhive/agents/manager/claude:/root/.claude",
        "/var/lib/hyperhive/configs:/agents",
    ]
    assert values["BindReadOnly"][-2:] == [
        "/var/lib/hyperhive/applied:/applied",
        "/var/lib/hyperhive/meta:/meta",
    ]


def test_an_agent_gets_nothing_of_the_managers_even_when_it_is_given_the_paths() -> None:
    paths = replace(sources("alice"), configs=Path("/c"), applied=Path("/a"), meta=Path("/m"))

    assert settings(paths=paths) == settings()


@pytest.mark.parametrize("image", [TREE, CLOSURE], ids=["tree", "nix"])
@pytest.mark.parametrize("network", Network)
def test_no_machine_is_in_the_hosts_network_or_users(image: Image, network: Network) -> None:
    values = settings(replace(ALICE, network=network), image)

    assert values["Private"] == ["yes"]
    assert values["PrivateUsers"] == [f"{BASE}:65536"]
    assert values["VirtualEthernet"] == ["yes" if network is Network.VETH else "no"]


def test_the_image_is_only_ever_a_lower_directory() -> None:
    values = settings()

    assert values["BindReadOnly"][0] == "/var/lib/machines/debian:/.image:idmap,norbind"
    assert values["Overlay"] == [
        f"+/.image/{name}:/var/lib/machines/.hive/h-alice/{name}:/{name}" for name in TREE.directories
    ]


def test_a_closure_brings_its_own_harness() -> None:
    values = settings(image=CLOSURE)

    assert values["Boot"] == ["no"]
    assert values["Parameters"] == [f"{CLOSURE.path}/prepare-root"]
    assert values["KillSignal"] == ["SIGRTMIN+3"]
    assert not [bind for bind in values["BindReadOnly"] if "/opt/hyperhive" in bind or "systemd" in bind]


def test_a_machines_id_is_its_own_and_stays() -> None:
    mine = nspawn.machine_id(ALICE, "hive")

    assert mine == nspawn.machine_id(replace(ALICE, uid_base=1, image="other"), "hive")
    assert len({mine, nspawn.machine_id(MANAGER, "hive"), nspawn.machine_id(ALICE, "other hive")}) == 3


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=63), st.text(max_size=20))
def test_a_machines_id_is_one_that_systemd_takes(agent: str, hive: str) -> None:
    machine_id = nspawn.machine_id(replace(ALICE, machine=f"h-{agent}"), hive)

    assert len(machine_id) == 32
    assert int(machine_id, 16)
    assert machine_id[12] == "4"
    assert machine_id[16] in "89ab"


@pytest.mark.parametrize(
    "path",
    [
        "/srv/a:b",
        "/srv/100%",
        "/srv/a\\b",
        "/srv/my hive",
        '/srv/"x"',
        "/srv/x\nBind=/",
        "/srv/../etc",
        "relative",
    ],
)
@pytest.mark.parametrize("field", ["run", "state", "claude", "harness", "unit", "config"])
def test_a_path_that_systemd_would_read_otherwise_starts_nothing(field: str, path: str) -> None:
    paths = replace(sources("alice"), **{field: Path(path)})

    with pytest.raises(
        CannotStart, match=r"cannot start alice: the path .* has characters that systemd reads"
    ):
        render_settings(ALICE, TREE, paths)


def test_an_interpreter_that_systemd_would_read_otherwise_starts_nothing() -> None:
    with pytest.raises(CannotStart, match="cannot start alice: the path '/opt/%h/python'"):
        nspawn.render_drop_in(ALICE, Path("/opt/%h/python"))


@given(st.text(max_size=30))
def test_no_path_makes_a_line_of_its_own(text: str) -> None:
    paths = replace(sources("alice"), state=Path("/srv") / text.replace("\0", ""))
    plain = settings()

    try:
        found = settings(paths=paths)
    except CannotStart:
        return

    assert found.keys() == plain.keys()
    assert len(found["Bind"]) == len(plain["Bind"])


def test_a_written_file_says_who_wrote_it_and_what_it_was_made_of() -> None:
    text = render_settings(ALICE, TREE, sources("alice"))
    made_of = digest(text, "drop-in", "unit")

    written = signed("alice", text, made_of)

    assert written.splitlines()[0] == "# Written by hive-core for agent alice."
    assert written.endswith(text)
    assert read_digest(written) == made_of
    assert read_digest(text) is None


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_only_the_same_texts_have_the_same_digest(one: list[str], other: list[str]) -> None:
    assert (digest(*one) == digest(*other)) == (one == other)


def test_nothing_that_limits_change_is_in_a_file() -> None:
    other = resolve("alice", BASE, Shape("debian", None, 2**20, 5, 99), Machines())

    assert settings(other) == settings(ALICE)
    assert nspawn.render_drop_in(other, Path("/p")) == nspawn.render_drop_in(ALICE, Path("/p"))


def test_a_harness_of_the_store_brings_the_store_with_it() -> None:
    line = "BindReadOnly=/nix/store:/nix/store:idmap,norbind"
    of_store = replace(sources("alice"), harness=Path("/nix/store/0123-hyperhive"))

    assert line not in render_settings(ALICE, TREE, sources("alice")).splitlines()
    settings = render_settings(ALICE, TREE, of_store).splitlines()
    assert settings.count(line) == 1
    assert "BindReadOnly=/nix/store/0123-hyperhive:/opt/hyperhive:norbind" in settings
    assert render_settings(ALICE, CLOSURE, of_store).splitlines().count(line) == 1

"""services.hyperhive and hyperhive, evaluated with nixpkgs' own lib; and what the daemon makes of what they write."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hive_core.config import NEEDS_RESTART, Config, DeclaredAgent, flatten, load_config
from hive_core.domain import manifest
from hive_core.domain.cage import Network, Shape, parse_percent, parse_size, resolve
from hive_core.domain.declared import usable
from hive_core.host import machine_environment, nspawn
from hive_core.host.images import Image, Kind
from hive_core.host.nspawn import Sources
from hive_core.wire.ids import MANAGER, RESERVED_NAMES

from .nix_kit import NIX, ROOT, Refused, check_golden, evaluate, evaluated, named, needs_lib

pytestmark = needs_lib

KINDS = ("host", "agent")


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    return dict(evaluated("host.good.full"))


def unit(rendered: Any, name: str) -> list[str]:
    return list(rendered["units"][name].splitlines())


# ── good and bad ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_good_ones_are_taken(kind: str) -> None:
    assert len(evaluated(f"{kind}.good")) >= 3


@pytest.mark.parametrize("kind", KINDS)
def test_bad_ones_are_refused_with_the_name_of_the_option(kind: str) -> None:
    wrong = {}
    for name, says in evaluated(f"{kind}.says").items():
        try:
            evaluated(f'{kind}.bad."{name}"')
        except Refused as refused:
            text = str(refused).replace('"/x"', "/x")
            if says.replace('"/x"', "/x") not in text:
                wrong[name] = f"it should say {says!r}, and says:\n{text}"
        else:
            wrong[name] = "it is taken"

    assert not wrong, named(wrong)


def test_a_host_that_does_not_want_it_gets_nothing() -> None:
    disabled = evaluated("host.good.disabled")

    assert {name: disabled[name] for name in ("etc", "units", "users", "groups", "rules", "warnings")} == {
        "etc": {},
        "units": {},
        "users": [],
        "groups": {},
        "rules": [],
        "warnings": [],
    }


def test_names_of_the_original_are_forwarded_with_a_warning() -> None:
    renamed = evaluated("host.good.renamed")

    machines = renamed["table"]["machines"]
    assert (machines["memory_max"], machines["cpu_quota"]) == ("1G", "50%")
    assert renamed["table"]["harness"]["environment"] == {"HIVE_OPERATOR_PRONOUNS": "they/them"}
    assert len(renamed["warnings"]) == 4
    assert all(
        "services.hive-c0re." in text and "services.hyperhive." in text for text in renamed["warnings"]
    )


# ── goldens ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", ["minimal", "full", "elsewhere"])
def test_a_host_is_given_these_files(case: str) -> None:
    rendered = evaluated(f"host.good.{case}")

    for name, text in rendered["etc"].items():
        check_golden(f"{case}/etc/{name}", text)
    for name, text in rendered["units"].items():
        check_golden(f"{case}/{name}.d/overrides.conf", text)


def test_a_guest_is_given_these_files() -> None:
    rendered = evaluated("agent.good.full")

    for name, text in rendered["etc"].items():
        check_golden(f"agent/etc/{name}", text)
    check_golden("agent/hive-agent.service.d/overrides.conf", rendered["units"]["hive-agent.service"])


def image_of(declared: DeclaredAgent) -> Image:
    name = declared.image or "debian"
    if name.startswith("/"):
        return Image(name, Kind.NIX, Path(name))
    return Image(name, Kind.TREE, Path("/var/lib/machines") / name, directories=("etc", "root", "usr", "var"))


@pytest.mark.parametrize("agent", ["alice", "bob", "dave"])
def test_a_declared_agent_gets_this_machine(agent: str, full: dict[str, Any], tmp_path: Path) -> None:
    config = read(full["etc"]["hyperhive/config.toml"], tmp_path)
    declared = config.agents[agent]
    limits = declared.limits
    shape = Shape(
        image=declared.image,
        network=Network(declared.network) if declared.network else None,
        memory_max_bytes=parse_size(limits.memory) if limits.memory else None,
        cpu_quota_percent=parse_percent(limits.cpu) if limits.cpu else None,
        tasks_max=limits.tasks,
    )
    cage = resolve(agent, config.machines.uid_first, shape, config.machines)
    base = Path("/var/lib/hyperhive/agents") / agent
    sources = Sources(
        run=Path("/run/hyperhive/agents") / agent,
        state=base / "state",
        claude=base / "claude",
        harness=Path(config.machines.harness_dir),
        unit=Path("/run/hyperhive/agents") / agent / "hive-agent.service",
    )

    check_golden(f"full/{cage.machine}.nspawn", nspawn.render_settings(cage, image_of(declared), sources))


# ── the daemon's configuration ──────────────────────────────────────────────────────────────────


def read(text: str, tmp_path: Path) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(text)
    return usable(load_config(path, {})[0], str(path))


@pytest.mark.parametrize(
    "case", ["minimal", "full", "elsewhere", "renamed", "builder", "longest", "odd", "empty"]
)
def test_the_daemon_reads_what_is_written(case: str, tmp_path: Path) -> None:
    rendered = evaluated(f"host.good.{case}")

    config = read(rendered["etc"]["hyperhive/config.toml"], tmp_path)

    assert set(config.agents) == set(rendered["table"].get("agents", {}))


def test_each_key_of_the_daemon_can_be_set_and_none_is_invented() -> None:
    defaults = evaluated("keys")["settings"]

    def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            is_table = isinstance(value, dict) and prefix + key not in flatten(Config())
            found |= flat(value, f"{prefix}{key}.") if is_table else {prefix + key: value}
        return found

    # Agents are a whole of options of their own.
    ours = {key: value for key, value in flatten(Config()).items() if key != "agents"}
    assert flat(defaults) == ours


def test_the_bounds_of_numbers_are_the_daemons() -> None:
    """What is just inside is taken by both, what is just outside by neither."""
    edges = {f"{dotted}={value:g}": (dotted, value, fits) for dotted, value, fits in _edges(Config)}
    asked = "".join(
        f'{{ name = "{name}"; path = "{dotted}"; value = ({value!r}); }} '
        for name, (dotted, value, _) in edges.items()
    )

    taken = evaluate(
        "-E",
        "let lib = import (import ./nix/tests/nixpkgs-stub/find-lib.nix);"
        " hiveTypes = import ./nix/lib/types.nix { inherit lib; };"
        " tree = import ./nix/modules/host/settings.nix { inherit lib hiveTypes; };"
        ' type = ask: (lib.getAttrFromPath (lib.splitString "." ask.path) tree).type;'
        " in builtins.listToAttrs (map (ask: { inherit (ask) name; value = (type ask).check ask.value; })"
        f" [ {asked} ])",
    )

    assert taken == {name: fits for name, (_, _, fits) in edges.items()}


def _edges(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, float, bool]]:
    """Each bound of each number, as dotted key, value, and whether it fits."""
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[union-attr]
        kind = field.type
        if isinstance(kind, msgspec.inspect.StructType):
            yield from _edges(kind.cls, f"{prefix}{field.name}.")
        elif isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
            for bound, step in ((kind.ge, -1), (kind.le, 1), (kind.gt, 0)):
                if bound is not None:
                    yield prefix + field.name, bound + step, step == 0 and kind.gt is None
                if bound is not None and step:
                    yield prefix + field.name, bound, True


def test_each_key_of_a_declared_agent_can_be_set_and_none_is_invented(full: dict[str, Any]) -> None:
    own = {"auto_start", "image", "network", "limits", "binds", "credentials"}

    assert own | set(evaluated("keys")["agent"]) == set(DeclaredAgent.__struct_fields__)
    table = full["table"]["agents"]["alice"]
    assert set(table["limits"]) == set(manifest.Limits.__struct_fields__)
    assert set(table["binds"][0]) == set(manifest.Bind.__struct_fields__)


def test_rules_that_both_sides_have_are_the_same() -> None:
    keys = evaluated("keys")

    for nix_name, ours in {
        "neverBound": manifest.NEVER_BOUND,
        "neverWritable": manifest.NEVER_WRITABLE,
        "ownInside": manifest.OWN_INSIDE,
        "bootsInside": manifest.BOOTS_INSIDE,
        "neverWritableInside": manifest.NEVER_WRITABLE_INSIDE,
        "topsInside": manifest.TOPS_INSIDE,
        "ownVariables": manifest.OWN_VARIABLES,
        "ownPrefixes": manifest.OWN_PREFIXES,
        "reservedAgentNames": RESERVED_NAMES - {MANAGER},
    }.items():
        assert set(keys[nix_name]) == set(ours), nix_name


def test_a_guest_does_not_say_what_the_host_says() -> None:
    text = (NIX / "modules/agent.nix").read_text()
    listed = re.search(r"hostsOwn = \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    config = Config()

    said = machine_environment.gather("alice", "/agents/alice/state", config.harness)

    assert said.keys() <= set(re.findall(r'"(\w+)"', listed[1]))


# ── when what is told to whom ───────────────────────────────────────────────────────────────────


def test_the_keys_that_need_a_restart_are_the_daemons() -> None:
    assert set(evaluated("host.good.minimal")["needRestart"]) == NEEDS_RESTART


def trigger(rendered: Any, kind: str) -> list[str]:
    return [line for line in unit(rendered, "hive-core.service") if line.startswith(f"X-{kind}-Triggers=")]


def host_of(body: str) -> Any:
    return evaluate(
        "-E",
        "(import ./nix/tests/eval.nix { }).hostOf { services.hyperhive = { enable = true; "
        f'agents.alice.source.image = "debian"; agents.bob = {{ }}; {body} }}; }}',
    )


@pytest.mark.parametrize(
    "change",
    [
        'settings.log_level = "debug";',
        'agents.bob.limits.memoryMax = "1G";',
        "agents.carol = { };",
        "agents.bob.enable = false;",
        'settings.machines.memory_max = "1G";',
    ],
)
def test_a_change_that_can_be_reloaded_restarts_nothing(change: str) -> None:
    before, after = host_of(""), host_of(change)

    assert trigger(before, "Reload") != trigger(after, "Reload")
    assert trigger(before, "Restart") == trigger(after, "Restart")
    others = {name: text for name, text in before["units"].items() if name != "hive-core.service"}
    assert others == {name: text for name, text in after["units"].items() if name != "hive-core.service"}


@pytest.mark.parametrize(
    "change",
    ['settings.machines.subnet = "10.9.0.0/16";', "settings.drain_s = 5;", 'stateDir = "/srv/hive";'],
)
def test_a_change_that_needs_it_restarts_the_daemon(change: str) -> None:
    assert trigger(host_of(""), "Restart") != trigger(host_of(change), "Restart")


def test_a_change_of_one_agent_changes_only_its_table() -> None:
    before, after = host_of(""), host_of('agents.bob.limits.memoryMax = "1G";')

    assert before["table"]["agents"]["alice"] == after["table"]["agents"]["alice"]
    assert after["table"]["agents"]["bob"]["limits"] == {"memory": "1G"}


def test_no_switch_restarts_machines() -> None:
    minimal = evaluated("host.good.minimal")

    assert unit(minimal, "systemd-nspawn@.service") == ["[Service]", "X-RestartIfChanged=false"]
    assert "X-StopIfChanged=false" in unit(minimal, "hive-core.service")
    for name, text in evaluated("host.good.full")["units"].items():
        assert "systemd-nspawn@" not in text, name
        assert "machine-hive" not in text, name


# ── the files of systemd/ ───────────────────────────────────────────────────────────────────────


def test_accounts_are_those_of_sysusers(full: dict[str, Any]) -> None:
    lines = [
        line.split()
        for line in (ROOT / "systemd/sysusers.d/hyperhive.conf").read_text().splitlines()
        if line[:1] in {"g", "u", "m"}
    ]
    groups = {line[1] for line in lines if line[0] in "gu"}
    users = {line[1] for line in lines if line[0] == "u"}

    minimal = evaluated("host.good.minimal")
    assert set(minimal["groups"]) == groups
    assert set(minimal["users"]) == users
    assert full["groups"]["hive-admin"] == ["ada"]


def test_what_the_kernel_is_told_is_what_other_distributions_tell_it() -> None:
    text = (ROOT / "systemd/sysctl.d/60-hyperhive.conf").read_text()
    wanted = dict(re.findall(r"^([a-z_.]+) = (\d+)$", text, re.MULTILINE))
    assert wanted

    assert evaluated("host.good.minimal")["sysctl"] == {key: int(value) for key, value in wanted.items()}


def test_another_run_dir_is_known_to_all_who_look_for_it() -> None:
    elsewhere = evaluated("host.good.elsewhere")

    assert "ListenStream=/run/lab-hive/host.sock" in unit(elsewhere, "hive-core.socket")
    assert "RuntimeDirectory=lab-hive" in unit(elsewhere, "hive-core.service")
    assert elsewhere["sessionVariables"] == {"HIVE_SOCKET": "/run/lab-hive/host.sock"}
    # As the daemon has it, and the unit: each switch says it again.
    mode = re.search(
        r"^StateDirectoryMode=(\d+)$", (ROOT / "systemd/hive-core.service").read_text(), re.MULTILINE
    )
    assert mode is not None
    assert f"d /srv/hive {mode[1]} root root -" in elsewhere["rules"]


def test_with_the_default_prefix_files_are_those_of_the_package() -> None:
    etc = evaluated("host.good.minimal")["etc"]

    assert (
        etc["polkit-1/rules.d/49-hyperhive.rules"] == (ROOT / "systemd/polkit/49-hyperhive.rules").read_text()
    )
    network = (ROOT / "systemd/network/10-hyperhive.network").read_text()
    assert etc["systemd/network/10-hyperhive.network"] == network


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
@pytest.mark.parametrize("case", ["minimal", "full", "elsewhere"])
def test_systemd_finds_nothing_to_complain_about(case: str, tmp_path: Path) -> None:
    program = tmp_path / "bin"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def runnable(text: str) -> str:
        return re.sub(
            r"(?<=Exec)(\w+)=-?(/opt/hyperhive|/nix/store|/run/current-system)\S+", rf"\1={program}", text
        )

    for source in [*(ROOT / "systemd").glob("hive-*.s*"), ROOT / "systemd/machine-hive.slice"]:
        (tmp_path / source.name).write_text(runnable(source.read_text()))
    rendered = evaluated(f"host.good.{case}")["units"] | {
        "hive-agent.service": evaluated("agent.good.full")["units"]["hive-agent.service"]
    }
    for name, text in rendered.items():
        drop_in = tmp_path / f"{name}.d" / "overrides.conf"
        if (tmp_path / name).exists() or "@" in name:
            drop_in.parent.mkdir()
            drop_in.write_text(runnable(text))
        else:
            (tmp_path / name).write_text(runnable(text))
    units = sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )

    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "hive" in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed here")
@pytest.mark.parametrize("case", ["full", "odd"])
def test_nft_reads_the_rules(case: str) -> None:
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", "nft", "--check", "--file", "-"],
        input=evaluated(f"host.good.{case}")["etc"]["hyperhive/egress.nft"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    if "unshare" in done.stderr:
        pytest.skip("no namespaces here")

    assert (done.returncode, done.stderr) == (0, "")


# ── guests ──────────────────────────────────────────────────────────────────────────────────────


def test_a_guest_is_a_container_with_both_nixpkgs() -> None:
    assert evaluated("agent.good.newer")["guest"]["boot"]["isNspawnContainer"] is True
    assert evaluated("agent.good.newer")["guest"]["boot"]["isContainer"] is False
    assert evaluated("agent.good.minimal")["guest"]["boot"]["isContainer"] is True


def test_programs_in_a_guest_find_hive_agent_but_their_own_python_first() -> None:
    lines = unit(evaluated("agent.good.minimal"), "hive-agent.service")

    (path,) = [line.partition("=PATH=")[2].split(":") for line in lines if "=PATH=" in line]
    (ours,) = [where for where in path if re.fullmatch(r"/nix/store/\w{32}-hyperhive-[\d.]+/bin", where)]
    assert path.index("/run/current-system/sw/bin") < path.index(ours)


def test_a_value_reaches_the_harness_as_it_was_said() -> None:
    text = evaluated("agent.good.full")["etc"]["hyperhive/environment"]

    assert machine_environment.parse(text.replace("\\", ""))["GREETING"] == 'say "hello" for $5'


def test_a_server_is_one_that_the_harness_takes() -> None:
    from hive_agent.providers.claude.extra_mcp import ExtraServer

    text = evaluated("agent.good.full")["etc"]["hyperhive/extra-mcp.json"]

    servers = msgspec.json.decode(text, type=dict[str, ExtraServer])
    assert servers["notes"] == ExtraServer(
        command="/bin/notes", args=["a b"], env={"KEY": "value"}, allowed_tools=["read"]
    )


# ── TOML ────────────────────────────────────────────────────────────────────────────────────────

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**62), 2**62) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def test_whatever_can_be_said_is_written_so_that_it_is_read_the_same() -> None:
    tables: list[dict[str, Any]] = []

    @settings(max_examples=120, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(table=st.dictionaries(TEXTS, VALUES, max_size=4))
    def collect(table: dict[str, Any]) -> None:
        tables.append(table)

    collect()
    # One look for all of them.
    literal = msgspec.json.encode(msgspec.json.encode(tables).decode()).decode().replace("${", "\\${")

    texts = evaluate("-E", f"map (import ./nix/tests/eval.nix {{ }}).toml (builtins.fromJSON {literal})")

    assert [tomllib.loads(text) for text in texts] == tables


# ── templates ───────────────────────────────────────────────────────────────────────────────────


def test_the_host_of_the_template_is_good(tmp_path: Path) -> None:
    for name in ("configuration.nix", "alice.nix"):
        shutil.copy(NIX / "templates/host" / name, tmp_path)
    # As it is on a machine of somebody's.
    (tmp_path / "hardware-configuration.nix").write_text("{ }\n")

    host = evaluate("-E", f"(import ./nix/tests/eval.nix {{ }}).hostOf {tmp_path}/configuration.nix")

    assert set(host["table"]["agents"]) == {"alice", "bob"}
    assert host["table"]["agents"]["bob"]["recipients"] == ["alice", "operator"]


def test_the_repository_of_the_template_is_good() -> None:
    agent = NIX / "templates/agent"

    guest = evaluate("-E", f"(import ./nix/tests/eval.nix {{ }}).agentOf {agent}/agent.nix")

    assert 'HIVE_DEFAULT_MODEL="haiku"' in guest["etc"]["hyperhive/environment"]
    assert (
        manifest.said_shape(manifest.parse((agent / "agent.toml").read_bytes())).memory_max_bytes == 2 * 2**30
    )


def test_the_guide_shows_the_template() -> None:
    guide = (ROOT / "docs/nixos.md").read_text()

    for path in sorted((NIX / "templates/host").iterdir()):
        assert f"```nix\n{path.read_text()}```\n" in guide, path.name


def test_what_the_guide_shows_beside_is_good() -> None:
    blocks = re.findall(
        r"^```nix\n(\{\n  services.*?)```$", (ROOT / "docs/nixos.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 2

    for block in blocks:
        evaluate(
            "-E",
            f"(import ./nix/tests/eval.nix {{ }}).hostOf {{ imports = [ ({block}) ]; services.hyperhive.enable = true; }}",
        )

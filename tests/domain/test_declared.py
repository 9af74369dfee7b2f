"""What is declared of agents: what wins, what is refused, and what is to be done."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Config, ConfigError, DeclaredAgent, Machines
from hive_core.declarable import Bind, Limits, McpServer
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import Network, Shape
from hive_core.domain.consequences import consequences
from hive_core.domain.consequences import overruled as said_in_vain
from hive_core.domain.declared import (
    Change,
    Destroy,
    Spawn,
    effective,
    fingerprint,
    manifest_over,
    overruled,
    plan,
    shape_over,
    usable,
)
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest, said_shape, shape_after
from hive_core.wire.ids import MANAGER

names = st.sampled_from(["alice", "bob", "carol", "manager"])
words = st.none() | st.sampled_from(["one", "two"])
variables = st.dictionaries(st.sampled_from(["A", "B"]), st.sampled_from(["1", "2"]))
servers = st.dictionaries(
    st.sampled_from(["x", "y"]), st.builds(McpServer, command=st.sampled_from(["c", "d"]))
)
limits = st.builds(
    Limits,
    memory=st.none() | st.sampled_from(["1G", "2G"]),
    cpu=st.none() | st.sampled_from(["100%", "200%"]),
    tasks=st.none() | st.sampled_from([100, 200]),
)
binds = st.lists(
    st.builds(Bind, source=st.just("/srv/a"), path=st.sampled_from(["/w", "/x"]), writable=st.booleans()),
    max_size=1,
)
said = {
    "image": words,
    "network": st.none() | st.sampled_from(["none", "veth"]),
    "provider": words,
    "model": words,
    "description": words,
    "recipients": st.none() | st.lists(st.sampled_from(["bob", "carol"]), unique=True, max_size=2),
    "limits": limits,
    "environment": variables,
    "mcp_servers": servers,
    "binds": binds,
}
manifests = st.builds(Manifest, prompt=words, **said)
declarations = st.builds(DeclaredAgent, auto_start=st.booleans(), **said)
shapes = st.builds(
    Shape,
    image=words,
    network=st.none() | st.sampled_from(Network),
    memory_max_bytes=st.none() | st.sampled_from([2**30, 2**31]),
    cpu_quota_percent=st.none() | st.integers(100, 300),
    tasks_max=st.none() | st.integers(100, 300),
)


def row(name: str, declaration: DeclaredAgent | None = None, refused: str | None = None) -> AgentRow:
    return AgentRow(name, Wanted.RUNNING, False, 0.0, declaration=declaration, refused_declaration=refused)


rows = st.dictionaries(names, st.none() | declarations).map(
    lambda found: {name: row(name, declaration) for name, declaration in found.items()}
)
tables = st.dictionaries(names, declarations)


# ── what wins ───────────────────────────────────────────────────────────────────────────────────


@given(declarations, manifests)
def test_each_key_is_the_hosts_where_that_says_it_and_else_the_repositorys(
    declaration: DeclaredAgent, manifest: Manifest
) -> None:
    result = manifest_over(declaration, manifest)

    for name in ("image", "network", "provider", "model", "description", "recipients"):
        host = getattr(declaration, name)
        assert getattr(result, name) == (getattr(manifest, name) if host is None else host)
    for name in ("memory", "cpu", "tasks"):
        host = getattr(declaration.limits, name)
        assert getattr(result.limits, name) == (getattr(manifest.limits, name) if host is None else host)
    assert result.environment == {**manifest.environment, **declaration.environment}
    assert result.mcp_servers == {**manifest.mcp_servers, **declaration.mcp_servers}
    assert result.binds == (declaration.binds or manifest.binds)
    assert result.prompt == manifest.prompt
    assert manifest_over(declaration, result) == result


@given(manifests, shapes)
def test_nothing_said_changes_nothing(manifest: Manifest, shape: Shape) -> None:
    for declaration in (None, DeclaredAgent(), DeclaredAgent(auto_start=False)):
        assert manifest_over(declaration, manifest) == manifest
        assert shape_over(declaration, shape) == shape


@given(declarations, shapes, manifests, manifests)
def test_no_deploy_and_no_limit_moves_what_the_host_says(
    declaration: DeclaredAgent, shape: Shape, before: Manifest, after: Manifest
) -> None:
    then = replace(row("alice", declaration), shape=shape, manifest=before)
    now = replace(then, shape=shape_after(shape, before, after), manifest=after)

    pinned = said_shape(manifest_over(declaration, NOTHING))
    for one in (then, now):
        found = effective(one)
        for key in Shape.__dataclass_fields__:
            host = getattr(pinned, key)
            assert getattr(found.shape, key) == (getattr(one.shape, key) if host is None else host)
    # And when the host says it no more, it is as the row says.
    assert effective(replace(now, declaration=None)) == now.declared


@given(declarations, manifests)
def test_what_is_overruled_is_what_would_be_different(declaration: DeclaredAgent, manifest: Manifest) -> None:
    keys = dict(overruled(declaration, manifest))

    result = manifest_over(declaration, manifest)
    for name in ("image", "network", "provider", "model", "recipients"):
        asked = getattr(manifest, name)
        assert (name in keys) == (asked is not None and getattr(result, name) != asked)
    for name, value in manifest.environment.items():
        assert (f"environment.{name}" in keys) == (result.environment[name] != value)
    assert ("binds" in keys) == bool(manifest.binds and result.binds != manifest.binds)
    assert overruled(None, manifest) == []
    assert overruled(declaration, result) == []


def test_the_card_says_who_wins() -> None:
    declaration = DeclaredAgent(network="none", limits=Limits(memory="1G"), recipients=["bob"])
    asked = Manifest(network="veth", limits=Limits(memory="8G", tasks=99), recipients=["bob"])

    found = said_in_vain(overruled(declaration, asked))
    effects = consequences(manifest_over(declaration, NOTHING), manifest_over(declaration, asked), [])

    assert [one.text for one in found] == [
        'network: the host\'s configuration says "none", and wins',
        'limits.memory: the host\'s configuration says "1G", and wins',
    ]
    assert [one.text for one in effects] == ["tasks 99 (before: as the operator or the hive says)"]


def test_of_many_keys_the_card_names_the_rest() -> None:
    found = said_in_vain([(f"environment.V{number}", '"x"') for number in range(20)])

    assert len(found) == 13
    assert found[-1].text.startswith("the same holds for environment.V12, ")


# ── what is to be done ──────────────────────────────────────────────────────────────────────────


@given(rows, tables)
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    there: dict[str, AgentRow], wanted: dict[str, DeclaredAgent]
) -> None:
    actions = plan(there, wanted)

    after = dict(there)
    for action in actions:
        match action:
            case Spawn(name, declaration):
                assert name not in there
                after[name] = row(name, declaration)
            case Change(name, declaration):
                after[name] = replace(after[name], declaration=declaration)
            case Destroy(name):
                assert name != MANAGER
                del after[name]
    assert plan(after, wanted) == []
    assert [action.agent for action in actions] == sorted({action.agent for action in actions})
    assert {name for name, one in after.items() if one.declaration is not None} == wanted.keys()
    # Whom nobody ever declared is never touched.
    dynamic = {name for name, one in there.items() if one.declaration is None} - wanted.keys()
    assert dynamic.isdisjoint(action.agent for action in actions)
    assert dynamic <= after.keys()


def test_what_could_not_be_had_is_not_tried_again_until_it_is_another() -> None:
    good, bad = DeclaredAgent(model="good"), DeclaredAgent(model="bad")
    there = {"alice": row("alice", good, refused=fingerprint(bad))}

    assert plan(there, {"alice": bad}) == []
    assert plan(there, {"alice": good}) == []
    assert plan(there, {"alice": DeclaredAgent(model="other")}) != []
    assert plan(there, {}) == [Destroy("alice")]


@pytest.mark.parametrize(
    ("former", "now", "wants"),
    [
        (None, False, None),
        (None, True, None),
        (True, True, None),
        (False, True, True),
        (True, False, False),
    ],
)
def test_a_wish_changes_only_with_the_wish_of_the_file(
    former: bool | None, now: bool, wants: bool | None
) -> None:
    before = None if former is None else DeclaredAgent(auto_start=former)
    after = DeclaredAgent(auto_start=now, model="new")

    assert plan({"alice": row("alice", before)}, {"alice": after}) == [Change("alice", after, wants)]


def test_a_manager_that_is_declared_no_more_stays() -> None:
    there = {MANAGER: row(MANAGER, DeclaredAgent(model="x"))}

    assert plan(there, {}) == [Change(MANAGER, None)]


# ── looking at it ───────────────────────────────────────────────────────────────────────────────


def test_paths_come_out_normalised() -> None:
    config = Config(agents={"alice": DeclaredAgent(binds=[Bind(source="/srv//a/", writable=True)])})

    assert usable(config, "x").agents["alice"].binds == [Bind(source="/srv/a", path="/srv/a", writable=True)]
    assert usable(Config(), "x") == Config()


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory_max", "lots"), ("cpu_quota", "0%"), ("subnet", "10.213.0.1/16"), ("subnet", "10.213.0.0/30")],
)
def test_what_no_machine_could_start_with_is_refused_at_once(key: str, value: str) -> None:
    config = Config(machines=msgspec.convert({key: value}, Machines))

    with pytest.raises(ConfigError, match=rf"^cannot use /etc/x\.toml: machines\.{key}: .*{value}"):
        usable(config, "/etc/x.toml")


@pytest.mark.parametrize(
    ("declaration", "key"),
    [
        (DeclaredAgent(limits=Limits(memory="1M")), "limits.memory"),
        (DeclaredAgent(limits=Limits(cpu="0%")), "limits.cpu"),
        (DeclaredAgent(environment={"LD_PRELOAD": "x"}), "environment.LD_PRELOAD"),
        (DeclaredAgent(environment={f"V{n}": "" for n in range(257)}), "environment"),
        (DeclaredAgent(mcp_servers={"hyperhive": McpServer(command="x")}), "mcp_servers.hyperhive"),
        (DeclaredAgent(mcp_servers={"x": McpServer(command="")}), "mcp_servers.x.command"),
        (DeclaredAgent(binds=[Bind(source="/proc")]), "binds[0].source"),
        (DeclaredAgent(binds=[Bind(source="/etc", writable=True)]), "binds[0].source"),
        (DeclaredAgent(binds=[Bind(source="/srv/a", path="/run/hive")]), "binds[0].path"),
        (DeclaredAgent(binds=[Bind(source="/srv/../etc")]), "binds[0].source"),
        (DeclaredAgent(credentials={f"c{n}": "/x" for n in range(65)}), "credentials"),
    ],
)
def test_what_no_repository_may_say_no_file_may_either(declaration: DeclaredAgent, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        usable(Config(agents={"alice": declaration}), "/etc/x.toml")

    assert str(error.value).startswith(f"cannot use /etc/x.toml: agents.alice.{key}: ")


@given(declarations, declarations)
def test_two_fingerprints_are_the_same_for_the_same_only(one: DeclaredAgent, other: DeclaredAgent) -> None:
    assert (fingerprint(one) == fingerprint(other)) == (one == other)
    assert msgspec.json.decode(msgspec.json.encode(one), type=DeclaredAgent) == one

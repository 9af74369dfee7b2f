"""What an agent.toml may say, and what follows from it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.declarable import Bind, Limits, McpServer
from hive_core.domain.cage import Network, Shape
from hive_core.domain.manifest import (
    MAX_MANIFEST_BYTES,
    NOTHING,
    BadManifest,
    Manifest,
    parse,
    restart_needed,
    shape_after,
    shape_over,
)

WHOLE = b"""
description = "tests the front end"
image = "debian"
network = "veth"
provider = "claude"
model = "opus"
prompt = "prompts/task.md"
packages = ["git", "ripgrep"]
recipients = ["bob"]

[limits]
memory = "2G"
cpu = "50%"
tasks = 512

[environment]
GREETING = "hi there"

[mcp_servers.files]
command = "/etc/hyperhive/release/config/files.py"
args = ["--all"]
env = { DEPTH = "3" }

[[binds]]
source = "/srv//data/"

[[binds]]
source = "/srv/out"
path = "/out"
writable = true
"""


def test_all_that_can_be_said_is_read() -> None:
    assert parse(WHOLE) == Manifest(
        description="tests the front end",
        image="debian",
        network="veth",
        provider="claude",
        model="opus",
        prompt="prompts/task.md",
        packages=["git", "ripgrep"],
        recipients=["bob"],
        limits=Limits(memory="2G", cpu="50%", tasks=512),
        environment={"GREETING": "hi there"},
        mcp_servers={
            "files": McpServer(
                command="/etc/hyperhive/release/config/files.py", args=["--all"], env={"DEPTH": "3"}
            )
        },
        binds=[
            Bind(source="/srv/data", path="/srv/data"),
            Bind(source="/srv/out", path="/out", writable=True),
        ],
    )


def test_an_empty_file_says_nothing() -> None:
    assert parse(b"") == NOTHING


def test_what_was_read_goes_through_json_and_back() -> None:
    manifest = parse(WHOLE)

    assert msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest) == manifest


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'x'", "unknown key modle; did you mean model?"),
        ("memory = '1G'", "unknown key memory; did you mean limits.memory?"),
        ("[limits]\nmemroy = '1G'", "unknown key limits.memroy; did you mean limits.memory?"),
        ("[limits]\nmodel = 'x'", "unknown key limits.model; model is a key of the file: put it above the"),
        ("zzzzzz = 1", "unknown key zzzzzz"),
        ("[[binds]]\nsource = '/srv'\nwriteable = true", "unknown key binds[0].writeable"),
        ("[mcp_servers.a]\ncommand = 'x'\ncwd = '/'", "unknown key mcp_servers.a.cwd"),
        ("model = 3", "model: Expected `str | null`, got `int`"),
        ("[limits]\ntasks = 3", "limits.tasks: Expected `int` >= 64"),
        ("[limits]\nmemory = '1X'", "limits.memory: Expected `str` matching"),
        ("[limits]\nmemory = '1M'", "limits.memory: with so little memory no machine boots"),
        ("[limits]\ncpu = '0%'", "limits.cpu: '0%' is no share"),
        ("network = 'host'", "network: Invalid enum value 'host'"),
        ("image = 'a b'", "image: Expected `str` matching"),
        ("prompt = '../x'", "prompt: "),
        ("prompt = 'a/../x'", "prompt: it has an empty name, . or .. in it"),
        ("prompt = '/etc/passwd'", "prompt: "),
        ("recipients = ['No Agent']", "recipients[0]: "),
        ("[[binds]]\npath = '/x'", "binds[0]: Object missing required field `source`"),
        ("x = ", "it is no TOML: "),
        ("model = 'a'\nmodel = 'b'", "it is no TOML: Cannot overwrite a value"),
        ("[limits]\ntasks = " + "9" * 5000, "it is no TOML: "),
        ("x = " + "[" * 9000, "it is nested too deep"),
        ("#" + "x" * MAX_MANIFEST_BYTES, "it is over 64 KiB"),
        (
            "[mcp_servers.hyperhive]\ncommand = 'x'",
            "mcp_servers.hyperhive: that is the name of the hive's own",
        ),
        ("[mcp_servers.a]\ncommand = ''", "mcp_servers.a.command: it is empty"),
        ("[environment]\n'a b' = 'x'", "environment: a name in it: "),
        ('[environment]\nA = "x\\u0001"', "environment[...]: "),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(text: str, says: str) -> None:
    with pytest.raises(BadManifest) as refused:
        parse(text.encode())

    assert str(refused.value).startswith(says)


@pytest.mark.parametrize(
    "name",
    [
        *("HIVE_LABEL", "HIVE_EXTRA_MCP", "HYPERHIVE_LOGIN_CMD", "CLAUDE_CONFIG_DIR", "PATH", "HOME"),
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "NOTIFY_SOCKET", "BASH_ENV"),
        *("GCONV_PATH", "OPENSSL_CONF", "NODE_OPTIONS", "HIVE_PASS_ON"),
    ],
)
def test_variables_of_the_hive_are_kept_for_it(name: str) -> None:
    for text in (f"[environment]\n{name} = 'x'", f"[mcp_servers.a]\ncommand = 'x'\nenv = {{ {name} = 'x' }}"):
        with pytest.raises(BadManifest, match=f"{name}: that is set by the hive"):
            parse(text.encode())


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    "source",
    [
        *(
            "/",
            "/proc",
            "/proc/1",
            "/sys",
            "/dev/kmsg",
            "/run",
            "/run/docker.sock",
            "/var/run/x",
            "/root/.ssh",
        ),
        *(
            "/etc",
            "/etc/hyperhive",
            "/etc/hyperhive/secrets",
            "/var",
            "/var/lib",
            "/var/lib/hyperhive/agents",
        ),
        *("/var/lib/machines/debian", "/boot", "//proc//self", "/./proc", "/srv/../etc/hyperhive", "/srv/.."),
    ],
)
def test_nothing_of_the_host_itself_is_bound(source: str, writable: bool) -> None:
    text = f"[[binds]]\nsource = {source!r}\npath = '/x'\nwritable = {str(writable).lower()}"

    with pytest.raises(BadManifest, match=r"binds\[0\]\.source: "):
        parse(text.encode())


@pytest.mark.parametrize(
    "source", ["/usr/local", "/nix/store/x", "/nix", "/etc/cron.d", "/opt/hyperhive/bin", "/lib", "/bin/x"]
)
def test_what_runs_on_the_host_may_be_seen_and_not_written(source: str) -> None:
    text = f"[[binds]]\nsource = {source!r}\npath = '/x'\n"

    assert parse(text.encode()).binds[0].source == source
    with pytest.raises(BadManifest, match=r"cannot bind .* writable"):
        parse(f"{text}writable = true".encode())


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/usr",
            "/etc",
            "/var",
            "/root",
            "/run/hive",
            "/run",
            "/proc/x",
            "/agents",
            "/agents/bob/state",
        ),
        *(
            "/state",
            "/etc/hyperhive/release",
            "/opt/hyperhive",
            "/opt",
            "/root/.claude",
            "/nix/store",
            "/.image",
        ),
        *("/meta", "/applied/x", "/tmp", "/x/../run"),
    ],
)
def test_nothing_is_bound_over_what_is_the_machines_own(path: str) -> None:
    with pytest.raises(BadManifest, match=r"binds\[0\]\.path: "):
        parse(f"[[binds]]\nsource = '/srv/data'\npath = {path!r}".encode())


def test_two_binds_do_not_stand_in_each_others_way() -> None:
    text = "[[binds]]\nsource = '/srv/a'\npath = '/x'\n[[binds]]\nsource = '/srv/b'\npath = '/x/y'\n"

    with pytest.raises(BadManifest, match=r"binds\[1\]\.path: /x/y and /x, another bind"):
        parse(text.encode())


@pytest.mark.parametrize("path", ["/srv/a:b", "/srv/a b", "/srv/%i", "/srv/$X", "srv", "", "/srv/\\u0007"])
def test_a_path_has_nothing_that_systemd_would_read(path: str) -> None:
    with pytest.raises(BadManifest, match="binds"):
        parse(f'[[binds]]\nsource = "{path}"'.encode())


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_to_be_refused(text: bytes) -> None:
    try:
        parse(text)
    except BadManifest as error:
        assert str(error).isprintable()


@given(
    st.dictionaries(
        st.sampled_from(["limits", "binds", "mcp_servers", "environment", "model", "recipients", "packages"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    )
)
def test_no_value_of_a_wrong_kind_does_worse_than_to_be_refused(table: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in table.items())
    try:
        parse(text.encode("utf-8", "replace"))
    except BadManifest as error:
        assert str(error).isprintable()


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{_toml(key)} = {_toml(inner)}' for key, inner in value.items())}}}"
    return msgspec.json.encode(str(value).encode("utf-8", "replace").decode()).decode()


# ── what follows ────────────────────────────────────────────────────────────────────────────────


def test_what_it_says_of_the_machine_wins_and_what_it_drops_is_the_hives_again() -> None:
    by_hand = Shape(memory_max_bytes=2**30, tasks_max=100)
    first = Manifest(network="veth", limits=Limits(memory="2G"))

    deployed = shape_after(by_hand, NOTHING, first)
    later = shape_after(deployed, first, Manifest(image="debian"))

    assert deployed == Shape(network=Network.VETH, memory_max_bytes=2 * 2**30, tasks_max=100)
    assert later == Shape(image="debian", tasks_max=100)


def test_an_image_that_was_made_for_its_packages_goes_with_them() -> None:
    packed = Manifest(packages=["jq"])

    assert shape_after(Shape(image="with-jq"), packed, NOTHING) == Shape()
    assert shape_after(Shape(image="by-hand"), NOTHING, NOTHING) == Shape(image="by-hand")


def test_what_an_operator_says_at_a_spawn_wins_over_what_was_deployed() -> None:
    manifest = Manifest(image="debian", limits=Limits(cpu="50%", memory="1G"))

    assert shape_over(Shape(memory_max_bytes=2**31), manifest) == Shape(
        image="debian", memory_max_bytes=2**31, cpu_quota_percent=50
    )


@pytest.mark.parametrize(
    "after",
    [
        Manifest(image="x"),
        Manifest(network="veth"),
        Manifest(provider="claude"),
        Manifest(model="x"),
        Manifest(prompt="x"),
        Manifest(packages=["x"]),
        Manifest(environment={"A": "b"}),
        Manifest(mcp_servers={"x": McpServer(command="x")}),
        Manifest(binds=[Bind(source="/srv")]),
    ],
)
def test_what_a_machine_has_while_it_runs_needs_a_restart(after: Manifest) -> None:
    assert restart_needed(NOTHING, after)
    assert restart_needed(after, NOTHING)
    assert not restart_needed(after, after)


def test_limits_recipients_and_words_hold_at_once() -> None:
    after = Manifest(limits=Limits(memory="1G"), recipients=["bob"], description="x")

    assert not restart_needed(NOTHING, after, ["agent.toml", "README.md"])


def test_files_need_a_restart_when_a_machine_may_have_read_them() -> None:
    prompted = Manifest(prompt="task.md")
    served = Manifest(mcp_servers={"x": McpServer(command="x")})

    assert restart_needed(prompted, prompted, ["task.md"])
    assert not restart_needed(prompted, prompted, ["other.md", "agent.toml"])
    assert restart_needed(served, served, ["lib/server.py"])
    assert not restart_needed(served, served, ["agent.toml", "agent.nix"])


@pytest.mark.parametrize(
    "path", ["/etc/systemd/system", "/usr/lib", "/lib/systemd/system-generators", "/root/.config"]
)
def test_nothing_comes_from_the_host_that_runs_before_a_machine_is_sealed(path: str) -> None:
    with pytest.raises(BadManifest, match=r"is the machine's own"):
        parse(f"[[binds]]\nsource = '/srv/data'\npath = {path!r}".encode())


@pytest.mark.parametrize(
    "path", ["/etc/cron.d", "/usr/local/bin", "/var/spool/cron", "/var/lib/systemd/linger"]
)
def test_nothing_that_an_agent_writes_runs_before_its_next_machine_is_sealed(path: str) -> None:
    text = f"[[binds]]\nsource = '/srv/data'\npath = {path!r}\n"
    assert parse(text.encode()).binds

    with pytest.raises(BadManifest, match=r"is the machine's own"):
        parse(f"{text}writable = true".encode())


@pytest.mark.parametrize("name", ["hyperhive", "HyperHive", "hyperhive__send", "hyperhive-", "hyperhive_"])
def test_no_server_passes_for_the_hives_own(name: str) -> None:
    with pytest.raises(BadManifest, match="the name of the hive's own server"):
        parse(f"[mcp_servers.{name}]\ncommand = 'x'".encode())


@pytest.mark.parametrize(
    "text",
    [
        "environment = { A = '{}' }",
        "model = '{}'",
        "[mcp_servers.x]\ncommand = 'x'\nargs = ['{}']",
    ],
)
def test_what_systemd_takes_for_broken_text_is_refused(text: str) -> None:
    for char in ("\ufdd0", "\ufffe", "\uffff", "\U0001fffe", "\U0010ffff"):
        with pytest.raises(BadManifest, match="no character"):
            parse(text.replace("{}", char).encode())
    assert parse(text.replace("{}", "\ufffd\U0001f41d").encode())

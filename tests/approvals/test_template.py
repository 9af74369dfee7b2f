"""The configuration that an agent begins with declares what it runs with, and nothing else."""

import re
import tomllib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.declarable import Bind, Limits, McpServer
from hive_core.domain import template
from hive_core.domain.cage import Network, Shape
from hive_core.domain.manifest import NOTHING, Manifest, parse, shape_after

SHAPES = st.builds(
    Shape,
    image=st.none() | st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    network=st.none() | st.sampled_from(Network),
    memory_max_bytes=st.none() | st.integers(2**26, 2**44) | st.sampled_from([2**30, 3 * 2**20, 2**40]),
    cpu_quota_percent=st.none() | st.integers(1, 10_000),
    tasks_max=st.none() | st.integers(64, 4096),
)


@given(SHAPES)
def test_planting_it_changes_nothing(shape: Shape) -> None:
    manifest = parse(template.files("bob", shape)["agent.toml"])

    assert shape_after(shape, NOTHING, manifest) == shape


@given(SHAPES)
def test_where_machines_are_built_with_nix_it_names_no_image(shape: Shape) -> None:
    manifest = parse(template.files("bob", shape, "nix")["agent.toml"])

    assert (manifest.image, manifest.packages) == (None, [])


def test_of_an_agent_of_which_nothing_was_declared_it_declares_nothing() -> None:
    assert parse(template.files("bob", Shape())["agent.toml"]) == NOTHING


def test_a_key_may_be_added_at_its_end() -> None:
    text = template.files("bob", Shape())["agent.toml"] + b"environment = { LANG = 'de_DE.UTF-8' }\n"

    assert parse(text).environment == {"LANG": "de_DE.UTF-8"}


@pytest.mark.parametrize("builder", ["tree", "nix"])
def test_its_comments_are_examples_that_hold(builder: str) -> None:
    text = template.files("bob", Shape(), builder)["agent.toml"].decode()  # type: ignore[arg-type]

    uncommented = re.sub(r"^#(?! )", "", text, flags=re.MULTILINE)
    manifest = parse(uncommented.replace('model = ""\n', "").replace('description = ""\n', "").encode())

    assert manifest.mcp_servers["notes"].env == {"LEVEL": "info"}
    assert manifest.binds == [Bind(source="/srv/data", path="/data", writable=False)]
    assert manifest.recipients == ["alice"]


def test_every_key_is_named() -> None:
    text = template.files("bob", Shape())["agent.toml"].decode()
    named = set(re.findall(r"^#?\[*(\w+)", text, flags=re.MULTILINE))

    for struct in (Manifest, Limits, Bind, McpServer):
        assert {field.encode_name for field in msgspec.structs.fields(struct)} - named <= {"command"}
    assert "command" in text


def test_it_is_toml_a_module_and_something_to_read() -> None:
    files = template.files("bob", Shape(image='a"\\b'))

    assert list(files) == ["agent.toml", "agent.nix", "README.md"]
    assert tomllib.loads(files["agent.toml"].decode())["image"] == 'a"\\b'
    assert files["agent.nix"].decode().count("{") == files["agent.nix"].decode().count("}")

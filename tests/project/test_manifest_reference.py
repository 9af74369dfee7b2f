"""docs/approvals.md explains each key that an agent.toml may have, and none that it may not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import inspect as types

from hive_core.domain.manifest import NEED_RESTART, Manifest

TEXT = (Path(__file__).parents[2] / "docs/approvals.md").read_text()


def keys(of: Any, prefix: str = "") -> Iterator[str]:
    for field in of.fields:
        yield from keys_of(field.type, prefix + field.encode_name)


def keys_of(kind: Any, name: str) -> Iterator[str]:
    match kind:
        case types.StructType():
            yield from keys(kind, f"{name}.")
        case types.ListType(item_type=types.StructType() as item):
            yield from keys(item, f"{name}.")
        case types.DictType(value_type=types.StructType() as value):
            yield from keys(value, f"{name}.NAME.")
        case _:
            yield name


def table() -> dict[str, str]:
    """Each key in the reference, and when a change of it takes effect."""
    section = TEXT.partition("## agent.toml\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([a-zN_.A-Z]+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE))


def test_each_key_of_a_manifest_is_explained_in_its_order() -> None:
    assert list(table()) == list(keys(types.type_info(Manifest)))


def test_what_needs_a_restart_says_so() -> None:
    said = {key.partition(".")[0] for key, effect in table().items() if effect.startswith("restart")}

    assert said == set(NEED_RESTART)

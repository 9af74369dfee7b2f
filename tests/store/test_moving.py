"""What goes with an agent into another hive."""

from pathlib import Path

import apsw
import msgspec
import pytest

from hive_core.domain.cage import Shape
from hive_core.store import agents, dead
from hive_core.store.mailbox import Post, apply_batch
from hive_core.store.moving import Luggage, decode_luggage, pack_rows, unpack_rows
from hive_core.store.schema import migrate


def opened(path: Path) -> apsw.Connection:
    db = apsw.Connection(str(path))
    migrate(db, str(path))
    return db


@pytest.mark.parametrize("allowed", [None, ["bob", "operator"]])
def test_a_list_of_recipients_goes_along(tmp_path: Path, allowed: list[str] | None) -> None:
    with opened(tmp_path / "from") as source, opened(tmp_path / "to") as target:
        agents.create(source, "alice", 1.0, None, Shape())
        agents.allow(source, "alice", allowed)

        unpack_rows(
            target, "alice", None, decode_luggage(msgspec.json.encode(pack_rows(source, "alice"))), 1, 2.0
        )

        found = agents.allowed_of(target, "alice")
    assert found == (None if allowed is None else frozenset(allowed))


def test_dead_letters_stay(tmp_path: Path) -> None:
    with opened(tmp_path / "from") as source:
        agents.create(source, "alice", 1.0, None, Shape())
        apply_batch(source, [Post(1, "bob", ["alice"], "poison", 1.0), Post(2, "bob", ["alice"], "hi", 1.0)])
        dead.bury(source, 1, "no", 2.0)

        assert [message.body for message in pack_rows(source, "alice").messages] == ["hi"]


def test_luggage_of_before_there_were_lists_is_read() -> None:
    assert decode_luggage(b"{}") == Luggage()

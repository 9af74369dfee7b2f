"""Whose files are touched, and as whom."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hive_core.config import Config
from hive_core.domain.cage import Shape
from hive_core.domain.machine import Wanted
from hive_core.domain.reminder import CannotWrite
from hive_core.domain.retention import Cutoffs
from hive_core.homes import Homes
from hive_core.host import agent_upkeep
from hive_core.layout import local_layout
from hive_core.store import agents
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch

UIDS = {"alice": 655360, "bob": None}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store[MailboxOp]]:
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store:
        for name, uid_base in UIDS.items():
            await store.write(agents.create, name, 1.0, uid_base, Shape())
        yield store


@pytest.fixture
def written_as(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The users that files were written as."""
    seen: list[int | None] = []

    async def write_file(_state: Path, _path: str, _text: str, *, uid: int | None) -> None:
        seen.append(uid)

    monkeypatch.setattr(agent_upkeep, "write_file", write_file)
    return seen


async def test_a_file_is_written_as_its_agent(
    store: Store[MailboxOp], written_as: list[int | None], tmp_path: Path
) -> None:
    homes = Homes(store, local_layout(Config(home=str(tmp_path))), lambda agent: f"/agents/{agent}/state")

    assert await homes.write_file("alice", "a.md", "text") == "/agents/alice/state/a.md"
    await homes.write_file("bob", "a.md", "text")

    assert written_as == [655360, None]


async def test_one_that_is_being_purged_is_still_the_owner_and_one_that_is_gone_has_no_files(
    store: Store[MailboxOp], written_as: list[int | None], tmp_path: Path
) -> None:
    homes = Homes(store, local_layout(Config(home=str(tmp_path))), lambda agent: f"/agents/{agent}/state")
    await store.write(agents.want, "alice", Wanted.PURGED, 2.0)

    await homes.write_file("alice", "a.md", "text")
    assert written_as == [655360]
    assert await homes.names() == ["bob"]

    await store.write(agents.forget, "alice")
    with pytest.raises(CannotWrite, match=r"cannot write a\.md: alice is gone"):
        await homes.write_file("alice", "a.md", "text")
    assert await homes.prune("alice", Cutoffs(events=1.0), False) == []
    assert written_as == [655360]

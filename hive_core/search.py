"""Finds messages by their words.

The index is filled beside everything else, from what is on disk, so that no sender ever waits for it: a
little now and then, and what is missing when somebody searches.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw
import trio

from hive_core.domain.search import match_expression
from hive_core.store import mailbox
from hive_core.store.database import Store
from hive_core.store.mailbox import StoredMessage
from hive_core.store.search_index import SearchIndex
from hive_core.wire.errors import ErrorCode, Refused

SLICE_MESSAGES: Final = 500
SLICE_BYTES: Final = 2 * 2**20
FILL_EVERY_S: Final = 30.0
PRUNE_EVERY_S: Final = 3600.0
FILL_PAUSE_S: Final = 0.02
"""Between two slices nobody waits for."""

PATIENCE_S: Final = 5.0
"""How long a search lets the index be filled before it takes what there is."""

LEAST_LOOKED_AT: Final = 50
"""Found at once, though fewer are wanted: most may be none of the agent's who is asked for."""

MAX_SKIPPED: Final = 1000
"""Messages that match and are none of the agent's who is asked for, in one look."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class Search:
    """The index of one hive.  Made by `open_search`."""

    def __init__(self, store: Store[Any], index: SearchIndex) -> None:
        self._store = store
        self._index = index
        self._thread = trio.CapacityLimiter(1)
        self._filling = trio.Lock()

    async def find(self, typed: str, agent: str | None, limit: int) -> tuple[list[StoredMessage], int]:
        """Give the newest messages with every word of *typed*, oldest first; with *agent* only its own.

        And how many messages are not indexed yet.

        Raises:
            Refused: INVALID_ARGUMENT; UNAVAILABLE, when the index cannot be read.
        """
        expression = match_expression(typed)
        with trio.move_on_after(PATIENCE_S):
            await self._fill()
        found: list[StoredMessage] = []
        below: int | None = None
        looked_at = 0
        while len(found) < limit and looked_at < MAX_SKIPPED + limit:
            ids = await self._ask(self._index.find, expression, below, max(limit, LEAST_LOOKED_AT))
            if not ids:
                break
            there = await self._store.read(mailbox.which_exist, ids)
            if gone := set(ids) - set(there):
                await self._ask(self._index.forget, sorted(gone))
            rows = await self._store.read(mailbox.by_ids, there)
            found += [row for row in rows if agent is None or agent in {row.sender, row.recipient}]
            # Of large ones not all are read at once; of others a vacuum may have left none meanwhile.
            below = rows[-1].id if rows and len(rows) < len(there) else ids[-1]
            looked_at += len(ids)
        return found[:limit][::-1], await self._behind()

    async def prune(self) -> None:
        """Forget the words of messages that are gone."""
        after = 0
        while ids := await self._ask(self._index.ids_after, after, SLICE_MESSAGES):
            gone = set(ids) - set(await self._store.read(mailbox.which_exist, ids))
            if gone:
                await self._ask(self._index.forget, sorted(gone))
            after = ids[-1]
            await trio.sleep(FILL_PAUSE_S)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fill the index now and then, and more rarely forget in it what a vacuum has deleted."""
        task_status.started()
        pruned_at = trio.current_time()
        while True:
            await trio.sleep(FILL_EVERY_S)
            try:
                await self._fill(pause_s=FILL_PAUSE_S)
                if trio.current_time() - pruned_at >= PRUNE_EVERY_S:
                    await self.prune()
                    pruned_at = trio.current_time()
            except Refused as error:
                log.error("Search index not filled, the next look tries again: %s", error.text)

    async def _fill(self, pause_s: float = 0.0) -> None:
        async with self._filling:
            last_id = await self._ask(self._index.last_id)
            if last_id > await self._store.read(mailbox.last_id):
                # Somebody has put an older database in place: its messages are others under the same ids.
                await self._ask(self._index.clear)
                last_id = 0
            while texts := await self._store.read(mailbox.texts_after, last_id, SLICE_MESSAGES, SLICE_BYTES):
                await self._ask(self._index.add, texts)
                last_id = texts[-1][0]
                await trio.sleep(pause_s)

    async def _behind(self) -> int:
        last_id = await self._ask(self._index.last_id)
        return await self._store.read(mailbox.count_after, last_id)

    async def _ask(self, fn: Callable[..., T], *arguments: object) -> T:
        try:
            return await trio.to_thread.run_sync(fn, *arguments, limiter=self._thread)
        except apsw.Error as error:
            log.error("Search index cannot be used: %s", error)
            raise Refused(ErrorCode.UNAVAILABLE, f"cannot search: the index: {error}") from None


@asynccontextmanager
async def open_search(store: Store[Any]) -> AsyncIterator[Search]:
    """Open, or make, the index beside the database of *store*."""
    index = SearchIndex(_path(store.path))
    try:
        yield Search(store, index)
    finally:
        index.close()


def _path(database: Path) -> Path:
    return database.with_name("search.sqlite")

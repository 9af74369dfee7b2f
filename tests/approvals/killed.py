"""Carries a deed out in a child that kills itself at the deed's first statement or git command, in one that
does so at its second, and so on to the end; after each, another child takes up what is left and says what there is.

python killed.py DEED DIRECTORY     prints a JSON object for each child, the last one for the one that lived
"""

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import trio

from hive_core.applier import Applier
from hive_core.broker import Broker
from hive_core.config import Config
from hive_core.configurations import Configurations
from hive_core.domain.agent import AgentRow
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import Manifest
from hive_core.host import git
from hive_core.layout import Layout
from hive_core.repositories import Repositories
from hive_core.store import agents, approvals
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.wire.errors import Refused

NOW = 1_000_000.0


class Hive:
    """The manager and bob, whose commits lie in real repositories."""

    def __init__(self, directory: Path, store: Store[MailboxOp], rows: dict[str, AgentRow]) -> None:
        self.layout = Layout(directory, directory / "run", directory / "state")
        self.layout.make()
        self.store, self.rows = store, rows
        self.broker = Broker(
            store, announce=lambda _message: None, changed=lambda _agent: None, clock=lambda: NOW
        )
        self.repositories = Repositories(self.layout, isolated=False)
        self.configurations = Configurations(
            self.repositories,
            row_of=rows.get,
            owner=lambda: None,
            note_deployed=self.note_deployed,
            config=Config,
        )
        self.applier = Applier(
            store,
            self.repositories,
            self.configurations,
            leave=self.broker.leave_with,
            row_of=rows.get,
            why_no_name=lambda _name: None,
            wake=lambda: None,
            config=Config,
            clock=lambda: NOW,
        )

    async def note_deployed(self, name: str, sha: str, tag: str, manifest: Manifest) -> None:
        await self.store.write(agents.note_deployed, name, sha, tag, manifest)


@asynccontextmanager
async def hive_at(directory: Path) -> AsyncIterator[Hive]:
    async with (
        open_store(directory / "broker.sqlite", apply_batch) as store,
        trio.open_nursery() as nursery,
    ):
        rows = {row.name: row for row in await store.read(agents.all_agents)}
        hive = Hive(directory, store, rows)
        await hive.broker.recover()
        await hive.applier.recover()
        await nursery.start(hive.broker.run)
        for agent in rows:
            await hive.broker.register(agent, paused=False)
        await nursery.start(hive.applier.run)
        while await store.read(approvals.cut_off) or await store.read(approvals.unmarked, 9):
            await trio.sleep(0.005)
        yield hive
        nursery.cancel_scope.cancel()


async def prepare(directory: Path) -> None:
    async with open_store(directory / "broker.sqlite", apply_batch) as store:
        for name in ("manager", "bob"):
            row = AgentRow(name, Wanted.STOPPED, False, NOW)
            await store.write(agents.create, name, NOW, None, row.shape)
    async with hive_at(directory) as hive:
        await hive.configurations.ensure("bob")
        await hive.applier.submit_commit("bob", None, "first", by="manager", key="first")


async def plant(hive: Hive) -> None:
    await hive.store.write(
        agents.create, "carol", NOW, None, AgentRow("carol", Wanted.STOPPED, False, 0).shape
    )
    hive.rows["carol"] = AgentRow("carol", Wanted.STOPPED, False, NOW)
    await hive.configurations.ensure("carol")


async def submit(hive: Hive) -> None:
    try:
        await hive.applier.submit_commit("bob", None, "second", by="manager", key="second")
    except Refused as refused:
        assert "has failed" in refused.text, refused.text


async def approve(hive: Hive) -> None:
    await _decide(lambda: hive.applier.approve(1, uid=7))


async def deny(hive: Hive) -> None:
    await _decide(lambda: hive.applier.deny(1, uid=7, note="no"))


async def destroy(hive: Hive) -> None:
    await hive.applier.agent_destroyed("bob")


async def _decide(decide: Callable[[], Awaitable[object]]) -> None:
    try:
        await decide()
    except Refused as refused:
        assert refused.reason == "decided", refused.text


DEEDS: Mapping[str, Callable[[Hive], Awaitable[None]]] = {
    "plant": plant,
    "submit": submit,
    "approve": approve,
    "deny": deny,
    "destroy": destroy,
}


async def carry_out(
    directory: Path, deed: Callable[[Hive], Awaitable[None]], arm: Callable[[], None] = lambda: None
) -> None:
    async with hive_at(directory) as hive:
        arm()
        await deed(hive)


async def settle(directory: Path) -> None:
    async with hive_at(directory):
        pass


async def look(directory: Path) -> dict[str, Any]:
    def read(db: apsw.Connection) -> dict[str, Any]:
        def rows(sql: str) -> list[Any]:
            return db.execute(sql).fetchall()

        return {
            "approvals": rows(
                "select id, status, finished, fetched_sha, tag, note from approvals order by id"
            ),
            "deploys": rows("select approval_id, sha from deploys order by id"),
            "deployed": rows("select name, deployed_sha from agents where deployed_sha is not null"),
            "letters": [json.loads(str(body)) for (body,) in rows("select body from messages order by id")],
            "check": rows("pragma integrity_check"),
        }

    async with open_store(directory / "broker.sqlite", apply_batch) as store:
        found = await store.read(read)
        repositories = Hive(directory, store, {}).repositories
        for name in ("bob", "carol"):
            is_there = await repositories.exists(name)
            history = await repositories.history(name, 99) if is_there else []
            found[name] = {tag.tag: [tag.sha, tag.note] for tag in history}
            found[f"{name} main"] = await repositories.main(name) if is_there else None
        return found


def in_child(work: Callable[[], None]) -> int:
    """Give the status that it ended with."""
    pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die_at(number: int) -> Callable[[], None]:
    """Be killed at the statement or git command of this *number* after what this gives was called."""
    seen = -1

    def arm() -> None:
        nonlocal seen
        seen = 0

    def count(*_what: object, **_more: object) -> bool:
        nonlocal seen
        seen += seen >= 0
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return True

    def watch(db: apsw.Connection) -> None:
        db.exec_trace = count

    apsw.connection_hooks.append(watch)
    run = git.Git.run

    async def counted(*args: Any, **kwargs: Any) -> Any:
        count()
        return await run(*args, **kwargs)

    git.Git.run = counted  # type: ignore[method-assign]
    return arm


def main(name: str, base: Path) -> None:
    deed = DEEDS[name]
    first = base / "first"
    first.mkdir()
    assert in_child(lambda: trio.run(prepare, first)) == 0
    number = 0
    while True:
        number += 1
        directory = base / str(number)
        shutil.copytree(first, directory, symlinks=True)

        def half(number: int = number, directory: Path = directory) -> None:
            trio.run(carry_out, directory, deed, die_at(number))

        def whole(directory: Path = directory) -> None:
            trio.run(carry_out, directory, deed)
            trio.run(settle, directory)
            print(json.dumps(trio.run(look, directory)), flush=True)

        status = in_child(half)
        assert status in {0, -signal.SIGKILL}, status
        assert in_child(whole) == 0
        shutil.rmtree(directory)
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

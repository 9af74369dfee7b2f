"""Carries a deed out in a child that kills itself at its first statement, in one that does so at its second,
and so on to the end; after each, another child takes up what is left and says what there is.

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

from hive_core.broker import Broker
from hive_core.questions import Questions
from hive_core.scheduler import Scheduler
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch

AGENTS = ("alice", "bob")
NOW = 1_000_000.0
LATER = NOW + 3600


class Hive:
    """Alice and bob, on a clock that says what it is told."""

    def __init__(self, directory: Path, store: Store[MailboxOp], now: float) -> None:
        self.store = store
        self.broker = Broker(
            store, announce=lambda _message: None, changed=lambda _agent: None, clock=lambda: now
        )
        self.questions = Questions(
            store,
            leave=self.broker.leave_with,
            is_agent=lambda name: name in self.broker.agents,
            clock=lambda: now,
        )

        async def write_file(agent: str, path: str, text: str) -> str:
            target = directory / path
            target.parent.mkdir(exist_ok=True)
            target.write_text(text)
            return path

        self.scheduler = Scheduler(
            store,
            leave=self.broker.leave_with,
            write_file=write_file,
            agents=lambda: self.broker.agents,
            changed=lambda _agent: None,
            clock=lambda: now,
        )

    async def work(self, until: str) -> None:
        """Let the watchdog and the scheduler do what is due, until the query *until* gives 0."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.questions.run)
            await nursery.start(self.scheduler.run)
            while await self.store.read(lambda db: db.execute(until).fetchall()[0][0]):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def hive_at(directory: Path, now: float) -> AsyncIterator[Hive]:
    async with open_store(directory / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(directory, store, now)
        await hive.broker.recover()
        await nursery.start(hive.broker.run)
        for agent in AGENTS:
            await hive.broker.register(agent, paused=False)
        yield hive
        nursery.cancel_scope.cancel()


PENDING = "select count(*) from reminders where sent_at is null"
OPEN = "select count(*) from operator_questions where answered_at is null"


async def prepare(hive: Hive) -> None:
    await hive.scheduler.remind("alice", "short", delay_seconds=10)
    await hive.scheduler.remind("bob", "x" * 5000, delay_seconds=20)
    await hive.scheduler.remind("alice", "named", delay_seconds=30, file_path="a.md")
    for asker, target in (("alice", "bob"), ("bob", "alice"), ("alice", "operator")):
        await hive.questions.ask(asker, target, f"{asker} asks {target}", ttl_seconds=100)


async def deliver(hive: Hive) -> None:
    await hive.work(f"select ({PENDING}) + ({OPEN})")


async def remind(hive: Hive) -> None:
    await hive.scheduler.remind("alice", "new", delay_seconds=10, key="k")
    await hive.scheduler.cancel(1, by="alice", key="k2")


async def ask(hive: Hive) -> None:
    await hive.questions.ask("bob", "alice", "new", key="k")


async def answer(hive: Hive) -> None:
    await hive.questions.answer(1, "red", by="bob", key="k")
    await hive.questions.cancel(2, by="bob", key="k2")


async def purge(hive: Hive) -> None:
    hive.broker.unregister("bob")
    await hive.questions.end_those_of("bob")
    await hive.scheduler.forget("bob")


DEEDS: Mapping[str, tuple[float, Callable[[Hive], Awaitable[None]]]] = {
    "deliver": (LATER, deliver),
    "remind": (NOW, remind),
    "ask": (NOW, ask),
    "answer": (NOW, answer),
    "purge": (NOW, purge),
}


async def carry_out(directory: Path, now: float, deed: Callable[[Hive], Awaitable[None]]) -> None:
    async with hive_at(directory, now) as hive:
        await deed(hive)


async def look(directory: Path) -> dict[str, Any]:
    def read(db: apsw.Connection) -> dict[str, Any]:
        messages = db.execute("select sender, recipient, body from messages order by id").fetchall()
        answers = db.execute("select id, answer, answerer from operator_questions order by id").fetchall()
        pending = db.execute("select message from reminders order by id").fetchall()
        return {
            "messages": messages,
            "questions": answers,
            "reminders": [message[:9] for (message,) in pending],
            "check": db.execute("pragma integrity_check").fetchall(),
        }

    async with open_store(directory / "broker.sqlite", apply_batch) as store:
        return await store.read(read)


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


def die_at(number: int) -> None:
    """Be killed at the statement of this *number* on any connection that is opened from now on."""
    seen = 0

    def count(*_statement: object) -> bool:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return True

    def watch(db: apsw.Connection) -> None:
        db.exec_trace = count

    apsw.connection_hooks.append(watch)


def main(name: str, base: Path) -> None:
    now, deed = DEEDS[name]
    first = base / "first"
    first.mkdir()
    assert in_child(lambda: trio.run(carry_out, first, NOW, prepare)) == 0
    number = 0
    while True:
        number += 1
        directory = base / str(number)
        shutil.copytree(first, directory)

        def half(number: int = number, directory: Path = directory) -> None:
            die_at(number)
            trio.run(carry_out, directory, now, deed)

        def whole(directory: Path = directory) -> None:
            trio.run(carry_out, directory, now, deed)
            print(json.dumps(trio.run(look, directory)), flush=True)

        status = in_child(half)
        assert status in {0, -signal.SIGKILL}, status
        assert in_child(whole) == 0
        if status == 0:
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

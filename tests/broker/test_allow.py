"""To whom an agent may write: enforced where messages are taken, whoever brings them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from hive_core.questions import Questions
from hive_core.wire.errors import ErrorCode, Refused

from .test_broker import Hive, hive_at


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "alice", "bob", "carol", "manager") as hive:
        yield hive


async def refused(hive: Hive, to: str, **options: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await hive.send("alice", to, **options)
    return caught.value


def questions_of(hive: Hive) -> Questions:
    return Questions(
        hive.store,
        leave=hive.broker.leave_with,
        is_agent=lambda name: name in hive.broker.agents,
        check_allowed=hive.broker.check_allowed,
    )


async def test_without_a_list_an_agent_writes_to_anyone(hive: Hive) -> None:
    assert hive.broker.allowed("alice") is None
    for to in ("bob", "operator", "*"):
        await hive.send("alice", to)


async def test_with_a_list_it_writes_to_those_on_it_and_to_the_manager(hive: Hive) -> None:
    await hive.broker.allow("alice", ["bob"])

    await hive.send("alice", "bob")
    await hive.send("alice", "manager")

    for to in ("carol", "operator"):
        refusal = await refused(hive, to)
        assert refusal.code is ErrorCode.FORBIDDEN
        assert refusal.text.startswith("cannot send: alice may write to bob, manager only;")


async def test_the_operator_is_reached_when_listed(hive: Hive) -> None:
    await hive.broker.allow("alice", ["operator"])

    await hive.send("alice", "operator")
    await refused(hive, "bob")


async def test_a_reply_is_a_message_like_any_other(hive: Hive) -> None:
    await hive.broker.allow("alice", ["bob"])
    asked = await hive.send("carol", "alice")

    refusal = await refused(hive, "carol", in_reply_to=asked)

    assert refusal.code is ErrorCode.FORBIDDEN


async def test_a_broadcast_goes_to_the_allowed_ones(hive: Hive) -> None:
    await hive.broker.allow("alice", ["carol"])

    await hive.send("alice", "*")

    unread = {name: hive.broker.count_unread(name) for name in ("bob", "carol", "manager")}
    assert unread == {"bob": 0, "carol": 1, "manager": 1}


async def test_a_broadcast_that_would_reach_nobody_is_refused(hive: Hive) -> None:
    hive.broker.unregister("manager")
    await hive.broker.allow("alice", ["dave"])

    refusal = await refused(hive, "*")

    assert refusal.text.startswith("cannot send to *: alice may write to dave, manager only;")


@pytest.mark.parametrize("anyone", [None, []])
async def test_a_list_can_be_taken_away(hive: Hive, anyone: list[str] | None) -> None:
    await hive.broker.allow("alice", ["bob"])

    await hive.broker.allow("alice", anyone)

    await hive.send("alice", "carol")
    assert hive.broker.allowed("alice") is None


async def test_one_list_binds_one_agent(hive: Hive) -> None:
    await hive.broker.allow("alice", ["bob"])

    await hive.send("bob", "carol")
    await hive.send("operator", "alice")


async def test_a_list_outlives_daemon_and_destruction(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        await hive.store.write(
            lambda db: db.execute(
                "insert into agents (name, wanted, created_at) values ('alice', 'running', 1)"
            ).fetchall()
        )
        await hive.broker.allow("alice", ["manager"])
        hive.broker.unregister("alice")
        await hive.broker.register("alice", paused=False)
        await refused(hive, "bob")

    async with hive_at(path, "alice", "bob") as hive:
        assert hive.broker.allowed("alice") == {"manager"}
        await refused(hive, "bob")


async def test_a_list_is_told_to_whoever_shows_the_row(hive: Hive) -> None:
    hive.changed.clear()

    await hive.broker.allow("alice", ["bob"])

    assert hive.changed == ["alice"]


async def test_nobody_gets_a_list_that_is_not_there(hive: Hive) -> None:
    with pytest.raises(Refused) as caught:
        await hive.broker.allow("dave", ["bob"])

    assert caught.value.code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize(
    ("to", "may"), [("bob", True), ("manager", True), ("carol", False), ("operator", False)]
)
async def test_a_question_goes_where_a_message_may(hive: Hive, to: str, may: bool) -> None:
    await hive.broker.allow("alice", ["bob"])
    asking = questions_of(hive)

    if may:
        assert await asking.ask("alice", to, "why?") == 1
    else:
        with pytest.raises(Refused) as caught:
            await asking.ask("alice", to, "why?")
        assert caught.value.text.startswith("cannot ask: alice may write to bob, manager only")


@pytest.mark.parametrize(("asker", "may"), [("bob", True), ("operator", True), ("carol", False)])
async def test_an_answer_goes_where_a_message_may_and_to_the_operator_who_asked(
    hive: Hive, asker: str, may: bool
) -> None:
    await hive.broker.allow("alice", ["bob"])
    asking = questions_of(hive)
    question = await asking.ask(asker, "alice", "why?")

    if may:
        await asking.answer(question, "because", by="alice")
    else:
        with pytest.raises(Refused) as caught:
            await asking.answer(question, "because", by="alice")
        assert caught.value.text.startswith("cannot answer: alice may write to")
        await asking.answer(question, "because", by="operator")


async def test_of_two_lists_that_are_given_at_once_the_one_on_disk_holds(hive: Hive) -> None:
    await hive.store.write(
        lambda db: db.execute(
            "insert into agents (name, wanted, created_at) values ('alice', 'running', 1)"
        ).fetchall()
    )
    async with trio.open_nursery() as nursery:
        for name in ("bob", "carol", "dave"):
            nursery.start_soon(hive.broker.allow, "alice", [name])

    in_memory = hive.broker.allowed("alice")
    await hive.broker.register("alice", paused=False)

    assert hive.broker.allowed("alice") == in_memory

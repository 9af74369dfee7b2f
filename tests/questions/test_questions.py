"""Questions over a real store and broker: asked, answered, cancelled, expired, each told exactly once."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.broker import Broker
from hive_core.questions import MAX_ENDED, Questions
from hive_core.store import questions as rows
from hive_core.store import repeats
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_BODY_BYTES, MAX_OPEN_QUESTIONS

NOON = 1_000_000.0


class Wall:
    """A wall clock that somebody may set; it runs with trio's."""

    def __init__(self) -> None:
        self.set_by = NOON

    def __call__(self) -> float:
        return trio.current_time() + self.set_by


class Hive:
    def __init__(self, store: Store[MailboxOp], wall: Wall) -> None:
        self.store, self.wall = store, wall
        self.broker = Broker(store, announce=lambda _message: None, changed=lambda _agent: None, clock=wall)
        self.questions = Questions(
            store,
            leave=self.broker.leave_with,
            is_agent=lambda name: name in self.broker.agents,
            clock=wall,
        )

    async def inbox(self, agent: str) -> list[dict[str, object]]:
        messages = await self.broker.recv(agent, 32, None).wait()
        assert all(message.sender == "system" for message in messages)
        return [json.loads(message.body) for message in messages]

    async def operator_inbox(self) -> list[dict[str, object]]:
        def read(db: apsw.Connection) -> list[str]:
            found = db.execute("select body from messages where recipient = 'operator' order by id")
            return [str(body) for (body,) in found]

        return [json.loads(body) for body in await self.store.read(read)]

    async def elapse(self, clock: MockClock, seconds: float) -> None:
        """Let time pass, and the watchdog do what it does meanwhile: the writer's thread knows no mock clock."""
        while seconds > 0:
            clock.jump(min(seconds, 10))
            seconds -= 10
            await self.settle()

    async def settle(self) -> None:
        for _ in range(2):
            await wait_all_tasks_blocked()
            await self.store.write(lambda _db: None)
            await wait_all_tasks_blocked()
            await self.store.read(lambda _db: None)

    async def question(self, question_id: int) -> rows.Question:
        question = await self.store.read(rows.get, question_id)
        assert question is not None
        return question


@asynccontextmanager
async def hive_at(path: Path, *agents: str) -> AsyncIterator[Hive]:
    async with open_store(path, apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, Wall())
        await hive.broker.recover()
        await nursery.start(hive.broker.run)
        for agent in agents:
            await hive.broker.register(agent, paused=False)
        await nursery.start(hive.questions.run)
        yield hive
        nursery.cancel_scope.cancel()


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    async with hive_at(tmp_path / "broker.sqlite", "alice", "bob") as hive:
        yield hive


async def test_a_question_to_an_agent_comes_into_its_inbox(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?", options=["red", "blue"], multi=True)

    assert await hive.inbox("bob") == [
        {
            "event": "question_asked",
            "id": question_id,
            "asker": "alice",
            "question": "Which one?",
            "options": ["red", "blue"],
            "multi": True,
        }
    ]


async def test_a_question_to_the_operator_waits_in_the_list_of_open_ones(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "operator", "May I?")

    open_ones = await hive.store.read(rows.all_open, 10)

    assert [(each.id, each.asker, each.target) for each in open_ones] == [(question_id, "alice", None)]
    assert await hive.operator_inbox() == []


@pytest.mark.parametrize("by", ["bob", "operator"])
async def test_its_target_or_the_operator_answers_and_the_asker_is_told_once(hive: Hive, by: str) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    await hive.questions.answer(question_id, "the red one", by=by)

    told = {"event": "question_answered", "id": question_id, "question": "Which one?"}
    assert await hive.inbox("alice") == [told | {"answer": "the red one", "answerer": by}]
    question = await hive.question(question_id)
    assert (question.answer, question.answerer) == ("the red one", by)
    assert question.answered_at is not None


async def test_the_operators_own_question_is_answered_into_the_operators_inbox(hive: Hive) -> None:
    question_id = await hive.questions.ask("operator", "bob", "How far?")

    await hive.questions.answer(question_id, "half", by="bob")

    assert [event["answer"] for event in await hive.operator_inbox()] == ["half"]


async def test_a_second_answer_loses(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")
    await hive.questions.answer(question_id, "red", by="bob")

    with pytest.raises(Refused) as refusal:
        await hive.questions.answer(question_id, "blue", by="operator")

    assert (refusal.value.code, refusal.value.reason) == (ErrorCode.CONFLICT, "answered")
    assert "bob ended it already" in refusal.value.text
    assert len(await hive.inbox("alice")) == 1


async def test_of_two_answers_at_once_one_wins(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")
    refused: list[Refused] = []

    async def answer(text: str, by: str) -> None:
        try:
            await hive.questions.answer(question_id, text, by=by)
        except Refused as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer, "red", "bob")
        nursery.start_soon(answer, "blue", "operator")

    assert [error.code for error in refused] == [ErrorCode.CONFLICT]
    assert [event["answer"] for event in await hive.inbox("alice")] == [
        (await hive.question(question_id)).answer
    ]


async def test_nobody_else_learns_that_there_is_such_a_question(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "operator", "May I?")

    for ask in (
        hive.questions.answer(question_id, "yes", by="bob"),
        hive.questions.cancel(question_id, by="bob"),
        hive.questions.cancel(question_id + 1, by="alice"),
    ):
        with pytest.raises(Refused) as refusal:
            await ask
        assert refusal.value.code is ErrorCode.NOT_FOUND
        assert "there is no such question" in refusal.value.text


async def test_who_asked_cannot_answer_in_the_targets_place(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    with pytest.raises(Refused, match="it was asked of bob") as refusal:
        await hive.questions.answer(question_id, "red", by="alice")

    assert refusal.value.code is ErrorCode.FORBIDDEN


@pytest.mark.parametrize(("by", "answer"), [("alice", "[cancelled by alice]"), ("operator", "[cancelled]")])
async def test_the_asker_or_the_operator_cancels(hive: Hive, by: str, answer: str) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    await hive.questions.cancel(question_id, by=by)

    assert [event["answer"] for event in await hive.inbox("alice")] == [answer]
    with pytest.raises(Refused, match="cannot cancel"):
        await hive.questions.cancel(question_id, by=by)


async def test_the_target_cannot_cancel(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    with pytest.raises(Refused, match="it was asked by alice"):
        await hive.questions.cancel(question_id, by="bob")


async def test_options_are_chosen_by_number(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which?", options=["a", "b", "c"], multi=True)

    said = await hive.questions.choose(question_id, [3, 1, 3], by="operator")

    assert said == "c, a"
    assert [event["answer"] for event in await hive.inbox("alice")] == ["c, a"]


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "cannot choose option 3: it has 2"), ([1, 2], "the question wants one")]
)
async def test_options_that_are_not_there_are_refused(hive: Hive, numbers: list[int], text: str) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which?", options=["a", "b"])

    with pytest.raises(Refused, match=text):
        await hive.questions.choose(question_id, numbers, by="operator")

    assert (await hive.question(question_id)).is_open


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"to": "alice"}, "it is you who would have to answer"),
        ({"to": "carol"}, "no agent is named 'carol'"),
        ({"question": " \n"}, "the question is empty"),
        ({"question": "ü" * 4097}, "8194 bytes, the limit is 8192"),
        ({"options": ["x"] * 33}, "33 options, the limit is 32"),
        ({"options": [""]}, "an option has 1 to 200 characters"),
        ({"ttl_seconds": 6 * 3600 + 1}, "at most 21600"),
    ],
)
async def test_what_cannot_be_asked_is_refused_and_nothing_is_kept(
    hive: Hive, change: dict[str, object], text: str
) -> None:
    asking = {"to": "bob", "question": "Which one?"} | change

    with pytest.raises(Refused, match=text):
        await hive.questions.ask("alice", **asking)  # type: ignore[arg-type]

    assert await hive.store.read(rows.newest, 10) == []


async def test_one_agent_cannot_fill_the_list(hive: Hive) -> None:
    for _ in range(MAX_OPEN_QUESTIONS):
        last = await hive.questions.ask("alice", "operator", "May I?")

    with pytest.raises(Refused, match="alice has 100 open questions, the limit"):
        await hive.questions.ask("alice", "operator", "May I?")

    await hive.questions.ask("bob", "operator", "May I?")
    await hive.questions.cancel(last, by="alice")
    await hive.questions.ask("alice", "operator", "May I?")


# ── time ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_question_whose_time_is_up_answers_itself(hive: Hive, mock_clock: MockClock) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?", ttl_seconds=100)

    await hive.elapse(mock_clock, 99)
    assert (await hive.question(question_id)).is_open
    await hive.elapse(mock_clock, 2)

    question = await hive.question(question_id)
    assert (question.answer, question.answerer) == ("[expired]", "ttl-watchdog")
    assert [event["answer"] for event in await hive.inbox("alice")] == ["[expired]"]


async def test_an_answer_in_time_is_the_only_one(hive: Hive, mock_clock: MockClock) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?", ttl_seconds=100)
    await hive.questions.answer(question_id, "red", by="bob")

    await hive.elapse(mock_clock, 200)

    assert [event["answer"] for event in await hive.inbox("alice")] == ["red"]


async def test_times_that_ran_out_while_the_daemon_was_down_end_once_at_the_start(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    path = tmp_path / "broker.sqlite"
    async with hive_at(path, "alice", "bob") as hive:
        for number in range(MAX_ENDED + 1):
            await hive.questions.ask("alice" if number % 2 else "bob", "operator", "May I?", ttl_seconds=10)

    mock_clock.jump(1000)
    for _ in range(2):
        async with hive_at(path, "alice", "bob") as hive:
            await hive.elapse(mock_clock, 1)
            told = [await hive.inbox("alice") for _ in range(3)] + [await hive.inbox("bob") for _ in range(3)]

    answers = [event["answer"] for events in told for event in events]
    assert answers == ["[expired]"] * (MAX_ENDED + 1)


async def test_the_wall_clock_may_be_set_in_either_direction(hive: Hive, mock_clock: MockClock) -> None:
    early = await hive.questions.ask("alice", "bob", "Which one?", ttl_seconds=3600)
    hive.wall.set_by += 7200
    await hive.elapse(mock_clock, 31)
    assert (await hive.question(early)).answer == "[expired]"

    late = await hive.questions.ask("alice", "bob", "Which one?", ttl_seconds=3600)
    hive.wall.set_by -= 7200
    await hive.elapse(mock_clock, 3700)
    assert (await hive.question(late)).is_open
    await hive.elapse(mock_clock, 7200)
    assert (await hive.question(late)).answer == "[expired]"


# ── what is lost and what is not ────────────────────────────────────────────────────────────────


async def test_the_answer_to_one_who_is_gone_is_kept(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")
    hive.broker.unregister("alice")

    await hive.questions.answer(question_id, "red", by="bob")

    assert (await hive.question(question_id)).answer == "red"


async def test_a_question_and_its_message_are_stored_together_or_not_at_all(
    hive: Hive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: object) -> None:
        raise apsw.FullError("database or disk is full")

    monkeypatch.setattr("hive_core.store.mailbox.insert_posts", full)
    with pytest.raises(Refused, match="cannot store"):
        await hive.questions.ask("alice", "bob", "Which one?")
    monkeypatch.undo()

    await wait_all_tasks_blocked()
    assert await hive.store.read(rows.newest, 10) == []
    assert await hive.inbox("bob") == []


# ── repeats ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_repeated_key_asks_once(hive: Hive) -> None:
    first = await hive.questions.ask("alice", "bob", "Which one?", key="k")
    again = await hive.questions.ask("alice", "bob", "Which one?", key="k")
    await hive.questions.ask("bob", "alice", "Which one?", key="k")
    other = await hive.questions.ask("alice", "bob", "Which one?", key="l")

    assert again == first
    assert [event["id"] for event in await hive.inbox("bob")] == [first, other]


async def test_a_repeated_answer_is_the_same_one_and_no_second(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    for _ in range(2):
        await hive.questions.answer(question_id, "red", by="bob", key="k")
    with pytest.raises(Refused, match="bob ended it already"):
        await hive.questions.answer(question_id, "red", by="bob", key="l")

    assert [event["answer"] for event in await hive.inbox("alice")] == ["red"]


async def test_a_repeated_cancel_is_the_same_one(hive: Hive) -> None:
    question_id = await hive.questions.ask("alice", "bob", "Which one?")

    for _ in range(2):
        await hive.questions.cancel(question_id, by="alice", key="k")

    assert [event["answer"] for event in await hive.inbox("alice")] == ["[cancelled by alice]"]


async def test_what_is_remembered_of_an_agent_is_bounded(hive: Hive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_REMEMBERED", 3)
    kept = await hive.questions.ask("bob", "alice", "Which one?", key="0")
    asked = [await hive.questions.ask("alice", "bob", "Which one?", key=f"{n}") for n in range(5)]

    def count(db: apsw.Connection) -> object:
        return db.execute("select count(*) from repeats where agent = 'alice'").fetchall()[0][0]

    assert await hive.store.read(count) == 3
    assert await hive.questions.ask("alice", "bob", "Which one?", key="2") == asked[2]
    assert await hive.questions.ask("bob", "alice", "Which one?", key="0") == kept


# ── what fits ───────────────────────────────────────────────────────────────────────────────────


async def test_whatever_is_said_fits_a_message(hive: Hive) -> None:
    # As JSON a control character takes six bytes.
    with pytest.raises(Refused, match="with its options it is too large for a message"):
        await hive.questions.ask("alice", "bob", "\x01" * 8192)
    question_id = await hive.questions.ask("alice", "bob", "\x01" * 5000, options=["\x02" * 200] * 20)

    with pytest.raises(Refused, match="with its question it is too large for a message"):
        await hive.questions.answer(question_id, "\x01" * 32768, by="bob")
    assert (await hive.question(question_id)).is_open
    await hive.questions.answer(question_id, "x" * 32768, by="bob")

    def longest(db: apsw.Connection) -> object:
        return db.execute("select max(length(cast(body as blob))) from messages").fetchall()[0][0]

    assert await hive.store.read(longest) <= MAX_BODY_BYTES  # type: ignore[operator]


# ── those who are gone for good ─────────────────────────────────────────────────────────────────


async def test_questions_of_and_to_an_agent_that_was_purged_end(hive: Hive) -> None:
    await hive.broker.register("carol", paused=False)
    to_bob = [await hive.questions.ask("alice", "bob", "Which one?") for _ in range(MAX_ENDED + 1)]
    by_bob = await hive.questions.ask("bob", "operator", "May I?")
    done = await hive.questions.ask("carol", "bob", "Which one?")
    await hive.questions.answer(done, "red", by="bob")
    other = await hive.questions.ask("carol", "alice", "Which one?")
    hive.broker.unregister("bob")

    for _ in range(2):
        await hive.questions.end_those_of("bob")

    told: list[dict[str, object]] = []
    while events := await hive.inbox("alice"):
        told += events
    ended = [event for event in told if event["event"] == "question_answered"]
    assert [event["id"] for event in ended] == to_bob
    assert {(event["answer"], event["answerer"]) for event in ended} == {("[bob was purged]", "system")}
    assert (await hive.question(by_bob)).answer == "[bob was purged]"
    assert (await hive.question(done)).answer == "red"
    assert (await hive.question(other)).is_open


@pytest.mark.parametrize("find", [rows.all_open, rows.open_by, rows.open_for, rows.due, rows.count_open_of])
async def test_no_look_at_the_open_ones_goes_through_all_that_were_ever_asked(
    hive: Hive, find: Callable[..., object]
) -> None:
    def plan(db: apsw.Connection) -> list[str]:
        seen: list[str] = []
        asked = {rows.all_open: (5,), rows.due: (NOON, 5), rows.count_open_of: ("bob",)}
        statements: list[tuple[str, object]] = []

        def note(_cursor: object, sql: str, bindings: object) -> bool:
            statements.append((sql, bindings))
            return True

        db.exec_trace = note
        try:
            find(db, *asked.get(find, ("bob", 5)))
        finally:
            db.exec_trace = None
        for sql, bindings in statements:
            seen += [str(row[3]) for row in db.execute(f"explain query plan {sql}", bindings)]  # type: ignore[arg-type]
        return seen

    assert all("questions_open" in step or "TEMP B-TREE" in step for step in await hive.store.read(plan))

"""Questions, reminders and open threads as a model meets them: ask, answer, remind, get_open_threads,
cancel_thread.
"""

import json
import random
import threading
import time
from typing import Any

import pytest

from hive_core.wire.limits import MAX_LINE_BYTES

from .conftest import Daemon, Mcp, wait_until
from .test_bridge import bridged


def text_of(result: dict[str, Any]) -> str:
    (content,) = result["content"]
    return str(content["text"])


def id_of(result: dict[str, Any]) -> int:
    assert "isError" not in result, result
    return int(result["structuredContent"]["id"])


def events_of(client: Mcp) -> list[dict[str, Any]]:
    """What `system` tells, taken."""
    messages = client.recv(max=32)
    assert {message["sender"] for message in messages} <= {"system"}
    return [json.loads(message["body"]) for message in messages]


def threads_of(client: Mcp) -> list[dict[str, Any]]:
    threads: list[dict[str, Any]] = client.tool("get_open_threads")["structuredContent"]["threads"]
    return threads


# ── questions ───────────────────────────────────────────────────────────────────────────────────


def test_a_question_goes_to_a_peer_and_its_answer_comes_back(shared: Daemon) -> None:
    with shared.mcp("alice") as alice, shared.mcp("bob") as bob:
        asked = alice.tool("ask", question="Which one?", options=["red", "blue"], multi=True, to="bob")
        question_id = id_of(asked)
        assert (
            text_of(asked) == f"Asked as question {question_id}. The answer comes as a message from system."
        )
        assert events_of(bob) == [
            {
                "event": "question_asked",
                "id": question_id,
                "asker": "alice",
                "question": "Which one?",
                "options": ["red", "blue"],
                "multi": True,
            }
        ]
        for client in (alice, bob):
            text = text_of(client.tool("get_open_threads"))
            assert f"question {question_id} (alice asks bob): Which one?" in text.splitlines()

        assert text_of(bob.tool("answer", id=question_id, answer="red, blue")) == "Answered."

        (told,) = events_of(alice)
        assert (told["event"], told["answer"], told["answerer"]) == ("question_answered", "red, blue", "bob")
        assert threads_of(alice) == threads_of(bob) == []


def test_the_operator_answers_by_number(shared: Daemon) -> None:
    with shared.mcp() as alice:
        question_id = id_of(alice.tool("ask", question="May I?", options=["yes", "no"]))
        (row,) = shared.ask("questions")["questions"]
        assert (row["id"], row["asker"], row["target"]) == (question_id, "alice", "operator")

        assert shared.ask("answer", id=question_id, options=[2])["answer"] == "no"

        assert [event["answer"] for event in events_of(alice)] == ["no"]


def test_a_question_of_the_operator_is_answered_into_its_inbox(shared: Daemon) -> None:
    question_id = shared.ask("ask", agent="alice", question="How far?")["id"]
    with shared.mcp() as alice:
        assert [event["asker"] for event in events_of(alice)] == ["operator"]
        alice.tool("answer", id=question_id, answer="half")

    body = json.loads(shared.ask("inbox", agent="operator")["messages"][-1]["body"])
    assert (body["event"], body["id"], body["answer"]) == ("question_answered", question_id, "half")


def test_a_question_that_is_not_one_s_own_is_not_there(shared: Daemon) -> None:
    with shared.mcp("alice") as alice, shared.mcp("bob") as bob:
        question_id = id_of(alice.tool("ask", question="Secret?"))
        for result in (
            bob.tool("answer", id=question_id, answer="x"),
            bob.tool("cancel_thread", kind="question", id=question_id),
        ):
            assert result["isError"]
            assert text_of(result).endswith("there is no such question")
        assert "it was asked of operator" in text_of(alice.tool("answer", id=question_id, answer="x"))
        assert threads_of(bob) == []

        assert text_of(alice.tool("cancel_thread", kind="question", id=question_id)) == "Cancelled."
        assert [event["answer"] for event in events_of(alice)] == ["[cancelled by alice]"]


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("ask", {}, "missing required field `question`"),
        ("ask", {"question": " "}, "cannot ask: the question is empty"),
        ("ask", {"question": "x", "to": "alice"}, "it is you who would have to answer"),
        ("ask", {"question": "x", "to": "nobody"}, "no agent is named 'nobody'"),
        ("ask", {"question": "x", "to": "*"}, "no agent is named '*'"),
        ("ask", {"question": "x" * 8193}, "8193 bytes, the limit is 8192"),
        ("ask", {"question": "x", "options": ["o"] * 33}, "33 options, the limit is 32"),
        ("ask", {"question": "x", "options": ["o" * 201]}, "1 to 200 characters"),
        ("ask", {"question": "x", "options": "red"}, "Expected `array`"),
        ("ask", {"question": "x", "ttl_seconds": 0}, "> 0"),
        ("ask", {"question": "x", "ttl_seconds": 21601}, "at most 21600"),
        ("ask", {"question": "x", "option": ["red"]}, "did you mean 'options'"),
        ("answer", {"id": 10**6, "answer": "x"}, "there is no such question"),
        ("answer", {"id": 2**70, "answer": "x"}, "cannot call answer"),
        ("answer", {"id": 1}, "missing required field `answer`"),
        ("answer", {"id": 1, "answer": ""}, "cannot answer"),
        ("remind", {"message": "x"}, "give either delay_seconds or at"),
        ("remind", {"message": "x", "delay_seconds": 1, "at_unix_timestamp": 1}, "give either delay_seconds"),
        ("remind", {"message": "", "delay_seconds": 1}, "the message is empty"),
        ("remind", {"message": "x", "delay_seconds": -1}, ">= 0"),
        ("remind", {"message": "x", "delay_seconds": 1e30}, "more than 366 days away"),
        ("remind", {"message": "x" * 65537, "delay_seconds": 1}, "the limit is 65536"),
        ("remind", {"message": "x", "delay_seconds": 1, "file_path": "../x"}, "no file below"),
        ("remind", {"message": "x", "delay_seconds": 1, "file_path": "/agents/bob/state/x"}, "no file below"),
        ("cancel_thread", {"kind": "message", "id": 1}, "Invalid enum value 'message'"),
        ("cancel_thread", {"kind": "reminder", "id": 10**6}, "there is no such reminder"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_nothing_is_kept(
    shared: Daemon, name: str, arguments: dict[str, Any], words: str
) -> None:
    with shared.mcp() as alice:
        result = alice.tool(name, **arguments)

        assert result["isError"]
        assert text_of(result).startswith("cannot ")
        assert words in text_of(result)
        assert threads_of(alice) == []


# ── reminders ───────────────────────────────────────────────────────────────────────────────────


def test_a_reminder_is_kept_counted_shown_and_cancelled(shared: Daemon) -> None:
    with shared.mcp() as alice, shared.harness() as harness:
        kept = alice.tool("remind", message="look\nagain", delay_seconds=3600)
        reminder_id = id_of(kept)
        assert text_of(kept).startswith(f"Reminder {reminder_id} comes at 2")
        assert harness.call("count_pending_reminders") == {"pending": 1}
        wait_until(lambda: shared.row("alice")["pending_reminders"] == 1, "the row counts it")
        (thread,) = threads_of(alice)
        assert (thread["kind"], thread["text"]) == ("reminder", "look\nagain")

        alice.tool("cancel_thread", kind="reminder", id=reminder_id)

        assert harness.call("count_pending_reminders") == {"pending": 0}
        assert threads_of(alice) == []


def test_a_reminder_comes_as_a_message_from_reminder(shared: Daemon) -> None:
    with shared.mcp() as alice:
        alice.tool("remind", message="look again", delay_seconds=0.1)
        (message,) = alice.recv(wait_seconds=10)

    assert (message["sender"], message["body"]) == ("reminder", "look again")


# ── repeats ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("meta", [{"hyperhive/key": "k1"}, {"claudecode/toolUseId": "toolu_1"}])
def test_a_repeated_call_does_it_once(daemon: Daemon, meta: dict[str, Any]) -> None:
    with daemon.mcp("alice") as alice, daemon.mcp("bob") as bob:
        asked = [id_of(alice.tool("ask", meta, question="Which one?", to="bob")) for _ in range(2)]
        assert asked[0] == asked[1]
        assert len(events_of(bob)) == 1
        for _ in range(2):
            assert text_of(bob.tool("answer", meta, id=asked[0], answer="red")) == "Answered."
        assert len(events_of(alice)) == 1
        kept = [id_of(alice.tool("remind", meta, message="x", delay_seconds=99)) for _ in range(2)]
        assert kept[0] == kept[1]
        for _ in range(2):
            assert text_of(alice.tool("cancel_thread", meta, kind="reminder", id=kept[0])) == "Cancelled."


def test_the_bridge_s_calls_are_done_once_however_often_the_daemon_dies(daemon: Daemon) -> None:
    chance = random.Random(7)
    asked: list[int] = []
    with bridged(daemon.path()) as bridge:
        bridge.greet()
        for number in range(6):
            pending = [
                bridge.begin_tool("ask", question=f"q{number}", to="bob"),
                bridge.begin_tool("remind", message=f"r{number}", delay_seconds=1000),
            ]
            time.sleep(chance.uniform(0, 0.006))
            daemon.kill()
            daemon.start()
            answers = {answer["id"]: answer["result"] for answer in (bridge.read() for _ in pending)}
            asked.append(id_of(answers[pending[0]]))
            id_of(answers[pending[1]])

    rows = daemon.ask("questions")["questions"]
    assert [row["question"] for row in rows] == [f"q{number}" for number in range(6)]
    assert [row["id"] for row in rows] == asked
    told = [json.loads(row["body"])["id"] for row in daemon.inbox("bob")]
    assert sorted(told) == asked
    reminders = daemon.ask("reminders")["reminders"]
    assert sorted(row["message"] for row in reminders) == [f"r{number}" for number in range(6)]


# ── an agent that means harm ────────────────────────────────────────────────────────────────────


def test_a_flood_of_questions_is_bounded_and_buries_nobody(daemon: Daemon) -> None:
    with daemon.mcp("alice") as alice, daemon.mcp("bob") as bob:
        bobs = id_of(bob.tool("ask", question="Bob's own?"))
        for _ in range(100):
            id_of(alice.tool("ask", question="x" * 8000, options=["ü" * 200] * 32, to="bob"))
        result = alice.tool("ask", question="one more", to="bob")
        assert "alice has 100 open questions, the limit" in text_of(result)

        threads = threads_of(bob)
        assert len(threads) == 101
        assert bobs in [thread["id"] for thread in threads]
        assert max(len(thread["text"]) for thread in threads) < 1100
        line = json.dumps(bob.tool("get_open_threads"))
        assert len(line) < MAX_LINE_BYTES
        assert id_of(bob.tool("ask", question="He may still ask?"))
    assert len(daemon.ask("questions", limit=1000)["questions"]) < 102
    taken: list[str] = []
    with daemon.mcp("bob") as bob:
        while messages := bob.recv(max=32):
            taken += [message["body"] for message in messages]
    assert len(taken) == 100


def test_a_flood_of_reminders_is_bounded_and_delays_nobody_s(daemon: Daemon) -> None:
    stop = threading.Event()

    def flood() -> None:
        with daemon.mcp("alice") as alice:
            while not stop.is_set():
                alice.tool("remind", message="x" * 5000, delay_seconds=0)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        wait_until(lambda: daemon.inbox("alice"), "the flood comes")
        with daemon.mcp("bob") as bob:
            began = time.monotonic()
            bob.tool("remind", message="mine", delay_seconds=0)
            (message,) = bob.recv(wait_seconds=30)
            assert message["body"] == "mine"
            # Fifty of alice's are written first at most, a process for each.
            assert time.monotonic() - began < 20
    finally:
        stop.set()
        flooding.join()
    assert daemon.row("alice")["pending_reminders"] <= 50

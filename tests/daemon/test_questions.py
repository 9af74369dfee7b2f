"""Questions in a real hive: daemon, harnesses, sockets, and a daemon that dies at any moment."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from .kit import Daemon, Follower, TooLate, refusal, seeded, wait_until

DEATHS = 30


def told(daemon: Daemon, name: str, event: str) -> list[dict[str, Any]]:
    """What `system` has told *name* of that kind so far, taken or not."""
    rows = [row for row in daemon.messages() if (row["sender"], row["recipient"]) == ("system", name)]
    found = [json.loads(row["body"]) for row in rows]
    return [body for body in found if body["event"] == event]


def question(daemon: Daemon, question_id: int) -> dict[str, Any]:
    (row,) = daemon.ask("questions", id=question_id)["questions"]
    return dict(row)


def wait_answer(daemon: Daemon, question_id: int) -> dict[str, Any]:
    wait_until(lambda: "answer" in question(daemon, question_id), f"question {question_id} is answered")
    return question(daemon, question_id)


def the_question_of(daemon: Daemon, asker: str) -> int:
    """The id of the only question of *asker*, as soon as it is asked."""

    def find() -> list[int]:
        rows = daemon.ask("questions", all=True)["questions"]
        return [row["id"] for row in rows if row["asker"] == asker]

    (question_id,) = wait_until(find, f"{asker} has asked")
    return int(question_id)


def hive(daemon: Daemon, *argv: str) -> str:
    """Run `hive` and give what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "hive_core.cli", "--socket", str(daemon.host_socket), *argv],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ── who asks whom ───────────────────────────────────────────────────────────────────────────────


def test_a_question_wakes_its_peer_whose_answer_wakes_the_asker(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice", "bob")

    daemon.wait_acked(daemon.send("alice", "ask bob: Which one? | red | blue"))

    answered = wait_answer(daemon, the_question_of(daemon, "alice"))
    assert (answered["answer"], answered["answerer"]) == ("red", "bob")
    wait_until(lambda: not daemon.inbox("alice") and not daemon.inbox("bob"), "all turns have ended")
    assert len(told(daemon, "bob", "question_asked")) == 1
    assert [body["answer"] for body in told(daemon, "alice", "question_answered")] == ["red"]
    starts = [row["payload"]["from"] for row in daemon.events("alice", "turn_start")]
    assert starts == ["operator", "system"]


def test_the_operator_sees_it_and_answers_with_hive(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    daemon.send("alice", "ask operator: Which one? | red | blue")
    question_id = the_question_of(daemon, "alice")

    assert hive(daemon, "questions").split("\t")[:3] == [str(question_id), "alice", "operator"]
    assert daemon.ask("status")["questions"] == 1
    hive(daemon, "answer", str(question_id), "--option", "2")

    assert [body["answer"] for body in told(daemon, "alice", "question_answered")] == ["blue"]
    assert hive(daemon, "questions") == ""
    wait_until(lambda: not daemon.inbox("alice"), "alice has read it")


def test_hive_ask_waits_for_what_the_agent_says(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")

    assert hive(daemon, "ask", "alice", "How far are you?", "--wait") == "read 4 words\n"
    (body,) = [json.loads(row["body"]) for row in daemon.ask("inbox", agent="operator")["messages"]]
    assert (body["event"], body["answerer"]) == ("question_answered", "alice")


def test_a_question_that_nobody_answers_ends_by_itself_even_if_its_time_ran_out_in_the_dark(
    daemon: Daemon,
) -> None:
    daemon.add_stopped("alice", "bob").start()
    with daemon.agent("alice") as alice:
        first = alice.call("ask", question="May I?", ttl_seconds=0.3)["id"]
        assert wait_answer(daemon, first)["answer"] == "[expired]"
        second = alice.call("ask", question="May I now?", to="bob", ttl_seconds=0.5)["id"]
        kept = alice.call("ask", question="And later?", ttl_seconds=600)["id"]
    daemon.kill()
    time.sleep(0.6)
    daemon.start()

    assert wait_answer(daemon, second)["answerer"] == "ttl-watchdog"
    daemon.stop()
    daemon.start()
    assert "answer" not in question(daemon, kept)
    answers = [(body["id"], body["answer"]) for body in told(daemon, "alice", "question_answered")]
    assert answers == [(first, "[expired]"), (second, "[expired]")]


def test_the_second_answer_is_refused_to_whoever_gives_it(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob").start()
    with daemon.agent("alice") as alice:
        question_id = alice.call("ask", question="Which one?", to="bob")["id"]
    refusals: list[str] = []

    def answer(text: str) -> None:
        failed = None
        try:
            daemon.ask("answer", id=question_id, answer=text)
        except Exception as error:
            failed = error
        if failed is not None:
            refusals.append(str(failed))

    racers = [threading.Thread(target=answer, args=(f"{number}",)) for number in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()

    assert len(refusals) == 7
    assert all("operator ended it already" in text for text in refusals)
    assert len(told(daemon, "alice", "question_answered")) == 1


# ── agents that go ──────────────────────────────────────────────────────────────────────────────


def test_a_destroyed_agent_s_questions_stay_and_a_purged_one_s_end(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice", "bob")
    with daemon.mcp("alice") as alice, daemon.mcp("bob") as bob:
        to_bob = alice.tool("ask", question="sleep 300", to="bob")["structuredContent"]["id"]
        by_bob = bob.tool("ask", question="May I?")["structuredContent"]["id"]
        bob.tool("remind", message="secret", delay_seconds=3600)

    def gone() -> bool:
        return "bob" not in daemon.ask("list")["agents"]

    daemon.ask("destroy", name="bob")
    wait_until(gone, "bob is gone")
    assert "answer" not in question(daemon, to_bob)
    assert len(daemon.ask("reminders")["reminders"]) == 1

    daemon.spawn("bob")
    assert daemon.row("bob")["pending_reminders"] == 1
    daemon.ask("destroy", name="bob", purge=True)
    wait_until(gone, "bob is gone for good")

    for question_id in (to_bob, by_bob):
        ended = question(daemon, question_id)
        assert (ended["answer"], ended["answerer"]) == ("[bob was purged]", "system")
    assert daemon.ask("reminders")["reminders"] == []
    assert [body["answer"] for body in told(daemon, "alice", "question_answered")] == ["[bob was purged]"]
    daemon.spawn("bob")
    assert daemon.row("bob").get("pending_reminders", 0) == 0
    with daemon.mcp("bob") as bob:
        assert bob.tool("get_open_threads")["structuredContent"]["threads"] == []


def test_an_agent_that_is_destroyed_while_questions_fly_breaks_nothing(daemon: Daemon) -> None:
    chance = seeded("destroy in flight")
    daemon.start()
    daemon.spawn("alice", "bob")
    stop = threading.Event()
    asked: list[int] = []

    def ask() -> None:
        with daemon.mcp("alice") as alice:
            while not stop.is_set():
                result = alice.tool("ask", question="answer: yes", to="bob")
                if "isError" not in result:
                    asked.append(result["structuredContent"]["id"])
                    time.sleep(0.01)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for purge in (False, True, True):
            time.sleep(chance.uniform(0.05, 0.4))
            daemon.ask("destroy", name="bob", purge=purge)
            wait_until(lambda: "bob" not in daemon.ask("list")["agents"], "bob is gone")
            daemon.spawn("bob")
    finally:
        stop.set()
        asking.join()

    def all_ended() -> bool:
        return not [row for row in daemon.ask("questions", limit=1000)["questions"] if row["target"] == "bob"]

    wait_until(all_ended, "every question has ended", 30)
    ended = [body["id"] for body in told(daemon, "alice", "question_answered")]
    assert sorted(ended) == sorted(asked)


# ── a daemon that dies ──────────────────────────────────────────────────────────────────────────


@pytest.mark.timeout(300)
def test_a_daemon_that_dies_at_any_moment_doubles_and_loses_nothing(daemon: Daemon) -> None:
    chance = seeded("kills round questions")
    daemon.start()
    daemon.spawn("alice", "bob")
    sent: list[int] = []
    for number in range(DEATHS):
        key = f"round {number}"
        line = f"ask bob: round {number}? | yes\nremind 0.05: say operator: woken {number}"
        sent.append(daemon.send("alice", line, idempotency_key=key))
        time.sleep(chance.uniform(0, 0.25))
        daemon.kill()
        daemon.start()
    try:
        wait_until(
            lambda: not daemon.inbox("alice") and not daemon.inbox("bob"), "all turns have ended", 90, 0.2
        )
        wait_until(lambda: not daemon.ask("questions")["questions"], "all is answered", 30)
        wait_until(lambda: not daemon.ask("reminders")["reminders"], "all reminders came", 30)
        wait_until(lambda: not daemon.inbox("alice") and not daemon.inbox("bob"), "all is read", 60, 0.2)
    except TooLate as late:
        raise TooLate(f"{late}\n{daemon.log[-4000:]}") from None

    rounds = sorted(f"round {number}?" for number in range(DEATHS))
    questions = daemon.ask("questions", all=True, limit=1000)["questions"]
    assert sorted(row["question"] for row in questions) == rounds
    assert {row["answer"] for row in questions} == {"yes"}
    assert sorted(body["question"] for body in told(daemon, "bob", "question_asked")) == rounds
    assert sorted(body["question"] for body in told(daemon, "alice", "question_answered")) == rounds
    woken = sorted(f"woken {number}" for number in range(DEATHS))
    messages = daemon.messages()
    assert sorted(row["body"] for row in messages if row["sender"] == "reminder") == sorted(
        f"say operator: {words}" for words in woken
    )
    said = [row["body"] for row in messages if row["recipient"] == "operator" and row["body"] in woken]
    assert sorted(said) == woken


def test_followers_see_each_event_of_a_question_once(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob").start()
    with Follower(daemon, "watch") as watcher, daemon.agent("alice") as alice, daemon.agent("bob") as bob:
        question_id = alice.call("ask", question="Which one?", to="bob")["id"]
        bob.call("answer", id=question_id, answer="red")

        def events(items: list[dict[str, Any]]) -> list[str]:
            bodies = [json.loads(item["message"]["body"]) for item in items if "message" in item]
            return [body["event"] for body in bodies]

        watcher.wait(lambda items: len(events(items)) >= 2, "both are told")
        assert events(watcher.items) == ["question_asked", "question_answered"]


def test_the_state_of_things_outlives_a_crash_of_everything(daemon: Daemon, tmp_path: Path) -> None:
    daemon.add_stopped("alice", "bob").start()
    with daemon.agent("alice") as alice:
        question_id = alice.call("ask", question="Which one?", options=["ü", "a\u2028b"], to="bob")["id"]
        reminder_id = alice.call("remind", message="later", delay_seconds=3600)["id"]
    daemon.kill()
    daemon.start()

    assert question(daemon, question_id)["options"] == ["ü", "a\u2028b"]
    assert [row["id"] for row in daemon.ask("reminders", agent="alice")["reminders"]] == [reminder_id]
    assert daemon.row("alice")["pending_reminders"] == 1
    assert refusal(lambda: daemon.ask("cancel_reminder", id=reminder_id + 1)).code == "not_found"

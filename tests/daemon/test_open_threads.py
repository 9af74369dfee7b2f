"""Open threads in a real hive: the manager sees every question, and each turn is recorded with its own."""

import sqlite3
from contextlib import closing

from .kit import Daemon, wait_until


def test_the_manager_sees_the_questions_of_all_and_others_their_own(daemon: Daemon) -> None:
    daemon.add_stopped("alice", "bob", "manager")
    daemon.start()
    with (
        daemon.agent("alice") as alice,
        daemon.agent("bob") as bob,
        daemon.agent("manager") as manager,
    ):
        asked = alice.call("ask", question="which one?", to="bob")["id"]
        of_operator = alice.call("ask", question="why?")["id"]
        alice.call("remind", message="tea", delay_seconds=3600)

        seen = {
            name: [(thread["kind"], thread["id"]) for thread in client.call("open_threads")["threads"]]
            for name, client in (("alice", alice), ("bob", bob), ("manager", manager))
        }

    questions = [("question", asked), ("question", of_operator)]
    assert seen["alice"][:2] == questions
    assert [kind for kind, _ in seen["alice"][2:]] == ["reminder"]
    assert seen["bob"] == questions[:1]
    assert seen["manager"] == questions
    assert daemon.ask("status")["questions"] == 1


def test_each_turn_is_recorded_with_what_it_left_open(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("alice")
    for text in ("hello", "ask operator: why?", "remind 3600: tea"):
        daemon.wait_acked(daemon.send("alice", text))

    def counts() -> list[tuple[int, int]]:
        path = daemon.state("alice") / "hyperhive-turn-stats.sqlite"
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as db:
            rows = "select open_threads_count, open_reminders_count from turn_stats where ended_at > 0"
            return db.execute(rows + " order by id").fetchall()

    wait_until(lambda: len(counts()) == 3, "three turns are recorded")
    assert counts() == [(0, 0), (1, 0), (2, 1)]

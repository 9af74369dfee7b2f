"""Harnesses and the daemon killed while they talk to each other."""

import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import pytest

from hive_core.wire.client import RequestFailed, TimedOut, Unreachable

from .kit import SOAK_S, Daemon, by, seeded, wait_until

AGENTS = ["ann", "ben", "cem"]
DURATION_S = SOAK_S or 5.0
IMPATIENT = """
[machines]
restart_delay_s = 0.1
restart_delay_max_s = 0.5
restart_limit = 100
"""


@pytest.mark.timeout(DURATION_S + 150)
def test_no_message_is_lost_when_harnesses_and_the_daemon_are_killed_in_mid_turn(daemon: Daemon) -> None:
    rng = seeded("harnesses")
    daemon.config_path.write_text(IMPATIENT)
    daemon.start()
    daemon.spawn(*AGENTS)

    sent: dict[int, tuple[str, str]] = {}
    kills = _talk_and_kill(daemon, rng, sent)

    for name in AGENTS:
        daemon.wait_row(name, limit_s=30, connected=True)
    unfinished: list[dict[str, Any]] = []

    def all_acked() -> bool:
        unfinished[:] = [
            row for row in daemon.messages() if row["recipient"] != "operator" and "acked_at" not in row
        ]
        return not unfinished

    try:
        wait_until(all_acked, "everything is acked", 60, every_s=0.2)
    except AssertionError as late:
        raise AssertionError(f"{late}: {unfinished[:5]}") from None

    rows = daemon.messages()
    stored = {row["id"]: row for row in rows}
    bodies = {(row["sender"], row["recipient"], row["body"]) for row in rows}
    for message_id, (to, word) in sent.items():
        assert stored[message_id]["recipient"] == to
        told = AGENTS[(AGENTS.index(to) + 1) % len(AGENTS)]
        assert (to, told, f"tell {word}") in bodies, f"{to} never did what message {message_id} said"
    assert len({row["pid"] for row in daemon.ask("agent_status")["agent_statuses"]}) == len(AGENTS)
    assert len(daemon.harnesses()) == len(AGENTS)
    print(f"{len(sent)} orders, {len(rows)} messages, {kills} kills")
    redelivered = [row["id"] for row in rows if row.get("redelivered")]
    assert redelivered, "nothing was interrupted: the test tests nothing"


def _talk_and_kill(daemon: Daemon, rng: random.Random, sent: dict[int, tuple[str, str]]) -> int:
    """Give orders for a while, and kill a harness or the daemon now and then."""
    ends = time.monotonic() + DURATION_S
    next_kill = time.monotonic() + 0.5
    kills = number = 0
    while time.monotonic() < ends:
        number += 1
        to, word = rng.choice(AGENTS), f"m{number}"
        told = AGENTS[(AGENTS.index(to) + 1) % len(AGENTS)]
        pause = rng.choice(
            ["sleep 0.01", "sleep 0.05", "sleep 0.2", "sleep 1" if number % 10 == 0 else "sleep 0"]
        )
        body = f"{pause}\nsay {told}: tell {word}\nsleep 0.02"
        message_id = _send_for_sure(daemon, to, body, key=word)
        sent[message_id] = to, word
        time.sleep(0.1)
        if time.monotonic() > next_kill:
            kills += 1
            if kills % 3 == 0:
                daemon.kill()
                daemon.start()
            else:
                victims = daemon.harnesses(rng.choice(AGENTS))
                with suppress(ProcessLookupError):
                    for pid in victims:
                        os.kill(pid, signal.SIGKILL)
            next_kill = time.monotonic() + rng.uniform(0.3, 0.8)
    return kills


def _send_for_sure(daemon: Daemon, to: str, body: str, key: str) -> int:
    for _ in range(100):
        with suppress(Unreachable, TimedOut):
            return daemon.send(to, body, idempotency_key=key)
        time.sleep(0.05)
    raise AssertionError("the daemon is never there")


def test_a_turn_that_was_cut_off_is_done_again_and_says_so(daemon: Daemon) -> None:
    daemon.config_path.write_text(IMPATIENT)
    daemon.start()
    daemon.spawn("ann")
    message_id = daemon.send("ann", "sleep 1")
    daemon.wait_row("ann", turn_state="thinking")
    pid = daemon.row("ann")["pid"]

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: "acked_at" in daemon.message(message_id), "the turn is done again")
    assert daemon.message(message_id)["redelivered"] is True
    events = daemon.ask("events", agent="ann", limit=1000)["events"]
    starts = [row["payload"] for row in events if row["kind"] == "turn_start"]
    assert by("message_id", starts) == [message_id, message_id]
    assert starts[1]["redelivered"] is True
    ids = by("id", events)
    assert ids == sorted(set(ids))


def test_two_agents_keep_talking_through_the_death_of_the_daemon(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann", "ben")
    pids = sorted(daemon.harnesses())
    first = daemon.send("ann", "sleep 0.5\nsay ben: sleep 0.5")
    daemon.wait_row("ann", turn_state="thinking")
    # That it was handed out reaches the disk a moment later; without it the cause below cannot be known.
    wait_until(lambda: "delivered_at" in daemon.message(first), "it is on disk that ann has it")
    daemon.kill()
    time.sleep(0.6)  # ann wants to speak to ben now, and there is nobody to take it
    daemon.start()

    def answered() -> list[dict[str, Any]]:
        return [
            row
            for row in daemon.messages()
            if (row["sender"], row["recipient"]) == ("ben", "ann") and "acked_at" in row
        ]

    wait_until(answered, "ben has answered ann")
    orders = [row for row in daemon.messages() if (row["sender"], row["recipient"]) == ("ann", "ben")]
    assert len(orders) == 1, "it was said once though it was asked twice"
    assert orders[0]["cause_id"] == first, "the new daemon knows what ann is working on"
    assert "acked_at" in daemon.message(first)
    assert sorted(daemon.harnesses()) == pids


def test_a_paused_agent_works_on_nothing_until_it_is_resumed(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann")
    daemon.ask("set_paused", name="ann", paused=True)
    message_id = daemon.send("ann", "hello")
    daemon.kill()
    daemon.start()
    daemon.wait_row("ann", connected=True, paused=True)
    time.sleep(0.3)
    assert "delivered_at" not in daemon.message(message_id)

    daemon.ask("set_paused", name="ann", paused=False)

    wait_until(lambda: "acked_at" in daemon.message(message_id), "it works on it")


def test_an_agent_destroyed_in_mid_turn_is_gone(daemon: Daemon) -> None:
    daemon.start()
    daemon.spawn("ann", "ben")
    daemon.send("ann", "sleep 100")
    daemon.wait_row("ann", turn_state="thinking")

    daemon.ask("destroy", name="ann")

    wait_until(lambda: daemon.ask("list")["agents"] == ["ben"], "ann is gone")
    assert daemon.harnesses("ann") == []
    message_id = daemon.send("ben", "say ann: are you there?")
    wait_until(lambda: "acked_at" in daemon.message(message_id), "ben goes on")
    answer = [row for row in daemon.messages() if row.get("in_reply_to") == message_id]
    assert "could not tell ann" in answer[0]["body"]
    try:
        daemon.ask("cancel_turn", agent="ann")
    except RequestFailed as failed:
        assert failed.code == "not_found"

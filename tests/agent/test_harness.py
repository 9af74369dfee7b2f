import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from hive_agent.config import Config
from hive_agent.control import RESUBSCRIBE_S
from hive_agent.events import Emit
from hive_agent.harness import CannotStart, run, serve
from hive_agent.providers import Capabilities, TurnPrompt, TurnResult
from hive_agent.providers.scripted import Scripted
from hive_agent.tools import Tools
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused

from .conftest import StartHarness
from .fake_daemon import FakeDaemon
from .fakes import FAILED, OK, FakeProvider, message


async def sleep_ten(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
    await trio.sleep(10)
    return OK


async def order(daemon: FakeDaemon, command: wire.Command) -> tuple[bool, str | None]:
    """Give a command and wait for its answer."""
    await daemon.wait_until(lambda daemon: daemon.asked_of(wire.SubscribeControl))
    daemon.command(command)
    await daemon.wait_until(lambda daemon: any(answer.id == command.id for answer in daemon.answers))
    return daemon.answers[-1].ok, daemon.answers[-1].text


async def test_a_message_becomes_a_turn_and_an_answer(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.deliver("say bob: hello there")

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_end"))

    assert daemon.acked == [1]
    assert [(send.to, send.body, send.in_reply_to) for send in daemon.sent] == [
        ("bob", "hello there", None),
        ("operator", "done: told bob 2 words", 1),
    ]
    kinds = [event.kind for event in daemon.events]
    assert kinds[:3] == ["status_changed", "turn_state_changed", "turn_start"]
    assert set(kinds[3 : kinds.index("turn_end")]) == {"stream"}


async def test_what_an_earlier_harness_had_in_hand_comes_again_flagged(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.lose_leases_to(message(5, "hello"))

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_end"))

    assert daemon.events_of("turn_start")[0]["redelivered"] is True
    mailbox = [request for request in daemon.asked if isinstance(request, wire.RequeueInflight | wire.Recv)]
    assert isinstance(mailbox[0], wire.RequeueInflight)


async def test_a_daemon_that_restarts_in_the_middle_of_a_turn_loses_nothing(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, nursery: trio.Nursery
) -> None:
    async def work(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        emit("note", {"text": "before"})
        await trio.sleep(1)
        daemon.stop()
        await trio.sleep(1)
        emit("note", {"text": "between"})
        nursery.start_soon(come_back)
        await tools.send("bob", "done")
        return OK

    async def come_back() -> None:
        await trio.sleep(30)
        await nursery.start(daemon.run)

    daemon.deliver("hello")
    await start_harness(FakeProvider(work))
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_end"))
    await daemon.wait_until(lambda daemon: len(daemon.asked_of(wire.RequeueInflight)) == 2)

    assert daemon.acked == [1]
    assert [send.body for send in daemon.sent] == ["done"]
    assert [note["text"] for note in daemon.events_of("note")] == ["before", "between"]
    ids = [event.id for event in daemon.events]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


async def test_a_message_whose_hand_out_was_lost_is_still_worked_on_once(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.lose_answer_of = wire.Recv
    daemon.deliver("hello")

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.acked)

    assert daemon.acked == [1]
    assert len(daemon.sent) == 1


async def test_a_send_whose_answer_is_lost_in_a_turn_arrives_once(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.lose_answer_of = wire.Send
    daemon.deliver("hello")

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.acked)

    assert len(daemon.asked_of(wire.Send)) == 2
    assert len(daemon.sent) == 1


# ── commands ────────────────────────────────────────────────────────────────────────────────────


async def test_a_turn_is_cancelled_on_command(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.deliver("hello")
    await start_harness(FakeProvider(sleep_ten))
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_start"))

    answer = await order(daemon, wire.CancelTurn(id=1))
    await daemon.wait_until(lambda daemon: daemon.acked)

    assert answer == (True, "cancelled the turn over message 1")


async def test_without_a_turn_the_cancel_is_refused(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    await start_harness()

    answer = await order(daemon, wire.CancelTurn(id=1))

    assert answer == (False, "cannot cancel the turn: none is running")


async def test_an_agent_that_is_paused_begins_paused_and_answers_nothing_to_that(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.paused = True

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.snapshots and daemon.snapshots[-1].status == "paused")

    assert daemon.events_of("status_changed") == [{"status": "online"}, {"status": "paused"}]
    assert daemon.answers == []


async def test_pause_and_resume_on_command(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    await start_harness(FakeProvider())

    assert await order(daemon, wire.SetPaused(id=1, paused=True)) == (True, "paused")
    daemon.deliver("hello")
    await trio.sleep(1000)
    assert daemon.events_of("turn_start") == []

    assert await order(daemon, wire.SetPaused(id=2, paused=False)) == (True, "resumed")
    await daemon.wait_until(lambda daemon: daemon.acked)


async def test_quiesce_answers_when_the_turn_is_over_and_a_cancel_can_hurry_it(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.deliver("hello")
    await start_harness(FakeProvider(sleep_ten))
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_start"))

    daemon.command(wire.Quiesce(id=1))
    await trio.sleep(2)
    assert daemon.answers == []
    await order(daemon, wire.CancelTurn(id=2))
    await daemon.wait_until(lambda daemon: len(daemon.answers) == 2)

    assert [answer.id for answer in daemon.answers] == [2, 1]
    assert daemon.acked == [1]


async def test_a_new_session_on_command(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    provider = FakeProvider()
    await start_harness(provider)

    assert await order(daemon, wire.NewSession(id=1)) == (True, "the next turn begins a new session")
    daemon.deliver("hello")
    await daemon.wait_until(lambda daemon: daemon.acked)

    assert provider.prompts[0].fresh


async def test_a_model_on_command_is_used_shown_and_remembered(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, config: Config
) -> None:
    provider = FakeProvider()
    await start_harness(provider)

    ok, _ = await order(daemon, wire.SetModel(id=1, model="opus"))
    daemon.deliver("hello")
    await daemon.wait_until(lambda daemon: daemon.acked)

    assert ok
    assert provider.prompts[0].model == "opus"
    assert daemon.snapshots[-1].model == "opus"
    assert daemon.events_of("model_changed") == [{"model": "opus"}]
    assert config.model_file.read_text() == "opus\n"


async def test_an_effort_on_command_is_used_shown_remembered_and_taken_back(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, config: Config
) -> None:
    provider = FakeProvider(can=Capabilities(efforts=("low", "high")))
    await start_harness(provider)

    assert await order(daemon, wire.SetEffort(id=1, effort="high")) == (
        True,
        "effort high from the next turn on",
    )
    daemon.deliver("hello")
    await daemon.wait_until(lambda daemon: daemon.acked)
    assert provider.prompts[0].effort == "high"
    assert daemon.snapshots[-1].effort == "high"
    assert config.effort_file.read_text() == "high\n"

    assert (await order(daemon, wire.SetEffort(id=2, effort="default")))[0]
    assert not config.effort_file.exists()
    await daemon.wait_until(lambda daemon: len(daemon.events_of("effort_changed")) == 2)
    assert daemon.events_of("effort_changed") == [{"effort": "high"}, {"effort": None}]
    assert await order(daemon, wire.SetEffort(id=3, effort="huge")) == (
        False,
        "cannot use 'huge' as an effort: there are low, high, default",
    )


async def test_a_compaction_on_command(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    provider = FakeProvider(can=Capabilities(compact=True))
    await start_harness(provider)

    assert await order(daemon, wire.Compact(id=1)) == (True, "compacting")
    await daemon.wait_until(lambda daemon: daemon.events_of("note"))

    assert len(provider.compacted) == 1
    assert [change["state"] for change in daemon.events_of("turn_state_changed")] == ["compacting", "idle"]


async def test_what_the_provider_cannot_do_is_refused(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    await start_harness(FakeProvider())

    for command in (
        wire.Compact(id=1),
        wire.SetEffort(id=2, effort="high"),
        wire.LoginStart(id=3),
        wire.LoginCode(id=4, code="x"),
        wire.LoginCancel(id=5),
    ):
        ok, text = await order(daemon, command)
        assert not ok
        assert str(text).startswith("cannot")


async def test_a_login_on_command_brings_the_agent_online_by_itself(
    daemon: FakeDaemon, start_harness: StartHarness, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "scripted-logged-out").touch()
    give = f"import os; os.unlink({str(tmp_path / 'scripted-logged-out')!r})"
    command = [sys.executable, "-c", f"print('https://login.example/x ', flush=True); input(); {give}"]
    login = replace(config, login_command=command)
    daemon.deliver("hello")
    await start_harness(Scripted.open(login), login)
    # It connects while it is still finding that out.
    await daemon.wait_until(lambda d: d.snapshots and d.snapshots[-1].status == "needs_login_idle")

    assert await order(daemon, wire.LoginStart(id=1)) == (True, "https://login.example/x")
    assert await order(daemon, wire.LoginCode(id=2, code="4f2a")) == (True, "logged in")
    await daemon.wait_until(lambda daemon: daemon.acked)

    seen = [change["status"] for change in daemon.events_of("status_changed")]
    # The loop may see the credentials before or after it hears that the program has ended.
    after = ["needs_login_idle"] if len(seen) == 4 else []
    assert seen == ["needs_login_idle", "needs_login_in_progress", *after, "online"]


async def test_a_login_is_cancelled_on_command(
    daemon: FakeDaemon, start_harness: StartHarness, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "scripted-logged-out").touch()
    command = [sys.executable, "-c", "print('https://login.example/x ', flush=True); input()"]
    login = replace(config, login_command=command)
    await start_harness(Scripted.open(login), login)
    await order(daemon, wire.LoginStart(id=1))

    assert await order(daemon, wire.LoginCancel(id=2)) == (True, "login cancelled")
    await daemon.wait_until(lambda daemon: daemon.snapshots[-1].status == "needs_login_idle")
    assert await order(daemon, wire.LoginCancel(id=3)) == (False, "cannot cancel the login: none is open")


async def test_turns_are_in_the_stats_and_seed_the_next_harness(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, config: Config
) -> None:
    daemon.deliver("context 5000")
    daemon.deliver("fail: no disk")
    stop = await start_harness()
    await daemon.wait_until(lambda daemon: len(daemon.events_of("turn_end")) == 2)
    stop()
    await daemon.wait_until(lambda daemon: daemon.snapshots[-1].status == "stopping")

    with closing(sqlite3.connect(config.turn_stats_db)) as db:
        found = db.execute("SELECT result_kind, wake_from, message_id FROM turn_stats").fetchall()
    assert found == [("ok", "operator", 1), ("failed", "operator", 2)]

    await start_harness(FakeProvider())
    await daemon.wait_until(lambda daemon: daemon.snapshots[-1].status == "online")
    assert daemon.snapshots[-1].ctx_tokens == 5000


async def test_a_harness_that_stops_while_parked_leaves_no_mark(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, config: Config
) -> None:
    daemon.deliver("limit 100")
    stop = await start_harness()
    await daemon.wait_until(
        lambda daemon: daemon.snapshots[-1:] and daemon.snapshots[-1].status == "rate_limited"
    )
    assert config.rate_limit_mark.exists()

    stop()
    await daemon.wait_until(lambda daemon: daemon.snapshots[-1].status == "stopping")
    await trio.sleep(2)

    assert not config.rate_limit_mark.exists()


@pytest.mark.parametrize("model", ["", "two words", "--dangerous", "a\nb", "x" * 65])
async def test_what_is_no_name_of_a_model_is_refused(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness, model: str
) -> None:
    await start_harness()

    ok, text = await order(daemon, wire.SetModel(id=1, model=model))

    assert not ok
    assert str(text).startswith("cannot use")


async def test_a_command_of_a_newer_daemon_is_refused_and_not_fatal(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    class Dance(msgspec.Struct, tag="dance"):
        id: int

    class Strange(msgspec.Struct):
        colour: str

    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.asked_of(wire.SubscribeControl))
    daemon.send_item(Strange(colour="blue"))
    daemon.send_item(Dance(id=1))

    assert await order(daemon, wire.NewSession(id=2)) == (True, "the next turn begins a new session")
    assert [(answer.id, answer.ok) for answer in daemon.answers] == [(1, False), (2, True)]
    assert "dance" in str(daemon.answers[0].text)


async def test_a_control_stream_that_the_daemon_ends_is_opened_again_later(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    await start_harness()
    await daemon.wait_until(lambda daemon: daemon.asked_of(wire.SubscribeControl))

    ended_at = trio.current_time()
    daemon.end_control()
    await daemon.wait_until(lambda daemon: len(daemon.asked_of(wire.SubscribeControl)) == 2)

    assert trio.current_time() - ended_at == pytest.approx(RESUBSCRIBE_S)
    assert daemon.connections == 1


async def test_a_refused_control_stream_is_asked_for_again(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.refuse[wire.SubscribeControl] = Refused(ErrorCode.UNAVAILABLE, "cannot subscribe: later")

    await start_harness()
    await trio.sleep(11)

    assert len(daemon.asked_of(wire.SubscribeControl)) == 3
    assert daemon.connections == 1


async def test_a_quiesce_that_the_connection_does_not_survive_is_forgotten(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.deliver("hello")
    await start_harness(FakeProvider(sleep_ten))
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_start"))
    daemon.command(wire.Quiesce(id=1))
    await trio.sleep(1)

    daemon.drop_connections()
    daemon.deliver("again")
    await daemon.wait_until(lambda daemon: daemon.acked == [1, 2])

    assert daemon.answers == []


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_stop_interrupts_the_turn_publishes_it_and_acks_nothing(
    patient_clock: MockClock, daemon: FakeDaemon, start_harness: StartHarness
) -> None:
    daemon.deliver("hello")
    stop = await start_harness(FakeProvider(sleep_ten))
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_start"))

    stop()
    await daemon.wait_until(lambda daemon: daemon.events_of("turn_end"))

    assert daemon.acked == []
    assert daemon.events_of("turn_end")[0]["note"] == "interrupted: the harness stops"
    assert daemon.events_of("status_changed")[-1] == {"status": "stopping"}
    assert daemon.snapshots[-1].status == "stopping"


async def test_a_stop_does_not_wait_long_for_a_daemon_that_hangs(
    patient_clock: MockClock, daemon: FakeDaemon, config: Config, start_harness: StartHarness
) -> None:
    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        daemon._carry_out = hang  # type: ignore[assignment, method-assign]

        async def start(task_status: Any) -> None:
            await serve(config, FakeProvider(), watch_signals=False, task_status=task_status)

        stop = await nursery.start(start)
        await daemon.wait_until(lambda daemon: daemon.connections)
        await trio.sleep(0.5)
        stopped_at = trio.current_time()
        stop()

    assert trio.current_time() - stopped_at == pytest.approx(1.0)


async def test_a_harness_that_lingered_in_vain_ends_by_itself(
    patient_clock: MockClock, config: Config
) -> None:
    await serve(replace(config, linger_s=60.0), FakeProvider(FAILED), watch_signals=False)

    assert trio.current_time() == pytest.approx(60)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"provider": "oracle"}, "no provider 'oracle'; there are: claude, scripted"),
        ({"model": "two words"}, "'two words' is no name of a model"),
        ({"script": Path("/nowhere.json")}, "nowhere.json"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_starts(
    config: Config, changed: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(CannotStart, match=complaint):
        run(replace(config, **changed))

"""What the provider lacks: a rate limit that ends, credentials that appear."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hive_agent.providers import Capabilities, Outcome, TurnResult
from hive_core.wire import agent as wire

from .fakes import FAILED, OK, FakeLink, FakeProvider, message
from .rig import Rig

LIMITED = TurnResult(outcome=Outcome.RATE_LIMITED, note="429")
LOGGED_OUT = TurnResult(outcome=Outcome.NEEDS_LOGIN, note="Please run /login")
LOGIN = Capabilities(login=True, sessions=True)


def limited_until(reset_at: float) -> TurnResult:
    return TurnResult(outcome=Outcome.RATE_LIMITED, reset_at=reset_at)


# ── rate limit ──────────────────────────────────────────────────────────────────────────────────


async def test_a_rate_limit_parks_the_agent_and_the_message_comes_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(LIMITED, OK)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    async with rig.running():
        await trio.sleep(299)
        assert rig.mark.read_text() == "1300\n"
        assert rig.board.snapshot().status == "rate_limited"
        assert [waiting.id for waiting in rig.link.waiting] == [7]
        await trio.sleep(2)

    assert provider.times == [0, 300]
    assert rig.acked == [7]
    assert not rig.mark.exists()
    assert rig.statuses == ["rate_limited", "online"]
    assert rig.kinds == ["rate_limited", "ok"]
    assert [start.get("redelivered", False) for start in rig.emitted.of("turn_start")] == [False, True]
    assert rig.emitted.of("turn_end")[0] == {"ok": False, "note": "429", "message_id": 7}


@pytest.mark.parametrize(("reset_at", "resumes_at"), [(1042.0, 42.0), (10.0, 300.0), (9e9, 300.0)])
async def test_it_lasts_until_the_moment_that_was_named_if_that_makes_sense(
    autojump_clock: MockClock, tmp_path: Path, reset_at: float, resumes_at: float
) -> None:
    provider = FakeProvider(limited_until(reset_at), OK)

    await Rig(FakeLink(message(7)), provider, tmp_path).run_for(400)

    assert provider.times == [0, resumes_at]


async def test_a_limit_that_goes_on_is_met_again_and_again_and_no_message_is_set_aside(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(*[LIMITED] * 5, OK)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    await rig.run_for(2000)

    assert provider.times == [0, 300, 600, 900, 1200, 1500]
    assert rig.acked == [7]


async def test_a_pause_within_a_limit_does_not_shorten_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(LIMITED, OK)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    async with rig.running() as turns:
        await trio.sleep(10)
        turns.set_paused(True)
        await trio.sleep(500)
        assert rig.board.snapshot().status == "paused"
        turns.set_paused(False)
        await trio.sleep(1)

    assert provider.times == [0, 510]
    assert rig.statuses == ["rate_limited", "paused", "rate_limited", "online"]
    assert not rig.mark.exists()


async def test_who_is_resumed_tries_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(LIMITED, OK)

    async with Rig(FakeLink(message(7)), provider, tmp_path).running() as turns:
        await trio.sleep(10)
        turns.set_paused(True)
        await trio.sleep(10)
        turns.set_paused(False)
        await trio.sleep(1)

    assert provider.times == [0, 20]


async def test_a_daemon_that_says_not_paused_ends_no_limit(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(LIMITED, OK)

    async with Rig(FakeLink(message(7)), provider, tmp_path).running() as turns:
        await trio.sleep(10)
        turns.set_paused(False)
        await trio.sleep(10)

    assert provider.times == [0]


async def test_another_model_is_tried_at_once(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(LIMITED, OK)

    async with Rig(FakeLink(message(7)), provider, tmp_path).running() as turns:
        await trio.sleep(10)
        turns.try_again()
        await trio.sleep(1)

    assert provider.times == [0, 10]


async def test_a_graceful_stop_hands_the_message_back_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    rig = Rig(FakeLink(message(7)), FakeProvider(LIMITED), tmp_path)

    async with rig.running() as turns:
        await trio.sleep(10)
        await turns.quiesce()
        assert trio.current_time() == 10

    assert [waiting.id for waiting in rig.link.waiting] == [7]


async def test_a_mark_that_an_earlier_harness_left_is_taken_away(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "limited").write_text("1\n")

    rig = Rig(FakeLink(), FakeProvider(), tmp_path)

    assert not rig.mark.exists()


async def test_a_mark_that_cannot_be_made_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = FakeProvider(LIMITED, OK)

    await Rig(FakeLink(message(7)), provider, tmp_path / "missing").run_for(400)

    assert provider.times == [0, 300]
    assert "No such file" in caplog.text


async def test_a_new_session_that_meets_a_limit_is_new_the_next_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    link = FakeLink()
    provider = FakeProvider(LIMITED, OK, OK)

    async with Rig(link, provider, tmp_path).running() as turns:
        turns.begin_new_session()
        link.deliver(message(7))
        link.deliver(message(8))
        await trio.sleep(400)

    assert [prompt.fresh for prompt in provider.prompts] == [True, True, False]


async def test_the_operator_can_compact_while_a_limit_lasts(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(LIMITED, OK, can=Capabilities(compact=True))

    async with Rig(FakeLink(message(7)), provider, tmp_path).running() as turns:
        await trio.sleep(10)
        turns.ask_for_compaction()
        await trio.sleep(400)

    assert provider.compacted == [10]
    assert provider.times == [0, 300]


# ── login ───────────────────────────────────────────────────────────────────────────────────────


async def test_without_credentials_nothing_is_received_until_they_appear(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(can=LOGIN)
    provider.logged_in = False
    rig = Rig(FakeLink(message(7)), provider, tmp_path)
    assert rig.board.snapshot().status == "needs_login_idle"

    async with rig.running():
        await trio.sleep(99)
        assert rig.link.requests_of(wire.Recv) == []
        provider.logged_in = True
        await trio.sleep(2)

    assert provider.times == [100]
    assert rig.acked == [7]
    assert rig.statuses == ["needs_login_idle", "online"]


async def test_a_turn_that_finds_no_credentials_waits_for_them_and_comes_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(LOGGED_OUT, OK, can=LOGIN)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    async with rig.running():
        await trio.lowlevel.checkpoint()
        provider.logged_in = False
        await trio.sleep(60)
        assert rig.board.snapshot().status == "needs_login_idle"
        provider.logged_in = True
        await trio.sleep(3)

    assert provider.times == [0, 61]
    assert rig.acked == [7]
    assert rig.statuses == ["needs_login_idle", "online"]


async def test_credentials_that_are_refused_and_look_good_are_tried_less_and_less_often(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider(*[LOGGED_OUT] * 5, OK, can=LOGIN)
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    await rig.run_for(100)

    assert provider.times == [0, 1, 3, 7, 15, 31]
    assert rig.acked == [7]


async def test_a_login_is_noticed_at_once_by_who_is_told(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(*[LOGGED_OUT] * 5, OK, can=LOGIN)

    async with Rig(FakeLink(message(7)), provider, tmp_path).running() as turns:
        await trio.sleep(20)
        turns.try_again()
        await trio.sleep(1)

    assert provider.times == [0, 1, 3, 7, 15, 20]


async def test_a_graceful_stop_does_not_wait_for_a_login(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider(can=LOGIN)
    provider.logged_in = False

    async with Rig(FakeLink(), provider, tmp_path).running() as turns:
        await trio.sleep(10)
        await turns.quiesce()
        assert trio.current_time() == 10


# ── the account ─────────────────────────────────────────────────────────────────────────────────


async def test_every_turn_is_written_down_with_what_it_took(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def work(*_: object) -> TurnResult:
        await trio.sleep(12)
        return TurnResult(outcome=Outcome.OK, tools={"send": 2})

    rig = Rig(FakeLink(message(7, sender="bob"), message(8)), FakeProvider(work, FAILED), tmp_path)

    await rig.run_for(12.5)

    good, bad = rig.rows
    assert (good.started_at, good.duration_s, good.wake_from, good.kind) == (1000, 12, "bob", "ok")
    assert (good.message_id, good.model, good.result.tools) == (7, "fake-1", {"send": 2})
    assert (bad.started_at, bad.kind, bad.result.note) == (1012, "failed", "told to fail")


async def test_a_turn_runs_with_the_effort_that_was_chosen(autojump_clock: MockClock, tmp_path: Path) -> None:
    provider = FakeProvider()

    await Rig(FakeLink(message(7)), provider, tmp_path).run_for(1)

    assert provider.prompts[0].effort == "high"


async def test_a_turn_that_was_cut_off_is_written_down_with_what_it_cost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    provider = FakeProvider()

    async def work(*_: object) -> TurnResult:
        try:
            await trio.sleep(100)
        finally:
            provider.cut_off = TurnResult(outcome=Outcome.INTERRUPTED, cost_usd=0.25, tools={"Bash": 1})
        return OK

    provider._turns = [work, OK]
    rig = Rig(FakeLink(message(7), message(8)), provider, tmp_path)

    async with rig.running() as turns:
        await trio.sleep(5)
        turns.cancel_turn()
        await trio.sleep(5)

    cut_off, good = rig.rows
    assert (cut_off.kind, cut_off.result.note) == ("interrupted", "cancelled by the operator")
    assert (cut_off.result.cost_usd, cut_off.result.tools) == (0.25, {"Bash": 1})
    assert good.result == OK
    assert rig.acked == [7, 8]


@pytest.mark.parametrize("goes_on", [True, False])
async def test_the_status_says_rate_limited_while_a_limit_holds_a_turn_up_and_no_longer(
    autojump_clock: MockClock, tmp_path: Path, goes_on: bool
) -> None:
    provider = FakeProvider()

    async def held_up(*_: object) -> TurnResult:
        provider.held_up(True)
        await trio.sleep(30)
        if goes_on:
            provider.held_up(False)
            await trio.sleep(30)
        return OK

    provider._turns = [held_up]
    rig = Rig(FakeLink(message(7)), provider, tmp_path)

    async with rig.running():
        await trio.sleep(29)
        assert rig.board.status == "rate_limited"
        await trio.sleep(2)
        assert rig.board.status == "online"
        await trio.sleep(60)

    assert rig.statuses == ["rate_limited", "online"]
    assert rig.acked == [7]

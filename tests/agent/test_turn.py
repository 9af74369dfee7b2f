import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_agent.events import Emit
from hive_agent.providers import Outcome, TurnPrompt, TurnResult
from hive_agent.state import Status
from hive_agent.tools import Tools
from hive_core.wire import agent as wire
from hive_core.wire.errors import Disconnected, ErrorCode, Refused

from .fakes import FAILED, OK, FakeLink, FakeProvider, message
from .rig import Rig

UNAVAILABLE = Refused(ErrorCode.UNAVAILABLE, "cannot write: the disk is full")


async def sleep_ten(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
    await trio.sleep(10)
    return OK


async def test_boot_requeues_before_it_receives(autojump_clock: MockClock) -> None:
    link = FakeLink()

    await Rig(link, FakeProvider()).run_for(1)

    assert link.names == ["requeue_inflight", "recv"]
    assert link.requests_of(wire.Recv) == [wire.Recv(wait_seconds=180, max=1)]


async def test_a_good_turn_acks_its_message_by_id_and_nothing_else(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7), message(8))

    await Rig(link, FakeProvider()).run_for(1)

    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[7], [8]]
    assert link.names == ["requeue_inflight", "recv", "ack_turn", "recv", "ack_turn", "recv"]


async def test_a_turn_tells_its_story_in_events(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(message(7, "hi", "bob"), message(8)), FakeProvider(OK, sleep_ten))

    await rig.run_for(1)

    assert rig.emitted.events[:4] == [
        ("turn_state_changed", {"state": "thinking", "since": 5.0}),
        ("turn_start", {"from": "bob", "body": "hi", "unread": 1, "message_id": 7}),
        ("turn_end", {"ok": True, "message_id": 7}),
        ("turn_state_changed", {"state": "idle", "since": 5.0}),
    ]


async def test_a_failed_turn_is_not_acked_and_comes_again_flagged(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    rig = Rig(link, FakeProvider(FAILED, OK))

    await rig.run_for(10)

    assert link.names == ["requeue_inflight", "recv", "requeue_inflight", "recv", "ack_turn", "recv"]
    assert [start.get("redelivered", False) for start in rig.emitted.of("turn_start")] == [False, True]
    assert rig.emitted.of("turn_end")[0] == {"ok": False, "note": "told to fail", "message_id": 7}


async def test_failures_back_off_exactly_and_the_third_sets_the_message_aside(
    autojump_clock: MockClock,
) -> None:
    link = FakeLink(message(7), message(8))
    provider = FakeProvider(FAILED, FAILED, FAILED, OK)
    rig = Rig(link, provider)

    await rig.run_for(100)

    assert [prompt.message.id for prompt in provider.prompts] == [7, 7, 7, 8]
    assert provider.times == [0, 1, 3, 7]
    reason = "3 turns over it failed, the last one: told to fail"
    assert link.requests_of(wire.SetAside) == [wire.SetAside(ids=[7], reason=reason)]
    assert ([dead.id for dead in link.dead], link.leased) == ([7], [])
    assert "set aside" in rig.emitted.of("note")[0]["text"]


async def test_only_what_failed_is_given_back_as_failed(autojump_clock: MockClock) -> None:
    """The first one: a harness before this one may have died of it."""
    limited = TurnResult(outcome=Outcome.RATE_LIMITED)
    link = FakeLink(message(7))

    await Rig(link, FakeProvider(FAILED, limited, OK)).run_for(2000)

    assert [request.failed for request in link.requests_of(wire.RequeueInflight)] == [True, True, False]


async def test_a_harness_that_ends_gives_back_what_it_has_in_hand(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    rig = Rig(link, FakeProvider(sleep_ten))
    await rig.run_for(5)

    await rig.turns.give_back()

    assert link.requests_of(wire.RequeueInflight)[-1] == wire.RequeueInflight()
    assert [waiting.id for waiting in link.waiting] == [7]


@pytest.mark.parametrize(("seconds", "failed"), [(0.5, True), (1000, False)])
async def test_a_harness_that_ends_after_a_failure_says_so_and_one_at_rest_says_nothing(
    autojump_clock: MockClock, seconds: float, failed: bool
) -> None:
    link = FakeLink(message(7))
    rig = Rig(link, FakeProvider(FAILED, OK))
    await rig.run_for(seconds)
    before = len(link.asked)

    await rig.turns.give_back()

    said = [wire.RequeueInflight(failed=True)] if failed else []
    assert [request for _, request in link.asked[before:]] == said


async def test_a_message_that_is_set_aside_is_skipped_in_silence_when_it_comes_again(
    autojump_clock: MockClock,
) -> None:
    link = FakeLink(message(7), message(8), message(9))
    link.answers[wire.SetAside] = [Refused(ErrorCode.INVALID_ARGUMENT, "cannot read the request")]
    rig = Rig(link, FakeProvider(FAILED, FAILED, FAILED, FAILED, OK))

    await rig.run_for(100)

    assert [start["message_id"] for start in rig.emitted.of("turn_start")] == [7, 7, 7, 8, 8, 9]
    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[8], [9]]
    assert [leased.id for leased in link.leased] == [7]


async def test_what_was_drained_in_a_turn_that_is_set_aside_comes_again(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7), message(8), message(9))

    async def drain_and_fail(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        link.leased.append(link.waiting.pop(0))
        return FAILED

    rig = Rig(link, FakeProvider(FAILED, FAILED, drain_and_fail, OK))

    await rig.run_for(100)

    starts = [
        (start["message_id"], start.get("redelivered", False)) for start in rig.emitted.of("turn_start")
    ]
    assert starts == [(7, False), (7, True), (7, True), (8, True), (9, False)]
    assert rig.acked == [8, 9]
    assert ([dead.id for dead in link.dead], link.leased) == ([7], [])


async def test_failures_of_one_message_after_another_keep_backing_off(autojump_clock: MockClock) -> None:
    provider = FakeProvider(FAILED)

    await Rig(FakeLink(*(message(number) for number in range(1, 5))), provider).run_for(400)

    assert provider.times == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]


async def test_a_crash_in_the_provider_is_a_failed_turn(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(message(7)), FakeProvider(KeyError("oops"), OK))

    await rig.run_for(10)

    assert [end["ok"] for end in rig.emitted.of("turn_end")] == [False, True]
    assert rig.emitted.of("turn_end")[0]["note"] == "internal error: KeyError('oops')"


async def test_a_refusal_that_the_provider_lets_through_fails_the_turn(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(message(7)), FakeProvider(Refused(ErrorCode.NOT_FOUND, "cannot send"), OK))

    await rig.run_for(10)

    assert rig.emitted.of("turn_end")[0] == {"ok": False, "note": "cannot send", "message_id": 7}


async def test_a_lost_recv_is_requeued_before_the_next_one(autojump_clock: MockClock) -> None:
    link = FakeLink()
    link.answers[wire.Recv] = [Disconnected("gone")]

    await Rig(link, FakeProvider()).run_for(1)

    assert link.names == ["requeue_inflight", "recv", "requeue_inflight", "recv"]


async def test_a_connection_lost_in_a_turn_is_requeued_after_the_ack(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))

    async def reconnect(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        link.epoch += 1
        return OK

    await Rig(link, FakeProvider(reconnect)).run_for(1)

    assert link.names == ["requeue_inflight", "recv", "ack_turn", "requeue_inflight", "recv"]


async def test_an_ack_is_tried_again_while_the_daemon_cannot_write(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    link.answers[wire.AckTurn] = [UNAVAILABLE, UNAVAILABLE]

    await Rig(link, FakeProvider()).run_for(10)

    assert link.times_of(wire.AckTurn) == [0, 1, 3]
    assert link.leased == []


async def test_a_refused_recv_backs_off(autojump_clock: MockClock) -> None:
    link = FakeLink()
    link.answers[wire.Recv] = [UNAVAILABLE, UNAVAILABLE, UNAVAILABLE]

    await Rig(link, FakeProvider()).run_for(100)

    assert link.times_of(wire.Recv) == [0, 1, 3, 7]


async def test_a_refused_requeue_is_repeated_before_anything_is_received(autojump_clock: MockClock) -> None:
    link = FakeLink()
    link.answers[wire.RequeueInflight] = [UNAVAILABLE]

    await Rig(link, FakeProvider()).run_for(10)

    assert link.names == ["requeue_inflight", "requeue_inflight", "recv"]


async def test_recvs_that_come_back_empty_at_once_do_not_spin(autojump_clock: MockClock) -> None:
    link = FakeLink()
    link.answers[wire.Recv] = [wire.Messages(messages=[])] * 3

    await Rig(link, FakeProvider()).run_for(10)

    assert link.times_of(wire.Recv) == [0, 1, 2, 3]


async def test_a_paused_agent_takes_no_message_and_loses_none(autojump_clock: MockClock) -> None:
    link = FakeLink()
    rig = Rig(link, FakeProvider())

    async with rig.running() as turns:
        await wait_all_tasks_blocked()
        turns.set_paused(True)
        link.deliver(message(7))
        await trio.sleep(1000)
        assert rig.emitted.of("turn_start") == []
        assert link.names == ["requeue_inflight", "recv", "requeue_inflight"]

        turns.set_paused(False)
        await trio.sleep(1)

    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[7]]
    assert rig.emitted.of("status_changed") == [{"status": "paused"}, {"status": "online"}]


async def test_a_pause_lets_the_running_turn_end(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7), message(8))
    rig = Rig(link, FakeProvider(sleep_ten))

    async with rig.running() as turns:
        await trio.sleep(5)
        turns.set_paused(True)
        await trio.sleep(100)

    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[7]]


async def test_quiesce_waits_for_the_running_turn_and_takes_no_other(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7), message(8))

    async with Rig(link, FakeProvider(sleep_ten)).running() as turns:
        await trio.sleep(4)
        await turns.quiesce()
        quiet_at = trio.current_time()
        await trio.sleep(100)

    assert quiet_at == 10
    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[7]]
    assert [waiting.id for waiting in link.waiting] == [8]


async def test_quiesce_of_an_idle_harness_takes_its_recv_back(autojump_clock: MockClock) -> None:
    link = FakeLink()

    async with Rig(link, FakeProvider()).running() as turns:
        await trio.sleep(4)
        await turns.quiesce()
        assert trio.current_time() == 4

    assert link.names == ["requeue_inflight", "recv", "requeue_inflight"]


async def test_quiesce_does_not_wait_for_a_back_off(autojump_clock: MockClock) -> None:
    async def fail_late(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await trio.sleep(10)
        return FAILED

    link = FakeLink(message(7))

    async with Rig(link, FakeProvider(fail_late)).running() as turns:
        await trio.sleep(5)
        await turns.quiesce()
        assert trio.current_time() == 10

    assert [waiting.id for waiting in link.waiting] == [7]


async def test_a_resumed_harness_forgets_that_it_was_to_be_quiet(autojump_clock: MockClock) -> None:
    link = FakeLink()

    async with Rig(link, FakeProvider()).running() as turns:
        await trio.sleep(1)
        await turns.quiesce()
        turns.set_paused(False)
        link.deliver(message(7))
        await trio.sleep(1)

    assert link.leased == []
    assert link.waiting == []


async def test_a_cancelled_turn_is_acked_and_does_not_come_again(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    rig = Rig(link, FakeProvider(sleep_ten))

    async with rig.running() as turns:
        await trio.sleep(3)
        assert turns.cancel_turn() == "the turn over message 7"
        await trio.sleep(0.5)

    assert [ack.ids for ack in link.requests_of(wire.AckTurn)] == [[7]]
    assert rig.emitted.of("turn_end") == [{"ok": False, "note": "cancelled by the operator", "message_id": 7}]
    assert link.times_of(wire.AckTurn) == [3]


async def test_without_a_turn_there_is_nothing_to_cancel(autojump_clock: MockClock) -> None:
    async with Rig(FakeLink(), FakeProvider()).running() as turns:
        await trio.sleep(1)
        assert turns.cancel_turn() is None


async def test_a_turn_that_the_stop_cuts_off_is_not_acked_and_says_so(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    rig = Rig(link, FakeProvider(sleep_ten))

    await rig.run_for(3)

    assert link.requests_of(wire.AckTurn) == []
    assert rig.emitted.of("turn_end") == [
        {"ok": False, "note": "interrupted: the harness stops", "message_id": 7}
    ]


async def test_a_new_session_holds_for_exactly_one_turn(autojump_clock: MockClock) -> None:
    link = FakeLink()
    provider = FakeProvider()
    rig = Rig(link, provider)

    async with rig.running() as turns:
        turns.begin_new_session()
        link.deliver(message(7))
        link.deliver(message(8))
        await trio.sleep(1)

    assert [prompt.fresh for prompt in provider.prompts] == [True, False]
    assert [note["text"] for note in rig.emitted.of("note")] == [
        "The next turn begins a new session",
        "This turn begins a new session",
    ]


async def test_the_status_of_a_stopping_harness_does_not_change_back(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(), FakeProvider())

    rig.board.hold(Status.STOPPING)
    rig.turns.set_paused(False)

    assert rig.board.snapshot().status == "stopping"


async def test_a_turn_that_runs_again_sends_the_same_words_with_the_same_keys(
    autojump_clock: MockClock,
) -> None:
    async def send_twice(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await tools.send("bob", "tick")
        await tools.send("bob", "tick")
        return FAILED if prompt.message.redelivered is False else OK

    link = FakeLink(message(7), message(8))

    await Rig(link, FakeProvider(send_twice)).run_for(10)

    first, second, again_first, again_second, other, *_ = (
        send.idempotency_key for send in link.requests_of(wire.Send)
    )
    assert (first, second) == (again_first, again_second)
    assert len({first, second, other}) == 3


async def test_a_turn_does_without_the_count(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    link.answers[wire.InboxStatus] = [UNAVAILABLE]
    rig = Rig(link, FakeProvider())

    await rig.run_for(1)

    assert rig.emitted.of("turn_start")[0]["unread"] == 0

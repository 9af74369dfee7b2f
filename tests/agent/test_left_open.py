"""What is open when a turn has ended is counted beside it, and never holds it up."""

import pytest
import trio
from trio.testing import MockClock

from hive_agent.runner import COUNT_TIMEOUT_S
from hive_agent.turn_stats import NOTHING_OPEN, LeftOpen
from hive_core.wire import agent as wire
from hive_core.wire.errors import ErrorCode, Refused

from .fakes import FAILED, OK, FakeLink, FakeProvider, message
from .rig import Rig
from .test_turn import sleep_ten


def thread(thread_id: int) -> wire.OpenThread:
    return wire.OpenThread(kind="question", id=thread_id, text="why?", since=1.0)


async def test_each_turn_is_recorded_with_what_is_open_then(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    link.threads, link.reminders = [thread(1), thread(2)], 1
    rig = Rig(link, FakeProvider(FAILED, OK))

    await rig.run_for(10)

    assert [row.left_open for row in rig.rows] == [LeftOpen(threads=2, reminders=1)] * 2


@pytest.mark.parametrize("asked", [wire.OpenThreads, wire.CountPendingReminders])
async def test_a_refusal_costs_the_figures_and_nothing_else(autojump_clock: MockClock, asked: type) -> None:
    link = FakeLink(message(7))
    link.threads = [thread(1)]
    link.answers[asked] = [Refused(ErrorCode.UNAVAILABLE, "cannot read")]
    rig = Rig(link, FakeProvider(OK))

    await rig.run_for(10)

    assert [row.left_open for row in rig.rows] == [NOTHING_OPEN]
    assert rig.acked == [7]


async def test_a_daemon_that_is_silent_holds_a_turn_up_for_a_second(autojump_clock: MockClock) -> None:
    class SilentLink(FakeLink):
        async def call(self, request: object, result_type: type) -> object:
            if isinstance(request, wire.OpenThreads):
                await trio.sleep_forever()
            return await super().call(request, result_type)  # type: ignore[arg-type]

    link = SilentLink(message(7))
    rig = Rig(link, FakeProvider(sleep_ten))

    await rig.run_for(30)

    assert link.times_of(wire.AckTurn) == [10 + COUNT_TIMEOUT_S]
    assert [(row.left_open, row.duration_s) for row in rig.rows] == [(NOTHING_OPEN, 10)]


async def test_a_turn_that_is_cut_off_is_recorded_all_the_same(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(message(7)), FakeProvider(sleep_ten))

    await rig.run_for(5)

    assert [(row.kind, row.left_open) for row in rig.rows] == [("interrupted", NOTHING_OPEN)]

"""The conversation's size in the turn loop: figures, compactions, new sessions."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from hive_agent.context import ContextSettings
from hive_agent.events import Emit
from hive_agent.providers import Capabilities, Outcome, TurnPrompt, TurnResult, Usage
from hive_agent.tools import Tools
from hive_agent.turn_stats import Seed

from .fakes import FAILED, OK, FakeLink, FakeProvider, message
from .rig import Rig

ALL = Capabilities(compact=True, sessions=True)
TOO_LONG = TurnResult(outcome=Outcome.PROMPT_TOO_LONG, note="Prompt is too long")
LIMITED = TurnResult(outcome=Outcome.RATE_LIMITED, note="limited")


def filled(tokens: int, outcome: Outcome = Outcome.OK, **more: object) -> TurnResult:
    last = Usage(input=tokens - 30, cache_read=20, cache_creation=10, output=5)
    total = Usage(input=2 * tokens, output=7)
    return replace(TurnResult(outcome=outcome, last=last, total=total), **more)  # type: ignore[arg-type]


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


async def test_ctx_is_the_last_inference_and_cost_the_sum(autojump_clock: MockClock) -> None:
    result = filled(1000, window=1_000_000, cost_usd=0.5)
    rig = Rig(FakeLink(message(7)), FakeProvider(result, can=ALL))

    await rig.run_for(1)

    cost = {"input": 2000, "output": 7, "cache_read": 0, "cache_creation": 0, "usd": 0.5}
    assert rig.emitted.of("token_usage_changed") == [{"ctx": 1000, "window": 1_000_000, "cost": cost}]
    assert rig.board.snapshot().ctx_tokens == 1000
    assert rig.board.snapshot().window_tokens == 1_000_000


async def test_a_turn_without_figures_shows_none_and_keeps_what_was_known(autojump_clock: MockClock) -> None:
    rig = Rig(FakeLink(message(7), message(8)), FakeProvider(filled(1000), OK, can=ALL))

    await rig.run_for(1)

    assert len(rig.emitted.of("token_usage_changed")) == 1
    assert rig.board.snapshot().ctx_tokens == 1000


async def test_each_model_has_its_own_window(autojump_clock: MockClock) -> None:
    link = FakeLink()
    rig = Rig(link, FakeProvider(filled(1000, window=1_000_000), filled(1000), can=ALL))

    async with rig.running():
        link.deliver(message(7))
        await trio.sleep(1)
        rig.model = "fake-2"
        link.deliver(message(8))
        await trio.sleep(1)

    assert [shown["window"] for shown in rig.emitted.of("token_usage_changed")] == [1_000_000, 200_000]


# ── after a good turn ───────────────────────────────────────────────────────────────────────────


async def test_a_long_conversation_is_compacted_after_a_turn_that_writes_notes(
    autojump_clock: MockClock,
) -> None:
    provider = FakeProvider(filled(150_000), OK, can=ALL, compactions=[filled(4000)])
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(1)

    first, checkpoint = provider.prompts
    assert first.message.id == 7
    assert checkpoint.message is None
    assert "notes" in checkpoint.text
    assert not checkpoint.fresh
    assert rig.acked == [7]
    assert [start["from"] for start in rig.emitted.of("turn_start")] == ["operator", "self"]
    assert rig.emitted.of("turn_end") == [{"ok": True, "message_id": 7}, {"ok": True}]
    assert rig.states == ["thinking", "idle", "thinking", "idle", "compacting", "idle"]
    assert rig.kinds == ["ok", "ok", "compacted"]
    assert [row.wake_from for row in rig.rows] == ["operator", "self", "self"]
    assert rig.notes == [
        "The conversation is long (150000 of 200000 tokens): writing notes, then compacting",
        "The conversation is compacted from 150000 tokens to 4000 tokens",
    ]
    assert rig.emitted.of("token_usage_changed")[-1]["ctx"] == 4000


async def test_the_message_is_acked_before_the_upkeep(autojump_clock: MockClock) -> None:
    provider = FakeProvider(filled(150_000), OK, can=ALL)
    provider.compaction_takes_s = 60
    rig = Rig(FakeLink(message(7), message(8)), provider)

    await rig.run_for(30)

    assert rig.acked == [7]
    assert rig.states[4:] == ["compacting", "idle"]
    assert rig.kinds[-1] == "compact_failed"


@pytest.mark.parametrize(
    ("can", "context", "result"),
    [
        (Capabilities(), None, filled(150_000)),
        (Capabilities(sessions=True), None, filled(150_000)),
        (ALL, ContextSettings(compact_tokens=0), filled(150_000)),
        (ALL, None, filled(149_999)),
        (ALL, None, OK),
        (ALL, None, filled(150_000, Outcome.INTERRUPTED)),
    ],
)
async def test_otherwise_nothing_is_compacted(
    autojump_clock: MockClock, can: Capabilities, context: ContextSettings | None, result: TurnResult
) -> None:
    provider = FakeProvider(result, OK, can=can)

    await Rig(FakeLink(message(7)), provider, context=context).run_for(0.5)

    assert len(provider.prompts) == 1
    assert provider.compacted == []


@pytest.mark.parametrize("failure", [FAILED, TOO_LONG, KeyError("oops")])
async def test_notes_that_fail_are_a_note_and_the_compaction_comes_all_the_same(
    autojump_clock: MockClock, failure: TurnResult | Exception
) -> None:
    provider = FakeProvider(filled(150_000), failure, OK, can=ALL)
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(1)

    assert rig.acked == [7]
    assert provider.compacted == [0]
    assert any(note.startswith("The notes could not be written") for note in rig.notes)


@pytest.mark.parametrize("outcome", [Outcome.RATE_LIMITED, Outcome.NEEDS_LOGIN])
async def test_notes_that_meet_a_limit_put_the_compaction_off(
    autojump_clock: MockClock, outcome: Outcome
) -> None:
    provider = FakeProvider(filled(150_000), TurnResult(outcome=outcome), OK, can=ALL)

    await Rig(FakeLink(message(7)), provider).run_for(1)

    assert provider.compacted == []


@pytest.mark.parametrize("failure", [FAILED, LIMITED, KeyError("oops")])
async def test_a_compaction_that_fails_is_a_note_and_the_next_message_is_taken(
    autojump_clock: MockClock, failure: TurnResult | Exception
) -> None:
    provider = FakeProvider(filled(150_000), OK, can=ALL, compactions=[failure])
    rig = Rig(FakeLink(message(7), message(8)), provider)

    await rig.run_for(1)

    assert rig.acked == [7, 8]
    assert rig.kinds == ["ok", "ok", "compact_failed", "ok", "ok", "compacted"]
    assert any(note.startswith("The conversation could not be compacted") for note in rig.notes)


async def test_compactions_that_gain_nothing_are_given_up(autojump_clock: MockClock) -> None:
    provider = FakeProvider(filled(150_000), can=ALL, compactions=[filled(150_000)] * 9)
    rig = Rig(FakeLink(*(message(number) for number in range(1, 7))), provider)

    await rig.run_for(1)

    assert rig.acked == [1, 2, 3, 4, 5, 6]
    assert len(provider.compacted) == 3
    assert rig.notes[-1] == "No more compactions until a prompt is too long, or a new session begins"


async def test_a_cancelled_checkpoint_ends_the_upkeep(autojump_clock: MockClock) -> None:
    async def dawdle(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await trio.sleep(100)
        return OK

    provider = FakeProvider(filled(150_000), dawdle, can=ALL)
    rig = Rig(FakeLink(message(7)), provider)

    async with rig.running() as turns:
        await trio.sleep(5)
        assert turns.cancel_turn() == "the turn that writes notes"
        await trio.sleep(5)

    assert provider.compacted == []


async def test_a_cancelled_compaction_is_a_note(autojump_clock: MockClock) -> None:
    provider = FakeProvider(can=ALL)
    provider.compaction_takes_s = 100
    rig = Rig(FakeLink(), provider)

    async with rig.running() as turns:
        await trio.sleep(1)
        turns.ask_for_compaction()
        await trio.sleep(5)
        assert turns.cancel_turn() == "the compaction"
        await trio.sleep(5)

    assert rig.notes == ["The conversation could not be compacted: cancelled by the operator"]
    assert rig.states == ["compacting", "idle"]


async def test_a_graceful_stop_does_not_wait_for_a_compaction(autojump_clock: MockClock) -> None:
    async def fill(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await trio.sleep(10)
        return filled(150_000)

    provider = FakeProvider(fill, can=ALL)

    async with Rig(FakeLink(message(7)), provider).running() as turns:
        await trio.sleep(5)
        await turns.quiesce()
        assert trio.current_time() == 10

    assert provider.compacted == []


async def test_a_harness_that_stops_in_its_notes_says_so(autojump_clock: MockClock) -> None:
    async def dawdle(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await trio.sleep(100)
        return OK

    rig = Rig(FakeLink(message(7)), FakeProvider(filled(150_000), dawdle, can=ALL))

    await rig.run_for(5)

    assert rig.emitted.of("turn_end")[-1] == {"ok": False, "note": "interrupted: the harness stops"}
    assert rig.kinds == ["ok", "interrupted"]


# ── too long ────────────────────────────────────────────────────────────────────────────────────


async def test_a_prompt_that_is_too_long_is_compacted_and_tried_again_in_the_same_turn(
    autojump_clock: MockClock,
) -> None:
    provider = FakeProvider(TOO_LONG, OK, can=ALL)
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(1)

    assert rig.acked == [7]
    assert [prompt.message.id for prompt in provider.prompts] == [7, 7]
    assert "may already have been handled" in provider.prompts[1].text
    assert len(rig.emitted.of("turn_start")) == 1
    assert rig.emitted.of("turn_end") == [{"ok": True, "message_id": 7}]
    assert rig.states == ["thinking", "compacting", "thinking", "idle"]
    assert rig.kinds == ["prompt_too_long", "compacted", "ok"]


async def test_it_is_compacted_once_in_a_turn_and_never_twice(autojump_clock: MockClock) -> None:
    provider = FakeProvider(TOO_LONG, can=ALL)
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(0.5)

    assert provider.compacted == [0]
    assert len(provider.prompts) == 2
    assert rig.acked == []
    assert rig.emitted.of("turn_end") == [{"ok": False, "note": "Prompt is too long", "message_id": 7}]


async def test_a_failed_compaction_is_not_followed_by_another_try(autojump_clock: MockClock) -> None:
    provider = FakeProvider(TOO_LONG, can=ALL, compactions=[FAILED])

    await Rig(FakeLink(message(7)), provider).run_for(0.5)

    assert len(provider.prompts) == 1


async def test_a_provider_that_cannot_compact_fails_the_turn(autojump_clock: MockClock) -> None:
    provider = FakeProvider(TOO_LONG)
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(0.5)

    assert provider.compacted == []
    assert len(provider.prompts) == 1
    assert rig.acked == []


async def test_the_last_attempt_at_a_message_that_is_still_too_long_has_a_new_session(
    autojump_clock: MockClock,
) -> None:
    provider = FakeProvider(*[TOO_LONG] * 4, OK, can=ALL)
    rig = Rig(FakeLink(message(7)), provider)

    await rig.run_for(10)

    assert [prompt.fresh for prompt in provider.prompts] == [False] * 4 + [True]
    assert rig.acked == [7]


# ── before a turn ───────────────────────────────────────────────────────────────────────────────


async def test_a_large_conversation_that_is_cold_gives_way_to_a_new_one(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    provider = FakeProvider(filled(100_000), OK, OK, can=ALL)
    rig = Rig(link, provider)

    async with rig.running():
        await trio.sleep(301)
        link.deliver(message(8))
        await trio.sleep(1)

    _, checkpoint, second = provider.prompts
    assert checkpoint.message is None
    assert (checkpoint.fresh, second.fresh) == (False, True)
    assert second.message.id == 8
    assert rig.acked == [7, 8]
    assert provider.compacted == []


async def test_a_warm_conversation_goes_on(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    provider = FakeProvider(filled(100_000), can=ALL)

    async with Rig(link, provider).running():
        await trio.sleep(299)
        link.deliver(message(8))
        await trio.sleep(1)

    assert [prompt.fresh for prompt in provider.prompts] == [False, False]


async def test_a_conversation_whose_notes_failed_is_kept(autojump_clock: MockClock) -> None:
    link = FakeLink(message(7))
    provider = FakeProvider(filled(100_000), FAILED, OK, can=ALL)
    rig = Rig(link, provider)

    async with rig.running():
        await trio.sleep(1000)
        link.deliver(message(8))
        await trio.sleep(1)

    assert [prompt.fresh for prompt in provider.prompts] == [False, False, False]
    assert rig.acked == [7, 8]


async def test_what_an_earlier_harness_knew_counts(autojump_clock: MockClock) -> None:
    seed = Seed(ended_at=500.0, ctx=120_000, model="fake-1", window=200_000)
    provider = FakeProvider(can=ALL)
    rig = Rig(FakeLink(message(7)), provider, seed=seed)
    assert rig.board.snapshot().ctx_tokens == 120_000

    await rig.run_for(1)

    assert [prompt.message is None for prompt in provider.prompts] == [True, False]
    assert provider.prompts[1].fresh


async def test_the_window_that_an_earlier_harness_was_told_counts_too(autojump_clock: MockClock) -> None:
    seed = Seed(ended_at=500.0, ctx=120_000, model="fake-1", window=1_000_000)
    provider = FakeProvider(can=ALL)

    await Rig(FakeLink(message(7)), provider, seed=seed).run_for(1)

    assert len(provider.prompts) == 1


async def test_a_new_session_of_the_operator_needs_no_notes(autojump_clock: MockClock) -> None:
    seed = Seed(ended_at=500.0, ctx=120_000, model="fake-1")
    link = FakeLink()
    provider = FakeProvider(can=ALL)

    async with Rig(link, provider, seed=seed).running() as turns:
        turns.begin_new_session()
        link.deliver(message(7))
        await trio.sleep(1)

    assert [prompt.fresh for prompt in provider.prompts] == [True]


# ── on command ──────────────────────────────────────────────────────────────────────────────────


async def test_the_operator_compacts_an_agent_that_rests(autojump_clock: MockClock) -> None:
    link = FakeLink()
    provider = FakeProvider(can=ALL)

    async with Rig(link, provider).running() as turns:
        await trio.sleep(5)
        assert turns.ask_for_compaction() is False
        await trio.sleep(1)
        link.deliver(message(7))
        await trio.sleep(1)

    assert provider.compacted == [5]
    assert len(provider.prompts) == 1


async def test_the_operators_compaction_waits_for_the_running_turn(autojump_clock: MockClock) -> None:
    async def work(prompt: TurnPrompt, tools: Tools, emit: Emit) -> TurnResult:
        await trio.sleep(10)
        return OK

    link = FakeLink(message(7), message(8))
    provider = FakeProvider(work, can=ALL)

    async with Rig(link, provider).running() as turns:
        await trio.sleep(5)
        assert turns.ask_for_compaction() is True
        await trio.sleep(10)

    assert provider.compacted == [10]
    assert provider.times == [0, 10]


async def test_a_paused_agent_can_be_compacted(autojump_clock: MockClock) -> None:
    provider = FakeProvider(can=ALL)

    async with Rig(FakeLink(), provider).running() as turns:
        turns.set_paused(True)
        await trio.sleep(5)
        turns.ask_for_compaction()
        await trio.sleep(1)

    assert provider.compacted == [5]

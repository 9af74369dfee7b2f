import pytest
import trio

from hive_core.deferred import Deferred


async def test_the_result_is_given_whether_it_comes_before_or_after_the_question() -> None:
    early: Deferred[int] = Deferred()
    early.resolve(1)
    late: Deferred[int] = Deferred()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        late.resolve(2)
    assert (await early.wait(), await late.wait()) == (1, 2)


async def test_only_the_first_answer_counts() -> None:
    answer: Deferred[int] = Deferred()
    answer.resolve(1)
    answer.fail(ValueError())
    answer.resolve(2)
    assert await answer.wait() == 1


async def test_a_mapped_one_passes_on_results_errors_and_cancelling() -> None:
    cancelled: list[bool] = []
    answer: Deferred[int] = Deferred(lambda: cancelled.append(True) or True)
    mapped = answer.map(str)
    assert mapped.cancel()
    answer.resolve(3)
    assert await mapped.wait() == "3"
    assert cancelled == [True]

    failing: Deferred[int] = Deferred()
    mapped = failing.map(str)
    failing.fail(LookupError("gone"))
    with pytest.raises(LookupError):
        await mapped.wait()


async def test_cancelling_the_wait_cancels_the_request() -> None:
    cancelled: list[bool] = []
    answer: Deferred[int] = Deferred(lambda: cancelled.append(True) or True)
    with trio.CancelScope() as scope:
        scope.cancel()
        await answer.wait()
    assert cancelled == [True]
    assert not Deferred[int]().cancel()

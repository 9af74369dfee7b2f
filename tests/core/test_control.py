import pytest

from hive_core.control import MAX_WAITING_COMMANDS, Control
from hive_core.wire import agent
from hive_core.wire.errors import ErrorCode, Refused


class Lines:
    def __init__(self) -> None:
        self.lost: list[str] = []
        self.control = Control(changed=lambda _name: None, lost=self.lost.append)


@pytest.fixture
def lines() -> Lines:
    return Lines()


def cancel(command_id: int) -> agent.CancelTurn:
    return agent.CancelTurn(id=command_id)


async def test_a_command_is_answered_by_its_id(lines: Lines) -> None:
    receive = lines.control.subscribe("alice")
    first, second = lines.control.command("alice", cancel), lines.control.command("alice", cancel)
    one, two = await receive.receive(), await receive.receive()
    lines.control.done("alice", two.id, True, "second")
    lines.control.done("alice", one.id, False, "nothing runs")
    assert await second.wait() == "second"
    with pytest.raises(Refused, match=r"^cannot do it: nothing runs$"):
        await first.wait()
    receive.close()


def test_without_a_harness_a_command_is_unavailable(lines: Lines) -> None:
    with pytest.raises(Refused) as refused:
        lines.control.command("alice", cancel)
    assert refused.value.code is ErrorCode.UNAVAILABLE


async def test_a_harness_that_goes_away_fails_what_waits_for_it(lines: Lines) -> None:
    receive = lines.control.subscribe("alice")
    answer = lines.control.command("alice", cancel)
    lines.control.unsubscribe("alice", receive)
    with pytest.raises(Refused, match="went away"):
        await answer.wait()
    assert not lines.control.is_connected("alice")
    assert lines.lost == ["alice"]


async def test_a_second_subscriber_ends_the_first_and_keeps_the_line(lines: Lines) -> None:
    first = lines.control.subscribe("alice")
    second = lines.control.subscribe("alice")
    assert [command async for command in first] == []
    lines.control.unsubscribe("alice", first)
    assert lines.control.is_connected("alice")
    assert lines.lost == []
    lines.control.unsubscribe("alice", second)


def test_a_harness_that_does_not_read_is_not_waited_for(lines: Lines) -> None:
    receive = lines.control.subscribe("alice")
    for _ in range(MAX_WAITING_COMMANDS):
        lines.control.command("alice", cancel)
    with pytest.raises(Refused, match="does not read"):
        lines.control.command("alice", cancel)
    receive.close()


def test_an_agent_cannot_answer_for_another(lines: Lines) -> None:
    lines.control.subscribe("alice")
    lines.control.subscribe("bob")
    answer = lines.control.command("alice", cancel)
    lines.control.done("bob", 1, True, None)
    assert not answer.done

"""What a scripted turn asks of the daemon: a turn that runs again does nothing twice."""

from typing import Any

import msgspec

from hive_agent.tools import Tools
from hive_core.wire import agent


class Recorder:
    """A link that says yes."""

    epoch = 1

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def call(self, request: msgspec.Struct, result_type: type[Any]) -> Any:
        self.asked.append(request)
        answers: dict[type, msgspec.Struct] = {
            agent.Sent: agent.Sent(id=42),
            agent.Asked: agent.Asked(id=7),
            agent.Done: agent.Done(),
            agent.Reminded: agent.Reminded(id=3, due_at=1.0),
        }
        return answers[result_type]


async def turn(link: Recorder, message_id: int) -> None:
    tools = Tools(link, message_id)
    assert await tools.send("bob", "hi", in_reply_to=41) == 42
    assert await tools.send("bob", "hi", in_reply_to=41) == 42
    assert await tools.ask("bob", "Which one?", ["red", "blue"]) == 7
    await tools.answer(7, "red")
    assert await tools.remind("look again", 60.0) == 3


async def test_each_call_says_what_was_meant() -> None:
    link = Recorder()

    await turn(link, 9)

    replace = msgspec.structs.replace
    assert [replace(request, idempotency_key=None) for request in link.asked] == [
        agent.Send(to="bob", body="hi", in_reply_to=41),
        agent.Send(to="bob", body="hi", in_reply_to=41),
        agent.Ask(to="bob", question="Which one?", options=["red", "blue"]),
        agent.Answer(id=7, answer="red"),
        agent.Remind(message="look again", delay_seconds=60.0),
    ]


async def test_a_turn_that_runs_again_has_the_same_keys_and_no_other_turn_has() -> None:
    first, again, other = Recorder(), Recorder(), Recorder()

    await turn(first, 9)
    await turn(again, 9)
    await turn(other, 10)

    keys = [request.idempotency_key for request in first.asked]
    assert len(set(keys)) == len(keys)
    assert [request.idempotency_key for request in again.asked] == keys
    assert set(keys).isdisjoint(request.idempotency_key for request in other.asked)

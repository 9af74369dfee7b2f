"""A mailbox under everything that turns and lost answers do, in any order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hive_core.domain.delivery import Mailbox
from hive_core.wire.agent import Message


class Answers(RuleBasedStateMachine):
    """Whatever happens, nothing that a client takes is done before it was read, and nothing disappears."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Mailbox()
        self.last_id = 0
        self.unacked: list[int] = []
        self.turn: int | None = None
        self.on_the_way: list[dict[int, int]] = []
        self.read: set[int] = set()
        """Of what is leased, what its client has."""

    @rule()
    def send(self) -> None:
        self.last_id += 1
        self.unacked.append(self.last_id)
        self.box.committed(Message(id=self.last_id, sender="bob", recipient="alice", body="x", sent_at=0.0))
        self.load()

    @precondition(lambda self: self.turn is None and self.box.has_ready)
    @rule()
    def begin_turn(self) -> None:
        (message,) = self.box.take(1)
        self.turn = message.id
        self.load()

    @precondition(lambda self: self.turn is not None)
    @rule(limit=st.integers(1, 3))
    def drain(self, limit: int) -> None:
        taken = [message.id for message in self.box.take(limit, drained=True)]
        if taken:
            self.on_the_way.append(self.box.set_out(taken))
        self.load()

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        leases = self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1)))
        leased = set(self.box.still_leased(leases))
        self.read |= leased
        done = self.box.arrived(leases)
        assert set(done) <= leased
        self.forget(done)

    @precondition(lambda self: self.on_the_way)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        leases = self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1)))
        self.box.requeue(self.box.still_leased(leases))
        self.load()

    @precondition(lambda self: self.turn is not None)
    @rule(blanket=st.booleans())
    def end_turn_well(self, blanket: bool) -> None:
        assert self.turn is not None
        done = self.box.ack(None if blanket else [self.turn])
        assert self.turn in done
        assert set(done) - {self.turn} <= self.read
        self.forget(done)
        self.turn = None

    @rule()
    def requeue(self) -> None:
        """As a harness does between turns, and a new one at its start."""
        self.box.requeue()
        self.turn = None
        self.read.clear()
        self.load()

    @invariant()
    def everything_is_deliverable_or_leased(self) -> None:
        assert len(self.unacked) == self.box.waiting + len(self.box.leased)
        assert set(self.box.leased) <= set(self.unacked)

    def teardown(self) -> None:
        for leases in self.on_the_way:
            self.box.requeue(self.box.still_leased(leases))
        self.box.requeue()
        self.load()
        assert [message.id for message in self.box.take(10_000)] == self.unacked

    def forget(self, done: list[int]) -> None:
        self.unacked = [message_id for message_id in self.unacked if message_id not in done]
        self.read -= set(done)

    def load(self) -> None:
        """What the broker does whenever the window is empty."""
        if self.box.needs_load():
            leased = set(self.box.leased)
            rows = [message_id for message_id in self.unacked if message_id not in leased]
            messages = [
                Message(id=row, sender="bob", recipient="alice", body="x", sent_at=0.0) for row in rows
            ]
            self.box.loaded(messages, whole=True)


TestAnswers = Answers.TestCase

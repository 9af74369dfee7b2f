"""A mailbox under failing turns, judgements that take their time, restarts and retries, in any order."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hive_core.domain.dead import is_dead
from hive_core.domain.delivery import Mailbox
from hive_core.wire.agent import Message

MAX_DELIVERIES = 3


class Failures(RuleBasedStateMachine):
    """Dead is exactly what turns began with and failed over too often, and nothing else disappears."""

    def __init__(self) -> None:
        super().__init__()
        self.box = Mailbox()
        self.last_id = 0
        self.alive: list[int] = []
        self.dead: list[int] = []
        self.attempts: dict[int, int] = {}
        self.failures: dict[int, int] = {}
        """What the model says of them."""
        self.turn: int | None = None
        self.judged: list[int] = []
        """Held until the writer has answered."""
        self.verdict: list[int] = []

    @rule()
    def send(self) -> None:
        self.last_id += 1
        self.alive.append(self.last_id)
        self.box.committed(self.message(self.last_id))
        self.load()

    @precondition(lambda self: self.turn is None and not self.judged and self.box.has_ready)
    @rule()
    def begin_turn(self) -> None:
        (message,) = self.box.take(1)
        assert message.id not in self.dead
        self.turn = message.id
        self.load()

    @precondition(lambda self: self.turn is not None)
    @rule(limit=st.integers(1, 3))
    def drain(self, limit: int) -> None:
        taken = self.box.take(limit, drained=True)
        assert not {message.id for message in taken} & set(self.dead)
        self.box.arrived(self.box.set_out([message.id for message in taken]))
        self.load()

    @precondition(lambda self: self.turn is not None)
    @rule()
    def end_turn_well(self) -> None:
        assert self.turn is not None
        self.forget(self.box.ack([self.turn]))
        self.turn = None

    @precondition(lambda self: not self.judged)
    @rule()
    def fail(self) -> None:
        """The turn failed, or its harness died: the writer counts, and its answer is on its way."""
        self.judged = self.box.hold()
        assert self.judged == ([] if self.turn is None else [self.turn])
        self.box.requeue()
        if self.turn is not None:
            self.failures[self.turn] = self.failures.get(self.turn, 0) + 1
            self.attempts[self.turn] = self.attempts.get(self.turn, 0) + 1
            self.verdict = [i for i in self.judged if is_dead(self.attempts[i], MAX_DELIVERIES)]
        self.turn = None
        self.load()

    @precondition(lambda self: self.turn is not None and not self.judged)
    @rule()
    def set_aside(self) -> None:
        assert self.turn is not None
        self.judged = self.verdict = self.box.hold([self.turn, 10_000])
        assert self.judged == [self.turn]
        self.turn = None
        self.load()

    @precondition(lambda self: self.judged)
    @rule()
    def judgement_arrives(self) -> None:
        buried = self.box.bury(self.verdict)
        self.dead += buried
        self.alive = [message_id for message_id in self.alive if message_id not in buried]
        self.box.release(self.judged)
        self.judged, self.verdict = [], []
        self.load()

    @precondition(lambda self: self.judged)
    @rule()
    def somebody_acks_what_is_judged(self) -> None:
        self.forget(self.box.ack(self.judged))

    @precondition(lambda self: self.judged)
    @rule()
    def disk_refuses_the_judgement(self) -> None:
        for message_id in self.judged:
            self.attempts[message_id] = self.failures[message_id] = self.attempts.get(message_id, 1) - 1
        self.box.release(self.judged)
        self.judged, self.verdict = [], []
        self.load()

    @rule()
    def harness_starts_anew_after_a_clean_end(self) -> None:
        self.box.requeue()
        self.turn = None
        self.load()

    @precondition(lambda self: not self.judged)
    @rule()
    def daemon_starts_anew(self) -> None:
        """It knows no leases: what was in hand is deliverable, and not counted."""
        handed_out = [self.turn] if self.turn is not None else []
        self.box = Mailbox(len(self.alive), handed_out)
        self.turn = None
        self.load()

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        message_id = data.draw(st.sampled_from(self.dead))
        self.dead.remove(message_id)
        self.alive = sorted([*self.alive, message_id])
        self.attempts[message_id] = self.failures[message_id] = 0
        self.box.revive(1)
        self.load()

    @invariant()
    def everything_alive_is_deliverable_leased_or_held(self) -> None:
        assert len(self.alive) == self.box.waiting + len(self.box.leased)
        assert set(self.box.leased) <= set(self.alive)

    @invariant()
    def only_failures_of_turns_are_counted(self) -> None:
        assert self.attempts == self.failures

    def teardown(self) -> None:
        if self.judged:
            self.judgement_arrives()
        self.box.requeue()
        self.load()
        assert [message.id for message in self.box.take(10_000)] == self.alive

    def forget(self, done: list[int]) -> None:
        self.alive = [message_id for message_id in self.alive if message_id not in done]

    def message(self, message_id: int) -> Message:
        return Message(id=message_id, sender="bob", recipient="alice", body="x", sent_at=0.0)

    def load(self) -> None:
        """What the broker does whenever the window is empty."""
        if self.box.needs_load():
            held = set(self.box.leased)
            self.box.loaded([self.message(i) for i in self.alive if i not in held], whole=True)


TestFailures = Failures.TestCase

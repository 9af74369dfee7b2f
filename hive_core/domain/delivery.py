"""Who gets a message, and the order in which a mailbox hands it out.

A message is leased by recv, done by ack, deliverable again by requeue.  The two columns delivered_at
and acked_at are the truth; a Mailbox is what of it is in memory: a window of the oldest deliverable
messages, and the ids that are leased.  Whatever does not fit the window stays on disk and is loaded
when the window runs dry.
"""

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import EVERYONE, OPERATOR, why_no_agent_name
from hive_core.wire.limits import MAX_BODY_BYTES

WINDOW_MESSAGES: Final = 256
WINDOW_BYTES: Final = 2**20
DRAIN_CHARS: Final = 96 * 2**10
"""Text that one recv in a turn gives, unless its first message is longer: a model's client cuts the rest."""


def route(sender: str, to: str, agents: Collection[str]) -> list[str]:
    """Give the recipients of a message to *to*.

    Raises:
        Refused: NOT_FOUND, since a message to nobody would be swallowed.
    """
    if to == EVERYONE:
        everyone = sorted(agent for agent in agents if agent != sender)
        if not everyone:
            raise Refused(ErrorCode.NOT_FOUND, "cannot send to *: there is no other agent")
        return everyone
    if to == OPERATOR and sender != OPERATOR:
        return [OPERATOR]
    if to in agents:
        return [to]
    if to == OPERATOR:
        raise Refused(ErrorCode.INVALID_ARGUMENT, "cannot send: the operator would write to itself")
    raise Refused(ErrorCode.NOT_FOUND, f"cannot send: no agent is named {to[:80]!r}")


def check_body(body: str) -> None:
    """Refuse what is empty or too large.

    Raises:
        Refused: INVALID_ARGUMENT, naming the limit.
    """
    size = len(body.encode("utf-8", "surrogatepass"))
    if not size:
        raise Refused(ErrorCode.INVALID_ARGUMENT, "cannot send: the body is empty")
    if size > MAX_BODY_BYTES:
        raise Refused(
            ErrorCode.INVALID_ARGUMENT,
            f"cannot send: the body has {size} bytes, the limit is {MAX_BODY_BYTES}; "
            "put the text into a file and send its path",
        )


def check_label(label: str, agents: Collection[str]) -> None:
    """Refuse a source label that could be taken for somebody else.

    Raises:
        Refused: FORBIDDEN.
    """
    if label in agents or ((why := why_no_agent_name(label)) is not None and "reserved" in why):
        raise Refused(ErrorCode.FORBIDDEN, f"cannot wake: {label!r} is the name of somebody else")


class Mailbox:
    """The deliverable and the leased messages of one agent.

    `waiting` counts the deliverable ones, in memory or not.  After `needs_load` said yes, the caller
    loads the oldest rows above `loaded_to` that are neither acked nor leased, and gives them to
    `loaded`; the load must see everything that was committed or marked before it was asked for.
    """

    def __init__(self, waiting: int = 0, working: Iterable[int] = ()) -> None:
        self.waiting = waiting
        self.paused = False
        self.loaded_to = 0
        self._ready: deque[Message] = deque()
        self._ready_bytes = 0
        # By the take that leased them.
        self._leased: dict[int, int] = {}
        self._takes = 0
        self._turn: int | None = None
        # Leased inside a turn, and the message which that turn began with, if it was known.
        self._drained: dict[int, int | None] = {}
        # Leased in an answer that nobody is known to have read, and whether their turn is done already.
        self._on_the_way: dict[int, bool] = {}
        # Handed out by an earlier daemon: its agent may still be at work on them and ack them.
        self._working = dict.fromkeys(working)
        # Neither deliverable nor leased, until it is decided whether they are handed out again.
        self._held: dict[int, None] = {}
        self._more = waiting > 0
        self._loading = False
        self._load_is_stale = False
        self._acked_while_loading: set[int] = set()

    @property
    def has_ready(self) -> bool:
        return bool(self._ready) and not self.paused

    @property
    def settled(self) -> bool:
        """Nothing deliverable is outside memory."""
        return not self._more and not self._loading

    @property
    def leased(self) -> list[int]:
        """What must not be handed out now: what is leased, and what is held."""
        return [*self._leased, *self._held] if self._held else list(self._leased)

    @property
    def working_on(self) -> int | None:
        """The message that this agent's turn began with, as far as the daemon can know."""
        return self._turn if self._turn in self._leased else next(iter(self._working), None)

    def cause(self, in_reply_to: int | None) -> int | None:
        """The message that a send of this agent follows from."""
        if in_reply_to is not None and (in_reply_to in self._leased or in_reply_to in self._working):
            return in_reply_to
        return self.working_on

    def committed(self, message: Message) -> None:
        """A message for this agent is on disk."""
        self.waiting += 1
        if self._more or self._loading or not self._fits(message):
            self._more = True
        else:
            self._append(message)

    def take(self, limit: int, *, drained: bool = False) -> list[Message]:
        """Lease up to *limit* messages, oldest first.

        The harness begins a turn with what it takes.  What is *drained* belongs to that turn, and is done
        or not with it; of these no more are given at once than DRAIN_CHARS allows.
        """
        taken: list[Message] = []
        # Before anything is leased: what began an earlier turn may come again here, and begins none.
        turn = self.working_on
        self._takes += 1
        left_chars = DRAIN_CHARS
        while self._ready and len(taken) < limit and not self.paused:
            left_chars -= len(self._ready[0].body)
            if drained and taken and left_chars < 0:
                break
            message = self._ready.popleft()
            self._ready_bytes -= len(message.body)
            self._leased[message.id] = self._takes
            taken.append(message)
        if taken:
            self.waiting -= len(taken)
            if drained:
                self._drained |= dict.fromkeys((message.id for message in taken), turn)
            else:
                self._turn = taken[0].id
                self._working.clear()
        return taken

    def ack(self, ids: Iterable[int] | None) -> list[int]:
        """End leases and give the ids that are done.

        With *ids*, only those of them that may be, and what was drained in the turns that began with them.
        What is on its way of that is done when it has arrived.
        """
        if ids is None:
            acked = self._without_those_on_the_way(self._leased)
        else:
            given = dict.fromkeys(ids)
            drained = [i for i, turn in self._drained.items() if turn is None or turn in given]
            given |= dict.fromkeys(self._without_those_on_the_way(i for i in drained if i not in given))
            acked = self._known(given)
        self._leave_waiting(acked)
        self._end(acked)
        return acked

    def set_out(self, ids: Iterable[int]) -> dict[int, int]:
        """Give the leases of *ids*; what of them was drained is on its way until it has arrived."""
        leases = {message_id: self._leased[message_id] for message_id in ids if message_id in self._leased}
        self._on_the_way |= dict.fromkeys((i for i in leases if i in self._drained), False)
        return leases

    def still_leased(self, leases: Mapping[int, int]) -> list[int]:
        """Give those that have not been acked or requeued since."""
        return [message_id for message_id, lease in leases.items() if self._leased.get(message_id) == lease]

    def arrived(self, leases: Mapping[int, int]) -> list[int]:
        """What these leased has been read; give what of it is done, since its turn is."""
        done = [i for i in self.still_leased(leases) if self._on_the_way.pop(i, False)]
        self._end(done)
        return done

    def requeue(self, ids: Iterable[int] | None = None) -> list[int]:
        """Make leased messages deliverable again, in their old order; all of them without *ids*."""
        back = (
            [i for i in self._leased if ids is None] if ids is None else [i for i in ids if i in self._leased]
        )
        for message_id in back:
            del self._leased[message_id]
            self._drained.pop(message_id, None)
            self._on_the_way.pop(message_id, None)
        if ids is None:
            self._working.clear()
        self._come_again(len(back))
        return back

    def hold(self, ids: Iterable[int] | None = None) -> list[int]:
        """Keep messages back until `release` or `bury`, and give those that are now kept.

        Those of *ids* that are not acked, as far as they are in memory; without *ids* those that are
        leased and were not drained, which is what turns began with.
        """
        if ids is None:
            held = [i for i in self._leased if i not in self._drained]
        else:
            held = [i for i in self._known(dict.fromkeys(ids)) if i not in self._held]
        self._leave_waiting(held)
        self._end(held)
        self._held |= dict.fromkeys(held)
        return held

    def release(self, ids: Iterable[int]) -> list[int]:
        """Make held messages deliverable again, and give them; not those that were acked meanwhile."""
        back = [i for i in ids if i in self._held]
        for message_id in back:
            del self._held[message_id]
        self._come_again(len(back))
        return back

    def bury(self, ids: Iterable[int]) -> list[int]:
        """Forget held messages, which are dead, and give them; not those that were acked meanwhile."""
        buried = [i for i in ids if i in self._held]
        for message_id in buried:
            del self._held[message_id]
        return buried

    def revive(self, count: int) -> None:
        """So many messages, forgotten before, are deliverable on disk again."""
        self._come_again(count)

    def needs_load(self) -> bool:
        """Say whether to load now; if so the caller must, and give the rows to `loaded`."""
        if self._ready or not self._more or self._loading:
            return False
        self._loading, self._more = True, False
        return True

    def loaded(self, messages: list[Message], whole: bool) -> None:
        """Take what a load found; *whole* says that nothing was left above it."""
        gone, self._acked_while_loading = self._acked_while_loading, set()
        self._loading = False
        if self._load_is_stale:  # older messages came back meanwhile: they have to be loaded first
            self._load_is_stale = False
            return
        for message in messages:
            if message.id not in self._leased and message.id not in self._held and message.id not in gone:
                self._append(message)
        self._more = self._more or not whole

    def _known(self, ids: Mapping[int, None]) -> list[int]:
        """Give those of *ids* that are in memory and not acked."""
        known = self._leased.keys() | self._working.keys()
        if self._held:
            known |= self._held.keys()
        if not ids.keys() <= known:
            known |= {message.id for message in self._ready}
        return [message_id for message_id in ids if message_id in known]

    def _leave_waiting(self, ids: Iterable[int]) -> None:
        """Take those of *ids* that are deliverable out of what waits."""
        unleased = [i for i in ids if i not in self._leased and i not in self._held]
        if unleased:
            self.waiting -= len(unleased)
            gone = set(unleased)
            self._ready = deque(message for message in self._ready if message.id not in gone)
            self._ready_bytes = sum(len(message.body) for message in self._ready)

    def _come_again(self, count: int) -> None:
        if count:
            self.waiting += count
            # They come before what is in memory: begin again with what is on disk.
            self._ready.clear()
            self._ready_bytes = 0
            self.loaded_to = 0
            self._more = True
            self._load_is_stale = self._loading

    def _end(self, ids: Collection[int]) -> None:
        for message_id in ids:
            self._leased.pop(message_id, None)
            self._working.pop(message_id, None)
            self._drained.pop(message_id, None)
            self._on_the_way.pop(message_id, None)
        if self._held:
            for message_id in ids:
                self._held.pop(message_id, None)
        if self._loading:
            self._acked_while_loading.update(ids)

    def _without_those_on_the_way(self, ids: Iterable[int]) -> list[int]:
        there = []
        for message_id in ids:
            if message_id in self._on_the_way:
                self._on_the_way[message_id] = True
            else:
                there.append(message_id)
        return there

    def _fits(self, message: Message) -> bool:
        return len(self._ready) < WINDOW_MESSAGES and self._ready_bytes + len(message.body) <= WINDOW_BYTES

    def _append(self, message: Message) -> None:
        self._ready.append(message)
        self._ready_bytes += len(message.body)
        self.loaded_to = message.id

"""Takes messages, keeps them, and hands them out.

Accepted means on disk: a send is answered by the commit that holds it.  Handing out happens from memory,
and what it changes in the rows rides with the next commit.  After the daemon has ended, however it did,
every message that was not acked is deliverable again; one that may have been handed out says so.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeVar

import apsw
import trio

from hive_core.deferred import Deferred
from hive_core.domain import delivery
from hive_core.domain.allow import Allowed, permit
from hive_core.domain.delivery import Mailbox
from hive_core.domain.letter import Letter
from hive_core.store import agents, mailbox
from hive_core.store.database import Outcome, Store
from hive_core.store.mailbox import Acked, Delivered, MailboxOp, Post, Posted, Requeued, StoredMessage
from hive_core.wire.agent import Message
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import EVERYONE, MANAGER, OPERATOR, SELF
from hive_core.wire.limits import MAX_RECV_SECONDS

T = TypeVar("T")

CONTINUE: Final = "continue"
"""What a model reads that asked for another turn."""

log = logging.getLogger(__name__)


class Waiter:
    """A recv that is parked."""

    __slots__ = ("deadline", "deferred", "drained", "limit")

    def __init__(
        self, limit: int, deadline: float, deferred: Deferred[list[Message]], *, drained: bool = False
    ) -> None:
        self.limit = limit
        self.drained = drained
        self.deadline = deadline
        self.deferred = deferred


class Handover(NamedTuple):
    """Messages in an answer.  One of the two is called when it is known whether somebody read it.

    They leave alone what has been acked or requeued meanwhile, and perhaps leased anew.
    """

    arrived: Callable[[], None]
    undo: Callable[[], None]


class Held(NamedTuple):
    """Messages kept back.  *bury* is called with those that are dead, then *release* for the others."""

    ids: list[int]
    bury: Callable[[Iterable[int]], list[int]]
    release: Callable[[bool], int]
    """Make them deliverable, and give how many; told whether their rows say so already."""


@dataclass
class _Inbox:
    mailbox: Mailbox
    waiters: deque[Waiter] = field(default_factory=deque)
    allowed: Allowed = None
    """To whom this agent may write, as is stored; None: to anyone."""
    pinned: Allowed = None
    """The same, of the host's configuration, which wins; None: that says nothing."""
    paused: bool = False
    """By the operator."""
    held: bool = False
    """While its machine comes up."""

    @property
    def in_force(self) -> Allowed:
        return self.allowed if self.pinned is None else self.pinned


class Broker:
    """The mailboxes of all registered agents.

    *announce* is called with every message when it is on disk, *changed* with the name of an agent whose
    number of unread messages changed, *clock* gives unix seconds.
    """

    def __init__(
        self,
        store: Store[MailboxOp],
        *,
        announce: Callable[[StoredMessage], None],
        changed: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._announce = announce
        self._changed = changed
        self._clock = clock
        self._inboxes: dict[str, _Inbox] = {}
        self._last_id = 0
        self._next_deadline = math.inf
        self._earlier_deadline = trio.Event()

    @property
    def agents(self) -> list[str]:
        return list(self._inboxes)

    @property
    def unread(self) -> int:
        return sum(inbox.mailbox.waiting for inbox in self._inboxes.values())

    async def recover(self) -> None:
        """Take up what the last daemon left.  Before anything is registered."""

        def look(db: apsw.Connection) -> int:
            if not self._store.was_clean:
                mailbox.flag_unacked(db)
            return mailbox.last_id(db)

        self._last_id = await self._store.write(look)

    async def register(self, agent: str, *, paused: bool) -> None:
        """Give *agent* a mailbox with what is on disk for it."""
        done: Deferred[None] = Deferred()

        def look(db: apsw.Connection) -> tuple[int, list[int], Allowed]:
            return *mailbox.waiting_of(db, agent), agents.allowed_of(db, agent)

        def found(outcome: tuple[int, list[int], Allowed]) -> None:
            # Here and not in the waiting task: what is committed after the look must find the mailbox.
            waiting, handed_out, allowed = outcome
            inbox = self._inboxes[agent] = _Inbox(Mailbox(waiting, handed_out), allowed=allowed)
            inbox.paused = paused
            self._let_flow(agent, inbox)
            done.resolve(None)

        self._store.submit(look).then(found, done.fail)
        with trio.CancelScope(shield=True):
            await done.wait()

    def unregister(self, agent: str) -> None:
        """Refuse messages to *agent* from now on.  Its rows stay."""
        inbox = self._inboxes.pop(agent, None)
        for waiter in inbox.waiters if inbox else ():
            waiter.deferred.fail(Refused(ErrorCode.NOT_FOUND, f"cannot wait: {agent} was destroyed"))

    def set_paused(self, agent: str, paused: bool) -> None:
        inbox = self._inboxes[agent]
        inbox.paused = paused
        self._let_flow(agent, inbox)

    def hold_up(self, agent: str, held: bool) -> None:
        """Hand out nothing to *agent* for the time being, whether or not the operator has paused it."""
        inbox = self._inboxes.get(agent)
        if inbox is not None:
            inbox.held = held
            self._let_flow(agent, inbox)

    def _let_flow(self, agent: str, inbox: _Inbox) -> None:
        inbox.mailbox.paused = inbox.paused or inbox.held
        self._pump(agent)

    def count_unread(self, agent: str) -> int:
        inbox = self._inboxes.get(agent)
        return inbox.mailbox.waiting if inbox else 0

    # ── who may write to whom ───────────────────────────────────────────────────────────────────

    def allowed(self, agent: str) -> Allowed:
        """To whom *agent* may write; None: to anyone."""
        inbox = self._inboxes.get(agent)
        return inbox.in_force if inbox else None

    def chosen(self, agent: str) -> Allowed:
        """The same, as `allow` said last, whatever is pinned."""
        inbox = self._inboxes.get(agent)
        return inbox.allowed if inbox else None

    def pin(self, agent: str, recipients: Collection[str] | None) -> None:
        """Let *agent* write to *recipients* and the manager only, whatever `allow` says; None: as that says.

        This is kept by whoever says so, for as long as *agent* is registered.
        """
        inbox = self._inboxes.get(agent)
        pinned = None if recipients is None else frozenset({*recipients, MANAGER})
        if inbox is not None and inbox.pinned != pinned:
            inbox.pinned = pinned
            self._changed(agent)

    async def allow(self, agent: str, recipients: Collection[str] | None) -> None:
        """Let *agent* write to *recipients* and the manager only, or, with none of them, to anyone.

        Raises:
            Refused: NOT_FOUND, when the agent was destroyed.
        """
        inbox = self._inbox(agent)
        allowed = frozenset(recipients) if recipients else None
        done: Deferred[None] = Deferred()

        def stored(_result: None) -> None:
            inbox.allowed = allowed
            self._changed(agent)
            done.resolve(None)

        self._store.submit(lambda db: agents.allow(db, agent, allowed)).then(stored, done.fail)
        with trio.CancelScope(shield=True):
            await done.wait()
        names = "anyone" if allowed is None else ",".join(sorted(allowed))
        log.info("Recipients allowed agent=%s to=%s", agent, names)

    def check_allowed(self, sender: str, to: str, verb: str) -> None:
        """Refuse what *sender* may not begin with *to*.

        Raises:
            Refused: FORBIDDEN.
        """
        permit(sender, to, [to], self.allowed(sender), verb)

    # ── in ──────────────────────────────────────────────────────────────────────────────────────

    def send(
        self,
        sender: str,
        to: str,
        body: str,
        *,
        sender_uid: int | None,
        in_reply_to: int | None = None,
        idempotency_key: str | None = None,
    ) -> Deferred[int]:
        """Store a message for *to*, an agent, `operator` or `*`; its id comes when it is on disk.

        Raises:
            Refused: NOT_FOUND, INVALID_ARGUMENT or FORBIDDEN, at once; the deferred fails with NOT_FOUND for
                an unknown in_reply_to, CONFLICT for a key used otherwise, UNAVAILABLE if the disk refuses.
        """
        delivery.check_body(body)
        recipients = delivery.route(sender, to, self._inboxes)
        inbox = self._inboxes.get(sender)
        if inbox is not None and inbox.in_force is not None:
            recipients = permit(sender, to, recipients, inbox.in_force)
        return self._post(
            Post(
                first_id=self._take_ids(len(recipients)),
                sender=sender,
                recipients=recipients,
                body=body,
                sent_at=self._clock(),
                in_reply_to=in_reply_to,
                cause_id=inbox.mailbox.cause(in_reply_to) if inbox else None,
                sender_uid=sender_uid,
                idempotency_key=idempotency_key,
                broadcast=to == EVERYONE,
            )
        )

    def wake(self, agent: str, label: str, body: str, *, sender_uid: int | None) -> Deferred[int]:
        """Put a message with a free source *label* into *agent*'s own inbox.

        Raises:
            Refused: INVALID_ARGUMENT for the body; FORBIDDEN if the label is somebody's name.
        """
        delivery.check_label(label, self._inboxes)
        return self._leave(agent, label, body, sender_uid)

    def tell(self, agent: str, body: str, *, sender_uid: int | None) -> Deferred[int]:
        """Put a message from the operator into *agent*'s inbox, at the word of the agent's own machine.

        Raises:
            Refused: INVALID_ARGUMENT for the body.
        """
        return self._leave(agent, OPERATOR, body, sender_uid)

    def request_next_turn(self, agent: str, *, sender_uid: int | None) -> Deferred[int] | None:
        """Let *agent* have a turn of its own when the present one has ended; give the id of what begins it.

        None, and nothing is done, when messages are pending: they begin the next turn.  However often it
        is asked in one turn, one more turn comes of it.

        Raises:
            Refused: NOT_FOUND, when the agent was destroyed.
        """
        box = self._inbox(agent).mailbox
        turn = box.working_on
        # Its sender is the same for all agents, and a key is unique among a sender's messages.
        key = None if turn is None else f"next turn of {agent} after {turn}"
        if box.waiting:
            return None
        post = Post(
            first_id=self._take_ids(1),
            sender=SELF,
            recipients=[agent],
            body=CONTINUE,
            sent_at=self._clock(),
            cause_id=turn,
            sender_uid=sender_uid,
            idempotency_key=key,
        )
        return self._post(post)

    async def leave_with(
        self, sender: str, most: int, fn: Callable[[apsw.Connection], tuple[T, list[Letter]]]
    ) -> T:
        """Run *fn* in a transaction and store the letters it gives, at most *most*, in the same one.

        What *fn* changed is on disk if and only if its letters are.  One to an agent that is not there
        is left out: nobody would ever take it.  *fn* runs in the writer's thread.

        Raises:
            what *fn* raises, and nothing has happened; Refused UNAVAILABLE if the disk refuses.
        """
        answer = self.submit_with(sender, most, fn)
        with trio.CancelScope(shield=True):
            result = await answer.wait()
        return result  # noqa: RET504 - mypy cannot know that the scope swallows nothing

    def submit_with(
        self, sender: str, most: int, fn: Callable[[apsw.Connection], tuple[T, list[Letter]]]
    ) -> Deferred[T]:
        """Do as `leave_with`, without waiting."""
        first_id, now, here = self._take_ids(most), self._clock(), {*self._inboxes, OPERATOR}

        def run(db: apsw.Connection) -> tuple[T, list[Post]]:
            result, letters = fn(db)
            assert len(letters) <= most
            wanted = [letter for letter in letters if letter.to in here]
            posts = [
                Post(first_id + offset, sender, [letter.to], letter.body, now, cause_id=letter.cause_id)
                for offset, letter in enumerate(wanted)
            ]
            mailbox.insert_posts(db, posts)
            return result, posts

        answer: Deferred[T] = Deferred()

        def stored(outcome: tuple[T, list[Post]]) -> None:
            # Here and not in the waiting task: what is committed later must not be delivered sooner.
            result, posts = outcome
            for post in posts:
                self._deliver(post, post.first_id)
            answer.resolve(result)

        self._store.submit(run).then(stored, answer.fail)
        return answer

    def _leave(self, agent: str, sender: str, body: str, sender_uid: int | None) -> Deferred[int]:
        delivery.check_body(body)
        self._inbox(agent)
        return self._post(
            Post(self._take_ids(1), sender, [agent], body, self._clock(), sender_uid=sender_uid)
        )

    def take_ids(self, count: int) -> int:
        """Give the first of *count* ids that no message has, to whoever stores messages on its own."""
        return self._take_ids(count)

    def _take_ids(self, count: int) -> int:
        first = self._last_id + 1
        self._last_id += count
        return first

    def _post(self, post: Post) -> Deferred[int]:
        answer: Deferred[int] = Deferred()

        def stored(outcome: Outcome) -> None:
            assert isinstance(outcome, Posted)
            if outcome.new:
                self._deliver(post, outcome.thread_id)
            answer.resolve(outcome.id)

        self._store.put(post, len(post.recipients) * len(post.body)).then(stored, answer.fail)
        return answer

    def _deliver(self, post: Post, thread_id: int) -> None:
        for message_id, recipient in enumerate(post.recipients, start=post.first_id):
            thread = thread_id if post.in_reply_to is not None else message_id
            message = StoredMessage(
                id=message_id,
                sender=post.sender,
                recipient=recipient,
                body=post.body,
                sent_at=post.sent_at,
                delivered_at=None,
                acked_at=None,
                in_reply_to=post.in_reply_to,
                redelivered=False,
                broadcast=post.broadcast,
                thread_id=thread,
                cause_id=post.cause_id,
                sender_uid=post.sender_uid,
            )
            self._announce(message)
            inbox = self._inboxes.get(recipient)
            if inbox is not None:
                inbox.mailbox.committed(mailbox.as_handed_out(message))
                self._pump(recipient)
                self._changed(recipient)

    # ── out ─────────────────────────────────────────────────────────────────────────────────────

    def recv(
        self, agent: str, limit: int, wait_seconds: float | None, *, drained: bool = False
    ) -> Deferred[list[Message]]:
        """Lease up to *limit* messages of *agent*, waiting up to *wait_seconds* for the first.

        What is *drained* belongs to the turn that is running (domain.delivery.Mailbox.take).

        Raises:
            Refused: NOT_FOUND, when the agent was destroyed.
        """
        inbox = self._inbox(agent)
        wait_s = min(wait_seconds or 0.0, MAX_RECV_SECONDS)
        waiter = Waiter(
            limit,
            trio.current_time() + wait_s,
            Deferred(lambda: self._give_up(agent, waiter)),
            drained=drained,
        )
        inbox.waiters.append(waiter)
        self._pump(agent)
        return waiter.deferred

    def ack(self, agent: str, ids: Iterable[int] | None) -> int:
        """End the leases of *agent*, or those of *ids* and of their turns, as done; give how many."""
        acked = self._inbox(agent).mailbox.ack(ids)
        if acked:
            self._store.mark(Acked(acked, self._clock()))
            self._changed(agent)
        return len(acked)

    def requeue(self, agent: str, ids: Iterable[int] | None = None) -> int:
        """Make what *agent* has leased, or those of *ids*, deliverable again, flagged redelivered."""
        back = self._inbox(agent).mailbox.requeue(ids)
        if back:
            self._store.mark(Requeued(back))
            self._pump(agent)
            self._changed(agent)
        return len(back)

    def hold(self, agent: str, ids: Iterable[int] | None = None) -> Held:
        """Keep messages to *agent* back, to decide what becomes of them (domain.delivery.Mailbox.hold).

        Raises:
            Refused: NOT_FOUND, when the agent was destroyed.
        """
        box = self._inbox(agent).mailbox
        held = box.hold(ids)
        return Held(held, box.bury, partial(self._release, agent, box, held))

    def _release(self, agent: str, box: Mailbox, held: list[int], counted: bool) -> int:
        back = box.release(held)
        if not counted:
            self._store.mark(Requeued(back))
        if self._is_of(agent, box):
            self._pump(agent)
            self._changed(agent)
        return len(back)

    def revive(self, agent: str, count: int) -> None:
        """So many dead messages to *agent* were made deliverable again, on disk."""
        inbox = self._inboxes.get(agent)
        if inbox is not None:
            inbox.mailbox.revive(count)
            self._pump(agent)
            self._changed(agent)

    def hand_over(self, agent: str, ids: Iterable[int]) -> Handover:
        """Watch over the answer that takes *ids* to *agent*, to whom they have just been leased.

        What was drained is not done with its turn before it has arrived.
        """
        box = self._inbox(agent).mailbox
        leases = box.set_out(ids)
        return Handover(
            partial(self._arrived, agent, box, leases), partial(self._take_back, agent, box, leases)
        )

    def _arrived(self, agent: str, box: Mailbox, leases: Mapping[int, int]) -> None:
        if done := box.arrived(leases):
            self._store.mark(Acked(done, self._clock()))
            if self._is_of(agent, box):
                self._changed(agent)

    def _take_back(self, agent: str, box: Mailbox, leases: Mapping[int, int]) -> None:
        if self._is_of(agent, box):
            self.requeue(agent, box.still_leased(leases))

    def _is_of(self, agent: str, box: Mailbox) -> bool:
        """Whether *agent* is still there; it may have been destroyed, and made anew under its name."""
        inbox = self._inboxes.get(agent)
        return inbox is not None and inbox.mailbox is box

    def _inbox(self, agent: str) -> _Inbox:
        try:
            return self._inboxes[agent]
        except KeyError:
            raise Refused(ErrorCode.NOT_FOUND, f"cannot serve {agent}: it was destroyed") from None

    def _pump(self, agent: str) -> None:
        """Answer the parked recvs of *agent* as far as there are messages; load more when needed."""
        inbox = self._inboxes[agent]
        box, waiters = inbox.mailbox, inbox.waiters
        while waiters and box.has_ready:
            messages = box.take(waiters[0].limit, drained=waiters[0].drained)
            self._store.mark(Delivered([message.id for message in messages], self._clock()))
            self._changed(agent)
            waiters.popleft().deferred.resolve(messages)
        if waiters and (box.paused or box.settled):
            self._answer_late(waiters)
            if waiters and min(waiter.deadline for waiter in waiters) < self._next_deadline:
                self._earlier_deadline.set()
        if box.needs_load():
            self._load(agent, inbox)

    def _load(self, agent: str, inbox: _Inbox) -> None:
        box = inbox.mailbox
        above, leased = box.loaded_to, box.leased

        def load(db: apsw.Connection) -> tuple[list[Message], bool]:
            return mailbox.load_window(
                db, agent, above, leased, delivery.WINDOW_MESSAGES, delivery.WINDOW_BYTES
            )

        def loaded(found: tuple[list[Message], bool]) -> None:
            box.loaded(*found)
            if self._inboxes.get(agent) is inbox:
                self._pump(agent)

        def failed(error: Exception) -> None:
            log.error("Mailbox of %s cannot be loaded: %s", agent, error)
            box.loaded([], whole=False)

        self._store.submit(load).then(loaded, failed)

    def _give_up(self, agent: str, waiter: Waiter) -> bool:
        inbox = self._inboxes.get(agent)
        if inbox is None or waiter not in inbox.waiters:
            return False
        inbox.waiters.remove(waiter)
        waiter.deferred.fail(Refused(ErrorCode.CANCELLED, "cannot wait any more: the call was cancelled"))
        return True

    def _answer_late(self, waiters: deque[Waiter]) -> None:
        now = trio.current_time()
        for waiter in [waiter for waiter in waiters if waiter.deadline <= now]:
            waiters.remove(waiter)
            waiter.deferred.resolve([])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer parked recvs whose time is up.  One task for all of them."""
        task_status.started()
        while True:
            self._earlier_deadline = trio.Event()
            # One whose mailbox is being loaded is answered after that, late or not.
            inboxes = [box for box in self._inboxes.values() if box.mailbox.paused or box.mailbox.settled]
            parked = (waiter.deadline for inbox in inboxes for waiter in inbox.waiters)
            self._next_deadline = min(parked, default=math.inf)
            with trio.move_on_at(self._next_deadline):
                await self._earlier_deadline.wait()
            for inbox in self._inboxes.values():
                if inbox.mailbox.paused or inbox.mailbox.settled:
                    self._answer_late(inbox.waiters)

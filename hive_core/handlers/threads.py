"""Open threads: what an agent waits for, and what waits for it."""

from typing import Final

from msgspec import UNSET

from hive_core.domain.approval import MAX_PENDING_OF_ONE, Approval
from hive_core.domain.question import Question
from hive_core.domain.reminder import Reminder
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.store import approvals, questions, reminders
from hive_core.wire import agent
from hive_core.wire.ids import MANAGER, OPERATOR
from hive_core.wire.limits import MAX_OPEN_QUESTIONS, MAX_REMINDERS

MAX_TEXT_CHARS: Final = 1000
"""Shown of each: a hundred peers' questions are not to fill a model's context."""


async def open_threads(deps: Deps, peer: Peer, _request: agent.OpenThreads) -> agent.Threads:
    # Of what it asked and left itself there is no more.  What it is asked may be any number, and is cut.
    asks = await deps.store.read(questions.open_by, peer.name, MAX_OPEN_QUESTIONS)
    asked = await deps.store.read(questions.open_for, peer.name, MAX_OPEN_QUESTIONS)
    others = await deps.store.read(questions.all_open, MAX_OPEN_QUESTIONS) if peer.name == MANAGER else []
    found = {question.id: question for question in (*asks, *asked, *others)}
    left = await deps.store.read(reminders.pending, peer.name, MAX_REMINDERS)
    if peer.name == MANAGER:
        waiting = await deps.applier.pending(MAX_PENDING_OF_ONE)
    else:
        waiting = await deps.store.read(approvals.pending_by, peer.name, MAX_PENDING_OF_ONE)
    threads = [
        *map(_of_question, found.values()),
        *map(_of_reminder, left),
        *map(_of_approval, waiting),
    ]
    threads.sort(key=lambda thread: thread.since)
    return agent.Threads(threads=within_line(threads), unread=deps.broker.count_unread(peer.name))


async def cancel_thread(deps: Deps, peer: Peer, request: agent.CancelThread) -> agent.Done:
    key = request.idempotency_key and f"cancel {request.kind} {request.idempotency_key}"
    match request.kind:
        case "question":
            await deps.questions.cancel(request.id, by=peer.name, key=key)
        case "reminder":
            await deps.scheduler.cancel(request.id, by=peer.name, key=key)
        case "approval":
            await deps.applier.cancel(request.id, by=peer.name, uid=peer.uid, key=key)
    return agent.Done()


def _of_question(question: Question) -> agent.OpenThread:
    return agent.OpenThread(
        kind="question",
        id=question.id,
        text=_beginning(question.question),
        since=question.asked_at,
        asker=question.asker,
        asked_of=question.asked_of,
        due_at=UNSET if question.deadline_at is None else question.deadline_at,
    )


def _of_reminder(reminder: Reminder) -> agent.OpenThread:
    return agent.OpenThread(
        kind="reminder",
        id=reminder.id,
        text=_beginning(reminder.message),
        since=reminder.created_at,
        due_at=reminder.due_at,
    )


def _of_approval(approval: Approval) -> agent.OpenThread:
    about = " ".join(filter(None, (approval.kind, approval.agent, (approval.fetched_sha or "")[:12])))
    text = f"{about}: {approval.description}" if approval.description else about
    return agent.OpenThread(
        kind="approval",
        id=approval.id,
        text=_beginning(text),
        since=approval.requested_at,
        asker=approval.proposer,
        asked_of=OPERATOR,
        due_at=UNSET if approval.expires_at is None else approval.expires_at,
    )


def _beginning(text: str) -> str:
    return text if len(text) <= MAX_TEXT_CHARS else text[:MAX_TEXT_CHARS] + " …"

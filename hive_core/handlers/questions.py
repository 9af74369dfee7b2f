"""Questions: asked and answered by agents and by the operator."""

from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.domain.question import Question
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.store import questions as rows
from hive_core.wire import agent, host
from hive_core.wire import question as wire
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR


async def ask(deps: Deps, peer: Peer, request: agent.Ask) -> agent.Asked:
    question_id = await deps.questions.ask(
        peer.name,
        request.to,
        request.question,
        options=request.options,
        multi=request.multi,
        ttl_seconds=request.ttl_seconds,
        key=request.idempotency_key and f"ask {request.idempotency_key}",
    )
    return agent.Asked(id=question_id)


async def answer(deps: Deps, peer: Peer, request: agent.Answer) -> agent.Done:
    key = request.idempotency_key and f"answer {request.idempotency_key}"
    await deps.questions.answer(request.id, request.answer, by=peer.name, key=key)
    return agent.Done()


async def operator_ask(deps: Deps, _peer: Peer, request: wire.Ask) -> wire.Asked:
    question_id = await deps.questions.ask(
        OPERATOR,
        request.agent,
        request.question,
        options=request.options,
        multi=request.multi,
        ttl_seconds=request.ttl_seconds,
    )
    return wire.Asked(id=question_id)


async def operator_answer(deps: Deps, _peer: Peer, request: wire.Answer) -> wire.Answered:
    if (request.answer is None) == (request.options is None):
        raise Refused(
            ErrorCode.INVALID_ARGUMENT, "cannot answer: give either answer or options, and one of them"
        )
    if request.options is not None:
        return wire.Answered(answer=await deps.questions.choose(request.id, request.options, by=OPERATOR))
    assert request.answer is not None
    await deps.questions.answer(request.id, request.answer, by=OPERATOR)
    return wire.Answered(answer=request.answer)


async def cancel(deps: Deps, _peer: Peer, request: wire.CancelQuestion) -> host.Reply:
    await deps.questions.cancel(request.id, by=OPERATOR)
    return host.Reply()


async def questions(deps: Deps, _peer: Peer, request: wire.Questions) -> wire.QuestionsReply:
    if request.id is not None:
        one = await deps.store.read(rows.get, request.id)
        if one is None:
            raise Refused(
                ErrorCode.NOT_FOUND, f"cannot show question {request.id}: there is no such question"
            )
        return wire.QuestionsReply(questions=[_row(one)])
    found = await deps.store.read(rows.newest if request.all else rows.all_open, request.limit)
    return wire.QuestionsReply(questions=within_line([_row(each) for each in found], newest=request.all))


def _row(question: Question) -> wire.QuestionRow:
    return wire.QuestionRow(
        id=question.id,
        asker=question.asker,
        target=question.asked_of,
        question=question.question,
        options=list(question.options),
        multi=question.multi,
        asked_at=rfc3339(question.asked_at),
        deadline_at=UNSET if question.deadline_at is None else rfc3339(question.deadline_at),
        answered_at=UNSET if question.answered_at is None else rfc3339(question.answered_at),
        answer=UNSET if question.answer is None else question.answer,
        answerer=UNSET if question.answerer is None else question.answerer,
    )

"""Asks, answers, and ends questions.  A question and the message that tells of it are one transaction."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import apsw
import trio

from hive_core.domain import question as rules
from hive_core.domain.letter import Leave, Letter
from hive_core.domain.question import Question
from hive_core.store import questions, repeats
from hive_core.store.database import Store
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR, SYSTEM

LONGEST_NAP_S: Final = 30.0
"""How far the wall clock may be set before the watchdog looks at it again."""

RETRY_S: Final = 5.0
"""Between two looks while the disk refuses."""

MAX_ENDED: Final = 64
"""Questions that are ended in one transaction, when their time is up or their agent gone."""

log = logging.getLogger(__name__)


class Questions:
    """All questions of the hive.

    *leave* stores messages, *is_agent* says whether somebody of that name could answer, *check_allowed*
    refuses an asker or answerer (first) to write to somebody (second), for a verb (third), *changed* is
    called when a question was asked or has ended, *clock* gives unix seconds.
    """

    def __init__(
        self,
        store: Store[Any],
        *,
        leave: Leave,
        is_agent: Callable[[str], bool],
        check_allowed: Callable[[str, str, str], None] = lambda _sender, _to, _verb: None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._leave = leave
        self._is_agent = is_agent
        self._check_allowed = check_allowed
        self._changed = changed
        self._clock = clock
        self._sooner = trio.Event()

    async def ask(
        self,
        asker: str,
        to: str,
        question: str,
        *,
        options: Sequence[str] = (),
        multi: bool = False,
        ttl_seconds: float | None = None,
        key: str | None = None,
    ) -> int:
        """Put *question* to an agent or to `operator`, and give its id; of a repeated *key* the first one's.

        Raises:
            Refused: INVALID_ARGUMENT; NOT_FOUND, when there is nobody of that name; FORBIDDEN, when *asker*
                may not write to that one; PRECONDITION_FAILED, when too many questions of *asker* are open.
        """
        rules.check_question(asker, to, question, options, ttl_seconds)
        if to != OPERATOR and not self._is_agent(to):
            raise Refused(ErrorCode.NOT_FOUND, f"cannot ask: no agent is named {to[:80]!r}")
        self._check_allowed(asker, to, "ask")
        now = self._clock()
        asked = Question(
            id=0,
            asker=asker,
            target=None if to == OPERATOR else to,
            question=question,
            options=tuple(options),
            multi=multi,
            asked_at=now,
            deadline_at=None if ttl_seconds is None else now + ttl_seconds,
        )

        def store(db: apsw.Connection) -> tuple[int, list[Letter]]:
            if (first_id := repeats.find(db, asker, key)) is not None:
                return first_id, []
            rules.check_room(asker, questions.count_open_of(db, asker))
            question_id = questions.insert(db, asked)
            repeats.remember(db, asker, key, question_id)
            body = rules.asked_body(replace(asked, id=question_id))
            return question_id, [] if asked.target is None else [Letter(asked.target, body)]

        question_id = await self._leave(SYSTEM, 1, store)
        log.info("Question asked id=%d asker=%s of=%s", question_id, asker, to)
        if ttl_seconds is not None:
            self._sooner.set()
        self._changed()
        return question_id

    async def answer(self, question_id: int, answer: str, *, by: str, key: str | None = None) -> None:
        """Answer a question.  A repeated *key* is the same answer, and does nothing again.

        Raises:
            Refused: NOT_FOUND, FORBIDDEN, INVALID_ARGUMENT, or CONFLICT when it has ended.
        """

        def settle(question: Question) -> str:
            rules.check_answer(question, by, answer)
            if question.asker != OPERATOR:  # who asked for it, and may be told, listed or not
                self._check_allowed(by, question.asker, "answer")
            return answer

        await self._settle("answer", question_id, by, settle, key)

    async def choose(self, question_id: int, numbers: Sequence[int], *, by: str) -> str:
        """Answer a question with its options of these *numbers*, from 1 on; give what that said.

        Raises:
            Refused: as `answer`.
        """

        def settle(question: Question) -> str:
            answer = rules.choose(question, numbers)
            rules.check_answer(question, by, answer)
            return answer

        return await self._settle("answer", question_id, by, settle)

    async def cancel(self, question_id: int, *, by: str, key: str | None = None) -> None:
        """End a question without an answer; who asked it is told.  A repeated *key* does nothing again.

        Raises:
            Refused: NOT_FOUND, FORBIDDEN, or CONFLICT when it has ended.
        """
        await self._settle("cancel", question_id, by, lambda question: rules.check_cancel(question, by), key)

    async def end_those_of(self, agent: str) -> None:
        """End the open questions of and to an agent that was purged: nobody is left to answer or to hear."""
        answer, now = rules.purged(agent), self._clock()

        def store(db: apsw.Connection) -> tuple[int, list[Letter]]:
            found = questions.open_for(db, agent, MAX_ENDED) or questions.open_by(db, agent, MAX_ENDED)
            for question in found:
                questions.settle(db, question.id, answer, SYSTEM, now)
            return len(found), [_told(question, answer, SYSTEM) for question in found]

        while await self._leave(SYSTEM, MAX_ENDED, store):
            self._changed()

    async def _settle(
        self,
        verb: str,
        question_id: int,
        by: str,
        judge: Callable[[Question], str],
        key: str | None = None,
    ) -> str:
        now = self._clock()

        def store(db: apsw.Connection) -> tuple[str, list[Letter]]:
            question = questions.get(db, question_id)
            if question is not None and repeats.find(db, by, key) == question_id:
                return question.answer or "", []
            # An agent learns of no question that is none of its business.
            if question is None or by not in {OPERATOR, question.asker, question.target}:
                raise Refused(
                    ErrorCode.NOT_FOUND, f"cannot {verb} question {question_id}: there is no such question"
                )
            answer = judge(question)
            questions.settle(db, question_id, answer, by, now)
            repeats.remember(db, by, key, question_id)
            return answer, [_told(question, answer, by)]

        answer = await self._leave(SYSTEM, 1, store)
        log.info("Question ended id=%d by=%s", question_id, by)
        self._changed()
        return answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End the questions whose time is up, those first whose time was up before we started."""
        task_status.started()
        while True:
            self._sooner = trio.Event()
            try:
                nap_s = await self._tick()
            except Refused as error:
                log.error("Questions cannot be ended, the next look tries again: %s", error.text)
                nap_s = RETRY_S
            with trio.move_on_after(min(nap_s, LONGEST_NAP_S)):
                await self._sooner.wait()

    async def _tick(self) -> float:
        """End what is due, and give how long to wait for the next one."""
        while await self._expire():
            pass
        deadline = await self._store.read(questions.next_deadline)
        return LONGEST_NAP_S if deadline is None else max(deadline - self._clock(), 0.0)

    async def _expire(self) -> int:
        now = self._clock()
        count = len(await self._store.read(questions.due, now, MAX_ENDED))
        if not count:
            return 0

        def store(db: apsw.Connection) -> tuple[list[int], list[Letter]]:
            due = questions.due(db, now, count)  # some may have been answered meanwhile
            for question in due:
                questions.settle(db, question.id, rules.EXPIRED, rules.TTL_WATCHDOG, now)
            told = [_told(question, rules.EXPIRED, rules.TTL_WATCHDOG) for question in due]
            return [question.id for question in due], told

        expired = await self._leave(SYSTEM, count, store)
        for question_id in expired:
            log.info("Question expired id=%d", question_id)
        if expired:
            self._changed()
        return len(expired)


def _told(question: Question, answer: str, answerer: str) -> Letter:
    return Letter(question.asker, rules.answered_body(question, answer, answerer))

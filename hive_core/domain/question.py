"""Questions: who may ask whom, who may answer, and what the two of them read.

A question is asked of an agent or, without a target, of the operator.  It never blocks who asks: the
answer comes as a message.  It ends once, by an answer, a cancel, or the end of its time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import OPERATOR
from hive_core.wire.limits import (
    MAX_ANSWER_BYTES,
    MAX_BODY_BYTES,
    MAX_OPEN_QUESTIONS,
    MAX_OPTION_CHARS,
    MAX_OPTIONS,
    MAX_QUESTION_BYTES,
    MAX_QUESTION_TTL_S,
)

EXPIRED: Final = "[expired]"
TTL_WATCHDOG: Final = "ttl-watchdog"
"""Who answers a question whose time is up."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question.  Times are unix seconds."""

    id: int
    asker: str
    target: str | None
    """Who is to answer; None: the operator."""
    question: str
    options: tuple[str, ...]
    """What an answer may be; anything else may be said as well."""
    multi: bool
    """Several of them may be chosen."""
    asked_at: float
    deadline_at: float | None = None
    answered_at: float | None = None
    answer: str | None = None
    answerer: str | None = None

    @property
    def is_open(self) -> bool:
        return self.answered_at is None

    @property
    def asked_of(self) -> str:
        return self.target or OPERATOR


class Asked(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="question_asked"):
    """To whom is to answer it."""

    id: int
    asker: str
    question: str
    options: tuple[str, ...]
    multi: bool


class Answered(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="question_answered"):
    """To who asked it.  An end without an answer reads `[expired]`, `[cancelled]`, `[… was purged]` or so."""

    id: int
    question: str
    answer: str
    answerer: str


def asked_body(question: Question) -> str:
    """Give the message that its target gets."""
    return _text(
        Asked(
            id=question.id,
            asker=question.asker,
            question=question.question,
            options=question.options,
            multi=question.multi,
        )
    )


def answered_body(question: Question, answer: str, answerer: str) -> str:
    """Give the message that its asker gets."""
    return _text(Answered(id=question.id, question=question.question, answer=answer, answerer=answerer))


def purged(agent: str) -> str:
    """Give the answer to what nobody can answer any more, or hear the answer to."""
    return f"[{agent} was purged]"


def check_question(
    asker: str, to: str, question: str, options: Sequence[str], ttl_seconds: float | None
) -> None:
    """Refuse what cannot be asked.

    Raises:
        Refused: INVALID_ARGUMENT, naming what is wrong.
    """
    size = _size(question)
    if to == asker:
        raise _wrong("ask", "it is you who would have to answer")
    if not question.strip():
        raise _wrong("ask", "the question is empty")
    if size > MAX_QUESTION_BYTES:
        raise _wrong(
            "ask",
            f"the question has {size} bytes, the limit is {MAX_QUESTION_BYTES}; put the rest into a file "
            "and name its path",
        )
    if len(options) > MAX_OPTIONS:
        raise _wrong("ask", f"there are {len(options)} options, the limit is {MAX_OPTIONS}")
    for option in options:
        if not option.strip() or len(option) > MAX_OPTION_CHARS:
            raise _wrong("ask", f"an option has 1 to {MAX_OPTION_CHARS} characters, and not only blanks")
    if ttl_seconds is not None and not 0 < ttl_seconds <= MAX_QUESTION_TTL_S:
        raise _wrong("ask", f"ttl_seconds is more than 0 and at most {MAX_QUESTION_TTL_S:g}")
    told = Question(0, asker, to, question, tuple(options), False, 0.0)
    # As JSON a text can be six times as long, and this one comes back with its answer.
    if max(_size(asked_body(told)), 2 * _size(answered_body(told, "", ""))) > MAX_BODY_BYTES:
        raise _wrong("ask", "with its options it is too large for a message; put the rest into a file")


def check_room(asker: str, open_questions: int) -> None:
    """Refuse one more when *asker* has too many that nobody has answered.

    Raises:
        Refused: PRECONDITION_FAILED.
    """
    if open_questions >= MAX_OPEN_QUESTIONS:
        raise Refused(
            ErrorCode.PRECONDITION_FAILED,
            f"cannot ask: {asker} has {open_questions} open questions, the limit; "
            "cancel some, or wait for their answers",
        )


def check_answer(question: Question, by: str, answer: str) -> None:
    """Refuse an answer that is none, or not *by* whom it was asked of; the operator may answer any.

    Raises:
        Refused: INVALID_ARGUMENT, FORBIDDEN, or CONFLICT for a question that has ended.
    """
    size = _size(answer)
    if not answer.strip():
        raise _wrong("answer", "the answer is empty")
    if size > MAX_ANSWER_BYTES:
        raise _wrong("answer", f"the answer has {size} bytes, the limit is {MAX_ANSWER_BYTES}")
    if by not in {OPERATOR, question.target}:
        raise Refused(
            ErrorCode.FORBIDDEN, f"cannot answer question {question.id}: it was asked of {question.asked_of}"
        )
    if _size(answered_body(question, answer, by)) > MAX_BODY_BYTES:
        raise _wrong("answer", "with its question it is too large for a message; put the rest into a file")
    _check_open("answer", question)


def check_cancel(question: Question, by: str) -> str:
    """Give the answer that a cancel *by* somebody puts in place; only the asker and the operator may.

    Raises:
        Refused: FORBIDDEN; CONFLICT for a question that has ended.
    """
    if by not in {OPERATOR, question.asker}:
        raise Refused(
            ErrorCode.FORBIDDEN, f"cannot cancel question {question.id}: it was asked by {question.asker}"
        )
    _check_open("cancel", question)
    return "[cancelled]" if by == OPERATOR else f"[cancelled by {by}]"


def choose(question: Question, numbers: Sequence[int]) -> str:
    """Give the answer that the options with *numbers*, from 1 on, make.

    Raises:
        Refused: INVALID_ARGUMENT: there is no such option, or several of a question that wants one.
    """
    for number in numbers:
        if not 1 <= number <= len(question.options):
            there = f"it has {len(question.options)}" if question.options else "it has none"
            raise _wrong(f"choose option {number}", there)
    if len(numbers) > 1 and not question.multi:
        raise _wrong(f"choose {len(numbers)} options", "the question wants one")
    return ", ".join(question.options[number - 1] for number in dict.fromkeys(numbers))


def _check_open(verb: str, question: Question) -> None:
    if not question.is_open:
        raise Refused(
            ErrorCode.CONFLICT,
            f"cannot {verb} question {question.id}: {question.answerer or 'somebody'} ended it already",
            "answered",
        )


def _wrong(verb: str, why: str) -> Refused:
    return Refused(ErrorCode.INVALID_ARGUMENT, f"cannot {verb}: {why}")


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _text(event: msgspec.Struct) -> str:
    return msgspec.json.encode(event).decode()

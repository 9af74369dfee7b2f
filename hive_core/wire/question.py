"""Questions on host.sock."""

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from hive_core.wire.ids import AgentName, RowId
from hive_core.wire.limits import MAX_OPTIONS, MAX_ROWS
from hive_core.wire.verb import Reply, Request


class QuestionRow(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    asker: str
    target: str
    """An agent, or `operator`."""
    question: str
    options: list[str]
    """What an answer may be; any other text is one as well."""
    multi: bool
    asked_at: str
    deadline_at: str | UnsetType = UNSET
    """When it answers itself with `[expired]`."""
    answered_at: str | UnsetType = UNSET
    answer: str | UnsetType = UNSET
    answerer: str | UnsetType = UNSET


class Questions(Request, frozen=True, kw_only=True, tag="questions"):
    """The oldest questions that nobody has answered; with *all* the newest of any; with *id* that one."""

    id: RowId | None = None
    all: bool = False
    limit: Annotated[int, Meta(ge=1, le=MAX_ROWS)] = 100


class QuestionsReply(Reply, frozen=True, kw_only=True):
    """Oldest first."""

    questions: list[QuestionRow]


class Ask(Request, frozen=True, kw_only=True, tag="ask"):
    """Ask an agent as the operator.  The answer comes into the operator's inbox."""

    agent: AgentName
    question: str
    options: list[str] = msgspec.field(default_factory=list)
    multi: bool = False
    ttl_seconds: Annotated[float, Meta(gt=0)] | None = None


class Asked(Reply, frozen=True, kw_only=True):
    id: int


class Answer(Request, frozen=True, kw_only=True, tag="answer"):
    """Answer any question as the operator: with *answer*, or with its *options* of these numbers, from 1."""

    id: RowId
    answer: str | None = None
    options: Annotated[list[int], Meta(min_length=1, max_length=MAX_OPTIONS)] | None = None


class Answered(Reply, frozen=True, kw_only=True):
    answer: str


class CancelQuestion(Request, frozen=True, kw_only=True, tag="cancel_question"):
    """End a question without an answer; who asked it is told."""

    id: RowId

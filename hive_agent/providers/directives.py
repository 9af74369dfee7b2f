"""The lines of a message that the scripted provider carries out.  Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from hive_core.wire.ids import OPERATOR

MAX_SLEEP_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Say:
    to: str
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    text: str
    to: str = OPERATOR
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """To question *id*; None: to the one that the turn began with."""

    text: str
    id: int | None = None


@dataclass(frozen=True, slots=True)
class Remind:
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    why: str


@dataclass(frozen=True, slots=True)
class Limit:
    """The turn meets a rate limit of so many seconds, the first time."""

    seconds: float


@dataclass(frozen=True, slots=True)
class TooLong:
    """The conversation is too long for this turn, until it is compacted."""


@dataclass(frozen=True, slots=True)
class Logout:
    """The turn finds no credentials, the first time."""


@dataclass(frozen=True, slots=True)
class Context:
    """The turn's last inference reads so many tokens."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Task:
    """Say what its configuration says about its task."""


Deed = Say | Ask | Answer | Remind | Sleep | Fail | Task
"""What a turn does; the others are what becomes of it."""

Directive = Deed | Limit | TooLong | Logout | Context

_SAY: Final = re.compile(r"say\s+([^\s:]+)\s*:\s*(\S.*)", re.IGNORECASE)
_ASK: Final = re.compile(r"ask\s+([^\s:]+)\s*:\s*([^\s|].*)", re.IGNORECASE)
_ANSWER: Final = re.compile(r"answer(?:\s+(\d{1,18}))?\s*:\s*(\S.*)", re.IGNORECASE)
_REMIND: Final = re.compile(r"remind\s+(\d{1,9}(?:\.\d{1,9})?)\s*s?\s*:\s*(\S.*)", re.IGNORECASE)
_SLEEP: Final = re.compile(r"sleep\s+(\d{1,9}(?:\.\d{1,9})?)\s*s?", re.IGNORECASE)
_LIMIT: Final = re.compile(r"limit\s+(\d{1,9}(?:\.\d{1,9})?)\s*s?", re.IGNORECASE)
_CONTEXT: Final = re.compile(r"context\s+(\d{1,9})", re.IGNORECASE)
_FAIL: Final = re.compile(r"fail(?:\s*:\s*(.*))?", re.IGNORECASE)

_WORDS: Final[Mapping[str, Directive]] = {
    "toolong": TooLong(),
    "logout": Logout(),
    "task": Task(),
}


def parse_directives(body: str) -> list[Directive]:
    """Give what *body* orders, in its order; lines that order nothing are left out."""
    return [directive for line in body.split("\n") if (directive := _parse_line(line.strip())) is not None]


def _parse_line(line: str) -> Directive | None:
    if match := _SAY.fullmatch(line):
        return Say(match[1], match[2])
    if match := _ASK.fullmatch(line):
        text, *options = (part.strip() for part in match[2].split("|"))
        return Ask(text, match[1], tuple(filter(None, options)))
    if match := _ANSWER.fullmatch(line):
        return Answer(match[2], int(match[1]) if match[1] else None)
    if match := _REMIND.fullmatch(line):
        return Remind(float(match[1]), match[2])
    if match := _SLEEP.fullmatch(line):
        return Sleep(min(float(match[1]), MAX_SLEEP_S))
    if match := _LIMIT.fullmatch(line):
        return Limit(min(float(match[1]), MAX_SLEEP_S))
    if match := _CONTEXT.fullmatch(line):
        return Context(int(match[1]))
    if line.lower() in _WORDS:
        return _WORDS[line.lower()]
    if match := _FAIL.fullmatch(line):
        return Fail(match[1] or "told to fail")
    return None

"""The lines of a message that the scripted provider carries out.  Pure."""

import re
from dataclasses import dataclass
from typing import Final

MAX_SLEEP_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Say:
    to: str
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    text: str


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Fail:
    why: str


Directive = Say | Ask | Sleep | Fail

_SAY: Final = re.compile(r"say\s+([^\s:]+)\s*:\s*(\S.*)", re.IGNORECASE)
_ASK: Final = re.compile(r"ask\s+operator\s*:\s*(\S.*)", re.IGNORECASE)
_SLEEP: Final = re.compile(r"sleep\s+(\d{1,9}(?:\.\d{1,9})?)\s*s?", re.IGNORECASE)
_FAIL: Final = re.compile(r"fail(?:\s*:\s*(.*))?", re.IGNORECASE)


def parse_directives(body: str) -> list[Directive]:
    """Give what *body* orders, in its order; lines that order nothing are left out."""
    return [directive for line in body.split("\n") if (directive := _parse_line(line.strip())) is not None]


def _parse_line(line: str) -> Directive | None:
    if match := _SAY.fullmatch(line):
        return Say(match[1], match[2])
    if match := _ASK.fullmatch(line):
        return Ask(match[1])
    if match := _SLEEP.fullmatch(line):
        return Sleep(min(float(match[1]), MAX_SLEEP_S))
    if match := _FAIL.fullmatch(line):
        return Fail(match[1] or "told to fail")
    return None

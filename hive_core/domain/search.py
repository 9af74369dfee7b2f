"""What a person types to find messages, as SQLite's full-text search takes it."""

import re
from typing import Final

from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.limits import MAX_QUERY_CHARS

MAX_WORDS: Final = 32

_TERMS: Final = re.compile(r'"([^"]*)"|(\S+)')


def match_expression(typed: str) -> str:
    """Give the expression that finds messages with every word of *typed*.

    Words in quotes stand together; a word that ends with `*` is the beginning of one.  There is no other
    syntax: whatever else is typed is looked for.

    Raises:
        Refused: INVALID_ARGUMENT: there is no word in it, or too many.
    """
    if len(typed) > MAX_QUERY_CHARS:
        raise _wrong(f"the text has {len(typed)} characters, the limit is {MAX_QUERY_CHARS}")
    terms = []
    for phrase, word in _TERMS.findall(typed):
        begins = word.endswith("*")
        text = (phrase or word.removesuffix("*")).replace('"', " ").replace("\x00", " ")
        if any(character.isalnum() for character in text):
            terms.append(f'"{text}"*' if begins else f'"{text}"')
    if not terms:
        raise _wrong("there is no word in it")
    if len(terms) > MAX_WORDS:
        raise _wrong(f"there are {len(terms)} words, the limit is {MAX_WORDS}")
    return " ".join(terms)


def _wrong(why: str) -> Refused:
    return Refused(ErrorCode.INVALID_ARGUMENT, f"cannot search: {why}")

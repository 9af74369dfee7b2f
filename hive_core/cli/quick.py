"""`hive send`, and the short way to it.

Importing click takes longer than everything else that `send` does, and `send` is the command that
scripts call in loops.  So the ordinary forms of it are read here; whatever this module does not know
for sure (help, an unknown option, a missing argument) is left to the command in commands/mail.py.
tests/cli/test_send.py holds the two readings together.
"""

import sys
from collections.abc import Sequence
from typing import Any, Final

from hive_core.cli.hive import TIMEOUT_S, Hive
from hive_core.cli.problems import TIMED_OUT, USAGE, Problem

_TEXT_OPTIONS: Final = {"--socket": "socket", "--home": "home", "--key": "key"}
_NUMBER_OPTIONS: Final = {"--reply-to": "reply_to"}


def read_send(argv: Sequence[str]) -> dict[str, Any] | None:
    """Give the arguments of deliver() that *argv* means, or None to let click say."""
    options: dict[str, Any] = {}
    words: list[str] = []
    rest = iter(argv)
    for word in rest:
        if not word.startswith("-") or word == "-":
            words.append(word)
        elif word == "--json":
            options["as_json"] = True
        else:
            name, given, value = word.partition("=")
            if not given:
                value = next(rest, "")
            if not value or value.startswith("-"):
                return None
            if name in _TEXT_OPTIONS:
                options[_TEXT_OPTIONS[name]] = value
            elif name in _NUMBER_OPTIONS and value.isdecimal() and value.isascii():
                options[_NUMBER_OPTIONS[name]] = int(value)
            else:
                return None
    if len(words) < 3 or words[0] != "send":
        return None
    return options | {"to": words[1], "words": words[2:]}


def deliver(
    *,
    to: str,
    words: Sequence[str],
    reply_to: int | None = None,
    key: str | None = None,
    as_json: bool = False,
    socket: str | None = None,
    home: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Send *words* as one message and print its id.

    Raises:
        Problem: it was not sent.
    """
    body = _from_stdin() if list(words) == ["-"] else " ".join(words)
    if not body.strip():
        raise Problem(USAGE, "cannot send: the text is empty")
    request: dict[str, Any] = {"cmd": "send", "to": to, "body": body}
    for text in (to, body, key or ""):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Problem(USAGE, "cannot send: the text is not UTF-8") from None
    if reply_to is not None:
        request["in_reply_to"] = reply_to
    if key is not None:
        request["idempotency_key"] = key
    try:
        message_id = Hive(socket, home, timeout_s).ask(request, agents=[to])["id"]
    except Problem as problem:
        if problem.exit_code == TIMED_OUT:
            problem.hint = "it may have arrived all the same; with --key a repeat is safe"
        raise
    sys.stdout.write(f'{{"id":{int(message_id)}}}\n' if as_json else f"{int(message_id)}\n")


def _from_stdin() -> str:
    from hive_core.wire.limits import MAX_BODY_BYTES

    body = sys.stdin.buffer.read(MAX_BODY_BYTES + 3)
    if body.endswith(b"\n"):
        body = body[:-1]
    if len(body) > MAX_BODY_BYTES:
        raise Problem(
            USAGE,
            f"cannot send: the text has more than {MAX_BODY_BYTES} bytes",
            "put it into a file that the agent can read, and send the path",
        )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Problem(USAGE, "cannot send: what came from stdin is not UTF-8") from None

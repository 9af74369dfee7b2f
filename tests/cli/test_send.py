"""`hive send` is read twice: quickly, and by click.  Both must come to the same."""

import pytest

from hive_core.cli import quick
from hive_core.wire.limits import MAX_BODY_BYTES

from .conftest import RunHive
from .fake_host import FakeHost

FORMS = [
    ["send", "bob", "hello"],
    ["send", "bob", "hello", "you"],
    ["send", "bob", "--reply-to", "4", "hello"],
    ["send", "--reply-to=4", "bob", "hello"],
    ["send", "bob", "hello", "--key", "a b"],
    ["--json", "send", "bob", "hello"],
    ["send", "bob", "hello", "--json"],
    ["send", "*", "it's", "🐝"],
    ["send", "bob", "two\nlines"],
    ["send", "bob", "-"],
    ["send", "bob", "-", "-"],
    ["send", "-", "hello"],
    ["send", "send", "send"],
]
OTHER_FORMS = [
    [],
    ["send"],
    ["send", "bob"],
    ["send", "--help"],
    ["send", "bob", "--", "-x"],
    ["send", "bob", "hello", "-x"],
    ["send", "bob", "hello", "--key"],
    ["send", "bob", "hello", "--key=--x"],
    ["send", "bob", "hello", "--reply-to", "x"],
    ["send", "bob", "hello", "--reply-to", "²"],
    ["send", "bob", "hello", "--timeout", "3"],
    ["ls", "send", "bob", "hello"],
]


@pytest.mark.parametrize("argv", FORMS, ids=" ".join)
def test_the_quick_reading_is_the_same_as_clicks(
    argv: list[str], host: FakeHost, hive: RunHive, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.answers["send"] = {"id": 42}
    assert quick.read_send(argv) is not None

    quickly = hive(*argv, stdin=b"from stdin\n")
    with monkeypatch.context() as patch:
        patch.setattr(quick, "read_send", lambda _argv: None)
        by_click = hive(*argv, stdin=b"from stdin\n")

    assert quickly == by_click
    assert quickly.code == 0
    first, second = host.lines
    assert first == second


@pytest.mark.parametrize("argv", OTHER_FORMS, ids=" ".join)
def test_every_other_form_is_left_to_click(argv: list[str]) -> None:
    assert quick.read_send(argv) is None


def test_the_id_is_printed(host: FakeHost, hive: RunHive) -> None:
    host.answers["send"] = {"id": 42}

    assert hive("send", "bob", "hi") == (0, "42\n", "")
    assert hive("send", "bob", "hi", "--json") == (0, '{"id":42}\n', "")


def test_a_text_may_begin_with_a_hyphen_after_two_of_them(host: FakeHost, hive: RunHive) -> None:
    host.answers["send"] = {"id": 1}

    hive("send", "bob", "--", "- item", "--json")

    assert host.asked[0]["body"] == "- item --json"


@pytest.mark.parametrize(
    ("stdin", "body"), [(b"a\nb\n", "a\nb"), (b"a\n\n", "a\n"), ("größe".encode(), "größe"), (b" a", " a")]
)
def test_a_hyphen_reads_stdin(stdin: bytes, body: str, host: FakeHost, hive: RunHive) -> None:
    host.answers["send"] = {"id": 1}

    assert hive("send", "bob", "-", stdin=stdin).code == 0

    assert host.asked[0]["body"] == body


@pytest.mark.parametrize("stdin", [b"", b"\n", b"  \n \n", b"\xff\xfe", b"x" * (MAX_BODY_BYTES + 1)])
def test_a_stdin_that_is_no_message_is_not_sent(stdin: bytes, host: FakeHost, hive: RunHive) -> None:
    result = hive("send", "bob", "-", stdin=stdin)

    assert result.code == 2
    assert result.err.startswith("hive: cannot send: ")
    assert host.requests == []


def test_the_longest_body_fits(host: FakeHost, hive: RunHive) -> None:
    host.answers["send"] = {"id": 1}

    assert hive("send", "bob", "-", stdin=b"x" * MAX_BODY_BYTES + b"\n").code == 0

    assert len(host.asked[0]["body"]) == MAX_BODY_BYTES


def test_an_argument_that_is_not_utf8_is_refused(host: FakeHost, hive: RunHive) -> None:
    result = hive("send", "bob", "caf\udce9")

    assert (result.code, result.err) == (2, "hive: cannot send: the text is not UTF-8\n")


def test_no_answer_says_how_to_repeat(host: FakeHost, hive: RunHive) -> None:
    host.answers["send"] = None

    result = hive("send", "bob", "hi", "--timeout", "0.05")

    assert result.code == 6
    assert "did not answer 'send' in time" in result.err
    assert "--key" in result.err

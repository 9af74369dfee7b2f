"""The journal as lines: bounded, and harmless on a terminal, whatever an agent wrote."""

import os
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from host.conftest import Fake
from hypothesis import given
from hypothesis import strategies as st

from hive_core.host import journal
from hive_core.host.process import CommandError

UNIT = "systemd-nspawn@h-bob.service"


def entry(message: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"PRIORITY": "6", "MESSAGE": message, "__CURSOR": "s=1", **more})


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        ("hello", ["hello"]),
        ("", [""]),
        ("two\r\nlines", ["two", "lines"]),
        (list(b"caf\xc3\xa9 \xff"), ["café �"]),
        (["said", "twice"], ["said", "twice"]),
        (None, ["(a line of more than 4096 bytes)"]),
        (7, ["(an entry that cannot be read)"]),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2Jgone\x9b1m", ["red gone1m"]),
        ("a\tb\x00\x7f\u202ec\u2028d", ["a    bcd"]),
        ("x" * 5000, ["x" * 4000]),
        ("\x1b[1m[FAILED] Failed unmounting \x1b[0mopt.mount - /opt.", []),
        ("[FAILED] Failed to start opt.mount.", ["[FAILED] Failed to start opt.mount."]),
    ],
)
def test_a_message_becomes_lines_that_are_safe_to_show(message: Any, lines: list[str]) -> None:
    assert journal.to_lines(entry(message)) == lines


@given(st.text() | st.lists(st.integers(0, 255)) | st.lists(st.text()))
def test_no_message_moves_a_cursor(message: Any) -> None:
    for line in journal.to_lines(entry(message)):
        assert len(line) <= journal.MAX_LINE_CHARS
        assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)


def test_no_message_takes_long_to_read() -> None:
    began = time.monotonic()

    assert journal.to_lines(entry("x" + "\r" * 60_000 + "y")) == ["xy"]

    assert time.monotonic() - began < 1


@given(st.binary(max_size=200))
def test_no_entry_is_too_strange(text: bytes) -> None:
    journal.to_lines(text)
    journal.read_identifier(text)


async def test_the_last_lines_are_read(fake_program: Fake, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"\n".join([entry("one"), entry("two\nthree"), entry("four")]) + b"\n")
    program = fake_program("journalctl", f"cat {tmp_path}/journal")

    assert await journal.read(UNIT, 3) == ["two", "three", "four"]
    assert f"--lines=67 --unit={UNIT}" in program.calls[0]


async def test_what_is_read_at_once_is_bounded(fake_program: Fake, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes((entry("x" * 4000) + b"\n") * 2000)
    fake_program("journalctl", f"cat {tmp_path}/journal")

    lines = await journal.read(UNIT, 1000)

    assert sum(map(len, lines)) <= journal.MAX_ANSWER_BYTES


async def test_a_journal_that_cannot_be_read_is_an_error(fake_program: Fake) -> None:
    fake_program("journalctl", "exit 3")

    with pytest.raises(CommandError, match="exit status 3"):
        await journal.read(UNIT, 3)


async def test_the_reason_of_a_failure_is_what_something_else_than_the_console_said(
    fake_program: Fake, tmp_path: Path
) -> None:
    said = [
        entry("booting", SYSLOG_IDENTIFIER="systemd-nspawn"),
        entry("cannot seal the machine", SYSLOG_IDENTIFIER="python3"),
        entry("Halting", SYSLOG_IDENTIFIER="systemd-nspawn"),
    ]
    (tmp_path / "journal").write_bytes(b"\n".join(said))
    program = fake_program("journalctl", f"case $1 in --sync) ;; *) cat {tmp_path}/journal;; esac")

    assert await journal.read_reason(UNIT, 1795233902.5, 2) == ["cannot seal the machine"]
    assert program.calls[0] == "--sync"
    assert program.calls[1].endswith(f"_SYSTEMD_UNIT={UNIT} --since=@1795233902.500000")
    (tmp_path / "journal").write_bytes(b"\n".join(said[::2]))
    assert await journal.read_reason(UNIT, 1795233902.5, 1) == ["Halting"]


async def test_a_follower_that_leaves_takes_its_journalctl_along(fake_program: Fake, tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(entry("hello") + b"\n")
    fake_program("journalctl", f"echo $$ > {tmp_path}/pid; cat {tmp_path}/journal; exec sleep 1000")

    with trio.fail_after(20):
        async with aclosing(journal.follow(UNIT, 5)) as batches:
            async for batch in batches:
                assert batch == ["hello"]
                break

    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_follower_of_a_flood_gets_bounded_batches(fake_program: Fake, tmp_path: Path) -> None:
    (tmp_path / "line").write_bytes(entry("x" * 10_000))
    fake_program("journalctl", f"while :; do cat {tmp_path}/line; printf y; cat {tmp_path}/line; echo; done")

    sizes = []
    async with aclosing(journal.follow(UNIT, 5)) as batches:
        async for batch in batches:
            sizes.append(sum(map(len, batch)))
            if len(sizes) == 50:
                break

    assert max(sizes) <= 128 * 1024


async def test_a_follower_hears_that_the_journal_has_ended(fake_program: Fake) -> None:
    fake_program("journalctl", "exit 1")

    with pytest.raises(CommandError, match="exit status 1"):
        async with aclosing(journal.follow(UNIT, 5)) as batches:
            async for _ in batches:
                pass

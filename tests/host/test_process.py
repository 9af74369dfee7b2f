import os
import sys
from pathlib import Path

import pytest
import trio

from hive_core.host.process import CommandError, built_environment, describe_exit, open_lines, run


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_what_a_command_says_is_returned() -> None:
    assert await run(python("print('hi')"), timeout_s=30, max_output_bytes=100) == b"hi\n"


async def test_a_command_that_fails_says_how_and_why() -> None:
    with pytest.raises(CommandError, match=r"exit status 3: it broke"):
        await run(
            python("import sys; sys.stderr.write('it broke'); sys.exit(3)"), timeout_s=30, max_output_bytes=9
        )


async def test_a_command_that_never_ends_is_killed() -> None:
    with pytest.raises(trio.TooSlowError):
        await run(python("import time; time.sleep(1000)"), timeout_s=0.2, max_output_bytes=9)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_a_command_that_writes_without_end_is_killed(stream: str) -> None:
    endless = f"import sys\nwhile True: sys.{stream}.write('x' * 10000)"
    with pytest.raises(CommandError):
        await run(python(endless), timeout_s=30, max_output_bytes=50_000)


def test_a_child_gets_no_secret_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    assert "ANTHROPIC_API_KEY" not in built_environment()
    assert built_environment({"A": "b"})["A"] == "b"


async def test_a_command_is_told_what_it_asks_for(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['A'], len(sys.stdin.read()))"

    said = await run(
        python(code), timeout_s=30, max_output_bytes=999, env={"A": "b"}, cwd=tmp_path, said_to=b"x" * 200_000
    )

    assert said.decode().split() == [str(tmp_path), "b", "200000"]


async def test_a_command_that_does_not_listen_is_no_trouble() -> None:
    assert await run(python(""), timeout_s=30, max_output_bytes=9, said_to=b"x" * 2**20) == b""


async def test_lines_come_whole_and_long_ones_are_cut() -> None:
    code = "import sys; [print(s, flush=True) for s in ('one', 'x' * 200_000, '', 'two')]; sys.stdout.write('end')"
    lines: list[bytes] = []

    async with open_lines(python(code), max_line_bytes=1000) as found:
        while batch := await found.receive():
            lines += batch
        assert await found.end() == "exit status 0"

    assert lines == [b"one", b"x" * 1000, b"", b"two", b"end"]


async def test_a_command_whose_lines_nobody_wants_any_more_is_gone() -> None:
    code = "import os\nprint(os.getpid(), flush=True)\nwhile True: print('x' * 1000)"

    async with open_lines(python(code), max_line_bytes=1000) as found:
        pid = int((await found.receive())[0])

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("status", "story"),
    [
        (0, "exit status 0"),
        (3, "exit status 3"),
        (-9, "killed by SIGKILL"),
        (-99, "killed by signal 99"),
        (None, "it ended, nobody saw how"),
    ],
)
def test_an_exit_is_told_in_words(status: int | None, story: str) -> None:
    assert describe_exit(status) == story

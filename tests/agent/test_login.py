"""The login of a command line over pipes, against a stub of one; real time."""

import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from hive_agent import login as module
from hive_agent.config import Config
from hive_agent.login import Login, LoginFailed, find_url
from hive_agent.providers import Program
from hive_agent.providers.claude import Claude

STUB = Path(__file__).with_name("stub_login.py")
URL = "https://login.example/oauth?code=true&state=abc_-%2F~123"

MakeLogin = Callable[..., Login]


class Seen:
    def __init__(self, credentials: Path) -> None:
        self.credentials = credentials
        self.opened: list[bool] = []
        self.notes: list[str] = []

    @property
    def pid(self) -> int:
        return int(Path(f"{self.credentials}.pid").read_text())

    @property
    def runs(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    async def wait(self, holds: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not holds():
                await trio.sleep(0.01)


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    return Seen(tmp_path / "credentials")


@pytest.fixture
async def make_login(seen: Seen, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[MakeLogin]:
    def make(*mode: str, command: list[str] | None = None) -> Login:
        return Login(
            Program(
                argv=command or [sys.executable, str(STUB), str(seen.credentials), *mode],
                env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            ),
            cwd=tmp_path,
            opened=seen.opened.append,
            is_logged_in=seen.credentials.exists,
            note=seen.notes.append,
        )

    yield make


async def begun(login: Login, nursery: trio.Nursery) -> Login:
    await nursery.start(login.run)
    return login


@pytest.mark.parametrize(
    ("text", "ended", "url"),
    [
        (b"open https://a.example/x?y=1&z=2\n", False, "https://a.example/x?y=1&z=2"),
        (b"open https://a.example/x", False, None),
        (b"open https://a.example/x", True, "https://a.example/x"),
        (b"(https://a.example/x).", True, "https://a.example/x"),
        (b"\x1b]8;;https://a.example/x\x07here\x1b]8;;\x07", False, "https://a.example/x"),
        (b"\x1b[4mhttps://a.example/x\x1b[0m", False, "https://a.example/x"),
        (b'<a href="https://a.example/x">', False, "https://a.example/x"),
        (b"https://a.example/1 https://b.example/2 ", False, "https://a.example/1"),
        (b"https://a.example/\xe2\x80\xaex ", False, "https://a.example/"),
        (b"http://a.example/x ", True, None),
        (b"https:// ", True, None),
        (b"https://" + b"x" * 5000 + b" ", True, None),
        (b"", True, None),
    ],
)
def test_the_first_address_is_found_when_it_is_whole(text: bytes, ended: bool, url: str | None) -> None:
    assert find_url(text, ended=ended) == url


async def test_a_page_and_a_code_bring_credentials(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery
) -> None:
    login = await begun(make_login(), nursery)

    assert await login.start() == URL
    assert seen.opened == [True]
    assert await login.enter(" 4f2a\n".strip()) == "logged in"

    await seen.wait(lambda: seen.opened == [True, False])
    assert seen.credentials.exists()
    assert not seen.runs


async def test_a_second_start_finds_the_open_login(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery
) -> None:
    login = await begun(make_login(), nursery)

    assert await login.start() == URL
    pid = seen.pid
    assert await login.start() == URL

    assert seen.pid == pid
    assert seen.opened == [True]


async def test_a_wrong_code_is_told_and_another_one_may_follow(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CODE_TIMEOUT_S", 0.5)
    login = await begun(make_login(), nursery)
    await login.start()

    with pytest.raises(LoginFailed, match=r"cannot log in with that code: Invalid code\. Paste the code >"):
        await login.enter("wrong")
    assert await login.enter("4f2a") == "logged in"


async def test_a_cancel_ends_the_program(make_login: MakeLogin, seen: Seen, nursery: trio.Nursery) -> None:
    login = await begun(make_login(), nursery)
    await login.start()

    assert login.cancel()
    await seen.wait(lambda: seen.opened == [True, False])

    assert not seen.runs
    assert seen.notes == ["Login cancelled"]
    assert not login.cancel()
    with pytest.raises(LoginFailed, match="no login is open"):
        await login.enter("4f2a")


async def test_a_login_that_needs_no_code_ends_by_itself(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery
) -> None:
    login = await begun(make_login("page"), nursery)

    assert await login.start() == URL
    Path(f"{seen.credentials}.page").touch()

    await seen.wait(lambda: seen.opened == [True, False])
    assert seen.credentials.exists()


async def test_a_program_that_ends_at_once_is_quoted(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery
) -> None:
    login = await begun(make_login("dead"), nursery)

    with pytest.raises(LoginFailed, match="cannot log in: no address came: no such account"):
        await login.start()
    await seen.wait(lambda: seen.opened == [True, False])


async def test_a_program_that_says_nothing_is_given_up(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "URL_TIMEOUT_S", 0.5)
    login = await begun(make_login("silent"), nursery)

    with pytest.raises(LoginFailed, match="the login program said nothing"):
        await login.start()
    await seen.wait(lambda: seen.opened == [True, False])
    assert not seen.runs


async def test_a_program_that_is_not_there_is_named(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery
) -> None:
    login = await begun(make_login(command=["/nowhere/claude", "auth", "login"]), nursery)

    with pytest.raises(LoginFailed, match="cannot log in: /nowhere/claude cannot be started: No such file"):
        await login.start()
    await seen.wait(lambda: seen.opened == [True, False])


async def test_a_login_that_nobody_finishes_is_given_up(
    make_login: MakeLogin, seen: Seen, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGIN_TIMEOUT_S", 1.0)
    login = await begun(make_login(), nursery)
    await login.start()

    await seen.wait(lambda: seen.opened == [True, False])

    assert not seen.runs
    assert seen.notes[0].startswith("Login given up")


async def test_a_harness_that_stops_takes_the_login_along(make_login: MakeLogin, seen: Seen) -> None:
    async with trio.open_nursery() as nursery:
        login = await begun(make_login(), nursery)
        await login.start()
        nursery.cancel_scope.cancel()

    assert not seen.runs


@pytest.mark.parametrize("code", ["", "  ", "a\nb", "\x1b[A"])
async def test_what_is_no_code_is_not_passed_on(
    make_login: MakeLogin, nursery: trio.Nursery, code: str
) -> None:
    login = await begun(make_login(), nursery)
    await login.start()

    with pytest.raises(LoginFailed, match="no line of text"):
        await login.enter(code)


async def test_a_flood_is_read_and_not_kept(make_login: MakeLogin, seen: Seen, nursery: trio.Nursery) -> None:
    flood = "import sys; sys.stdout.write('x' * 5_000_000 + ' https://too.late/ '); sys.exit(1)"
    login = await begun(make_login(command=[sys.executable, "-c", flood]), nursery)
    began = time.monotonic()

    with pytest.raises(LoginFailed, match="no address came"):
        await login.start()

    assert time.monotonic() - began < 20


async def test_claude_logs_in_where_its_turns_look(
    config: Config, seen: Seen, tmp_path: Path, nursery: trio.Nursery
) -> None:
    binary = tmp_path / "bin" / "claude"
    binary.parent.mkdir()
    place = "$CLAUDE_CONFIG_DIR/.credentials.json"
    credentials = '{"claudeAiOauth":{"accessToken":"t"}}'
    binary.write_text(
        f"#!/bin/sh\n[ \"$1 $2\" = 'auth login' ] || exit 9\necho 'https://login.example/x '\n"
        f"read code\necho '{credentials}' > {place}\n"
    )
    binary.chmod(0o755)
    (tmp_path / "c").mkdir()
    environ = {"PATH": f"{binary.parent}:{os.environ['PATH']}", "CLAUDE_CONFIG_DIR": str(tmp_path / "c")}
    claude = Claude.open(config, environ)
    login = Login(
        claude.login_program(),
        cwd=tmp_path,
        opened=seen.opened.append,
        is_logged_in=claude.is_logged_in,
        note=seen.notes.append,
    )
    await begun(login, nursery)
    assert not claude.is_logged_in()

    assert await login.start() == "https://login.example/x"
    assert await login.enter("4f2a") == "logged in"

    assert claude.is_logged_in()
    nursery.cancel_scope.cancel()

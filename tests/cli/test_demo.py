"""The parts of the demo, against a fake daemon; the whole of it runs elsewhere."""

from pathlib import Path
from typing import Any

import pytest

from hive_core.cli import demo
from hive_core.cli.hive import Deadline, Hive
from hive_core.cli.problems import Problem
from hive_core.cli.traffic import Traffic

from .fake_host import FakeHost, message


def turn_end(agent: str, message_id: int, ok: bool = True) -> dict[str, Any]:
    payload = {"ok": ok, "message_id": message_id}
    return {
        "agent": agent,
        "event": {"id": 1, "ts": "2026-01-31T12:00:00Z", "kind": "turn_end", "payload": payload},
    }


CONVERSATION = [
    {"message": message(1, "operator", "alice", "say bob: hi")},
    {"message": message(2, "alice", "bob", "hi")},
    {"message": message(3, "alice", "operator", "done")},
    turn_end("alice", 1),
    turn_end("bob", 2),
]


@pytest.fixture
def both_at_rest(host: FakeHost) -> FakeHost:
    host.add("alice")
    host.add("bob")
    host.hold_open = True
    return host


def converse(host: FakeHost, limit_s: float = 10.0) -> bool:
    with demo._Watch(str(host.path)) as watch:
        return demo._until_quiet(Hive(str(host.path)), watch, Traffic(), 1, Deadline(limit_s))


def test_the_conversation_ends_when_every_message_had_its_turn(
    both_at_rest: FakeHost, capsys: pytest.CaptureFixture[str]
) -> None:
    both_at_rest.answers["watch"] = CONVERSATION

    assert converse(both_at_rest) is True

    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 5
    assert shown[-1] == "12:00:00  bob      ■ turn ends, ok"


def test_a_failed_turn_is_told(both_at_rest: FakeHost) -> None:
    both_at_rest.answers["watch"] = [*CONVERSATION[:-1], turn_end("bob", 2, ok=False)]

    assert converse(both_at_rest) is False


@pytest.mark.parametrize(
    ("items", "flags", "left"),
    [
        ([], {}, "messages 1 not worked on"),
        (CONVERSATION[:-1], {}, "messages 2 not worked on"),
        (CONVERSATION, {"turn_state": "thinking"}, "bob still at work"),
        (CONVERSATION, {"unread": 1}, "no rest"),
        (CONVERSATION, {"connected": False}, "no rest"),
    ],
)
def test_what_does_not_end_is_named(
    items: list[dict[str, Any]], flags: dict[str, Any], left: str, both_at_rest: FakeHost
) -> None:
    both_at_rest.answers["watch"] = items
    both_at_rest.add("bob", **flags)

    with pytest.raises(Problem, match=left):
        converse(both_at_rest, limit_s=0.3)


def test_a_daemon_that_does_not_start_shows_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'cannot serve: the moon is \x1b[31mred'\nexit 3\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))

    assert demo.main(["--home", str(tmp_path / "home")]) == 1

    err = capsys.readouterr().err
    assert err.startswith("hive: cannot start the daemon: it ended with status 3\n")
    assert err.endswith("  cannot serve: the moon is \\x1b[31mred\n")


def test_what_to_type_next_is_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", str(programs / "python"))
    assert demo._program("hive", "hive_core.cli") == f"{programs}/python -m hive_core.cli"

    (programs / "hive").touch()
    assert demo._program("hive", "hive_core.cli") == ".venv/bin/hive"
    monkeypatch.chdir(programs)
    assert demo._program("hive", "hive_core.cli") == "./hive"


def test_only_its_own_harnesses_are_ended(tmp_path: Path) -> None:
    assert not demo._is_harness(1, tmp_path)
    assert not demo._is_harness(2**22 + 1, tmp_path)

import logging

import pytest

from hive_core.log import set_up_log

NASTY = "malformed schema (x)\n<6>Hive is ready\r\x1b[2J\u202e\udcff"
PLAIN = r"malformed schema (x)\n<6>Hive is ready\r\x1b[2J\u202e\udcff"


@pytest.mark.parametrize("journal", [True, False])
def test_what_an_agent_says_makes_no_line_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], journal: bool
) -> None:
    if journal:
        monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    else:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    try:
        set_up_log("info")
        logging.getLogger("hive_core").warning("History of %s cannot be read: %s é", "bob", NASTY)
    finally:
        root.setLevel(level)

    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.endswith(f"History of bob cannot be read: {PLAIN} é\n")
    assert said.startswith("<4>") == journal


def test_a_traceback_stays_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    set_up_log(logging.getLevelName(root.level))

    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("hive_core").exception("Bug")

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "<3>Bug"
    assert lines[-1] == "<3>ValueError: no"
    assert all(line.startswith("<3>") for line in lines)

"""Starting fast: what a command does not need is not imported."""

import subprocess
import sys

import click
import pytest

from hive_core.cli.app import COMMANDS, hive

from .fake_host import FakeHost

HEAVY = ("msgspec", "trio", "rich", "apsw", "asyncio", "hive_core.wire.host")


def imported_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    return set(done.stderr.split())


def running(*argv: str) -> str:
    return f"from hive_core.cli.__main__ import main; assert main({list(argv)!r}) == 0"


def test_the_entry_point_imports_nothing_heavy() -> None:
    loaded = imported_by("import hive_core.cli.__main__")

    assert not loaded & {*HEAVY, "click"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["send", "--help"], ["version"]])
def test_help_imports_no_more_than_click(argv: list[str]) -> None:
    loaded = imported_by(running(*argv))

    assert not loaded & set(HEAVY)


def test_the_list_of_commands_loads_no_command() -> None:
    assert not [name for name in imported_by(running("--help")) if name.startswith("hive_core.cli.commands.")]


def test_send_does_not_even_import_click(host: FakeHost) -> None:
    host.answers["send"] = {"id": 1}

    loaded = imported_by(running("send", "bob", "hi"))

    assert not loaded & {*HEAVY, "click", "dataclasses", "inspect", "datetime"}


def test_ls_into_a_pipe_imports_no_tables(host: FakeHost) -> None:
    host.add("alice")

    assert not imported_by(running("ls")) & set(HEAVY)


@pytest.mark.parametrize("argv", [["show", "alice"], ["top", "--interval", "0.1"], ["doctor"]])
def test_other_looks_into_a_pipe_import_no_tables(argv: list[str], host: FakeHost) -> None:
    host.add("alice")
    host.answers = {"top": {"monotonic_usec": 1, "usage": []}, "doctor": {"checks": []}}

    assert not imported_by(running(*argv)) & set(HEAVY)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_agrees_with_the_command(name: str) -> None:
    command = hive.get_command(click.Context(hive), name)

    assert command is not None
    assert command.name == name
    assert command.help is not None
    assert command.help.strip("\b\n").split("\n\n")[0].rstrip(".") == COMMANDS[name].help
    assert command.epilog is not None
    assert f"  hive {name}" in command.epilog


def test_help_names_every_command_and_exit_code() -> None:
    text = hive.get_help(click.Context(hive, info_name="hive"))

    for name, entry in COMMANDS.items():
        assert name in text
        assert entry.help in text
    assert "6   not done in time" in text

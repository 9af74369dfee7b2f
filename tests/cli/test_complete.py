"""Whatever command there is: it has help and examples that are what they say, and a test."""

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click
import pytest

from hive_core.cli.app import COMMANDS
from hive_core.cli.app import hive as program

TESTS = sorted(Path(__file__).parent.glob("test_*.py"))


def commands() -> Iterator[tuple[str, click.Command]]:
    for name in COMMANDS:
        found = program.get_command(click.Context(program), name)
        assert found is not None
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", inner_command) for inner, inner_command in found.commands.items())


ALL = dict(commands())


def examples(command: click.Command) -> list[str]:
    _, _, text = (command.epilog or "").partition("Examples:\n")
    return [line.strip() for line in text.splitlines() if line.strip()]


def typed(example: str) -> Iterator[list[str]]:
    """The words after `hive` of each call of it in a line of shell."""
    lexer = shlex.shlex(example, posix=True, punctuation_chars="|;&<>")
    lexer.whitespace_split = True
    words: list[str] | None = None
    skip = False
    for word in [*lexer, ";"]:
        if skip:
            skip = False
        elif word in {"<", ">", ">>"}:
            skip = True
        elif set(word) <= set("|;&"):
            if words is not None:
                yield words
            words = None
        elif words is not None:
            words.append(word)
        elif word == "hive":
            words = []


@pytest.mark.parametrize("name", ALL)
def test_a_command_says_what_it_does_and_shows_it(name: str) -> None:
    command = ALL[name]

    assert command.help
    assert command.help.strip().partition("\n")[0].endswith(".")
    assert examples(command)
    assert any(f"hive {name}" in example for example in examples(command))
    undocumented = [
        param.name for param in command.params if isinstance(param, click.Option) and not param.help
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", ALL)
def test_examples_can_be_typed(name: str) -> None:
    for example in examples(ALL[name]):
        for words in typed(example):
            context = click.Context(program, info_name="hive")
            command: click.Command = program
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                found = command.get_command(context, words[0])
                assert found is not None, example
                command, words = found, words[1:]
            with suppress(click.exceptions.Exit):  # --version has said it
                command.make_context("hive", list(words))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_used_in_a_test(name: str) -> None:
    use = re.compile(rf"""["']{re.escape(name)}["' ]""")

    assert [path.name for path in TESTS if path.name != Path(__file__).name and use.search(path.read_text())]

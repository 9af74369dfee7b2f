import argparse
from pathlib import Path

import pytest

from hive_agent import commands
from hive_agent.config import Config, add_arguments
from hive_agent.context import ContextSettings


def config_of(*argv: str, **environ: str) -> Config:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Config.from_args(parser.parse_args(argv), environ)


def test_the_environment_tells_how_to_keep_the_context_and_when_to_rest() -> None:
    config = config_of(
        "--state",
        "/d",
        HIVE_CONTEXT_WINDOW_TOKENS="haiku=100000",
        HIVE_COMPACT_WATERMARK_TOKENS="0",
        HIVE_RATE_LIMIT_SLEEP_SECS="60",
        HIVE_DEFAULT_EFFORT="high",
        HYPERHIVE_LOGIN_CMD="sh -c 'log in'",
    )

    assert config.context == ContextSettings(windows={"haiku": 100_000}, compact_tokens=0)
    assert (config.rate_limit_sleep_s, config.effort) == (60, "high")
    assert config.login_command == ["sh", "-c", "log in"]
    assert config.turn_stats_db == Path("/d/hyperhive-turn-stats.sqlite")
    assert config.effort_file == Path("/d/hyperhive-effort")
    assert config.rate_limit_mark == Path("/d/hyperhive-rate-limited")


def test_the_operators_pronouns_come_from_the_arguments_or_the_environment() -> None:
    assert config_of().operator_pronouns == ""
    assert config_of(HIVE_OPERATOR_PRONOUNS="she/her").operator_pronouns == "she/her"
    told = config_of("--operator-pronouns", "he/him", HIVE_OPERATOR_PRONOUNS="she/her")
    assert told.operator_pronouns == "he/him"


def test_the_environment_tells_the_task_and_where_the_repositories_are() -> None:
    config = config_of()
    assert (config.prompt_file, config.extra_mcp) == (None, Path("/etc/hyperhive/extra-mcp.json"))
    assert (config.configs, config.applied, config.meta) == (Path("/agents"), Path("/applied"), Path("/meta"))

    told = config_of(HIVE_PROMPT_FILE="/r/config/p.md", HIVE_CONFIGS="/c", HIVE_APPLIED="/a", HIVE_META="/m")
    assert told.prompt_file == Path("/r/config/p.md")
    assert (told.configs, told.applied, told.meta) == (Path("/c"), Path("/a"), Path("/m"))


def test_the_login_is_that_of_the_claude_that_runs_the_turns() -> None:
    assert config_of().login_command == ("claude", "auth", "login")
    assert config_of("--claude-bin", "/opt/claude").login_command == ("/opt/claude", "auth", "login")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HIVE_CONTEXT_WINDOW_TOKENS", "big"),
        ("HIVE_COMPACT_WATERMARK_TOKENS", "75%"),
        ("HIVE_RATE_LIMIT_SLEEP_SECS", "never"),
        ("HYPERHIVE_LOGIN_CMD", "sh -c 'log in"),
    ],
)
def test_what_the_environment_says_wrongly_is_one_line_and_status_1(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)

    assert commands.main(["serve"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"cannot serve: {name}")
    assert said.count("\n") == 1

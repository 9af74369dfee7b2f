import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hive_agent.config import Config
from hive_agent.providers.claude.command import (
    build_argv,
    build_environment,
    build_login,
    find_binary,
    write_files,
)
from hive_agent.providers.claude.credentials import Credentials, credentials_file
from hive_agent.providers.claude.extra_mcp import ExtraServer, read_extra_servers

MATRIX = ExtraServer(
    command="matrix-mcp", args=["--room", "a"], env={"TOKEN": "t"}, allowed_tools=["say", "read"]
)


def option(argv: Any, name: str) -> str:
    return str(argv[argv.index(name) + 1])


def argv_of(tmp_path: Path, **given: Any) -> list[str]:
    fields: dict[str, Any] = {"model": "haiku", "effort": None, "resume": None, "extras": {}, **given}
    return list(build_argv("/bin/claude", write_files(tmp_path, "You are", fields["extras"]), **fields))


# ── arguments ───────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_is_what_was_found_to_work(tmp_path: Path) -> None:
    argv = argv_of(tmp_path)

    assert argv == [
        *("/bin/claude", "--print", "--verbose"),
        *("--output-format", "stream-json", "--input-format", "stream-json"),
        *("--model", "haiku"),
        *("--settings", f"{tmp_path}/settings.json"),
        *("--setting-sources", "project"),
        *("--system-prompt-file", f"{tmp_path}/system-prompt.md"),
        *("--mcp-config", f"{tmp_path}/mcp.json", "--strict-mcp-config"),
        *("--tools", "Bash,Read,Edit,Write,Glob,Grep,NotebookEdit,TaskStop"),
        *("--allowedTools", "Bash,Read,Edit,Write,Glob,Grep,NotebookEdit,TaskStop,mcp__hyperhive"),
    ]


def test_a_session_and_an_effort_are_added_when_there_are_any(tmp_path: Path) -> None:
    argv = argv_of(tmp_path, resume="s1", effort="high")

    assert option(argv, "--resume") == "s1"
    assert option(argv, "--effort") == "high"


def test_nothing_that_root_may_not_use_is_used(tmp_path: Path) -> None:
    assert not {"--dangerously-skip-permissions", "--permission-mode"} & set(argv_of(tmp_path))


def test_neither_web_nor_subagents_nor_todo_lists(tmp_path: Path) -> None:
    argv = argv_of(tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())

    for tool in ("WebFetch", "WebSearch", "Task", "TodoWrite"):
        assert tool not in option(argv, "--tools").split(",")
        assert tool in settings["permissions"]["deny"]
    assert settings["autoCompactEnabled"] is False
    assert settings["autoMemoryEnabled"] is False


def test_the_extra_servers_join_the_hives_own(tmp_path: Path) -> None:
    argv = argv_of(tmp_path, extras={"matrix": MATRIX, "db": ExtraServer(command="db")})

    config = json.loads((tmp_path / "mcp.json").read_text())
    assert config["mcpServers"]["hyperhive"] == {"type": "sdk", "name": "hyperhive"}
    assert config["mcpServers"]["matrix"] == {
        "command": "matrix-mcp",
        "args": ["--room", "a"],
        "env": {"TOKEN": "t"},
    }
    allowed = option(argv, "--allowedTools").split(",")
    assert allowed[-4:] == ["mcp__hyperhive", "mcp__matrix__say", "mcp__matrix__read", "mcp__db"]


def test_the_system_prompt_is_a_file_of_the_turn_as_it_was_rendered(tmp_path: Path) -> None:
    argv = argv_of(tmp_path)

    assert Path(option(argv, "--system-prompt-file")).read_text() == "You are"


# ── environment ─────────────────────────────────────────────────────────────────────────────────


def test_the_environment_is_built_and_not_inherited(config: Config) -> None:
    given = {
        "PATH": "/bin",
        "HOME": "/home/a",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
        "ANTHROPIC_API_KEY": "k",
        "CLAUDE_CONFIG_DIR": "/c",
        "CLAUDE_CODE_MAX_RETRIES": "2",
        "AWS_SECRET_ACCESS_KEY": "no",
        "CLAUDECODE": "1",
        "CLAUDE_CODE_SESSION_ID": "no",
        "NODE_OPTIONS": "--inspect",
        "HYPERHIVE_LOGIN_CMD": "no",
        "LD_PRELOAD": "no",
    }

    built = build_environment(config, given)

    assert built == {
        **{name: given[name] for name in list(given)[:6]},
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_AUTOUPDATER": "1",
        "HIVE_AGENT_SOCKET": str(config.socket),
        "HIVE_AGENT_STATE": str(config.state),
        "HIVE_TURN_OF": str(config.state),
    }


def test_what_is_declared_gets_through_but_nothing_that_steers_a_program(config: Config) -> None:
    given = {"STAGE": "two", "SECRET": "no", "TERM": "xterm"}
    never = ("HIVE_LABEL_X", "HIVE_TURN_OF", "HYPERHIVE_X", "LD_PRELOAD", "PYTHONPATH", "NODE_OPTIONS")
    environ = given | dict.fromkeys(never, "x")
    declares = replace(config, pass_on=["STAGE", "TERM", "MISSING", *never])

    built = build_environment(declares, environ)

    assert built == {**build_environment(config, environ), "STAGE": "two"}
    assert built["TERM"] == "dumb"
    assert built["HIVE_TURN_OF"] == str(config.state)


def test_without_a_home_claude_keeps_its_things_with_the_agent(config: Config) -> None:
    assert build_environment(config, {})["HOME"] == str(config.state)


def test_the_binary_can_be_started_from_any_directory(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "claude").write_text("#!/bin/sh\n")
    (tmp_path / "claude").chmod(0o755)
    monkeypatch.chdir(tmp_path)

    assert find_binary(replace(config, claude_bin="./claude"), {}) == str(tmp_path / "claude")
    assert find_binary(config, {"PATH": "."}) == str(tmp_path / "claude")


# ── the login ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("named", [None, "claude-7", "/somewhere/claude"])
def test_the_login_is_that_of_the_claude_that_runs_the_turns(config: Config, named: str | None) -> None:
    config = replace(config, claude_bin=named, login_command=(named or "claude", "auth", "login"))
    given = {
        "PATH": "/p",
        "CLAUDE_CONFIG_DIR": "/c",
        "ANTHROPIC_BASE_URL": "u",
        "AWS_SECRET_ACCESS_KEY": "no",
    }
    environment = build_environment(config, given)

    login = build_login(config, "/found/claude", environment)

    assert login.argv == ["/found/claude", "auth", "login"]
    # It is no part of a turn, and must not be swept away with one.
    assert login.env == {name: value for name, value in environment.items() if name != "HIVE_TURN_OF"}
    assert credentials_file(login.env) == credentials_file(environment) == Path("/c/.credentials.json")


def test_another_login_may_be_told(config: Config) -> None:
    told = replace(config, login_command=["sh", "-c", "log in"])

    assert build_login(told, "/found/claude", {"HOME": "/h"}).argv == ["sh", "-c", "log in"]


def test_the_binary_is_the_one_that_was_named_or_the_one_on_path(config: Config, tmp_path: Path) -> None:
    (tmp_path / "claude").write_text("#!/bin/sh\n")
    (tmp_path / "claude").chmod(0o755)
    named = Config(
        socket=config.socket,
        state=config.state,
        events_db=config.events_db,
        model_file=config.model_file,
        claude_bin=str(tmp_path / "claude"),
    )

    assert find_binary(config, {"PATH": f"/nonexistent:{tmp_path}"}) == str(tmp_path / "claude")
    assert find_binary(config, {"PATH": "/nonexistent"}) is None
    assert find_binary(named, {"PATH": "/nonexistent"}) == str(tmp_path / "claude")


# ── extra servers ───────────────────────────────────────────────────────────────────────────────


def test_extra_servers_are_read_and_the_reserved_name_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "extra-mcp.json"
    server = {"command": "x", "args": ["a"], "env": {"B": "c"}, "allowedTools": ["one"]}
    file.write_text(json.dumps({"hyperhive": {"command": "evil"}, "m": server, "a b": {"command": "y"}}))

    servers, notes = read_extra_servers(file)

    assert servers == {"m": ExtraServer(command="x", args=["a"], env={"B": "c"}, allowed_tools=["one"])}
    assert notes == [
        "Extra MCP server 'hyperhive' is left out: that name is the hive's own",
        "Extra MCP server 'a b' is left out: that is no name of a server",
    ]


@pytest.mark.parametrize(
    "text", ["", "no json", "[]", '{"m": {}}', '{"m": {"command": "x", "url": "y"}}', '{"m": 3}', "[" * 9000]
)
def test_a_bad_file_has_no_servers_and_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)

    servers, notes = read_extra_servers(tmp_path / "f")

    assert servers == {}
    assert len(notes) == 1
    assert notes[0].startswith(f"Extra MCP servers are left out: {tmp_path}/f")


def test_a_missing_file_is_ordinary(tmp_path: Path) -> None:
    assert read_extra_servers(tmp_path / "none") == ({}, [])
    assert read_extra_servers(None) == ({}, [])
    assert len(read_extra_servers(tmp_path)[1]) == 1  # a directory is not


# ── credentials ─────────────────────────────────────────────────────────────────────────────────


def write_credentials(home: Path, content: object) -> Path:
    path = credentials_file({"HOME": str(home)})
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_key_or_a_login_is_needed(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path)}

    assert not Credentials(home).are_there()
    assert not Credentials({**home, "ANTHROPIC_API_KEY": ""}).are_there()
    assert Credentials({**home, "ANTHROPIC_API_KEY": "k"}).are_there()
    assert Credentials({**home, "CLAUDE_CODE_OAUTH_TOKEN": "k"}).are_there()

    write_credentials(tmp_path, {"claudeAiOauth": {"accessToken": "a", "refreshToken": "r", "expiresAt": 1}})
    assert Credentials(home).are_there()


def test_the_config_directory_goes_before_the_home(tmp_path: Path) -> None:
    told = {"HOME": "/h", "CLAUDE_CONFIG_DIR": "/c"}

    assert credentials_file(told) == Path("/c/.credentials.json")
    assert credentials_file({"HOME": "/h"}) == Path("/h/.claude/.credentials.json")


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"claudeAiOauth": null}', '{"claudeAiOauth": {}}', "\x00"]
)
def test_a_file_without_a_token_is_no_login(tmp_path: Path, content: str) -> None:
    write_credentials(tmp_path, content)

    assert not Credentials({"HOME": str(tmp_path)}).are_there()


def test_refused_credentials_are_none_until_they_change(tmp_path: Path) -> None:
    write_credentials(tmp_path, {"claudeAiOauth": {"accessToken": "old"}})
    credentials = Credentials({"HOME": str(tmp_path)})

    credentials.refuse()
    assert not credentials.are_there()
    os.utime(credentials_file({"HOME": str(tmp_path)}))
    assert not credentials.are_there()
    write_credentials(tmp_path, {"claudeAiOauth": {"accessToken": "new"}})
    assert credentials.are_there()

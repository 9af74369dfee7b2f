"""How `claude` is started: its arguments, its environment, and the files that it reads at the start."""

import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from hive_agent.config import Config
from hive_agent.providers.base import Program
from hive_agent.providers.claude.extra_mcp import ExtraServer

SERVER: Final = "hyperhive"
"""The hive's MCP server; the model sees its tools as mcp__hyperhive__send and so on."""

TOOLS: Final = ("Bash", "Read", "Edit", "Write", "Glob", "Grep", "NotebookEdit", "TaskStop")
"""No web, no subagents, no todo list; names that this version does not have are passed over."""
DENIED: Final = ("WebFetch", "WebSearch", "Task", "Agent", "TodoWrite")

EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")

MARK: Final = "HIVE_TURN_OF"
"""A variable that everything started in a turn of this agent has, however it detached itself."""

# Nothing else but what the agent's declaration sets: what claude gets, every command and every MCP server
# of the turn gets too.
_PASSED_ON: Final = frozenset(
    {
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS"),
        *("CLAUDE_CONFIG_DIR", "CLAUDE_CODE_OAUTH_TOKEN", "CLAUDE_CODE_MAX_RETRIES"),
        *("CLAUDE_CODE_MAX_OUTPUT_TOKENS", "API_TIMEOUT_MS"),
        *("MCP_TIMEOUT", "MCP_TOOL_TIMEOUT", "MAX_MCP_OUTPUT_TOKENS"),
        *("BASH_DEFAULT_TIMEOUT_MS", "BASH_MAX_TIMEOUT_MS"),
        "HIVE_LABEL",
    }
)
_PASSED_ON_PREFIXES: Final = ("ANTHROPIC_", "LC_")
# Whatever is declared: the hive's own, and what puts other code into a program that is started.
_KEPT_PREFIXES: Final = ("HIVE_", "HYPERHIVE_", "LD_", "GLIBC_", "PYTHON")
_KEPT: Final = frozenset({"NODE_OPTIONS", "BUN_OPTIONS", "BASH_ENV", "ENV", "GCONV_PATH"})

_ALWAYS: Final = {
    "TERM": "dumb",
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
    "DISABLE_AUTOUPDATER": "1",
}

_SETTINGS: Final = {
    # Compaction and memory are the harness's and the agent's own business.
    "autoCompactEnabled": False,
    "autoMemoryEnabled": False,
    "includeCoAuthoredBy": False,
    "cleanupPeriodDays": 3650,
    "permissions": {"deny": list(DENIED)},
}


def find_binary(config: Config, environ: Mapping[str, str]) -> str | None:
    """Give the path of the claude to run, or None when there is none."""
    found = shutil.which(config.claude_bin or "claude", path=environ.get("PATH"))
    # It is started in another directory than this one.
    return None if found is None else str(Path(found).absolute())


def build_environment(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of claude: a few variables of *environ*, those that are declared, and ours."""
    declared = {name for name in config.pass_on if name not in _KEPT and not name.startswith(_KEPT_PREFIXES)}
    passed_on = {
        name: value
        for name, value in environ.items()
        if name in _PASSED_ON or name in declared or name.startswith(_PASSED_ON_PREFIXES)
    }
    built = {"LANG": "C.UTF-8", **passed_on, **_ALWAYS}
    if "HOME" not in built:
        # Without it, what claude keeps would land in the home that /etc/passwd names.
        built["HOME"] = str(config.state)
    built["HIVE_AGENT_SOCKET"] = str(config.socket)
    built["HIVE_AGENT_STATE"] = str(config.state)
    built[MARK] = mark_of(config)
    return built


def build_login(config: Config, binary: str, environment: Mapping[str, str]) -> Program:
    """Give the login of *binary*, with which turns run in *environment*, or the one that was told instead."""
    program, *arguments = config.login_command
    if program == (config.claude_bin or "claude"):
        program = binary
    # What runs in a turn dies with the turn, and a login may outlast many.
    env = {name: value for name, value in environment.items() if name != MARK}
    return Program(argv=[program, *arguments], env=env)


def mark_of(config: Config) -> str:
    return str(config.state.absolute())


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """What claude reads when it starts."""

    settings: Path
    system_prompt: Path
    mcp_config: Path


def write_files(directory: Path, system_prompt: str, extras: Mapping[str, ExtraServer]) -> Files:
    """Write what claude reads when it starts into *directory*, which is private.

    Raises:
        OSError: it cannot be written.
    """
    files = Files(
        settings=directory / "settings.json",
        system_prompt=directory / "system-prompt.md",
        mcp_config=directory / "mcp.json",
    )
    servers: dict[str, object] = {SERVER: {"type": "sdk", "name": SERVER}}
    for key, extra in extras.items():
        servers[key] = {"command": extra.command, "args": extra.args, "env": extra.env}
    files.settings.write_bytes(msgspec.json.encode(_SETTINGS))
    files.system_prompt.write_text(system_prompt, encoding="utf-8")
    files.mcp_config.write_bytes(msgspec.json.encode({"mcpServers": servers}))
    return files


def remove_directories(runtime: Path, prefix: str) -> None:
    """Remove what a harness that was killed has left there."""
    with suppress(OSError):
        for path in runtime.glob(f"{prefix}*"):
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                shutil.rmtree(path, ignore_errors=True)


def build_argv(
    binary: str,
    files: Files,
    *,
    model: str,
    effort: str | None,
    resume: str | None,
    extras: Mapping[str, ExtraServer],
) -> Sequence[str]:
    """Give the command line.  The prompt comes on stdin: list options would swallow it here."""
    allowed = [*TOOLS, f"mcp__{SERVER}"]
    for key, extra in extras.items():
        allowed += extra.rules(key)
    return [
        *(binary, "--print", "--verbose"),
        *("--output-format", "stream-json", "--input-format", "stream-json"),
        *("--model", model),
        *(("--effort", effort) if effort else ()),
        *(("--resume", resume) if resume else ()),
        *("--settings", str(files.settings)),
        # Of the settings files only those below the state directory, which is the agent's, and with them
        # the CLAUDE.md that it keeps there.
        *("--setting-sources", "project"),
        *("--system-prompt-file", str(files.system_prompt)),
        *("--mcp-config", str(files.mcp_config), "--strict-mcp-config"),
        *("--tools", ",".join(TOOLS)),
        *("--allowedTools", ",".join(allowed)),
    ]

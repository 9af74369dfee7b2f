"""What `hive-agent serve` was told, by arguments first and the environment second."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hive_agent.context import ContextSettings
from hive_agent.mcp import DEFAULT_SOCKET
from hive_agent.retry import RATE_LIMIT_SLEEP_S, rate_limit_sleep_s

DEFAULT_STATE: Final = "/state"
DEFAULT_RUNTIME: Final = "/tmp"  # noqa: S108  # only for fresh, private directories in it
DEFAULT_EXTRA_MCP: Final = "/etc/hyperhive/extra-mcp.json"
DEFAULT_CONFIGS: Final = "/agents"
DEFAULT_APPLIED: Final = "/applied"
DEFAULT_META: Final = "/meta"
DEFAULT_LOGIN_COMMAND: Final = ("claude", "auth", "login")


class BadConfig(Exception):
    """A variable of the environment says nothing that could be used.  The text names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    socket: Path
    state: Path
    events_db: Path
    model_file: Path
    provider: str = "scripted"
    model: str | None = None
    """Used while the model file names none."""
    linger_s: float | None = None
    """How long to go on without a daemon; None is for ever."""
    lock: Path | None = None
    script: Path | None = None
    effort: str | None = None
    """Used while the effort file names none."""
    context: ContextSettings = field(default_factory=ContextSettings)
    rate_limit_sleep_s: float = RATE_LIMIT_SLEEP_S
    """After a rate limit that names no end."""
    login_command: Sequence[str] = DEFAULT_LOGIN_COMMAND

    label: str = ""
    """The agent's name, for its system prompt."""
    operator_pronouns: str = ""
    """How its system prompt speaks of the operator, such as `she/her`."""
    claude_bin: str | None = None
    """None: `claude` on PATH."""
    extra_mcp: Path | None = None
    """MCP servers beside the hive's own."""
    pass_on: Sequence[str] = ()
    """Variables that its declaration sets for what its model runs."""
    prompt_file: Path | None = None
    """What the agent's own configuration tells its model about its task."""
    configs: Path = Path(DEFAULT_CONFIGS)
    """The manager's: where it proposes the configuration of each agent, in NAME/config."""
    applied: Path = Path(DEFAULT_APPLIED)
    """The manager's: what of that was ever proposed, deployed or denied, a repository for each NAME."""
    meta: Path = Path(DEFAULT_META)
    """The manager's: the repository that says what is deployed where."""
    runtime: Path = Path(DEFAULT_RUNTIME)
    """For files that a turn needs, each in a private directory; never where the socket is."""

    @property
    def turn_stats_db(self) -> Path:
        return self.state / "hyperhive-turn-stats.sqlite"

    @property
    def effort_file(self) -> Path:
        return self.state / "hyperhive-effort"

    @property
    def rate_limit_mark(self) -> Path:
        """Is there while the harness waits for a rate limit to end."""
        return self.state / "hyperhive-rate-limited"

    @classmethod
    def from_args(cls, args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> "Config":
        """Take what *args* say, and *environ* where they say nothing.

        Raises:
            BadConfig: a variable cannot be read.
        """
        claude_bin = args.claude_bin or environ.get("HIVE_CLAUDE_BIN") or None
        try:
            context, sleep_s = ContextSettings.from_environ(environ), rate_limit_sleep_s(environ)
        except ValueError as error:
            raise BadConfig(str(error)) from None
        try:
            login_command = shlex.split(environ.get("HYPERHIVE_LOGIN_CMD", ""))
        except ValueError as error:
            raise BadConfig(f"HYPERHIVE_LOGIN_CMD: {error}") from None
        state = Path(args.state or environ.get("HIVE_AGENT_STATE") or DEFAULT_STATE)
        script = args.script or environ.get("HIVE_SCRIPT")
        prompt_file = environ.get("HIVE_PROMPT_FILE")
        runtimes = [environ.get(name, "") for name in ("HIVE_AGENT_RUNTIME", "RUNTIME_DIRECTORY", "TMPDIR")]
        return cls(
            socket=Path(args.socket or environ.get("HIVE_AGENT_SOCKET") or DEFAULT_SOCKET),
            state=state,
            events_db=Path(environ.get("HYPERHIVE_EVENTS_DB") or state / "hyperhive-events.sqlite"),
            model_file=Path(environ.get("HYPERHIVE_MODEL_FILE") or state / "hyperhive-model"),
            provider=args.provider,
            model=args.model or environ.get("HIVE_DEFAULT_MODEL") or None,
            linger_s=args.linger,
            lock=Path(args.lock) if args.lock else None,
            script=Path(script) if script else None,
            effort=environ.get("HIVE_DEFAULT_EFFORT") or None,
            context=context,
            rate_limit_sleep_s=sleep_s,
            login_command=login_command or (claude_bin or "claude", *DEFAULT_LOGIN_COMMAND[1:]),
            label=environ.get("HIVE_LABEL", ""),
            operator_pronouns=args.operator_pronouns or environ.get("HIVE_OPERATOR_PRONOUNS", ""),
            claude_bin=claude_bin,
            extra_mcp=Path(args.extra_mcp or environ.get("HIVE_EXTRA_MCP") or DEFAULT_EXTRA_MCP),
            pass_on=environ.get("HIVE_PASS_ON", "").split(),
            prompt_file=Path(prompt_file) if prompt_file else None,
            configs=Path(environ.get("HIVE_CONFIGS") or DEFAULT_CONFIGS),
            applied=Path(environ.get("HIVE_APPLIED") or DEFAULT_APPLIED),
            meta=Path(environ.get("HIVE_META") or DEFAULT_META),
            # systemd gives several, with colons between them.
            runtime=Path(next(filter(None, runtimes), DEFAULT_RUNTIME).partition(":")[0]),
        )


def add_socket(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket", metavar="PATH", help=f"the agent's socket [HIVE_AGENT_SOCKET, {DEFAULT_SOCKET}]"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_socket(parser)
    parser.add_argument(
        "--state", metavar="DIR", help=f"the agent's own directory [HIVE_AGENT_STATE, {DEFAULT_STATE}]"
    )
    parser.add_argument("--provider", default="scripted", metavar="NAME", help="what runs a turn [scripted]")
    parser.add_argument(
        "--model", metavar="MODEL", help="used until another one is set [HIVE_DEFAULT_MODEL, the provider's]"
    )
    parser.add_argument(
        "--linger",
        type=seconds,
        metavar="SECONDS",
        help="end when there was no daemon for that long [never]",
    )
    parser.add_argument(
        "--lock", metavar="PATH", help="hold this file locked, and refuse to run when it is held"
    )
    parser.add_argument(
        "--claude-bin", metavar="FILE", help="the claude to run [HIVE_CLAUDE_BIN, the one on PATH]"
    )
    parser.add_argument(
        "--extra-mcp",
        metavar="FILE",
        help=f"more MCP servers, as JSON [HIVE_EXTRA_MCP, {DEFAULT_EXTRA_MCP}]",
    )
    parser.add_argument(
        "--operator-pronouns",
        metavar="TEXT",
        help="how agents are told of the operator [HIVE_OPERATOR_PRONOUNS, they/them]",
    )
    parser.add_argument(
        "--script", metavar="FILE", help="JSON that the scripted provider plays [HIVE_SCRIPT]"
    )


def seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return seconds

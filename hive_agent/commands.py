"""The commands of hive-agent.

Only `serve` loads trio: the small commands of this program are started many times and must be quick.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

from hive_agent.config import BadConfig, Config, add_arguments, add_socket, seconds
from hive_agent.mcp import DEFAULT_SOCKET, EXIT_UNREACHABLE, PATIENCE_S
from hive_core.wire.version import VERSION

EXIT_HELD: Final = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""

EXAMPLE: Final = """example:
  hive-agent serve --socket ~/.local/state/hyperhive/run/agents/alice/mcp.sock --state /tmp/alice

exit codes of serve: 0 stopped, or lingered in vain · 1 cannot start · 2 usage · 75 runs already
"""

WAKE_EXAMPLE: Final = """example:
  make test 2>&1 | tail -5 | hive-agent wake --from ci --body -

It prints the message's id.  Exit codes: 0 accepted · 1 refused · 2 usage · 5 no daemon answers
"""

MCP_EXAMPLE: Final = """example, as an MCP client's configuration has it:
  {"mcpServers": {"hyperhive": {"command": "hive-agent", "args": ["mcp"]}}}

It goes on while the daemon restarts, and ends when its standard input does.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    match args.command:
        case "mcp":
            from hive_agent import mcp

            return mcp.run(args.socket, args.patience)
        case "wake":
            return wake(_socket_of(args), args.source, args.body)
    try:
        config = Config.from_args(args)
    except BadConfig as error:
        return _complain(str(error), 1)
    return serve(config)


def serve(config: Config) -> int:
    """Run the harness until it is told to stop; give the exit status."""
    from hive_agent.harness import CannotStart, log_to_stderr, run
    from hive_agent.lock import Held, LockFailed, take

    log_to_stderr()
    try:
        if config.lock is not None:
            take(config.lock)
        run(config)
    except Held as held:
        return _complain(str(held), EXIT_HELD)
    except (CannotStart, LockFailed) as error:
        return _complain(str(error), 1)
    return 0


def wake(socket: str, label: str, body: str) -> int:
    """Leave a message for the agent, print its id, and give the exit status."""
    from hive_agent.wake import Unreachable, wake
    from hive_core.wire.errors import Refused
    from hive_core.wire.limits import MAX_BODY_BYTES

    try:
        if body == "-":
            # One byte more than is allowed, for the daemon to refuse.
            body = sys.stdin.buffer.read(MAX_BODY_BYTES + 1).decode(errors="replace")
        print(wake(socket, label, body))  # noqa: T201
    except (Refused, UnicodeEncodeError) as error:
        print(error if isinstance(error, Refused) else "cannot wake: the text is no UTF-8", file=sys.stderr)  # noqa: T201
        return 1
    except Unreachable as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_UNREACHABLE
    return 0


def _socket_of(args: argparse.Namespace) -> str:
    return str(args.socket or os.environ.get("HIVE_AGENT_SOCKET") or DEFAULT_SOCKET)


def _complain(why: str, status: int) -> int:
    print(f"cannot serve: {why}", file=sys.stderr)  # noqa: T201
    return status


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="hive-agent",
        description="The harness of one agent: takes its messages and runs its turns.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"hive-agent {VERSION}")
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_arguments(
        commands.add_parser(
            "serve",
            help="run the turn loop until SIGTERM",
            description="Connect to the daemon and run a turn for each message, until SIGTERM.",
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    _add_mcp(commands)
    _add_wake(commands)
    return made


def _add_mcp(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    mcp = commands.add_parser(
        "mcp",
        help="speak MCP on standard input and output",
        description="Give an MCP client that starts a command the tools of the hive.",
        epilog=MCP_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_socket(mcp)
    mcp.add_argument(
        "--patience",
        type=seconds,
        default=PATIENCE_S,
        metavar="SECONDS",
        help="how long a call waits for a daemon that is away [60]",
    )


def _add_wake(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    wake = commands.add_parser(
        "wake",
        help="leave a message for this agent",
        description="Put a message into the inbox of the agent whose machine this is.",
        epilog=WAKE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_socket(wake)
    wake.add_argument(
        "--from", dest="source", required=True, metavar="LABEL", help="who the message is shown as from"
    )
    wake.add_argument("--body", required=True, metavar="TEXT", help="the message; - reads standard input")

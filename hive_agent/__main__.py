"""hive-agent: what runs in an agent's machine.

Only `serve` loads trio: the small commands of this program are started many times and must be quick.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from hive_agent.config import Config, add_arguments
from hive_core.wire.version import VERSION

EXIT_HELD: Final = 75
"""EX_TEMPFAIL of sysexits.h: try again later."""

EXAMPLE: Final = """example:
  hive-agent serve --socket ~/.local/state/hyperhive/run/agents/alice/mcp.sock --state /tmp/alice

exit codes of serve: 0 stopped, or lingered in vain · 1 cannot start · 2 usage · 75 runs already
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    return serve(Config.from_args(args))


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


def _complain(why: str, status: int) -> int:
    print(f"cannot serve: {why}", file=sys.stderr)  # noqa: T201
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hive-agent",
        description="The harness of one agent: takes its messages and runs its turns.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"hive-agent {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_arguments(
        commands.add_parser(
            "serve",
            help="run the turn loop until SIGTERM",
            description="Connect to the daemon and run a turn for each message, until SIGTERM.",
            epilog=EXAMPLE,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`hive`: the operator's command line.

Starting fast is a feature: everything but what every command needs is imported where it is used.
"""

import os
import sys
from collections.abc import Sequence

from hive_core.cli import problems


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if hasattr(sys.stdout, "reconfigure"):
        # A terminal that knows only ASCII gets \u2192 for an arrow, not a traceback.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        exit_code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return problems.interrupted()
    except OSError as error:
        return problems.output_failed(error)
    return exit_code


def _run(arguments: list[str]) -> int:
    try:
        if "send" in arguments[:5] and "_HIVE_COMPLETE" not in os.environ:
            from hive_core.cli import quick

            if (read := quick.read_send(arguments)) is not None:
                quick.deliver(**read)
                return problems.OK
        from hive_core.cli import app

        return app.run(arguments)
    except (OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        if os.environ.get("HIVE_DEBUG"):
            raise
        return problems.report(problems.of_error(error))


if __name__ == "__main__":
    sys.exit(main())

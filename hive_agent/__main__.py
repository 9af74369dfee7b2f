"""hive-agent: what runs in an agent's machine.

`mcp` is started with every turn of some clients, which wait for it: it gets its own way in, past the
parsing of arguments and whatever that imports.
"""

import sys


def main(argv: "list[str] | None" = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["mcp"] and (len(argv) == 1 or (len(argv) == 3 and argv[1] == "--socket")):
        from hive_agent import mcp

        return mcp.run(argv[2] if argv[1:] else None)
    from hive_agent import commands

    return commands.main(argv)


if __name__ == "__main__":
    sys.exit(main())

"""A test host by hand.

python -m tests.host_bed build              the cached trees, a minute the first time
python -m tests.host_bed up NAME            boot one and install this checkout in it
python -m tests.host_bed exec NAME CMD...   run a command in it (a shell without one)
python -m tests.host_bed path NAME PATH     where its file is on this machine
python -m tests.host_bed install NAME       our code again, after a change
python -m tests.host_bed down NAME          power off, and nothing is left
python -m tests.host_bed ls
"""

import os
import sys
import time

from . import trees
from .bed import Bed, BedError, names, why_not


def main(argv: list[str]) -> int:
    match argv:
        case ["build"]:
            if reason := why_not():
                print(reason)
                return 0
            for build in (trees.host, trees.guest, trees.product):
                started = time.monotonic()
                print(f"{build()}  {time.monotonic() - started:.1f} s")
        case ["up", name]:
            if reason := why_not():
                sys.exit(reason)
            started = time.monotonic()
            bed = Bed.up(name)
            booted = time.monotonic()
            bed.install_product()
            print(
                f"up in {booted - started:.2f} s, installed in {time.monotonic() - booted:.2f} s; pid {bed.pid}"
            )
        case ["exec", name, *command]:
            entered = Bed.attach(name).argv(command or ["bash"], env={"TERM": os.environ.get("TERM", "dumb")})
            os.execvp(entered[0], entered)
        case ["path", name, path]:
            print(Bed.attach(name).path(path))
        case ["install", name]:
            Bed.attach(name).install_product()
        case ["down", name]:
            Bed(name).down()
        case ["ls"]:
            print(*names(), sep="\n")
        case _:
            print(__doc__)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (BedError, trees.CannotBuild) as error:
        sys.exit(str(error))

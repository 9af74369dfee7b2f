"""Brings a running NixOS machine to another closure, by that closure's own program."""

import sys
from pathlib import Path
from typing import Final

import trio

from hive_core.host import machinectl
from hive_core.host.process import CommandError

SWITCH_S: Final = 300.0
"""It waits for the units that it starts anew; one may first end a turn."""
SLACK_S: Final = 30.0
"""For all around it: the worker says itself what was not done in time."""

SWITCHED: Final = "switched"
NEEDS_START: Final = "needs a start"
FAILED: Final = "failed: "


async def switch(machine: str, closure: str, *, timeout_s: float = SWITCH_S) -> bool:
    """Let *machine* run what *closure* says, without an end; False: it needs a start.

    That is so where the closure has no such program, or the machine no systemd that could run it.  Which
    closure a later start takes is not changed by this.

    Raises:
        CommandError: it was tried, and did not come to its end or not to a good one: the machine has some of
            the new and some of the old.
    """
    program = f"{closure}/bin/switch-to-configuration"
    if not await trio.to_thread.run_sync(Path(program).is_file):
        return False
    said = await machinectl.run(
        [
            # A unit of its own: who speaks to the systemd of a machine enters its namespaces, which the
            # daemon must not.
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--service-type=exec"),
            *("--property=ProtectSystem=strict", "--property=PrivateTmp=yes", "--property=MemoryMax=256M"),
            *(f"--property=RuntimeMaxSec={timeout_s + SLACK_S:g}", "--"),
            *(sys.executable, "-I", "-m", "hive_core.host.live_switch_worker"),
            *(machine, program, f"{timeout_s:g}"),
        ],
        timeout_s=timeout_s + 2 * SLACK_S,
    )
    outcome = said.decode(errors="replace").strip()
    if outcome.startswith(FAILED):
        raise CommandError(outcome.removeprefix(FAILED))
    if outcome not in {SWITCHED, NEEDS_START}:
        raise CommandError(f"{program} test: nobody says how it ended")
    return outcome == SWITCHED

"""Runs in a unit of its own: has a machine's systemd run a program of its closure, and says how it ended.

    live_switch_worker MACHINE PROGRAM SECONDS

Its answer is the one line of its output: SWITCHED, NEEDS_START, or FAILED and why.
"""

import secrets
import sys
from contextlib import suppress
from typing import Final

import trio

from hive_core.host import machinectl
from hive_core.host.live_switch import FAILED, NEEDS_START, SWITCHED
from hive_core.host.process import CommandError

LOOK_S: Final = 0.1
MAX_STORY_LINES: Final = 15
WANTS_RESTART: Final = "100"
"""What the program ends with when init itself would have to be another."""


async def switch(machine: str, program: str, timeout_s: float) -> str:
    """Run *program* in *machine*, and give the answer."""
    unit = f"hive-switch-{secrets.token_hex(6)}.service"
    inside = f"--machine={machine}"
    try:
        # Not with --wait: that says nothing true, or nothing, when the machine's init executes itself anew.
        await machinectl.run(
            [
                *("systemd-run", inside, "--quiet", "--no-block", f"--unit={unit}", "--service-type=oneshot"),
                *("--property=RemainAfterExit=yes", f"--property=TimeoutStartSec={timeout_s:g}"),
                # As there is no boot loader, and the profile is the host's.
                *("--", program, "test"),
            ],
            timeout_s=machinectl.ANSWER_S,
        )
    except CommandError:
        return NEEDS_START
    try:
        with trio.fail_after(timeout_s):
            shown = await _ended(inside, unit)
        if shown.get("ActiveState") == "active":
            return SWITCHED
        status = shown.get("ExecMainStatus", "")
        if status == WANTS_RESTART:
            return NEEDS_START
        return f"{FAILED}{program} test: exit status {status or '?'}: {await _story(inside, unit)}"
    except trio.TooSlowError:
        return f"{FAILED}{program} test: not done within {timeout_s:g} s"
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(machinectl.ANSWER_S):
            for verb in ("stop", "reset-failed"):
                with suppress(CommandError):
                    await machinectl.run(
                        ["systemctl", inside, "--quiet", verb, "--", unit], timeout_s=machinectl.ANSWER_S
                    )


async def _ended(inside: str, unit: str) -> dict[str, str]:
    argv = ["systemctl", inside, "show", "--property=ActiveState,ExecMainStatus", "--", unit]
    while True:
        # It does not answer while it executes itself anew.
        with suppress(CommandError):
            said = (await machinectl.run(argv, timeout_s=machinectl.ANSWER_S)).decode(errors="replace")
            shown = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
            if shown.get("ActiveState") in {"active", "failed", "inactive"}:
                return shown
        await trio.sleep(LOOK_S)


async def _story(inside: str, unit: str) -> str:
    argv = ["journalctl", inside, "--quiet", "--no-pager", "--output=cat", f"--lines={MAX_STORY_LINES}"]
    # Not what systemd itself says of the unit.
    argv += [f"_SYSTEMD_UNIT={unit}", "_TRANSPORT=stdout"]
    try:
        said = await machinectl.run(argv, timeout_s=machinectl.ANSWER_S)
    except CommandError:
        return "its journal says nothing"
    lines = said.decode(errors="replace").splitlines()
    return " / ".join(line for line in lines if line.strip())[:1000] or "it said nothing"


async def main(*words: str) -> None:
    machine, program, seconds = words
    answer = await switch(machine, program, float(seconds))
    sys.stdout.write("".join(char for char in answer if char.isprintable()))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])

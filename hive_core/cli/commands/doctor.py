"""hive doctor."""

from typing import Any, Final

import click

from hive_core.cli import output, programs
from hive_core.cli.app import Settings, command
from hive_core.cli.problems import FAILED, REFUSED, UNREACHABLE, Problem
from hive_core.cli.safe import visible
from hive_core.wire.version import VERSION

TIMEOUT_S: Final = 60.0
"""The daemon starts programs that each have a deadline."""

MARKS: Final = {"ok": "✓", "warn": "!", "fail": "✗"}
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "red"}

Check = dict[str, Any]


@command(
    "doctor", examples="hive doctor\nhive doctor --json | jq -r '.[] | select(.status != \"ok\") | .mend'"
)
def doctor(settings: Settings) -> None:
    """Check whether this host has what machines need.

    \b
    A line a point: ✓ as it should be, ! worth knowing, ✗ machines will not run like that.
    Below it is how to mend it.

    Into a pipe: ok, warn or fail, the point, what was found, how to mend it. The daemon looks; where none
    answers, `hive-core doctor` does, and root sees more. The exit code is 1 when a point failed.
    """
    hive = settings.hive()
    try:
        checks = hive.ask({"cmd": "doctor"}, timeout_s=max(TIMEOUT_S, settings.timeout_s))["checks"]
        software = str(hive.ask({"cmd": "status"}).get("software", ""))
    except Problem as problem:
        # A local hive looks at no host: it has no machines there.
        if problem.exit_code not in {UNREACHABLE, REFUSED}:
            raise
        output.note(f"{visible(problem.text)}; looking without it")
        programs.become([*programs.own("hive-core"), "doctor", *(["--json"] if settings.as_json else [])])
    show([_same_version(software), *checks], as_json=settings.as_json)


def show(checks: list[Check], *, as_json: bool) -> None:
    """Write the *checks* down, and end with 1 if one failed."""
    if as_json:
        output.dump(checks)
    else:
        for check in checks:
            _show(check)
    if any(check["status"] == "fail" for check in checks):
        raise click.exceptions.Exit(FAILED)


def _show(check: Check) -> None:
    status, mend = check["status"], check.get("mend")
    if not output.on_terminal():
        output.record([status, check["name"], check["text"], mend])
        return
    mark = output.paint(MARKS.get(status, "?"), _STYLES.get(status, ""))
    output.say(f"{mark} {output.paint(visible(check['name']), 'bold')} — {visible(check['text'])}")
    if mend:
        for line in str(mend).splitlines():
            output.say(f"    {visible(line)}")


def _same_version(software: str) -> Check:
    check: Check = {"name": "this program", "status": "ok", "text": f"hive {VERSION}, as the daemon"}
    theirs = software.partition(" ")[2]
    if theirs != VERSION:
        check["status"] = "warn"
        check["text"] = f"hive is {VERSION}, the daemon {theirs or 'says no version'}"
        check["mend"] = "systemctl restart hive-core"
    return check

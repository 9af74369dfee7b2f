"""hive backup, hive export, hive import."""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from hive_core.cli import human, output, programs
from hive_core.cli.app import Settings, agent_argument, command, group, subcommand
from hive_core.cli.problems import FAILED, UNREACHABLE, Problem

PATIENCE_S: Final = 3600.0
"""A hive may have gigabytes."""


@group(
    "backup",
    examples="""
    hive backup create /mnt/usb
    hive backup ls
    hive backup verify hive-20260907T123456Z.tar.gz
    hive backup restore hive-20260907T123456Z.tar.gz
    """,
)
def backup() -> None:
    """Put everything aside in one file, and make a hive of it again.

    Such a file has the database and the state and login of every agent: who can read it can act as your
    agents.
    """


@subcommand(backup, "create", examples="hive backup create\nhive backup create /mnt/usb")
@click.argument("directory", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
def create(settings: Settings, directory: Path | None) -> None:
    """Write a backup, while everything runs.

    It goes into the hive's own directory of backups, and is copied to DIR.
    """
    made = settings.hive().ask({"cmd": "backup_create"}, timeout_s=PATIENCE_S)["archive"]
    _tell(settings, made, None if directory is None else directory / Path(made["path"]).name)


@subcommand(backup, "ls", examples="hive backup ls\nhive backup ls | cut -f 6")
def ls(settings: Settings) -> None:
    """List the hive's own backups.

    Columns: kind (hive or agent), when, size, agents, messages, and the file or what is wrong with it.
    """
    _list(settings, settings.hive().ask({"cmd": "backups"})["archives"])


@subcommand(backup, "verify", examples="hive backup verify hive-20260907T123456Z.tar.gz")
@click.argument("file", type=click.Path(path_type=Path))
def verify(settings: Settings, file: Path) -> None:
    """Read a backup whole, and look whether its database is sound.

    FILE is a path, or the name of one of the hive's own. Without a daemon: hive-core verify.
    """
    request = {"cmd": "backup_verify", "path": str(_known(settings, file))}
    try:
        row = settings.hive().ask(request, timeout_s=PATIENCE_S)["archive"]
    except Problem as problem:
        if problem.exit_code == UNREACHABLE:
            problem.hint = f"without a daemon: hive-core verify {file}"
        raise
    if settings.as_json:
        output.dump(row)
    elif "problem" not in row:
        output.note(f"{row['path']} is whole; messages: {row['messages']}, agents: {len(row['agents'])}")
    if "problem" in row:
        raise Problem(FAILED, f"cannot use {row['path']}: {row['problem']}")


@subcommand(
    backup, "restore", examples="hive backup restore /mnt/usb/hive-20260907T123456Z.tar.gz --home /tmp/hive"
)
@click.argument("file", type=click.Path(path_type=Path))
def restore(settings: Settings, file: Path) -> None:
    """Make a hive of a backup, where there is none and no daemon runs.

    With --home a local one; without it the hive of this host, as root. It is what hive-core restore does.
    """
    home = ("--home", settings.home) if settings.home else ()
    programs.become([*programs.own("hive-core"), "restore", *home, "--", str(file)])


@command("export", examples="hive export alice\nhive export alice -o alice.tar.gz")
@agent_argument()
@click.option("-o", "--output", "target", type=click.Path(path_type=Path), help="Copy it to this file.")
def export(settings: Settings, agent: str, target: Path | None) -> None:
    """Put one agent aside in one file.

    Its state, its login, the messages that wait for it and its reminders. Best while it is stopped. Who can
    read the file can act as the agent.
    """
    request = {"cmd": "export", "agent": agent}
    made = settings.hive().ask(request, agents=[agent], timeout_s=PATIENCE_S)["archive"]
    _tell(settings, made, target)


@command("import", examples="hive import alice.tar.gz\nhive import alice.tar.gz --name alice2")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Call it otherwise than it was called.")
def import_(settings: Settings, file: Path, name: str | None) -> None:
    """Make an agent of a file that export wrote.

    It does not run yet: hive spawn NAME starts it, and it goes on with what waited for it.
    """
    request: dict[str, Any] = {"cmd": "import", "path": str(_known(settings, file))}
    if name is not None:
        request["name"] = name
    row = settings.hive().ask(request, timeout_s=PATIENCE_S)["archive"]
    if settings.as_json:
        output.dump(row)
    else:
        agent = row["agents"][0]
        output.note(f"{agent} is there, with {row['messages']} messages; start it with: hive spawn {agent}")


def _known(settings: Settings, path: Path) -> Path:
    """Give the path of a file here, or of one of that name among the backups."""
    if not path.exists() and path.parent == Path():
        for row in settings.hive().ask({"cmd": "backups"})["archives"]:
            if Path(row["path"]).name == path.name:
                return Path(row["path"])
    return path.absolute()


def _tell(settings: Settings, row: dict[str, Any], target: Path | None) -> None:
    if target is not None:
        row["path"] = str(_copy(Path(row["path"]), target))
    if settings.as_json:
        output.dump(row)
        return
    output.say(row["path"])
    if sys.stderr.isatty():
        output.note(f"{human.size(row['size_bytes'])}, {row['messages']} messages")


def _copy(source: Path, target: Path) -> Path:
    """Copy an archive, for its owner alone; the daemon keeps its own."""
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with source.open("rb") as held, os.fdopen(fd, "wb") as file:
            shutil.copyfileobj(held, file)
    except OSError as error:
        raise Problem(
            FAILED, f"cannot copy it to {target}: {error.strerror}", f"it is complete in {source}"
        ) from None
    return target.absolute()


def _list(settings: Settings, rows: list[dict[str, Any]]) -> None:
    if settings.as_json:
        output.dump(rows)
        return
    if not rows:
        output.note("no backups yet; make one with: hive backup create")
        return
    now = datetime.now().astimezone()
    shown = [
        (
            row["kind"],
            human.moment(row["created_at"], now) if output.on_terminal() else row["created_at"],
            human.size(row["size_bytes"]) if output.on_terminal() else row["size_bytes"],
            len(row["agents"]),
            row["messages"],
            row.get("problem", row["path"]),
        )
        for row in rows
    ]
    output.table(("KIND", "WHEN", "SIZE", "AGENTS", "MESSAGES", "FILE"), shown)

"""hive backup, hive export, hive import."""

import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

from hive_core.cli import human, output
from hive_core.cli.app import Settings, agent_argument, command
from hive_core.cli.problems import FAILED, USAGE, Problem

PATIENCE_S: Final = 3600.0
"""A hive may have gigabytes."""
_ACTIONS: Final = ("create", "ls", "verify", "restore")


@command(
    "backup",
    examples="""
    hive backup create
    hive backup create /mnt/usb
    hive backup ls
    hive backup verify hive-20260907T123456Z.tar.gz
    """,
)
@click.argument("action", type=click.Choice(_ACTIONS))
@click.argument("where", metavar="[DIR|FILE]", required=False, type=click.Path(path_type=Path))
def backup(settings: Settings, action: str, where: Path | None) -> None:
    """Put everything aside in one file.

    While the hive runs: create writes the database and every agent's state and login into a file of its own
    directory of backups, and copies that to DIR; ls shows those files; verify reads one whole. A hive is made
    of one again by hive-core restore FILE, while no daemon runs. Who can read such a file can act as your
    agents.
    """
    if action == "restore":
        raise Problem(
            USAGE,
            "cannot restore: a daemon cannot replace what it serves",
            f"stop it, and run: hive-core restore {where or 'FILE'} --home EMPTY_DIRECTORY",
        )
    if where is None if action == "verify" else (where is not None and action == "ls"):
        raise Problem(USAGE, "cannot go on: give create a directory or nothing, verify a file, ls nothing")
    hive = settings.hive()
    if action == "ls":
        _list(settings, hive.ask({"cmd": "backups"})["archives"])
    elif action == "create":
        made = hive.ask({"cmd": "backup_create"}, timeout_s=PATIENCE_S)["archive"]
        _tell(settings, made, None if where is None else where / Path(made["path"]).name)
    else:
        assert where is not None
        request = {"cmd": "backup_verify", "path": str(_known(settings, where))}
        row = hive.ask(request, timeout_s=PATIENCE_S)["archive"]
        if settings.as_json:
            output.dump(row)
        elif "problem" not in row:
            output.note(f"{row['path']} is whole: {row['messages']} messages, {len(row['agents'])} agents")
        if "problem" in row:
            raise Problem(FAILED, f"cannot use {row['path']}: {row['problem']}")


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

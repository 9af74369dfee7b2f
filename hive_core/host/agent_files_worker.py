"""The child of agent_files: reads or deletes what an agent owns, under limits, and prints JSON lines.

Only the standard library: it starts in tens of milliseconds.
"""

import argparse
import ctypes
import json
import os
import resource
import shutil
import sqlite3
import stat
import sys
from pathlib import Path
from typing import Final

EVENTS_FILE: Final = "hyperhive-events.sqlite"
MAX_ANSWER_BYTES: Final = 8 * 2**20
MAX_PAYLOAD_BYTES: Final = 256 * 2**10
_PR_SET_NO_NEW_PRIVS: Final = 38


def main() -> int:
    parser = argparse.ArgumentParser(prog="agent_files_worker")
    parser.add_argument("verb", choices=("events", "remove", "stats"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--after", type=int)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--kind", action="append")
    parser.add_argument("--since", type=float, default=0.0)
    arguments = parser.parse_args()
    _limit_myself()
    if arguments.verb == "remove":
        if arguments.directory.exists():
            shutil.rmtree(arguments.directory)
        return 0
    if arguments.verb == "stats":
        from hive_core.host.turn_sums import STATS_FILE, sum_up

        try:
            print(json.dumps(sum_up(arguments.directory, arguments.since, open_read_only)))
        except (OSError, sqlite3.Error, ValueError) as error:
            print(f"cannot read {STATS_FILE}: {error}", file=sys.stderr)
            return 1
        return 0
    try:
        more = _print_events(arguments)
    except (OSError, sqlite3.Error) as error:
        print(f"cannot read {EVENTS_FILE}: {error}", file=sys.stderr)
        return 1
    print("more" if more else "end")
    return 0


def _limit_myself() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for limit, value in (
        (resource.RLIMIT_AS, 512 * 2**20),
        (resource.RLIMIT_CPU, 8),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def open_read_only(path: Path) -> sqlite3.Connection | None:
    """Open a database that an agent may have made, None when there is none.

    Raises:
        OSError, sqlite3.Error: it is none.
    """
    try:
        # sqlite would follow a link and hang on a FIFO.
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(kind):
        raise OSError("it is not a regular file")
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)
    db.execute("pragma trusted_schema = off")
    db.execute("pragma cell_size_check = on")
    return db


def _print_events(arguments: argparse.Namespace) -> bool:
    db = open_read_only(arguments.directory / EVENTS_FILE)
    if db is None:
        return False
    kinds = json.dumps(arguments.kind) if arguments.kind else None
    newest = arguments.after is None
    select = (
        "select id, ts, kind, payload_json from events"
        " where id > ?1 and (?2 is null or kind in (select value from json_each(?2))) order by id "
    )
    rows = db.execute(
        select + ("desc limit ?3" if newest else "limit ?3"),
        (-1 if newest else arguments.after, kinds, arguments.limit + 1),
    )
    lines: list[str] = []
    size = 0
    more = False
    for event_id, ts, event_kind, payload in rows:
        text = payload if isinstance(payload, str) and len(payload) <= MAX_PAYLOAD_BYTES else "{}"
        try:
            row = {"id": int(event_id), "ts": float(ts), "kind": str(event_kind), "payload": _parse(text)}
        except (TypeError, ValueError):
            continue  # the harness wrote no such row
        line = json.dumps(row)
        size += len(line)
        if len(lines) == arguments.limit or (lines and size > MAX_ANSWER_BYTES):
            more = True
            break
        lines.append(line)
    for line in reversed(lines) if newest else lines:
        print(line)
    return more and not newest


def _parse(text: str) -> object:
    try:
        payload = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return {"unreadable": text[:200]}
    return payload if isinstance(payload, dict) else {"value": payload}


if __name__ == "__main__":
    sys.exit(main())

"""What is old goes, and what is there can be put aside."""

from typing import Final

from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.domain.retention import EVENTS, GENERATIONS, TURN_STATS, Count, Row
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import within_line
from hive_core.store import inventory
from hive_core.vacuum import Swept
from hive_core.wire import retention as wire

WAIT_S: Final = 5.0
"""A client asks again after that; it sees meanwhile how far the sweep is."""


async def vacuum(deps: Deps, _peer: Peer, request: wire.Vacuum) -> wire.VacuumReply:
    """Sweep, or plan a sweep.

    Raises:
        Refused: UNAVAILABLE, when the store cannot be read.
    """
    if request.dry_run:
        rows, swept = [_row(row) for row in await deps.vacuum.plan()], None
    else:
        number = deps.vacuum.ask() if request.number is None else request.number
        swept = await deps.vacuum.wait_end(number, WAIT_S)
        rows = [] if swept is None else _troubles(swept)
    space = await deps.store.read(inventory.space)
    return wire.VacuumReply(
        rows=within_line(rows),
        sweep=UNSET if swept is None else vacuumed(swept),
        database_bytes=space.bytes,
        free_bytes=space.free_bytes,
    )


def vacuumed(swept: Swept) -> wire.Vacuumed:
    return wire.Vacuumed(
        number=swept.number,
        started_at=rfc3339(swept.started_at, fraction=False),
        seconds=round(swept.seconds, 3),
        running=swept.running,
        messages=swept.messages,
        events=swept.rows_of(EVENTS),
        turn_stats=swept.rows_of(TURN_STATS),
        generations=swept.rows_of(GENERATIONS),
        troubles=swept.troubles,
        freed_bytes=swept.freed_bytes,
        longest_slice_seconds=round(swept.longest_slice_s, 6),
    )


def _troubles(swept: Swept) -> list[wire.RetentionRow]:
    rows = [
        wire.RetentionRow(what=file.file, agent=file.agent, why=f"left alone: {file.trouble}", trouble=True)
        for file in swept.files
        if file.trouble is not None
    ]
    if swept.trouble is not None:
        rows.insert(0, wire.RetentionRow(what="acked messages", why=swept.trouble, trouble=True))
    return rows


def _row(row: Row) -> wire.RetentionRow:
    counts: list[Count] = [count for count in (row.goes, row.stays) if count is not None]
    return wire.RetentionRow(
        what=row.what,
        agent=UNSET if row.agent is None else row.agent,
        goes=UNSET if row.goes is None else row.goes.number,
        stays=UNSET if row.stays is None else row.stays.number,
        at_least=True if any(count.at_least for count in counts) else UNSET,
        why=row.why,
        trouble=True if row.trouble else UNSET,
    )

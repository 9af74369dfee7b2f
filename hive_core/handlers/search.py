"""Finding messages: by their thread, and by their words."""

from msgspec import UNSET

from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.rows import message_row, within_line
from hive_core.store import mailbox
from hive_core.wire import host, search
from hive_core.wire.errors import ErrorCode, Refused


async def thread(deps: Deps, _peer: Peer, request: search.Thread) -> host.Messages:
    rows = await deps.store.read(mailbox.thread, request.id, request.limit)
    if not rows:
        text = f"cannot show the thread of message {request.id}: there is no such message"
        raise Refused(ErrorCode.NOT_FOUND, text)
    return host.Messages(messages=within_line([message_row(row) for row in rows]))


async def find(deps: Deps, _peer: Peer, request: search.Search) -> search.Found:
    rows, not_indexed = await deps.search.find(request.text, request.agent, request.limit)
    shown = within_line([message_row(row) for row in rows], newest=True)
    return search.Found(messages=shown, not_indexed=not_indexed or UNSET)

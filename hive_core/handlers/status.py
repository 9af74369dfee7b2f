"""The daemon's own health."""

import os
import time

from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.handlers.deps import Deps, Peer
from hive_core.handlers.retention import vacuumed
from hive_core.host.process import own_rss_bytes
from hive_core.store import approvals, mailbox, questions
from hive_core.wire import host
from hive_core.wire.version import VERSION


async def status(deps: Deps, _peer: Peer, _request: host.Status) -> host.StatusReply:
    agents = [deps.supervisor.agent(name) for name in deps.supervisor.names]
    swept = deps.vacuum.last or deps.vacuum.current
    return host.StatusReply(
        software=f"hive-core {VERSION}",
        mode=deps.mode,
        home=str(deps.layout.home),
        pid=os.getpid(),
        started_at=rfc3339(deps.started_at, fraction=False),
        uptime_seconds=round(time.time() - deps.started_at, 3),
        agents=len(agents),
        running=sum(agent.machine is not None for agent in agents),
        failed=sum(deps.supervisor.has_failed(agent) for agent in agents),
        unread=deps.broker.unread,
        messages=await deps.store.read(mailbox.count),
        questions=await deps.store.read(questions.count_open_for_operator),
        approvals=await deps.store.read(approvals.count_pending),
        dead=deps.dead_letters.total,
        schema=deps.store.schema,
        database_bytes=deps.store.path.stat().st_size,
        store=deps.store.trouble or "ok",
        connections=deps.count_connections(),
        rss_bytes=own_rss_bytes(),
        vacuum=UNSET if swept is None else vacuumed(swept),
    )

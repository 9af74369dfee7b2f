"""What the turns of an agent took."""

import time
from typing import Final

import trio
from msgspec import UNSET

from hive_core.domain.clock import rfc3339
from hive_core.handlers.deps import Deps, Peer
from hive_core.host import agent_files
from hive_core.host.process import CommandError
from hive_core.wire import host
from hive_core.wire.errors import ErrorCode, Refused

HOURS: Final = {"24h": 24, "7d": 7 * 24, "30d": 30 * 24}


async def stats(deps: Deps, _peer: Peer, request: host.Stats) -> host.StatsReply:
    """Sum up the agent's own account of its turns.

    Raises:
        Refused: NOT_FOUND; UNAVAILABLE if the file cannot be read.
    """
    uid = deps.supervisor.agent(request.agent).row.uid_base
    since = time.time() - HOURS[request.window] * 3600
    try:
        sums = await agent_files.read_stats(deps.layout.agent(request.agent).state, since=since, uid=uid)
    except (CommandError, OSError, trio.TooSlowError) as error:
        why = str(error).rpartition(": ")[2] or "it takes too long"
        text = f"cannot read the turn stats of {request.agent}: {why}"
        raise Refused(ErrorCode.UNAVAILABLE, text) from None
    return host.StatsReply(
        since=rfc3339(since, fraction=False),
        turns=sums.turns,
        ok_turns=sums.ok_turns,
        ok_rate=round(sums.ok_turns / sums.turns, 4) if sums.turns else UNSET,
        compactions=sums.compactions,
        p50_seconds=UNSET if sums.p50_seconds is None else sums.p50_seconds,
        p95_seconds=UNSET if sums.p95_seconds is None else sums.p95_seconds,
        tokens=host.TokenSums(
            input=sums.input_tokens,
            output=sums.output_tokens,
            cache_read=sums.cache_read_tokens,
            cache_creation=sums.cache_creation_tokens,
        ),
        cost_usd=round(sums.cost_usd, 6),
        ctx_max=sums.ctx_max,
        tool_calls=sums.tool_calls,
        tools=_counts(sums.tools),
        wake_from=_counts(sums.wake_from),
        results=_counts(sums.results),
        models=_counts(sums.models),
    )


def _counts(pairs: list[tuple[str, int]]) -> list[host.Count]:
    return [host.Count(name=name, count=count) for name, count in pairs]

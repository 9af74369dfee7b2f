"""What agents did and do: events, logs, and the whole hive as it happens."""

import logging
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Final

import trio

from hive_core.domain.event import Event
from hive_core.feed import AgentEvent, Ended, Overtaken, Ring, RowChanged
from hive_core.handlers.deps import CutOff, Deps, Emit, Peer, Role
from hive_core.handlers.rows import agent_row, event_row, message_row, within_line
from hive_core.host import agent_files
from hive_core.host.process import CommandError
from hive_core.machines import describe
from hive_core.wire import agent, host
from hive_core.wire.errors import Disconnected, ErrorCode, Refused

PAGE_EVENTS: Final = 500

log = logging.getLogger(__name__)


def check_agent(deps: Deps, request: host.Events | host.Logs) -> None:
    deps.supervisor.agent(request.agent)


def check_agents(deps: Deps, request: host.Watch) -> None:
    for name in request.agents or ():
        deps.supervisor.agent(name)


async def events(deps: Deps, _peer: Peer, request: host.Events) -> host.EventsReply:
    deps.supervisor.agent(request.agent)
    found = await _history(deps, request.agent, request.after, request.limit, request.kinds)
    rows = [event_row(event) for event in found]
    return host.EventsReply(events=within_line(rows, newest=request.after is None))


async def follow_events(deps: Deps, _peer: Peer, request: host.Events, emit: Emit) -> None:
    """History and then what happens, as one sequence without a gap or a repeat.

    Raises:
        CutOff: the reader fell behind further than the ring reaches.
    """
    follower = _Follower(deps, request, emit)
    found = await _history(deps, request.agent, request.after, request.limit, request.kinds)
    for event in found:
        await follower.show(event)
    if request.after is not None and len(found) == request.limit:
        await follower.catch_up()
    ring = deps.feed.events_of(request.agent)
    place = ring.begin
    while True:
        try:
            items = await ring.after(place)
        except Overtaken:
            raise CutOff(follower.last_id) from None
        except Ended:
            raise Refused(ErrorCode.NOT_FOUND, f"cannot go on: {request.agent} was destroyed") from None
        place += len(items)
        for event in items:
            if follower.misses_before(event):
                # It was written while its harness could not reach us: the file has what is missing.
                await follower.catch_up(before=event.id)
            if follower.last_id is None or event.id > follower.last_id:
                await follower.show(event)


class _Follower:
    """One reader's place in the events of one agent."""

    def __init__(self, deps: Deps, request: host.Events, emit: Emit) -> None:
        self._deps, self._request, self._emit = deps, request, emit
        self.last_id = request.after

    def misses_before(self, event: Event) -> bool:
        return self.last_id is not None and event.id > self.last_id + 1

    async def show(self, event: Event) -> None:
        self.last_id = event.id
        if self._request.kinds is None or event.kind in self._request.kinds:
            try:
                await self._emit(host.EventsReply(events=[event_row(event)]))
            except CutOff:
                raise CutOff(event.id) from None

    async def catch_up(self, before: int | None = None) -> None:
        """Show what the file has after the last event shown, up to *before* or its end."""
        while True:
            found = await _read(
                self._deps, self._request.agent, self.last_id, PAGE_EVENTS, self._request.kinds
            )
            for event in found:
                if before is None or event.id < before:
                    await self.show(event)
            if len(found) < PAGE_EVENTS or (before is not None and found[-1].id >= before):
                return


async def logs(deps: Deps, _peer: Peer, request: host.Logs) -> host.LogsReply:
    deps.supervisor.agent(request.agent)
    return host.LogsReply(lines=await _read_log(deps, request.agent, request.lines))


async def follow_logs(deps: Deps, _peer: Peer, request: host.Logs, emit: Emit) -> None:
    """Show the log on and on.

    Raises:
        Refused: NOT_FOUND when the agent is destroyed; UNAVAILABLE when the log cannot be read.
    """
    name = request.agent
    ended: Refused | CutOff | Disconnected | None = None

    async def until_destroyed(scope: trio.CancelScope) -> None:
        nonlocal ended
        await _wait_destroyed(deps, name)
        ended = Refused(ErrorCode.NOT_FOUND, f"cannot go on: {name} was destroyed")
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_destroyed, nursery.cancel_scope)
        try:
            async with aclosing(deps.logs.follow_log(name, request.lines)) as batches:
                async for lines in batches:
                    await emit(host.LogsReply(lines=within_line(lines, newest=True)))
        except (Refused, CutOff, Disconnected) as error:
            ended = error  # raised outside the nursery, which would wrap it in a group
        except (CommandError, OSError, trio.TooSlowError) as error:
            ended = _no_log(name, error)
        nursery.cancel_scope.cancel()
    if ended is not None:
        raise ended


async def own_logs(deps: Deps, peer: Peer, request: agent.Logs) -> agent.LogLines:
    """Give the caller's log, or to the manager that of any agent.

    Raises:
        Refused: FORBIDDEN, NOT_FOUND; UNAVAILABLE when it cannot be read.
    """
    name = peer.name if request.name is None else request.name
    if name != peer.name:
        if peer.role is not Role.MANAGER:
            raise Refused(ErrorCode.FORBIDDEN, f"cannot read the log of {name}: only the manager may")
        deps.supervisor.agent(name)
    return agent.LogLines(lines=await _read_log(deps, name, request.lines))


async def _read_log(deps: Deps, name: str, lines: int) -> list[str]:
    try:
        return within_line(await deps.logs.read_log(name, lines), newest=True)
    except (CommandError, OSError, trio.TooSlowError) as error:
        raise _no_log(name, error) from None


def _no_log(name: str, error: Exception) -> Refused:
    log.warning("Log of %s cannot be read: %s", name, error)
    return Refused(ErrorCode.UNAVAILABLE, f"cannot read the log of {name}: {describe(error)}")


async def _wait_destroyed(deps: Deps, name: str) -> None:
    ring = deps.feed.events_of(name)
    with suppress(Ended):
        while True:
            await ring.after(ring.end)


async def watch(deps: Deps, _peer: Peer, request: host.Watch, emit: Emit) -> None:
    wanted = None if request.agents is None else frozenset(request.agents)
    ring = deps.feed.everything
    shown = {name: agent_row(deps, name) for name in deps.supervisor.names}
    place = ring.end
    while True:
        try:
            items = await ring.after(place)
        except Overtaken:
            raise CutOff(None) from None
        place += len(items)
        for item in items:
            match item:
                case AgentEvent(name, event):
                    if wanted is None or name in wanted:
                        await emit(host.WatchItem(agent=name, event=event_row(event)))
                case RowChanged(name):
                    if name not in deps.supervisor.names or (wanted is not None and name not in wanted):
                        shown.pop(name, None)
                        continue
                    row = agent_row(deps, name)
                    if shown.get(name) != row:
                        shown[name] = row
                        await emit(host.WatchItem(agent_statuses=[row]))
                case message:
                    if wanted is None or message.sender in wanted or message.recipient in wanted:
                        await emit(host.WatchItem(message=message_row(message)))


async def _history(
    deps: Deps, name: str, after: int | None, limit: int, kinds: Sequence[str] | None
) -> list[Event]:
    """Give events with ids above *after*, else the newest, from the file and from what is live."""
    live = _in_ring(deps.feed.events_of(name), after, kinds)
    if after is not None and live and live[0].id == after + 1 and kinds is None:
        return live[:limit]
    found = await _read(deps, name, after, limit, kinds)
    newest = found[-1].id if found else after
    if len(found) < limit or after is None:
        # Events of a harness without a file, or ones that it could not write.
        found += [event for event in live if newest is None or event.id > newest]
    return found[:limit] if after is not None else found[-limit:]


async def _read(
    deps: Deps, name: str, after: int | None, limit: int, kinds: Sequence[str] | None
) -> list[Event]:
    state_dir = deps.layout.agent(name).state
    uid = deps.supervisor.agent(name).row.uid_base
    try:
        found, _ = await agent_files.read_events(state_dir, after=after, limit=limit, kinds=kinds, uid=uid)
    except (CommandError, OSError, trio.TooSlowError) as error:
        log.warning("History of %s cannot be read: %s", name, error)
        return []
    return found


def _in_ring(ring: Ring[Event], after: int | None, kinds: Sequence[str] | None) -> list[Event]:
    return [
        event
        for event in ring.items()
        if (after is None or event.id > after) and (kinds is None or event.kind in kinds)
    ]

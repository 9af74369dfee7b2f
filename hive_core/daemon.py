"""The composition root: makes the parts, joins them by callbacks, and nests them in the order of stopping."""

import gc
import logging
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from hive_core.broker import Broker
from hive_core.config import NEEDS_RESTART, Config, ConfigError, flatten
from hive_core.control import Control
from hive_core.feed import Feed
from hive_core.handlers.deps import Deps
from hive_core.host import agent_files
from hive_core.host.local import LocalMachines
from hive_core.host.process import CommandError
from hive_core.host.sockets import bind_unix, only_daemon, usable_group
from hive_core.host.systemd import Notifier
from hive_core.layout import Layout
from hive_core.serve import host_socket
from hive_core.serve.agent_doors import AgentDoors
from hive_core.serve.doors import Door
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.supervisor import Hooks, Supervisor
from hive_core.wire import agent as wire
from hive_core.wire.errors import Refused

GIL_SWITCH_S = 0.0005
"""The writer thread needs the GIL back after each statement; at Python's 5 ms a busy loop starves it."""

GC_ALLOCATIONS: Final = 20_000
"""Objects that a batch may hold at once before Python looks for garbage; at its 700 that is each batch."""

log = logging.getLogger(__name__)


class LiveConfig:
    """The configuration in force.  *load* reads it again."""

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self._config = config
        self._load = load

    def __call__(self) -> Config:
        return self._config

    def reload(self) -> None:
        """Take what the file says now, except for what needs a restart; keep the old one if it is wrong."""
        try:
            fresh = self._load()
        except ConfigError as error:
            log.error("Config not reloaded, the old one stays in force: %s", error)
            return
        old = flatten(self._config)
        changed = {key for key, value in flatten(fresh).items() if old[key] != value}
        for key in sorted(changed & NEEDS_RESTART):
            log.warning("Config key %s needs a restart of hive-core to take effect", key)
        keep = {key: getattr(self._config, key) for key in NEEDS_RESTART}
        self._config = Config(**{name: getattr(fresh, name) for name in fresh.__struct_fields__} | keep)
        logging.getLogger().setLevel(self._config.log_level.upper())
        log.info("Config reloaded changed=%s", ",".join(sorted(changed)) or "nothing")


async def serve(layout: Layout, config: LiveConfig) -> None:
    """Serve the local hive at *layout* until SIGTERM or SIGINT.

    SIGTERM leaves the agents running, for the next daemon to find; SIGINT, a person's Ctrl-C, ends
    them too.  SIGHUP reads the configuration again.

    Raises:
        AlreadyServed, SchemaError, OSError: it cannot be served; the text says why.
    """
    sys.setswitchinterval(GIL_SWITCH_S)
    _allow_many_files()
    layout.make()
    notifier = Notifier()
    with only_daemon(layout.state), only_daemon(layout.run):
        async with open_store(layout.database, apply_batch) as store:
            stop, interrupted = trio.Event(), trio.Event()
            async with trio.open_nursery() as workers:
                await workers.start(_obey_signals, stop, interrupted, config, notifier)
                workers.start_soon(_die_with, store)
                async with _running_hive(store, layout, config, stop, workers) as supervisor:
                    workers.start_soon(_watchdog, store, notifier)
                    _collect_garbage_rarely()
                    log.info("Hive is ready home=%s socket=%s", layout.home, layout.host_socket)
                    notifier.ready(f"{len(supervisor.names)} agents")
                    await stop.wait()
                    notifier.stopping()
                if interrupted.is_set():
                    await supervisor.stop_all_machines()
                workers.cancel_scope.cancel()
    log.info("Hive stopped home=%s", layout.home)


@asynccontextmanager
async def _running_hive(
    store: Store[MailboxOp], layout: Layout, config: LiveConfig, stop: trio.Event, workers: trio.Nursery
) -> AsyncIterator[Supervisor]:
    feed = Feed()
    doors = AgentDoors(layout)
    control = Control(changed=feed.changed, lost=feed.disconnected)
    broker = Broker(store, announce=feed.message, changed=feed.changed)
    machines = LocalMachines(layout.agent, config)

    async def enlist(name: str, paused: bool) -> None:
        await broker.register(name, paused=paused)

    async def vanish(name: str) -> None:
        await doors.close(name)
        broker.unregister(name)
        feed.forget(name)

    async def purge(name: str) -> bool:
        try:
            await agent_files.remove(layout.agent(name).base)
        except (CommandError, OSError, trio.TooSlowError) as error:
            log.error("State of %s cannot be deleted, the next start tries again: %s", name, error)
            return False
        return True

    async def quiesce(name: str) -> None:
        try:
            await control.command(name, lambda command_id: wire.Quiesce(id=command_id)).wait()
        except Refused as error:
            log.info("Agent not quiesced agent=%s: %s", name, error.text)

    def pause(name: str, paused: bool) -> None:
        broker.set_paused(name, paused)
        control.tell(name, wire.SetPaused(id=0, paused=paused))

    hooks = Hooks(enlist, doors.open, vanish, purge, quiesce, pause, feed.changed)
    supervisor = Supervisor(store, machines, hooks, config)
    group = usable_group(config().admin_group)
    deps = Deps(
        broker=broker,
        supervisor=supervisor,
        feed=feed,
        control=control,
        store=store,
        logs=machines,
        layout=layout,
        config=config,
        mode="local",
        started_at=time.time(),
        count_connections=lambda: host_door.connections + doors.connections,
    )
    host_door = Door(
        "host.sock",
        bind_unix(layout.host_socket, mode=0o660, gid=group),
        partial(host_socket.answer, deps, stop, group is not None),
        host_socket.TOO_MANY,
    )
    await broker.recover()
    await workers.start(broker.run)
    async with trio.open_nursery() as serving:
        # The sockets of agents first: a machine that is adopted connects at once.
        await serving.start(doors.run, deps, stop, config().drain_s)
        await workers.start(supervisor.run)
        await serving.start(host_door.run, stop, config().drain_s)
        yield supervisor


def _allow_many_files() -> None:
    """Take as many file descriptors as we may: each connection is one, and the usual 1024 are soon gone."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _collect_garbage_rarely() -> None:
    """A message leaves no cycles behind, so looking for them after each batch only makes senders wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)


async def _obey_signals(
    stop: trio.Event,
    interrupted: trio.Event,
    config: LiveConfig,
    notifier: Notifier,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    # What trio puts back at the end: a signal that comes again while we are ending already must not
    # turn a clean end into a death by signal.
    for ending in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ending, signal.SIG_IGN)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                notifier.reloading(time.monotonic_ns() // 1000)
                config.reload()
                notifier.ready("Reloaded")
                continue
            log.info("Stopping on %s", signal.Signals(number).name)
            if number == signal.SIGINT:
                interrupted.set()
            stop.set()


async def _die_with(store: Store[MailboxOp]) -> None:
    """End the daemon when nothing can be stored any more; systemd starts it again."""
    await store.crashed.wait()
    raise RuntimeError("the store's writer has died")


async def _watchdog(store: Store[MailboxOp], notifier: Notifier) -> None:
    """Tell systemd that we live, but only after the store has answered a read."""
    interval_s = notifier.watchdog_interval_s
    while interval_s is not None:
        await store.read(lambda db: db.execute("select 1").fetchall())
        notifier.alive()
        await trio.sleep(interval_s)

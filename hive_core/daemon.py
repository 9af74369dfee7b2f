"""The composition root: makes the parts, joins them by callbacks, and nests them in the order of stopping."""

import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from hive_core.adoption import Adoption
from hive_core.applier import Applier
from hive_core.backends import Mode, Surroundings, check_builder, open_backend, open_builder
from hive_core.backup import Backups
from hive_core.broker import Broker
from hive_core.builders import Builder
from hive_core.config import NEEDS_RESTART, Config, ConfigError, flatten, merge
from hive_core.configurations import Configurations
from hive_core.control import Control
from hive_core.dead_letters import DeadLetters
from hive_core.declarations import Declarations
from hive_core.deploy_effects import Hands
from hive_core.deployer import Deployer
from hive_core.domain.agent import AgentRow
from hive_core.domain.helper_event import HelperEvent, condition_in
from hive_core.domain.manifest import Manifest
from hive_core.domain.retention import Policy
from hive_core.feed import Feed
from hive_core.handlers.deps import Deps
from hive_core.herald import Herald
from hive_core.homes import Homes
from hive_core.host.process import CommandError
from hive_core.host.sockets import bind_unix, is_listening_at, only_daemon, usable_group
from hive_core.host.systemd import Notifier, inherited_sockets
from hive_core.keeper import Hooks
from hive_core.layout import Layout
from hive_core.questions import Questions
from hive_core.release_files import ReleaseFiles
from hive_core.repositories import Repositories
from hive_core.scheduler import Scheduler
from hive_core.search import Search, open_search
from hive_core.serve import host_socket
from hive_core.serve.agent_doors import AgentDoors
from hive_core.serve.doors import Door
from hive_core.store.copy import give_back_space
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.supervisor import Supervisor
from hive_core.vacuum import Vacuum
from hive_core.wire import agent as wire
from hive_core.wire.errors import Refused
from hive_core.wire.ids import MANAGER, SYSTEM

HOST_SOCKET: Final = "host.sock"
"""Also the FileDescriptorName= of the unit that may listen for us."""

KICK: Final = "You were started again: look at your notes, your session is intact."

GIL_SWITCH_S = 0.0005
"""The writer thread needs the GIL back after each statement; at Python's 5 ms a busy loop starves it."""

GC_ALLOCATIONS: Final = 20_000
"""Objects that a batch may hold at once before Python looks for garbage; at its 700 that is each batch."""

log = logging.getLogger(__name__)


class LiveConfig:
    """The configuration in force.  *load* reads it again, from the file *source* if there is one."""

    def __init__(self, config: Config, load: Callable[[], Config], source: Path | None = None) -> None:
        self._config = config
        self._load = load
        self.source: Final = source
        self.when_reloaded: Callable[[], None] = lambda: None
        """Called when another one has come into force."""

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
        self._config = merge(fresh, self._config, NEEDS_RESTART)
        logging.getLogger().setLevel(self._config.log_level.upper())
        log.info("Config reloaded changed=%s", ",".join(sorted(changed - NEEDS_RESTART)) or "nothing")
        self.when_reloaded()


async def serve(layout: Layout, config: LiveConfig, mode: Mode = Mode.LOCAL) -> None:
    """Serve the hive at *layout* until SIGTERM or SIGINT.

    Both leave the agents running, for the next daemon to find; but in a local hive SIGINT, a person's
    Ctrl-C, ends them too.  SIGHUP reads the configuration again.

    Raises:
        AlreadyServed, ConfigError, SchemaError, OSError: it cannot be served; the text says why.
    """
    check_builder(mode, config())
    sys.setswitchinterval(GIL_SWITCH_S)
    _allow_many_files()
    inherited = inherited_sockets()
    layout.make()
    notifier = Notifier()
    with only_daemon(layout.state), only_daemon(layout.run):
        give_back_space(layout.database)
        async with open_store(layout.database, apply_batch) as store, open_search(store) as search:
            stop, interrupted = trio.Event(), trio.Event()
            async with trio.open_nursery() as workers:
                await workers.start(_obey_signals, stop, interrupted, config, notifier)
                workers.start_soon(_die_with, store)
                async with _running_hive(
                    store, search, layout, config, mode, inherited.pop(HOST_SOCKET, None), stop, workers
                ) as supervisor:
                    workers.start_soon(_watchdog, store, notifier)
                    _collect_garbage_rarely()
                    log.info("Hive is ready home=%s socket=%s", layout.home, layout.host_socket)
                    notifier.ready(f"{len(supervisor.names)} agents")
                    await stop.wait()
                    notifier.stopping()
                if interrupted.is_set() and mode is Mode.LOCAL:
                    await supervisor.stop_all_machines()
                workers.cancel_scope.cancel()
    log.info("Hive stopped home=%s", layout.home)


@asynccontextmanager
async def _running_hive(
    store: Store[MailboxOp],
    search: Search,
    layout: Layout,
    config: LiveConfig,
    mode: Mode,
    inherited: socket.socket | None,
    stop: trio.Event,
    workers: trio.Nursery,
) -> AsyncIterator[Supervisor]:
    deployer: Deployer

    def manager_uid() -> int | None:
        return supervisor.agent(MANAGER).row.uid_base if MANAGER in supervisor.names else None

    def machine_appeared(name: str) -> None:
        supervisor.wake(name)

    def harness_said(name: str, now: wire.Snapshot) -> None:
        herald.notice(name, condition_in(now.status))

    feed = Feed(said=harness_said)
    control = Control(changed=feed.changed, lost=feed.disconnected)
    broker = Broker(store, announce=feed.message, changed=feed.changed)
    say = partial(_say, broker)
    herald = Herald(say, lambda: MANAGER in broker.agents)
    backend = open_backend(
        mode, Surroundings(layout, config, manager_uid, machine_appeared, herald.refuse_peer)
    )
    doors = AgentDoors(layout, backend.identity, backend.make_dirs)
    homes = Homes(store, layout, backend.shown_state)
    repositories = Repositories(layout, isolated=mode is not Mode.LOCAL)
    dead_letters = DeadLetters(
        store, broker, max_deliveries=lambda: config().broker.max_deliveries, changed=feed.changed
    )
    questions = Questions(
        store,
        leave=broker.leave_with,
        is_agent=lambda name: name in broker.agents,
        check_allowed=broker.check_allowed,
    )

    async def enlist(name: str, paused: bool) -> None:
        await broker.register(name, paused=paused)
        scheduler.look_again()

    async def vanish(name: str) -> None:
        await applier.agent_destroyed(name)
        await deployer.agent_destroyed(name)
        await doors.close(name)
        broker.unregister(name)
        feed.forget(name)
        herald.forget(name)

    def pause(name: str, paused: bool) -> None:
        broker.set_paused(name, paused)
        control.tell(name, wire.SetPaused(id=0, paused=paused))

    scheduler = Scheduler(
        store,
        leave=broker.leave_with,
        write_file=homes.write_file,
        agents=lambda: broker.agents,
        changed=feed.changed,
    )
    vacuum = Vacuum(store, policy=lambda: _policy(config()), agents=homes.names, prune=homes.prune)
    hooks = Hooks(
        enlist=enlist,
        open_door=doors.open,
        vanish=vanish,
        purge=partial(
            _purge,
            (
                backend.remove_files,
                repositories.remove,
                lambda name: deployer.agent_purged(name),  # noqa: PLW0108  it is made later
                questions.end_those_of,
                scheduler.forget,
            ),
        ),
        lay_out=ReleaseFiles(layout, repositories).lay_out_again,
        quiesce=control.quiesce,
        pause=pause,
        hold=broker.hold_up,
        pin=broker.pin,
        changed=feed.changed,
        kick=lambda name: say(name, KICK),
        say=say,
        connected=control.wait_connected,
        tell=herald.tell,
        notice=herald.notice,
    )
    supervisor = Supervisor(store, backend.machines, hooks, config, backend.allocate)
    configurations, declarations, applier, deployer = _open_approvals(
        store,
        layout,
        config,
        repositories,
        builder=open_builder(layout, config, backend.cages, repositories),
        supervisor=supervisor,
        broker=broker,
        tell=herald.tell,
        owner=manager_uid,
    )
    deps = Deps(
        broker=broker,
        supervisor=supervisor,
        feed=feed,
        control=control,
        dead_letters=dead_letters,
        questions=questions,
        applier=applier,
        configurations=configurations,
        declarations=declarations,
        deployer=deployer,
        repositories=repositories,
        scheduler=scheduler,
        search=search,
        vacuum=vacuum,
        backups=Backups(
            layout, repositories, agents=homes.names, uid_of=homes.uid_of, writer_uid=manager_uid
        ),
        store=store,
        machines=backend.machines,
        logs=backend.logs,
        cages=backend.cages,
        layout=layout,
        config=config,
        mode=mode.value,
        started_at=time.time(),
        count_connections=lambda: host_door.connections + doors.connections,
    )
    host_door = _make_host_door(deps, inherited, stop)
    await Adoption(
        store,
        layout,
        repositories,
        allocate=backend.allocate,
        manifest_at=configurations.manifest_at,
    ).run()
    await broker.recover()
    await dead_letters.recover()
    await applier.recover()
    await deps.backups.recover()
    await workers.start(broker.run)
    if backend.run is not None:
        await workers.start(backend.run)
    async with trio.open_nursery() as serving:
        # The sockets of agents first: a machine that is adopted connects at once.
        await serving.start(doors.run, deps, stop, config().drain_s)
        for part in (supervisor, declarations, questions, applier, scheduler, search, vacuum, deployer):
            await workers.start(part.run)
        await serving.start(host_door.run, stop, config().drain_s)
        yield supervisor


def _open_approvals(
    store: Store[MailboxOp],
    layout: Layout,
    config: LiveConfig,
    repositories: Repositories,
    *,
    builder: Builder,
    supervisor: Supervisor,
    broker: Broker,
    tell: Callable[[HelperEvent], None],
    owner: Callable[[], int | None],
) -> tuple[Configurations, Declarations, Applier, Deployer]:
    """Make what says how agents are to be, takes requests for changes, and carries out what was approved."""

    def row_of(name: str) -> AgentRow | None:
        return supervisor.agent(name).row if name in supervisor.names else None

    async def note_deployed(name: str, sha: str, tag: str, manifest: Manifest) -> None:
        await supervisor.note_deployed(name, sha, tag, manifest)
        deployer.settle(name)

    configurations = Configurations(
        repositories, row_of=row_of, owner=owner, note_deployed=note_deployed, config=config
    )
    hands = Hands(
        rows=supervisor.rows,
        spawn=supervisor.spawn,
        activate=supervisor.activate,
        destroy=partial(supervisor.destroy, purge=False),
        allowed=broker.chosen,
        allow=broker.allow,
        writer_uid=owner,
    )
    deployer = Deployer(
        store,
        repositories,
        builder,
        hands=hands,
        manifest_at=configurations.manifest_at,
        leave=broker.leave_with,
        tell=tell,
        config=config,
        layout=layout,
    )
    applier = Applier(
        store,
        repositories,
        configurations,
        leave=broker.leave_with,
        row_of=row_of,
        why_no_name=supervisor.why_no_name,
        wake=deployer.wake,
        config=config,
    )
    declarations = Declarations(supervisor, config, config.source, tell)
    config.when_reloaded = declarations.wake
    return configurations, declarations, applier, deployer


async def _purge(steps: Sequence[Callable[[str], Awaitable[object]]], name: str) -> bool:
    """Delete what is kept of *name*; say whether that went well."""
    try:
        for step in steps:
            await step(name)
    except (CommandError, OSError, trio.TooSlowError, Refused) as error:
        log.error("State of %s cannot be deleted, the next start tries again: %s", name, error)
        return False
    return True


def _policy(config: Config) -> Policy:
    days = config.retention
    return Policy(**{name: getattr(days, name) for name in days.__struct_fields__})


def _say(broker: Broker, to: str, body: str) -> None:
    """Leave a message from the daemon itself.  Nobody waits for it, and a hive without it goes on."""

    def lost(error: Exception) -> None:
        log.error("Message of the daemon not stored agent=%s: %s", to, error)

    try:
        broker.send(SYSTEM, to, body, sender_uid=None).then(lambda _id: None, lost)
    except Refused as error:
        log.warning("Message of the daemon not sent agent=%s: %s", to, error.text)


def _make_host_door(deps: Deps, inherited: socket.socket | None, stop: trio.Event) -> Door:
    group = usable_group(deps.config().admin_group)
    answer = partial(host_socket.answer, deps, stop, group is not None)
    return Door(HOST_SOCKET, _host_listener(inherited, deps.layout, group), answer, host_socket.TOO_MANY)


def _host_listener(inherited: socket.socket | None, layout: Layout, group: int | None) -> socket.socket:
    """Take the socket that systemd listens on for us, or listen ourselves."""
    if inherited is not None:
        if is_listening_at(inherited, layout.host_socket):
            return inherited
        log.warning("The socket of systemd is not %s: it is not used", layout.host_socket)
        inherited.close()
    return bind_unix(layout.host_socket, mode=0o660, gid=group)


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

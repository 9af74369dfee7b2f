"""Puts the harness together and runs it until SIGTERM."""

import logging
import signal
from collections.abc import Callable
from typing import Final

import trio

from hive_agent.config import Config
from hive_agent.control import Control
from hive_agent.event_file import EventFile
from hive_agent.events import Bus, Publisher
from hive_agent.link import Link
from hive_agent.login import Login
from hive_agent.mark import Mark
from hive_agent.model import EffortChoice, ModelChoice, is_model_name
from hive_agent.providers import PROVIDERS, BadProvider, Provider
from hive_agent.readiness import Readiness
from hive_agent.runner import Runner
from hive_agent.state import Board, Status
from hive_agent.turn import TurnLoop
from hive_agent.turn_stats import TurnStats
from hive_agent.upkeep import Upkeep
from hive_core.wire.stream import Caller

log = logging.getLogger(__name__)

LAST_WORDS_S: Final = 1.0
"""For the events of the end, when the daemon is there to take them."""


class CannotStart(Exception):
    """The harness cannot run as it is configured."""


def run(config: Config) -> None:
    """Serve until SIGTERM, SIGINT, or until there was no daemon for the time to linger.

    Raises:
        CannotStart: something in *config* cannot be used.
    """
    provider = _open_provider(config)
    trio.run(serve, config, provider)


def log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S"
    )


async def serve(
    config: Config,
    provider: Provider,
    *,
    watch_signals: bool = True,
    task_status: trio.TaskStatus[Callable[[], None]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the parts; `started` gives the function that stops them."""
    stop = trio.Event()
    publisher = Publisher()
    events = EventFile(config.events_db)
    bus = Bus(events, publisher.add)
    model = ModelChoice(config.model_file, bus.emit, fallback=config.model or provider.default_model)
    effort = EffortChoice(
        config.effort_file, bus.emit, known=provider.capabilities.efforts, fallback=config.effort
    )
    board = Board(bus.emit, provider=provider.name, model=model.current, effort=effort.current)
    stats = TurnStats(config.turn_stats_db)
    rate_limited = Mark(config.rate_limit_mark)

    async def publish(caller: Caller) -> None:
        await publisher.run(caller, board.snapshot)

    async def control(caller: Caller) -> None:
        await orders.run(caller)

    link = Link(config.socket, attend=[publish, control], linger_s=config.linger_s)
    runner = Runner(
        link,
        provider,
        emit=bus.emit,
        board=board,
        model=model.current,
        effort=effort.current,
        began=stats.begin,
        record=stats.record,
    )
    upkeep = Upkeep(
        runner,
        provider.capabilities,
        emit=bus.emit,
        board=board,
        settings=config.context,
        seed=stats.latest(),
    )
    readiness = Readiness(
        provider, board=board, mark=rate_limited, note=bus.note, sleep_s=config.rate_limit_sleep_s
    )
    turns = TurnLoop(link, provider, runner, upkeep, readiness, emit=bus.emit, board=board)
    login = _make_login(config, provider, board, bus) if provider.capabilities.login else None
    orders = Control(turns, model, effort, login=login, can_compact=provider.capabilities.compact)

    try:
        async with trio.open_nursery() as outer:
            if watch_signals:
                await outer.start(_stop_on_signal, stop)
            log.info("Harness started provider=%s model=%s", provider.name, model.current())
            board.let_go(Status.STARTING)
            outer.start_soon(_keep_link, link, stop)
            async with trio.open_nursery() as working:
                if login is not None:
                    await working.start(login.run)
                working.start_soon(turns.run)
                task_status.started(stop.set)
                await stop.wait()
                board.hold(Status.STOPPING)
                working.cancel_scope.cancel()
            # The link outlives the turns: a turn that was cut off says so.
            if link.connected:
                with trio.move_on_after(LAST_WORDS_S):
                    await turns.give_back()
                    await publisher.wait_drained()
            outer.cancel_scope.cancel()
    finally:
        rate_limited.remove()
        events.close()
        stats.close()
    log.info("Harness stopped")


def _make_login(config: Config, provider: Provider, board: Board, bus: Bus) -> Login:
    def show(is_open: bool) -> None:
        if is_open:
            board.hold(Status.NEEDS_LOGIN_IN_PROGRESS)
        else:
            board.let_go(Status.NEEDS_LOGIN_IN_PROGRESS)

    return Login(
        provider.login_program(),
        cwd=config.state,
        opened=show,
        is_logged_in=provider.is_logged_in,
        note=bus.note,
    )


async def _keep_link(link: Link, stop: trio.Event) -> None:
    await link.run()
    stop.set()


async def _stop_on_signal(
    stop: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("Stopping on %s", signal.Signals(number).name)
            stop.set()


def _open_provider(config: Config) -> Provider:
    if config.model is not None and not is_model_name(config.model):
        raise CannotStart(f"{config.model!r} is no name of a model")
    try:
        return PROVIDERS[config.provider].open(config)
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise CannotStart(f"there is no provider {config.provider!r}; there are: {known}") from None
    except BadProvider as error:
        raise CannotStart(str(error)) from None

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hive_agent.config import Config
from hive_agent.harness import serve
from hive_agent.providers import Provider
from hive_agent.providers.scripted import Scripted

from .fake_daemon import FakeDaemon

StartHarness = Callable[..., Awaitable[Callable[[], None]]]


@pytest.fixture
def patient_clock() -> MockClock:
    """Jumps as the autojump clock does, but lets the kernel carry bytes from one task to another first."""
    return MockClock(autojump_threshold=0.02)


@pytest.fixture
async def daemon(tmp_path: Path, nursery: trio.Nursery) -> FakeDaemon:
    daemon = FakeDaemon(tmp_path / "mcp.sock")
    await nursery.start(daemon.run)
    return daemon


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        socket=tmp_path / "mcp.sock",
        state=tmp_path,
        events_db=tmp_path / "hyperhive-events.sqlite",
        model_file=tmp_path / "hyperhive-model",
    )


@pytest.fixture
def start_harness(config: Config, nursery: trio.Nursery) -> StartHarness:
    """Start a harness in this process; gives the function that stops it."""

    async def start(provider: Provider | None = None, config: Config = config) -> Callable[[], None]:
        async def run(task_status: trio.TaskStatus[Callable[[], None]]) -> None:
            await serve(config, provider or Scripted(), watch_signals=False, task_status=task_status)

        stop: Callable[[], None] = await nursery.start(run)
        return stop

    return start

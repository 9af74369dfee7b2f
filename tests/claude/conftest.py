"""The real claude on a scripted API, alone and in a real hive."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from daemon.kit import Daemon, TooLate, home_of, tail
from fake_api.install_claude import find_claude, why_not
from fake_api.server import FakeApi

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = find_claude() is None
    reason = why_not() or "it is not installed: run tests/fake_api/install_claude.py"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.claude)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"no real claude: {reason}"))


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi() as api:
        yield api


@pytest.fixture
def environment(api: FakeApi, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"),
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "sk-ant-api03-fake",
        "CLAUDE_CODE_MAX_RETRIES": "1",
    }


@pytest.fixture
def hive(environment: dict[str, str]) -> Iterator[Daemon]:
    """A daemon whose agents think with the real claude."""
    # It sees nothing of ours: these tests may be run by a claude themselves.
    own = {**environment, "HIVE_CLAUDE_BIN": str(find_claude())}
    del own["CLAUDE_CONFIG_DIR"]
    with home_of(Daemon(environment=own)) as hive:
        # Whoever kills on purpose must not run into the limit for machines that crash.
        hive.config_path.write_text('[harness]\nprovider = "claude"\n[machines]\nrestart_limit = 100\n')
        try:
            yield hive.start()
        finally:
            for log in hive.home.glob("state/agents/*/harness.log"):
                print(f"== {log}\n{tail(log.read_text(errors='replace'), 40)}")
            with suppress(TooLate):
                hive.stop(signal.SIGINT)  # as a person does, which ends the agents too

from collections.abc import Iterator

import pytest

from .kit import Daemon, tail


@pytest.fixture
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A home without a daemon yet; whatever the test started there is gone afterwards, without a bug."""
    daemon = Daemon()
    try:
        yield daemon
        print(tail(daemon.log, 40))
        daemon.check_log()
    finally:
        daemon.clean_up()


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """One running daemon for the tests of a module that do no harm to it, with its SHARED_AGENTS."""
    daemon = Daemon()
    try:
        daemon.add_stopped(*getattr(request.module, "SHARED_AGENTS", ("alice", "bob", "carol"))).start()
        yield daemon
        assert daemon.stop() == 0
        daemon.check_log()
    finally:
        daemon.clean_up()

"""What needs a host with a real systemd: it gets one of its own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .bed import Bed, open_bed, why_not

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = why_not() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.host_bed)
        # The first one may have to build the trees.
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(300))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def bed(worker_id: str) -> Iterator[Bed]:
    """One for all tests of this worker: leave no machine in it, and nothing in the way."""
    with open_bed(f"pytest-{os.getpid()}-{worker_id}") as made:
        made.install_product()
        yield made


@pytest.fixture
def fresh_bed(worker_id: str) -> Iterator[Bed]:
    """One for this test alone, for what would be in the way of others; the product is not in it yet."""
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-fresh") as made:
        yield made

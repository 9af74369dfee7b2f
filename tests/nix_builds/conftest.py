"""What needs nix: it gets a store and a daemon of its own, without a network."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from .kit import Hive, Host, open_host, why_not

HERE = Path(__file__).parent
_numbers = count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.parent == HERE]
    reason = why_not() if mine else None
    for item in mine if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason or ""))


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    """One for all tests of this worker."""
    with open_host() as made:
        yield made


@pytest.fixture
def hive(host: Host) -> Hive:
    return Hive(host, f"{os.getpid()}-{next(_numbers)}")

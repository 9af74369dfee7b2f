"""A hive's repositories, and an agent's own."""

from pathlib import Path

import pytest

from hive_core.layout import Layout
from hive_core.repositories import Repositories
from tests.repositories.kit import Proposal, open_layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return open_layout(tmp_path)


@pytest.fixture
def repositories(layout: Layout) -> Repositories:
    return Repositories(layout, isolated=False)


@pytest.fixture
def proposal(layout: Layout) -> Proposal:
    return Proposal(layout.config_of("alice"))

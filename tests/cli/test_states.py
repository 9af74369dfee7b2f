import itertools
from typing import Any

import pytest

from hive_core.cli.states import STYLE, state_of


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ({"running": True, "wanted": "running"}, "running"),
        ({"running": False, "wanted": "running"}, "starting"),
        ({"running": True, "wanted": "stopped"}, "stopping"),
        ({"running": False, "wanted": "stopped"}, "stopped"),
        ({"running": True, "wanted": "running", "connected": False}, "running"),
        ({"running": False, "wanted": "stopped", "paused": True}, "paused"),
        ({"running": True, "wanted": "running", "paused": True, "needs_login": True}, "needs_login"),
        ({"running": False, "wanted": "running", "needs_login": True, "failed": True}, "failed"),
        ({"running": True, "wanted": "gone", "failed": True}, "destroying"),
        ({"running": False, "wanted": "purged"}, "destroying"),
        ({"running": True, "wanted": "running", "status": "rate_limited"}, "rate_limited"),
        ({"running": True, "wanted": "running", "status": "rate_limited", "paused": True}, "paused"),
        ({"running": False, "wanted": "stopped", "status": "rate_limited"}, "stopped"),
        ({"running": True, "wanted": "running", "status": "online"}, "running"),
        ({"running": False, "wanted": "running", "transient": "rebuilding"}, "rebuilding"),
        ({"running": True, "wanted": "running", "transient": "restarting", "paused": True}, "restarting"),
        ({"running": False, "wanted": "running", "transient": "starting", "failed": True}, "failed"),
        ({"running": True, "wanted": "gone", "transient": "stopping"}, "destroying"),
        ({"running": True}, "running"),
        ({"running": False}, "stopped"),
        ({}, "stopped"),
    ],
)
def test_the_most_urgent_word_wins(row: dict[str, Any], state: str) -> None:
    assert state_of(row) == state


def test_every_row_has_a_state_and_every_state_a_style() -> None:
    flags = ["failed", "needs_login", "paused", "running"]
    for values in itertools.product([False, True], repeat=len(flags)):
        for wanted in ("running", "stopped"):
            assert state_of(dict(zip(flags, values, strict=True)) | {"wanted": wanted}) in STYLE

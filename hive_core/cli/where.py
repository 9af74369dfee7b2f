"""Where the daemon's socket is."""

import os
from typing import Final, NamedTuple

SYSTEM_SOCKET: Final = "/run/hyperhive/host.sock"


SYSTEM_CONFIG: Final = "/etc/hyperhive/config.toml"
"""Where this is, hive-core has been installed for the host."""


class Place(NamedTuple):
    socket: str
    hint: str
    """What to start when nobody answers there."""


def find(socket: str | None = None, home: str | None = None) -> Place:
    """Say which socket to talk to: options first, then the environment, then what is there."""
    if socket:
        return Place(socket, _either())
    if home:
        return _in_home(home)
    if given := os.environ.get("HIVE_SOCKET"):
        return Place(given, f"HIVE_SOCKET names this path; {_either()}")
    if given := os.environ.get("HIVE_HOME"):
        return _in_home(given)
    if os.path.exists(SYSTEM_SOCKET):  # noqa: PTH110 - pathlib costs the start of `hive` 3 ms
        return Place(SYSTEM_SOCKET, "start it with: systemctl start hive-core")
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")  # noqa: PTH111
    own = f"{state}/hyperhive/run/host.sock"
    if os.path.exists(SYSTEM_CONFIG) and not os.path.exists(own):  # noqa: PTH110
        return Place(SYSTEM_SOCKET, "start it with: systemctl start hive-core.socket hive-core.service")
    return Place(own, f"there is no {SYSTEM_SOCKET} either; {_either()}")


def _in_home(home: str) -> Place:
    import shlex

    return Place(
        f"{home.rstrip('/') or '/'}/run/host.sock",
        f"start it with: hive-core serve --local --home {shlex.quote(home)}",
    )


def _either() -> str:
    return "start one with: hive-core serve --local (or, as root: systemctl start hive-core)"

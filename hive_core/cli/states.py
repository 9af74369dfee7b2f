"""One word for what an agent is doing, out of the flags of its row."""

from typing import Any, Final

FAILED: Final = "failed"
NEEDS_LOGIN: Final = "needs_login"
PAUSED: Final = "paused"
RATE_LIMITED: Final = "rate_limited"
STARTING: Final = "starting"
STOPPING: Final = "stopping"
STOPPED: Final = "stopped"
RESTARTING: Final = "restarting"
REBUILDING: Final = "rebuilding"
DESTROYING: Final = "destroying"
RUNNING: Final = "running"

STYLE: Final = {
    FAILED: "red",
    NEEDS_LOGIN: "yellow",
    PAUSED: "yellow",
    RATE_LIMITED: "yellow",
    STARTING: "cyan",
    STOPPING: "cyan",
    STOPPED: "dim",
    RESTARTING: "cyan",
    REBUILDING: "cyan",
    DESTROYING: "cyan",
    RUNNING: "green",
}


def state_of(row: dict[str, Any]) -> str:
    """The most urgent word that is true of *row*."""
    if row.get("wanted") in {"gone", "purged"}:
        return DESTROYING
    if row.get(FAILED):
        return FAILED
    if transient := row.get("transient"):
        return str(transient)
    for flag in (NEEDS_LOGIN, PAUSED):
        if row.get(flag):
            return flag
    if row.get("running") and row.get("status") == RATE_LIMITED:
        return RATE_LIMITED
    running = bool(row.get("running"))
    wanted = row.get("wanted")
    if wanted == RUNNING and not running:
        return STARTING
    if wanted == STOPPED and running:
        return STOPPING
    return RUNNING if running else STOPPED

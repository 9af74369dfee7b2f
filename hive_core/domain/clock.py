"""How a moment is written on host.sock."""

from datetime import UTC, datetime


def rfc3339(seconds: float, *, fraction: bool = True) -> str:
    """Write unix *seconds* in UTC with a Z, to the millisecond or to the second.

    A time that no calendar has, as an agent may claim, becomes the epoch.
    """
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="milliseconds" if fraction else "seconds").replace("+00:00", "Z")

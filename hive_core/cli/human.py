"""Numbers and times as a person reads them.  Times come in as RFC 3339 and are shown in local time."""

from datetime import datetime


def parse_time(rfc3339: object) -> datetime | None:
    """Give a local time, or None for what is no time."""
    try:
        return datetime.fromisoformat(str(rfc3339)).astimezone()
    except (ValueError, OverflowError):
        return None


def clock(rfc3339: object) -> str:
    """`12:03:04`."""
    when = parse_time(rfc3339)
    return when.strftime("%H:%M:%S") if when else "--:--:--"


def moment(rfc3339: object, now: datetime) -> str:
    """`12:03:04` for today, else `2026-01-31 12:03:04`."""
    when = parse_time(rfc3339)
    if when is None:
        return "--:--:--"
    return when.strftime("%H:%M:%S" if when.date() == now.date() else "%Y-%m-%d %H:%M:%S")


def age(rfc3339: object, now: datetime) -> str:
    """How long ago, `12 s`; empty for what is no time."""
    when = parse_time(rfc3339)
    return duration(max(0.0, (now - when).total_seconds())) if when else ""


def duration(seconds: float) -> str:
    """`40 ms`, `0.2 s`, `12 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def size(count: float) -> str:
    """`512 B`, `40.0 KiB`, `1.2 GiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"

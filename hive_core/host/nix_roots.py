"""What keeps the store from taking a closure away: profiles of agents, and a root for what runs.

A profile's generations are roots by themselves.  The closure that a machine was started from may be none of
them any more, when old generations were deleted since: it has a root of its own for as long as it runs.
"""

import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from hive_core.domain.retention import surplus_generations

PROFILES: Final = Path("/nix/var/nix/profiles/per-agent")
ROOTS: Final = Path("/nix/var/nix/gcroots/hive")


def profile(agent: str, profiles: Path = PROFILES) -> Path:
    """The profile whose current generation is what *agent* should run."""
    return profiles / agent / "system"


def is_generation(agent: str, closure: str, profiles: Path = PROFILES) -> bool:
    """Say whether *closure* is one of the generations of *agent*."""
    links = profile(agent, profiles).parent.glob("system-*-link")
    return any(_target(link) == Path(closure) for link in links)


def pin_booted(agent: str, closure: Path, roots: Path = ROOTS) -> None:
    """Keep *closure* while the machine of *agent* runs, in place of what was kept for it before.

    Raises:
        OSError: there is no Nix store here, or it may not be written.
    """
    roots.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = roots / f".{agent}-{secrets.token_hex(4)}"
    fresh.symlink_to(closure)
    try:
        fresh.replace(_booted(agent, roots))
    except OSError:
        fresh.unlink(missing_ok=True)
        raise


def unpin_booted(agent: str, roots: Path = ROOTS) -> None:
    """Let the store have what was kept for *agent*; harmless when nothing was."""
    _booted(agent, roots).unlink(missing_ok=True)


def remove_profile(agent: str, profiles: Path = PROFILES) -> None:
    """Let the store have all generations of *agent*; harmless when it has none.

    Raises:
        OSError: they cannot be deleted.
    """
    directory = profile(agent, profiles).parent
    if not directory.is_dir():
        return
    # The profile first: nobody finds it without its generations.
    for path in [profile(agent, profiles), *directory.glob("system-*-link"), directory / "system.lock"]:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's are in it too
        directory.rmdir()


def sweep_generations(
    agent: str, keep: int, *, dry_run: bool = False, profiles: Path = PROFILES, roots: Path = ROOTS
) -> tuple[int, int] | None:
    """Delete the generations of *agent* beyond the newest *keep*, never the current or the booted one.

    Gives how many went, or would, and how many stay; None where it has no profile.  What a garbage
    collection takes away is the store's business.

    Raises:
        OSError: they cannot be deleted.
    """
    links: dict[int, Path] = {}
    for path in profile(agent, profiles).parent.glob("system-*-link"):
        number = path.name.removeprefix("system-").removesuffix("-link")
        if number.isdecimal():
            links[int(number)] = path
    if not links:
        return None
    booted = _target(_booted(agent, roots))
    surplus = surplus_generations(
        sorted(links),
        current=_number_of(_target(profile(agent, profiles)), links),
        booted=max((number for number, path in links.items() if _target(path) == booted), default=None),
        keep=keep,
    )
    for each in [] if dry_run else surplus:
        links[each].unlink(missing_ok=True)
    return len(surplus), len(links) - len(surplus)


def _number_of(target: Path | None, links: Mapping[int, Path]) -> int | None:
    """The profile leads to a generation by its name."""
    return next((number for number, path in links.items() if target and path.name == target.name), None)


def _target(path: Path) -> Path | None:
    try:
        return path.readlink()
    except OSError:
        return None


def _booted(agent: str, roots: Path) -> Path:
    return roots / f"{agent}-booted"

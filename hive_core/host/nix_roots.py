"""What keeps the store from taking a closure away: profiles of agents, and a root for what runs.

A profile's generations are roots by themselves.  The closure that a machine was started from may be none of
them any more, when old generations were deleted since: it has a root of its own for as long as it runs.
"""

import secrets
from pathlib import Path
from typing import Final

PROFILES: Final = Path("/nix/var/nix/profiles/per-agent")
ROOTS: Final = Path("/nix/var/nix/gcroots/hive")


def profile(agent: str, profiles: Path = PROFILES) -> Path:
    """The profile whose current generation is what *agent* should run."""
    return profiles / agent / "system"


def current_closure(agent: str, profiles: Path = PROFILES) -> Path | None:
    """Give the closure that the profile of *agent* leads to; None when it has none."""
    try:
        return profile(agent, profiles).resolve(strict=True)
    except OSError:
        return None


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


def _booted(agent: str, roots: Path) -> Path:
    return roots / f"{agent}-booted"

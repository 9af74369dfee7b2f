"""What the daemon tells the manager about the other agents, as messages from `system`.

The body is a JSON object whose `event` names the variant.  What was so when the daemon started is no
news: `Condition` and `changes` find the edges.
"""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

MAX_NOTE_CHARS: Final = 2000


class HelperEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    agent: str


class Spawned(HelperEvent, frozen=True, kw_only=True, tag="spawned"):
    """A new agent's machine is up, or could not be brought up."""

    ok: bool
    note: str | None = None


class Rebuilt(HelperEvent, frozen=True, kw_only=True, tag="rebuilt"):
    ok: bool
    note: str | None = None


class Killed(HelperEvent, frozen=True, kw_only=True, tag="killed"):
    """It was stopped, by whomever."""


class Destroyed(HelperEvent, frozen=True, kw_only=True, tag="destroyed"):
    purged: bool = False


class ContainerCrash(HelperEvent, frozen=True, kw_only=True, tag="container_crash"):
    """Its machine ended and nobody had asked for that."""

    note: str | None = None


class NeedsLogin(HelperEvent, frozen=True, kw_only=True, tag="needs_login"):
    pass


class LoggedIn(HelperEvent, frozen=True, kw_only=True, tag="logged_in"):
    pass


class NeedsUpdate(HelperEvent, frozen=True, kw_only=True, tag="needs_update"):
    """It runs with something else than what is declared now; a rebuild ends that."""


class PeerRefused(HelperEvent, frozen=True, kw_only=True, tag="peer_refused"):
    """Somebody at the agent's socket was no process of its machine."""

    uid: int
    unit: str | None = None
    """Where that process belongs."""


class MessageDead(HelperEvent, frozen=True, kw_only=True, tag="message_dead"):
    """A message to it is handed out no more: it failed over it too often."""

    id: int
    reason: str


def render_body(event: HelperEvent) -> str:
    """Give the text of the message."""
    note = getattr(event, "note", None)
    if note is not None and len(note) > MAX_NOTE_CHARS:
        event = msgspec.structs.replace(event, note=note[:MAX_NOTE_CHARS] + "…")
    return msgspec.json.encode(event).decode()


def is_news_to_the_operator(event: HelperEvent) -> bool:
    """Say whether a person should read it, where no manager does: not that what was asked for was done."""
    match event:
        case Spawned(ok=ok) | Rebuilt(ok=ok):
            return not ok
        case Killed() | Destroyed() | LoggedIn():
            return False
    return True


# ── edges ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Condition:
    """What holds of an agent; None: not known yet."""

    needs_login: bool | None = None
    needs_update: bool | None = None

    def and_now(self, now: "Condition") -> "Condition":
        """Take over what *now* knows."""
        seen = self
        if now.needs_login is not None:
            seen = replace(seen, needs_login=now.needs_login)
        if now.needs_update is not None:
            seen = replace(seen, needs_update=now.needs_update)
        return seen


def condition_in(status: str) -> Condition:
    """Give what a harness's *status* says about its login.

    It shows the most urgent of what holds: one that starts or stops says nothing, and one that lacks a
    login would not say that it is paused.
    """
    if status.startswith("needs_login"):
        return Condition(needs_login=True)
    return Condition(needs_login=False) if status in {"online", "paused", "rate_limited"} else Condition()


AS_FOUND: Final = Condition()
"""Of an agent that was there when the daemon started: what holds of it first is no news."""

AS_SPAWNED: Final = Condition(needs_login=False, needs_update=False)
"""Of one that is new: that it needs a login is."""


def changes(agent: str, before: Condition, now: Condition) -> list[HelperEvent]:
    """Give the news in what is known *now* of *agent*."""
    news: list[HelperEvent] = []
    match before.needs_login, now.needs_login:
        case False, True:
            news.append(NeedsLogin(agent=agent))
        case True, False:
            news.append(LoggedIn(agent=agent))
    if before.needs_update is False and now.needs_update is True:  # the other direction is a rebuild's
        news.append(NeedsUpdate(agent=agent))
    return news


# ── bounds ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Allowance:
    """How often something may be told: *most* times in any *window_s* seconds."""

    most: int
    window_s: float
    told: tuple[float, ...] = ()
    """The moments, as seconds of one clock."""

    def use(self, now: float) -> "Allowance | None":
        """Give what is left after telling it *now*; None: it must not be told."""
        recent = tuple(moment for moment in self.told if now - moment < self.window_s)
        if len(recent) >= self.most:
            return None
        return replace(self, told=(*recent, now))

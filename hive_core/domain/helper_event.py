"""What the daemon tells the manager about the other agents, as messages from `system`.

The body is a JSON object whose `event` names the variant.  What was so when the daemon started is no
news: `Condition` and `changes` find the edges.
"""

from dataclasses import dataclass, replace
from typing import Final

import msgspec

from hive_core.domain.approval import Approval, Status
from hive_core.domain.letter import Letter
from hive_core.wire.ids import MANAGER, OPERATOR
from hive_core.wire.limits import MAX_NOTE_CHARS


class HelperEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", omit_defaults=True):
    agent: str


class Spawned(HelperEvent, frozen=True, kw_only=True, tag="spawned"):
    """A new agent's machine is up, or could not be brought up."""

    ok: bool
    note: str | None = None
    sha: str | None = None
    """The commit of its configuration, where the start was a deploy of one."""
    tag: str | None = None
    """`deployed/7` or `failed/7`."""


class Rebuilt(HelperEvent, frozen=True, kw_only=True, tag="rebuilt"):
    """It runs with what is declared now, or could not be brought to it."""

    ok: bool
    note: str | None = None
    sha: str | None = None
    tag: str | None = None


class ConfigReady(HelperEvent, frozen=True, kw_only=True, tag="config_ready"):
    """There is a configuration to edit, for an agent that is not there yet."""


class ApprovalResolved(HelperEvent, frozen=True, kw_only=True, tag="approval_resolved"):
    """A request for approval is over: denied, taken back, or approved and carried out, or it failed."""

    id: int
    kind: str
    status: str
    note: str | None = None
    sha: str | None = None
    tag: str | None = None
    description: str | None = None


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


class DeclarationFailed(HelperEvent, frozen=True, kw_only=True, tag="declaration_failed"):
    """It cannot be as the host's configuration says."""

    note: str


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
        case ApprovalResolved(status=status):
            return status == Status.FAILED
        case Killed() | Destroyed() | LoggedIn() | ConfigReady():
            return False
    return True


def is_for_the_operator(event: HelperEvent) -> bool:
    """Say whether only a person can do something about it, whoever else there is."""
    return isinstance(event, DeclarationFailed)


def resolution(approval: Approval) -> list[Letter]:
    """Give the letters that tell the manager, and whoever asked for it, what became of *approval*."""
    event = ApprovalResolved(
        agent=approval.agent,
        id=approval.id,
        kind=approval.kind,
        status=approval.status,
        note=approval.note,
        sha=approval.fetched_sha,
        tag=approval.tag,
        description=approval.description,
    )
    return [Letter(to, render_body(event)) for to in sorted({MANAGER, approval.proposer} - {OPERATOR})]


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

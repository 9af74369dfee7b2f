"""What the manager is told, and how often."""

import itertools
import json

import pytest

from hive_core.domain.helper_event import (
    AS_FOUND,
    AS_SPAWNED,
    Allowance,
    ApprovalResolved,
    Condition,
    ConfigReady,
    ContainerCrash,
    Destroyed,
    HelperEvent,
    Killed,
    LoggedIn,
    NeedsLogin,
    NeedsUpdate,
    PeerRefused,
    Rebuilt,
    Spawned,
    changes,
    condition_in,
    is_news_to_the_operator,
    render_body,
)
from hive_core.wire.limits import MAX_NOTE_CHARS

BODIES: dict[HelperEvent, str] = {
    Spawned(agent="bob", ok=True): '{"event":"spawned","agent":"bob","ok":true}',
    Spawned(agent="bob", ok=False, note="no image"): (
        '{"event":"spawned","agent":"bob","ok":false,"note":"no image"}'
    ),
    Spawned(agent="bob", ok=True, sha="abc", tag="deployed/0"): (
        '{"event":"spawned","agent":"bob","ok":true,"sha":"abc","tag":"deployed/0"}'
    ),
    Rebuilt(agent="bob", ok=False, note="no", sha="abc", tag="failed/7"): (
        '{"event":"rebuilt","agent":"bob","ok":false,"note":"no","sha":"abc","tag":"failed/7"}'
    ),
    ConfigReady(agent="bob"): '{"event":"config_ready","agent":"bob"}',
    ApprovalResolved(agent="bob", id=7, kind="spawn", status="approved"): (
        '{"event":"approval_resolved","agent":"bob","id":7,"kind":"spawn","status":"approved"}'
    ),
    ApprovalResolved(
        agent="bob",
        id=7,
        kind="apply_commit",
        status="denied",
        note="no",
        sha="abc",
        tag="denied/7",
        description="why",
    ): (
        '{"event":"approval_resolved","agent":"bob","id":7,"kind":"apply_commit","status":"denied",'
        '"note":"no","sha":"abc","tag":"denied/7","description":"why"}'
    ),
    Rebuilt(agent="bob", ok=True): '{"event":"rebuilt","agent":"bob","ok":true}',
    Killed(agent="bob"): '{"event":"killed","agent":"bob"}',
    Destroyed(agent="bob"): '{"event":"destroyed","agent":"bob"}',
    Destroyed(agent="bob", purged=True): '{"event":"destroyed","agent":"bob","purged":true}',
    ContainerCrash(agent="bob", note="exit status 1"): (
        '{"event":"container_crash","agent":"bob","note":"exit status 1"}'
    ),
    NeedsLogin(agent="bob"): '{"event":"needs_login","agent":"bob"}',
    LoggedIn(agent="bob"): '{"event":"logged_in","agent":"bob"}',
    NeedsUpdate(agent="bob"): '{"event":"needs_update","agent":"bob"}',
    PeerRefused(agent="bob", uid=5, unit="x.scope"): (
        '{"event":"peer_refused","agent":"bob","uid":5,"unit":"x.scope"}'
    ),
    PeerRefused(agent="bob", uid=5): '{"event":"peer_refused","agent":"bob","uid":5}',
}


@pytest.mark.parametrize("event", BODIES, ids=lambda event: type(event).__name__)
def test_an_event_has_these_bytes(event: HelperEvent) -> None:
    assert render_body(event) == BODIES[event]


def test_a_note_of_any_length_fits_a_message() -> None:
    body = json.loads(render_body(ContainerCrash(agent="bob", note="é" * 100_000)))

    assert body["note"] == "é" * MAX_NOTE_CHARS + "…"


def test_a_person_is_not_told_that_what_was_asked_for_was_done() -> None:
    told = {render_body(event) for event in BODIES if is_news_to_the_operator(event)}

    assert {json.loads(body)["event"] for body in told} == {
        "spawned", "rebuilt", "container_crash", "needs_login", "needs_update", "peer_refused",
    }  # fmt: skip
    assert not is_news_to_the_operator(Spawned(agent="bob", ok=True))


NEWS = {
    # before, now → login, update
    (False, True): ([NeedsLogin(agent="bob")], [NeedsUpdate(agent="bob")]),
    (True, False): ([LoggedIn(agent="bob")], []),
}


@pytest.mark.parametrize(("before", "now"), list(itertools.product((None, False, True), repeat=2)))
def test_only_an_edge_is_news(before: bool | None, now: bool | None) -> None:
    login, update = NEWS.get((before, now), ([], []))

    assert changes("bob", Condition(needs_login=before), Condition(needs_login=now)) == login
    assert changes("bob", Condition(needs_update=before), Condition(needs_update=now)) == update


def test_what_held_when_the_daemon_started_is_no_news_and_what_a_new_agent_lacks_is() -> None:
    now = Condition(needs_login=True)

    assert changes("bob", AS_FOUND, now) == []
    assert changes("bob", AS_SPAWNED, now) == [NeedsLogin(agent="bob")]


@pytest.mark.parametrize(
    ("status", "needs_login"),
    [
        ("needs_login_idle", True),
        ("needs_login_in_progress", True),
        ("online", False),
        ("rate_limited", False),
        ("starting", None),
        ("stopping", None),
        ("paused", False),
        ("anything", None),
    ],
)
def test_a_harness_says_what_it_knows_of_its_login(status: str, needs_login: bool | None) -> None:
    assert condition_in(status) == Condition(needs_login=needs_login)


def test_what_is_not_known_now_is_as_it_was() -> None:
    seen = Condition(needs_login=True, needs_update=False)

    assert seen.and_now(Condition()) == seen
    assert seen.and_now(Condition(needs_update=True)) == Condition(True, True)


def test_an_allowance_is_used_up_and_grows_back() -> None:
    allowance = Allowance(2, 10.0)
    for moment, allowed in (
        (0.0, True),
        (1.0, True),
        (9.9, False),
        (10.0, True),
        (10.5, False),
        (11.0, True),
    ):
        left = allowance.use(moment)
        assert (left is not None) is allowed, moment
        allowance = left or allowance

"""Who is told what, and how often."""

import json

import pytest
import trio
from trio.testing import MockClock

from hive_core.domain.helper_event import (
    AS_SPAWNED,
    Condition,
    ContainerCrash,
    DeclarationFailed,
    Destroyed,
    HelperEvent,
    NeedsLogin,
    Spawned,
)
from hive_core.herald import PER_HOUR, Herald


class Post:
    def __init__(self, *, manager: bool) -> None:
        self.sent: list[tuple[str, dict[str, object]]] = []
        self.herald = Herald(lambda to, body: self.sent.append((to, json.loads(body))), lambda: manager)

    def kinds(self) -> list[tuple[str, object]]:
        return [(to, body["event"]) for to, body in self.sent]


async def test_the_manager_is_told_everything_of_others_and_the_operator_what_the_manager_cannot_mend() -> (
    None
):
    post = Post(manager=True)

    post.herald.tell(Spawned(agent="bob", ok=True))
    post.herald.tell(Spawned(agent="manager", ok=True))
    post.herald.tell(ContainerCrash(agent="manager"))

    assert post.kinds() == [("manager", "spawned"), ("operator", "container_crash")]


async def test_without_a_manager_the_operator_is_told_what_is_news() -> None:
    post = Post(manager=False)
    told: list[HelperEvent] = [Spawned(agent="bob", ok=True), Destroyed(agent="bob"), NeedsLogin(agent="bob")]

    for event in told:
        post.herald.tell(event)

    assert post.kinds() == [("operator", "needs_login")]


async def test_a_crash_loop_does_not_flood_anybody(autojump_clock: MockClock) -> None:
    post = Post(manager=True)

    for _ in range(500):
        post.herald.tell(ContainerCrash(agent="bob"))
    post.herald.tell(ContainerCrash(agent="carol"))

    assert len(post.sent) == PER_HOUR.most + 1
    await trio.sleep(PER_HOUR.window_s)
    post.herald.tell(ContainerCrash(agent="bob"))
    assert len(post.sent) == PER_HOUR.most + 2


async def test_a_harness_that_flips_its_login_does_not_flood_anybody() -> None:
    post = Post(manager=True)
    post.herald.notice("bob", AS_SPAWNED)

    for number in range(500):
        post.herald.notice("bob", Condition(needs_login=number % 2 == 0))

    assert len(post.sent) == 2 * PER_HOUR.most


async def test_a_refused_peer_is_news_once_a_minute(autojump_clock: MockClock) -> None:
    post = Post(manager=True)

    assert post.herald.refuse_peer("bob", 5, "x.scope")
    assert not post.herald.refuse_peer("bob", 6, None)
    assert post.herald.refuse_peer("alice", 6, None)
    await trio.sleep(60)
    assert post.herald.refuse_peer("bob", 7, None)

    assert post.sent[0] == (
        "manager", {"event": "peer_refused", "agent": "bob", "uid": 5, "unit": "x.scope"}
    )  # fmt: skip
    assert len(post.sent) == 3


async def test_what_is_first_seen_of_an_agent_that_was_there_is_no_news() -> None:
    post = Post(manager=True)

    post.herald.notice("old", Condition(needs_login=True, needs_update=True))
    post.herald.notice("old", Condition(needs_login=True))
    post.herald.notice("old", Condition(needs_login=False))
    post.herald.notice("new", AS_SPAWNED)
    post.herald.notice("new", Condition(needs_login=True))

    assert [(body["agent"], body["event"]) for _, body in post.sent] == [
        ("old", "logged_in"), ("new", "needs_login"),
    ]  # fmt: skip


async def test_a_destroyed_agent_leaves_nothing_behind() -> None:
    post = Post(manager=True)
    post.herald.notice("bob", AS_SPAWNED)
    post.herald.tell(Destroyed(agent="bob"))

    post.herald.notice("bob", Condition(needs_login=True))

    assert post.kinds() == [("manager", "destroyed")]


@pytest.mark.parametrize("manager", [True, False])
async def test_what_only_the_host_can_mend_the_operator_is_told(manager: bool) -> None:
    post = Post(manager=manager)

    post.herald.tell(DeclarationFailed(agent="bob", note="no such image"))

    assert post.sent == [
        ("operator", {"event": "declaration_failed", "agent": "bob", "note": "no such image"})
    ]

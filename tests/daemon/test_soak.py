"""Many agents at once while the daemon is killed and started again."""

import random
import time
from functools import partial

import pytest
import trio

from .kit import SOAK_S, Daemon, numbered, seeded
from .load import Seen, check, receive_for_ever, send_until

AGENTS = 64 if SOAK_S >= 30 else 16
DURATION_S = SOAK_S or 4.0
KILLS = 6 if SOAK_S >= 30 else 3


@pytest.mark.timeout(DURATION_S + 120)
@pytest.mark.parametrize(
    ("requeues", "drops"),
    [(True, 0.05), (False, 0.0)],
    ids=["receivers_requeue_on_every_connection", "receivers_never_requeue"],
)
async def test_every_accepted_message_is_delivered_though_the_daemon_is_killed(
    daemon: Daemon, requeues: bool, drops: float
) -> None:
    rng = seeded("soak")
    senders, receivers = numbered("s", AGENTS), numbered("r", AGENTS)
    daemon.add_stopped(*senders, *receivers).start()
    seen = Seen()
    stop = trio.Event()

    async with trio.open_nursery() as nursery:
        for name in receivers:
            nursery.start_soon(
                partial(
                    receive_for_ever,
                    name,
                    daemon.agent_socket(name),
                    random.Random(rng.random()),
                    seen,
                    requeues=requeues,
                    drops=drops,
                )
            )
        async with trio.open_nursery() as sending:
            for name in senders:
                path = daemon.agent_socket(name)
                sending.start_soon(send_until, stop, name, path, receivers, random.Random(rng.random()), seen)
            await _kill_now_and_then(daemon, rng)
            stop.set()
        await _wait_all_taken(daemon, seen)
        nursery.cancel_scope.cancel()

    assert daemon.stop() == 0
    check(seen, daemon.rows_of("select id, sender, recipient, idempotency_key, body from messages"))
    copies = sum(map(len, seen.delivered.values())) - len(seen.accepted)
    print(
        f"{len(seen.accepted)} accepted, {copies} copies, {seen.reconnects} connections, {seen.dropped} dropped"
    )
    assert len(seen.accepted) > 20 * DURATION_S


async def _kill_now_and_then(daemon: Daemon, rng: random.Random) -> None:
    began = time.monotonic()
    moments = sorted(rng.uniform(0.1, 0.9) * DURATION_S for _ in range(KILLS))
    for number, moment in enumerate(moments):
        await trio.sleep(max(0.0, began + moment - time.monotonic()))
        # One clean end among them: after it, what was not handed out must not be flagged, and the rest must.
        await trio.to_thread.run_sync(daemon.stop if number == 1 else daemon.kill)
        await trio.to_thread.run_sync(daemon.start)
    await trio.sleep(max(0.0, began + DURATION_S - time.monotonic()))


async def _wait_all_taken(daemon: Daemon, seen: Seen) -> None:
    with trio.fail_after(30 + DURATION_S):
        while True:
            status = await trio.to_thread.run_sync(daemon.ask, "status")
            delivered = {one[0] for deliveries in seen.delivered.values() for one in deliveries}
            if status["unread"] == 0 and delivered >= set(seen.accepted):
                return
            if status["unread"] == 0:
                await trio.sleep(0.5)
                delivered = {one[0] for deliveries in seen.delivered.values() for one in deliveries}
                if (await trio.to_thread.run_sync(daemon.ask, "status"))["unread"] == 0:
                    return  # what is missing now is lost, and the check says so
            await trio.sleep(0.05)

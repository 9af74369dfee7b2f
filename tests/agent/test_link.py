import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hive_agent.link import ANSWER_TIMEOUT_S, Attend, Link
from hive_core.wire import agent as wire
from hive_core.wire.errors import Disconnected, ErrorCode, Refused
from hive_core.wire.stream import Caller

from .fake_daemon import FakeDaemon


@asynccontextmanager
async def linked(path: Path, *attend: Attend) -> AsyncIterator[Link]:
    async with trio.open_nursery() as nursery:
        link = Link(path, attend=attend, jitter=lambda: 1.0)
        nursery.start_soon(link.run)
        yield link
        nursery.cancel_scope.cancel()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


async def test_a_call_waits_for_the_daemon_to_come(patient_clock: MockClock, tmp_path: Path) -> None:
    daemon = FakeDaemon(tmp_path / "mcp.sock")
    async with trio.open_nursery() as nursery:

        async def come_late() -> None:
            await trio.sleep(60)
            await nursery.start(daemon.run)

        nursery.start_soon(come_late)
        async with linked(daemon.path) as link:
            unread = await link.call(wire.InboxStatus(), wire.Unread)
        daemon.stop()

    assert unread == wire.Unread(unread=0)
    assert link.epoch == 1


async def test_a_send_whose_answer_is_lost_is_repeated_with_the_same_key(
    patient_clock: MockClock, daemon: FakeDaemon
) -> None:
    daemon.lose_answer_of = wire.Send

    async with linked(daemon.path) as link:
        sent = await link.call(wire.Send(to="bob", body="hi"), wire.Sent)

    first, second = daemon.asked_of(wire.Send)
    assert first == second
    assert len(first.idempotency_key) == 32
    assert [send.body for send in daemon.sent] == ["hi"]
    assert sent.id == 1
    assert link.epoch == 2


async def test_a_key_that_a_send_has_is_kept(patient_clock: MockClock, daemon: FakeDaemon) -> None:
    async with linked(daemon.path) as link:
        await link.call(wire.Send(to="bob", body="hi", idempotency_key="mine"), wire.Sent)

    assert daemon.sent[0].idempotency_key == "mine"


async def test_a_recv_whose_answer_is_lost_is_not_repeated(
    patient_clock: MockClock, daemon: FakeDaemon
) -> None:
    daemon.deliver("hello")
    daemon.lose_answer_of = wire.Recv

    async with linked(daemon.path) as link:
        with pytest.raises(Disconnected):
            await link.call(wire.Recv(wait_seconds=5), wire.Messages)
        await link.call(wire.InboxStatus(), wire.Unread)

    assert len(daemon.asked_of(wire.Recv)) == 1


async def test_a_refusal_passes_through(patient_clock: MockClock, daemon: FakeDaemon) -> None:
    daemon.refuse[wire.Send] = Refused(ErrorCode.NOT_FOUND, "cannot send: no agent is named carol")

    async with linked(daemon.path) as link:
        with pytest.raises(Refused, match="carol") as refused:
            await link.call(wire.Send(to="carol", body="hi"), wire.Sent)

    assert refused.value.code == ErrorCode.NOT_FOUND


async def test_words_that_no_wire_can_carry_are_refused_here(
    patient_clock: MockClock, daemon: FakeDaemon
) -> None:
    async with linked(daemon.path) as link:
        with pytest.raises(Refused, match="cannot put it on the wire"):
            await link.call(wire.Send(to="bob", body="\ud800"), wire.Sent)


async def test_the_back_off_doubles_to_five_seconds(
    patient_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[float] = []
    monkeypatch.setattr(Link, "_complain", lambda self, why: times.append(trio.current_time()))

    with trio.move_on_after(30):
        await Link(tmp_path / "nobody", jitter=lambda: 1.0).run()

    gaps = [round(after - before, 6) for before, after in itertools.pairwise(times)]
    assert gaps == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]


async def test_a_daemon_that_goes_on_failing_is_complained_about_once(
    patient_clock: MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.move_on_after(60):
        await Link(tmp_path / "nobody").run()

    assert len(warnings_in(caplog)) == 1


async def test_a_refused_hello_is_logged_and_tried_again_every_five_seconds(
    patient_clock: MockClock, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.refuse_hello = "cannot talk: update hive-agent"

    async with linked(daemon.path) as link:
        await trio.sleep(7)
        daemon.refuse_hello = None
        await link.call(wire.InboxStatus(), wire.Unread)

    assert trio.current_time() == pytest.approx(10)
    assert warnings_in(caplog) == ["Link failed: the daemon refuses: cannot talk: update hive-agent"]


async def test_the_time_to_linger_counts_from_the_last_connection(
    patient_clock: MockClock, daemon: FakeDaemon
) -> None:
    link = Link(daemon.path, linger_s=60)
    async with trio.open_nursery() as nursery:

        async def leave_late() -> None:
            await trio.sleep(100)
            daemon.stop()

        nursery.start_soon(leave_late)
        await link.run()

    assert trio.current_time() == pytest.approx(160)


async def test_a_daemon_that_does_not_say_hello_is_no_connection(
    patient_clock: MockClock, tmp_path: Path
) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / "mute.sock"))
    listener.listen(100)

    await Link(tmp_path / "mute.sock", linger_s=25).run()

    listener.close()
    assert trio.current_time() == pytest.approx(25)


async def test_a_daemon_that_does_not_answer_is_dialled_anew(
    patient_clock: MockClock, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> None:
        await trio.sleep_forever()

    async with linked(daemon.path) as link:
        with monkeypatch.context() as stuck:
            stuck.setattr(daemon, "_carry_out", hang)
            with trio.move_on_after(ANSWER_TIMEOUT_S + 0.05):
                await link.call(wire.AckTurn(ids=[1]), wire.Acked)
        await link.call(wire.AckTurn(ids=[1]), wire.Acked)

    assert link.epoch == 2


async def test_what_attends_a_connection_ends_with_it_and_begins_with_the_next(
    patient_clock: MockClock, daemon: FakeDaemon
) -> None:
    seen: list[str] = []

    async def attend(caller: Caller) -> None:
        seen.append("up")
        try:
            await trio.sleep_forever()
        finally:
            seen.append("down")

    async with linked(daemon.path, attend) as link:
        await link.call(wire.InboxStatus(), wire.Unread)
        daemon.drop_connections()
        await trio.sleep(1)
        assert seen == ["up", "down", "up"]


async def test_what_attends_may_end_the_connection(patient_clock: MockClock, daemon: FakeDaemon) -> None:
    async def attend(caller: Caller) -> None:
        if daemon.connections < 3:
            raise Disconnected("no")

    async with linked(daemon.path, attend) as link:
        await daemon.wait_until(lambda daemon: daemon.connections == 3)
        await trio.sleep(100)
        assert link.epoch == 3


async def test_a_bug_in_what_attends_is_not_contained(patient_clock: MockClock, daemon: FakeDaemon) -> None:
    async def attend(caller: Caller) -> None:
        raise KeyError("bug")

    with pytest.RaisesGroup(KeyError, flatten_subgroups=True):
        await Link(daemon.path, attend=[attend]).run()

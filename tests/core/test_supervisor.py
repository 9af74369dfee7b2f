"""Wishes and what becomes of them, with machines that do as the test says."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.config import Config, Machines
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, MachineFacts, Shape, Usage
from hive_core.domain.helper_event import Condition, HelperEvent, render_body
from hive_core.domain.machine import Wanted
from hive_core.domain.uid_range import NoRangeLeft
from hive_core.host.process import CommandError
from hive_core.keeper import Hooks
from hive_core.store import agents
from hive_core.store.database import Store, open_store
from hive_core.store.mailbox import MailboxOp, apply_batch
from hive_core.supervisor import Supervisor
from hive_core.wire.errors import ErrorCode, Refused

CONFIG = Config(
    machines=Machines(restart_limit=3, restart_delay_s=1.0, stop_grace_s=10.0, start_parallel=2, quiesce_s=60)
)
BASE = 0x40000000


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    # The store's threads need real time: the clock must not jump while one of them works.
    autojump_clock.autojump_threshold = 0.01
    return autojump_clock


class FakeMachine:
    def __init__(self, machines: "FakeMachines", agent: str, pid: int) -> None:
        self._machines, self.agent, self.pid = machines, agent, pid
        self.ended = trio.Event()
        self.story = ""

    async def wait(self) -> str:
        await self.ended.wait()
        return self.story

    async def terminate(self) -> None:
        self._machines.note(f"terminate {self.agent}")
        if self.agent not in self._machines.stubborn:
            self.end("exit status 0")

    async def kill(self) -> None:
        self._machines.note(f"kill {self.agent}")
        self.end("killed")

    def end(self, story: str) -> None:
        self.story = story
        self._machines.running.pop(self.agent, None)
        self.ended.set()


@dataclass
class FakeMachines:
    """*slow* agents start when their event is set; *broken* ones raise what stands there."""

    isolation: str = "nspawn"
    running: dict[str, FakeMachine] = field(default_factory=dict)
    did: list[str] = field(default_factory=list)
    slow: dict[str, trio.Event] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    unseen: dict[str, Exception] = field(default_factory=dict)
    stubborn: set[str] = field(default_factory=set)
    digests: dict[str, str] = field(default_factory=dict)
    digest: str = "1"
    starting: int = 0
    most_starting: int = 0
    limited: list[Shape] = field(default_factory=list)
    clinging: dict[str, Exception] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    """When each thing was done last."""

    def note(self, done: str) -> None:
        self.did.append(done)
        self.at[done] = trio.current_time()

    async def find(self, agent: str) -> FakeMachine | None:
        await trio.lowlevel.checkpoint()
        if agent in self.unseen:
            raise self.unseen[agent]
        return self.running.get(agent)

    async def start(self, row: AgentRow) -> FakeMachine:
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            self.did.append(f"start {row.name}")
            await trio.lowlevel.checkpoint()
            if row.name in self.slow:
                await self.slow[row.name].wait()
            if row.name in self.broken:
                raise self.broken[row.name]
            self.digests[row.name] = self.digest
            return self.add(row.name)
        finally:
            self.starting -= 1

    def add(self, agent: str) -> FakeMachine:
        machine = self.running[agent] = FakeMachine(self, agent, 1000 + len(self.did))
        return machine

    async def update_limits(self, row: AgentRow) -> None:
        if row.name in self.broken:
            raise self.broken[row.name]
        self.limited.append(row.shape)

    async def tidy(self, agent: str) -> None: ...

    async def forget(self, agent: str) -> None:
        self.did.append(f"forget {agent}")
        if agent in self.clinging:
            raise self.clinging[agent]

    async def leftovers(self, known: Collection[str]) -> None:
        self.did.append(f"leftovers but {' '.join(known)}")

    async def facts(self, row: AgentRow) -> MachineFacts:
        return MachineFacts()

    async def usage(self, agents: Sequence[str]) -> dict[str, Usage]:
        return {}

    def applied(self, agent: str) -> str | None:
        return self.digests.get(agent)

    def declared(self, row: AgentRow) -> str | None:
        return self.digest

    def is_member(self, agent: str, pid: int) -> bool:
        return False


class Hive:
    def __init__(self, store: Store[MailboxOp], machines: FakeMachines) -> None:
        self.store, self.machines = store, machines
        self.told: list[str] = []
        self.held: list[tuple[str, bool]] = []
        self.kicked: list[str] = []
        self.shown: list[tuple[str, str | None]] = []
        self.noticed: list[tuple[str, bool | None]] = []
        self.quiesced = trio.Event()
        self.no_door: set[str] = set()
        self.purged: list[str] = []
        self.uids = iter(range(BASE, BASE + 100 * 65536, 65536))
        self.supervisor = Supervisor(
            store, machines, self._hooks(), lambda: CONFIG, lambda _name, _rows: next(self.uids)
        )

    def _hooks(self) -> Hooks:
        async def enlist(name: str, paused: bool) -> None: ...

        async def open_door(row: AgentRow) -> None:
            if row.name in self.no_door:
                raise OSError("no door")

        async def vanish(name: str) -> None: ...

        async def purge(name: str) -> bool:
            self.purged.append(name)
            return True

        async def quiesce(name: str) -> None:
            await self.quiesced.wait()

        def tell(event: HelperEvent) -> None:
            self.told.append(render_body(event))

        def changed(name: str) -> None:
            if name in self.supervisor.names:
                transient = self.supervisor.agent(name).transient
                entry = (name, None if transient is None else transient.value)
                if not self.shown or self.shown[-1] != entry:
                    self.shown.append(entry)

        def notice(name: str, now: Condition) -> None:
            self.noticed.append((name, now.needs_update))

        return Hooks(
            enlist=enlist,
            open_door=open_door,
            vanish=vanish,
            purge=purge,
            quiesce=quiesce,
            pause=lambda _name, _paused: None,
            hold=lambda name, held: self.held.append((name, held)),
            changed=changed,
            kick=self.kicked.append,
            tell=tell,
            notice=notice,
        )

    def transients(self, name: str) -> list[str | None]:
        return [transient for shown, transient in self.shown if shown == name]

    async def settle(self, holds: Callable[[], object]) -> None:
        """Wait until something is so.  The fake clock runs on while a loaded machine is slow to write."""
        with trio.fail_after(600):
            while not holds():
                await trio.sleep(0.25)

    async def spawn(self, name: str) -> FakeMachine:
        await self.supervisor.spawn(name)
        await self.settle(lambda: self.supervisor.agent(name).machine)
        return self.machines.running[name]


@asynccontextmanager
async def hive_at(path: Path, machines: FakeMachines | None = None) -> AsyncIterator[Hive]:
    async with open_store(path / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, machines or FakeMachines())
        await nursery.start(hive.supervisor.run)
        yield hive
        nursery.cancel_scope.cancel()


async def write_rows(path: Path, *names: str) -> None:
    async with open_store(path / "broker.sqlite", apply_batch) as store:
        for number, name in enumerate(names):
            await store.write(agents.create, name, 1.0, BASE + (50 + number) * 65536, Shape())


# ── transients and what is told ─────────────────────────────────────────────────────────────────


async def test_a_spawned_agent_starts_is_told_of_and_not_kicked(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.settle(lambda: hive.supervisor.agent("bob").transient is None)

        assert "starting" in hive.transients("bob")
        assert hive.told == ['{"event":"spawned","agent":"bob","ok":true}']
        assert hive.kicked == []


async def test_a_restart_is_one_stop_and_one_start_and_a_kick(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        first = await hive.spawn("bob")
        hive.shown.clear()
        await hive.supervisor.restart("bob")
        await hive.settle(lambda: hive.machines.running.get("bob") not in (None, first))
        await hive.settle(lambda: hive.supervisor.agent("bob").transient is None)

        assert hive.machines.did[-2:] == ["terminate bob", "start bob"]
        assert set(hive.transients("bob")) == {"restarting", None}
        assert hive.transients("bob").count("restarting") == 1
        assert hive.kicked == ["bob"]
        assert len(hive.told) == 1


async def test_a_rebuild_says_so_to_the_manager(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        hive.machines.digest = "2"
        hive.supervisor.wake("bob")
        await hive.settle(lambda: hive.supervisor.agent("bob").needs_update)
        await hive.supervisor.rebuild("bob")
        await hive.settle(lambda: len(hive.told) == 2)
        await hive.settle(lambda: not hive.supervisor.agent("bob").needs_update)

        assert hive.told[1] == '{"event":"rebuilt","agent":"bob","ok":true}'
        assert "rebuilding" in hive.transients("bob")
        assert hive.kicked == ["bob"]
        assert (True in [stale for _, stale in hive.noticed]) and hive.noticed[-1] == ("bob", False)


async def test_a_rebuild_that_fails_says_why_and_leaves_no_transient(
    tmp_path: Path, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        hive.machines.broken["bob"] = CannotStart("cannot start bob: there is no image x")
        await hive.supervisor.rebuild("bob")
        await hive.settle(lambda: len(hive.told) >= 3)

        agent = hive.supervisor.agent("bob")
        assert hive.told[1:] == [
            '{"event":"rebuilt","agent":"bob","ok":false,"note":"cannot start bob: there is no image x"}',
            '{"event":"container_crash","agent":"bob","note":"cannot start bob: there is no image x"}',
        ]
        assert "Machine cannot be started agent=bob: there is no image x" in caplog.text
        assert hive.supervisor.has_failed(agent)
        assert agent.transient is None
        assert hive.machines.did.count("start bob") == 1 + CONFIG.machines.restart_limit

        del hive.machines.broken["bob"]
        await hive.supervisor.start("bob")
        await hive.settle(lambda: agent.machine)
        assert hive.kicked == ["bob"]


@pytest.mark.parametrize("error", [OSError("disk"), CommandError("systemctl: no"), trio.TooSlowError()])
async def test_no_trouble_of_a_start_leaves_a_transient_behind(
    tmp_path: Path, error: Exception, clock: MockClock
) -> None:
    machines = FakeMachines(broken={"bob": error})
    async with hive_at(tmp_path, machines) as hive:
        await hive.supervisor.spawn("bob")
        agent = hive.supervisor.agent("bob")
        await hive.settle(lambda: hive.supervisor.has_failed(agent))

        assert agent.transient is None
        assert agent.exits.last == f"cannot be started: {str(error) or 'it takes too long'}"
        assert '"event":"spawned","agent":"bob","ok":false' in hive.told[0]


async def test_a_stop_is_told_and_shown_and_clears_itself(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.supervisor.stop("bob", graceful=True)
        await hive.settle(lambda: hive.supervisor.agent("bob").transient)
        assert hive.supervisor.agent("bob").transient == "stopping"
        hive.quiesced.set()
        await hive.settle(lambda: hive.supervisor.agent("bob").machine is None)
        await hive.settle(lambda: hive.supervisor.agent("bob").transient is None)

        assert hive.told[1:] == ['{"event":"killed","agent":"bob"}']


async def test_a_machine_that_does_not_stop_is_killed_after_the_grace(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path, FakeMachines(stubborn={"bob"})) as hive:
        await hive.spawn("bob")
        await hive.supervisor.stop("bob", graceful=False)
        await hive.settle(lambda: hive.supervisor.agent("bob").machine is None)

        assert hive.machines.did[-2:] == ["terminate bob", "kill bob"]
        # Nothing is stored in between, so a slow disk cannot let the clock run on.
        assert hive.machines.at["kill bob"] - hive.machines.at["terminate bob"] == pytest.approx(10.0)


async def test_an_agent_that_goes_is_shown_as_going_until_it_is_gone(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path, FakeMachines(stubborn={"bob"})) as hive:
        await hive.spawn("bob")
        await hive.supervisor.destroy("bob", purge=True)
        assert hive.supervisor.agent("bob").transient == "destroying"
        with pytest.raises(Refused, match="being destroyed"):
            await hive.supervisor.rebuild("bob")
        await hive.settle(lambda: hive.supervisor.names == [])

        assert hive.told[-1] == '{"event":"destroyed","agent":"bob","purged":true}'
        assert "forget bob" in hive.machines.did
        assert await hive.store.read(agents.all_agents) == []


async def test_a_stop_cuts_a_start_short(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path, FakeMachines(slow={"bob": trio.Event()})) as hive:
        await hive.supervisor.spawn("bob")
        await hive.settle(lambda: "start bob" in hive.machines.did)
        assert hive.supervisor.agent("bob").transient == "starting"
        await hive.supervisor.stop("bob", graceful=False)
        await hive.settle(lambda: hive.machines.starting == 0)
        await hive.settle(lambda: hive.supervisor.agent("bob").transient is None)

        assert hive.supervisor.agent("bob").exits.times == ()
        hive.machines.slow["bob"].set()
        await hive.supervisor.start("bob")
        await hive.settle(lambda: hive.supervisor.agent("bob").machine)


# ── crashes ─────────────────────────────────────────────────────────────────────────────────────


async def test_a_machine_that_ends_by_itself_is_told_of_and_started_without_a_kick(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        first = await hive.spawn("bob")
        first.end("exit status 1")
        await hive.settle(lambda: hive.machines.running.get("bob") not in (None, first))

        assert hive.told[1:] == ['{"event":"container_crash","agent":"bob","note":"exit status 1"}']
        assert hive.kicked == []


async def test_a_crash_loop_ends_with_a_machine_that_stays_down(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        machine: FakeMachine | None = await hive.spawn("bob")
        agent = hive.supervisor.agent("bob")
        while not hive.supervisor.has_failed(agent):
            assert machine is not None
            machine.end("exit status 1")
            ended = machine
            await hive.settle(
                lambda ended=ended: hive.supervisor.has_failed(agent) or agent.machine not in (None, ended)
            )
            machine = hive.machines.running.get("bob")

        assert len(hive.told) == 1 + CONFIG.machines.restart_limit
        assert "it stays down until it is started" in hive.told[-1]
        await trio.sleep(300)
        assert agent.machine is None


# ── the daemon's start ──────────────────────────────────────────────────────────────────────────


async def test_machines_that_run_are_taken_up_and_left_alone(tmp_path: Path, clock: MockClock) -> None:
    await write_rows(tmp_path, "a", "b")
    machines = FakeMachines()
    running = [machines.add("a"), machines.add("b")]
    async with hive_at(tmp_path, machines) as hive:
        await trio.sleep(30)

        assert [hive.supervisor.agent(name).machine for name in ("a", "b")] == running
        assert machines.did == ["leftovers but a b"]
        assert (hive.told, hive.kicked) == ([], [])


async def test_what_should_run_after_a_reboot_runs_and_nobody_is_told_or_kicked(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, "a", "b")
    async with hive_at(tmp_path) as hive:
        await hive.settle(lambda: len(hive.machines.running) == 2)

        assert (hive.told, hive.kicked) == ([], [])


async def test_the_manager_is_up_before_anybody_else_and_the_others_come_a_few_at_a_time(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, *(f"a{number}" for number in range(6)), "manager")
    names = [f"a{number}" for number in range(6)]
    machines = FakeMachines(slow={name: trio.Event() for name in [*names, "manager"]})
    async with hive_at(tmp_path, machines) as hive:
        await trio.sleep(5)
        assert machines.did[-1] == "start manager"
        assert hive.supervisor.agent("a0").transient == "starting"
        machines.slow["manager"].set()
        await trio.sleep(1)
        assert machines.starting == CONFIG.machines.start_parallel
        for name in names:
            machines.slow[name].set()
        await hive.settle(lambda: len(machines.running) == 7)

        assert machines.most_starting == CONFIG.machines.start_parallel


async def test_a_manager_that_cannot_start_holds_nobody_up(tmp_path: Path, clock: MockClock) -> None:
    await write_rows(tmp_path, "a", "manager")
    machines = FakeMachines(broken={"manager": CannotStart("cannot start manager: no")})
    async with hive_at(tmp_path, machines) as hive:
        await hive.settle(lambda: "a" in hive.machines.running)


async def test_nobody_starts_a_second_machine_while_nobody_can_say_whether_there_is_one(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, "a")
    machines = FakeMachines(unseen={"a": CommandError("busctl: no answer")})
    running = machines.add("a")
    async with hive_at(tmp_path, machines) as hive:
        await trio.sleep(20)
        assert "start a" not in machines.did
        machines.unseen.clear()
        await hive.settle(lambda: hive.supervisor.agent("a").machine is running)
        assert "start a" not in machines.did


async def test_a_machine_of_a_half_destroyed_agent_is_ended(tmp_path: Path, clock: MockClock) -> None:
    await write_rows(tmp_path, "gone")
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store:
        await store.write(agents.want, "gone", Wanted.GONE, 2.0)
    machines = FakeMachines()
    machines.add("gone")
    async with hive_at(tmp_path, machines) as hive:
        await hive.settle(lambda: hive.supervisor.names == [])

        assert machines.running == {}


async def test_an_agent_without_a_socket_harms_nobody_and_is_tried_again(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, "bad", "good")
    machines = FakeMachines()
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, machines)
        hive.no_door.add("bad")
        await nursery.start(hive.supervisor.run)
        await hive.settle(lambda: "good" in machines.running)
        hive.no_door.clear()
        await hive.settle(lambda: "bad" in machines.running)
        nursery.cancel_scope.cancel()


async def test_a_machine_that_runs_gets_its_socket_as_soon_as_it_can_be_had(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, "bob")
    machines = FakeMachines()
    machines.add("bob")
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, machines)
        hive.no_door.add("bob")
        await nursery.start(hive.supervisor.run)
        agent = hive.supervisor.agent("bob")
        assert not agent.has_door
        hive.no_door.clear()
        await hive.settle(lambda: agent.has_door)
        assert "start bob" not in machines.did
        nursery.cancel_scope.cancel()


# ── users and shapes ────────────────────────────────────────────────────────────────────────────


async def test_each_agent_gets_users_of_its_own_and_keeps_them(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.spawn("carol")
        bases = [hive.supervisor.agent(name).row.uid_base for name in ("bob", "carol")]
        assert bases == [BASE, BASE + 65536]

        await hive.supervisor.destroy("bob", purge=False)
        await hive.settle(lambda: hive.supervisor.names == ["carol"])
        await hive.spawn("bob")

        assert hive.supervisor.agent("bob").row.uid_base == BASE


async def test_an_agent_of_a_time_without_machines_gets_users(tmp_path: Path, clock: MockClock) -> None:
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store:
        await store.write(agents.create, "old", 1.0, None, Shape())
    async with hive_at(tmp_path) as hive:
        assert hive.supervisor.agent("old").row.uid_base == BASE
        assert [row.uid_base for row in await hive.store.read(agents.all_agents)] == [BASE]


async def test_no_users_left_refuses_the_spawn_and_leaves_nothing(tmp_path: Path, clock: MockClock) -> None:
    def none_left(_name: str, _rows: Sequence[AgentRow]) -> int:
        raise NoRangeLeft("all 2 uid ranges from 5 on are taken")

    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, FakeMachines())
        supervisor = Supervisor(store, hive.machines, hive._hooks(), lambda: CONFIG, none_left)
        await nursery.start(supervisor.run)
        with pytest.raises(Refused, match="cannot spawn bob: all 2 uid ranges") as refused:
            await supervisor.spawn("bob")
        assert refused.value.code is ErrorCode.UNAVAILABLE
        assert supervisor.names == []
        assert await store.read(agents.all_agents) == []
        nursery.cancel_scope.cancel()


async def test_a_name_too_long_for_a_machine_is_refused_where_there_are_machines(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.supervisor.spawn("x" * 62)
        with pytest.raises(Refused, match="too long for the name of a machine: use 62 characters at most"):
            await hive.supervisor.spawn("x" * 63)
    (tmp_path / "local").mkdir()
    async with hive_at(tmp_path / "local", FakeMachines(isolation="none")) as hive:
        await hive.supervisor.spawn("x" * 63)


async def test_the_manager_can_be_spawned_and_nobody_else_of_a_reserved_name(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("manager")
        with pytest.raises(Refused, match="'system' is reserved"):
            await hive.supervisor.spawn("system")


async def test_limits_are_applied_to_what_runs_and_kept_only_if_that_works(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.supervisor.reshape("bob", lambda shape: Shape(image=shape.image, tasks_max=100))
        assert hive.machines.limited == [Shape(tasks_max=100)]
        hive.machines.broken["bob"] = CannotStart("cannot limit bob: too little")
        with pytest.raises(Refused, match="cannot limit bob: too little"):
            await hive.supervisor.reshape("bob", lambda _: Shape(tasks_max=64))

        (row,) = await hive.store.read(agents.all_agents)
        assert row.shape == hive.supervisor.agent("bob").row.shape == Shape(tasks_max=100)


async def test_limits_changed_while_it_starts_are_applied_when_it_runs(
    tmp_path: Path, clock: MockClock
) -> None:
    machines = FakeMachines(slow={"bob": trio.Event()})
    async with hive_at(tmp_path, machines) as hive:
        await hive.supervisor.spawn("bob")
        await hive.settle(lambda: machines.starting)
        await hive.supervisor.reshape("bob", lambda _: Shape(tasks_max=100))
        assert machines.limited == []
        machines.slow["bob"].set()
        await hive.settle(lambda: machines.limited)

        assert machines.limited == [Shape(tasks_max=100)]


async def test_what_cannot_be_ended_keeps_its_uids_and_its_state_until_the_next_daemon(
    tmp_path: Path, clock: MockClock
) -> None:
    machines = FakeMachines(clinging={"bob": CommandError("systemctl: not done within 20 s")})
    async with hive_at(tmp_path, machines) as hive:
        await hive.spawn("bob")
        await hive.supervisor.destroy("bob", purge=True)
        await hive.settle(lambda: "bob" not in hive.supervisor.names)
        assert hive.purged == []
        assert hive.told[-1] == '{"event":"destroyed","agent":"bob"}'
        assert [row.uid_base for row in await hive.store.read(agents.all_agents)] == [BASE]

    machines.clinging.clear()
    async with hive_at(tmp_path, machines) as hive:
        await hive.settle(lambda: hive.purged)
        await hive.settle(lambda: "bob" not in hive.supervisor.names)
        assert await hive.store.read(agents.all_agents) == []


async def test_limits_of_a_stopped_agent_wait_for_its_start(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.supervisor.stop("bob", graceful=False)
        await hive.settle(lambda: hive.supervisor.agent("bob").machine is None)
        await hive.supervisor.reshape("bob", lambda _: Shape(tasks_max=100))

        assert hive.machines.limited == []
        assert hive.supervisor.agent("bob").row.shape == Shape(tasks_max=100)


async def test_everything_that_can_be_cancelled_leaves_no_transient(tmp_path: Path, clock: MockClock) -> None:
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store:
        hive = Hive(store, FakeMachines(slow={"a": trio.Event()}, stubborn={"b"}))
        async with trio.open_nursery() as nursery:
            await nursery.start(hive.supervisor.run)
            await hive.supervisor.spawn("a")
            await hive.spawn("b")
            await hive.supervisor.restart("b")
            await wait_all_tasks_blocked(0.02)
            found = [hive.supervisor.agent(name).transient for name in ("a", "b")]
            nursery.cancel_scope.cancel()

        assert found == ["starting", "restarting"]
        assert [hive.supervisor.agent(name).transient for name in ("a", "b")] == [None, None]


# ── held while it comes up, purged when it is gone already ──────────────────────────────────────


@pytest.mark.parametrize("broken", [False, True])
async def test_an_agent_is_handed_no_message_before_its_machine_is_up(
    tmp_path: Path, clock: MockClock, broken: bool
) -> None:
    slow = trio.Event()
    machines = FakeMachines(slow={"bob": slow}, broken={"bob": CannotStart("no")} if broken else {})
    async with hive_at(tmp_path, machines) as hive:
        await hive.supervisor.spawn("bob")
        await hive.settle(lambda: "start bob" in hive.machines.did)
        during = list(hive.held)
        slow.set()
        await hive.settle(lambda: len(hive.held) > 1)

        assert during == [("bob", True)]
        assert hive.held[:2] == [("bob", True), ("bob", False)]


async def test_one_that_was_destroyed_is_purged_without_being_spawned_again(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.supervisor.destroy("bob", purge=False)
        await hive.settle(lambda: hive.supervisor.names == [])
        assert [row.name for row in await hive.store.read(agents.all_agents)] == ["bob"]
        hive.machines.did.clear()

        await hive.supervisor.destroy("bob", purge=True)
        await hive.settle(lambda: hive.supervisor.names == [])

        assert await hive.store.read(agents.all_agents) == []
        assert not any(done.startswith("start") for done in hive.machines.did)
        with pytest.raises(Refused, match="bob"):
            await hive.supervisor.destroy("bob", purge=True)

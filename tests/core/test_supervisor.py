"""Wishes and what becomes of them, with machines that do as the test says."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from hive_core.config import Approvals, Config, DeclaredAgent, Machines
from hive_core.declarable import Limits
from hive_core.declarations import Declarations
from hive_core.domain.agent import AgentRow, Declared
from hive_core.domain.cage import CannotStart, MachineFacts, Shape, Usage
from hive_core.domain.helper_event import Condition, HelperEvent, render_body
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.domain.uid_range import NoRangeLeft
from hive_core.host.process import CommandError
from hive_core.keeper import Hooks
from hive_core.machines import ActivationFailed
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
    given: dict[str, Manifest] = field(default_factory=dict)
    unswitchable: dict[str, Exception] = field(default_factory=dict)
    needs_start: bool = False
    """Nothing can be changed in a machine that runs."""
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
            self.given[row.name] = row.manifest
            return self.add(row.name)
        finally:
            self.starting -= 1

    def add(self, agent: str) -> FakeMachine:
        machine = self.running[agent] = FakeMachine(self, agent, 1000 + len(self.did))
        return machine

    async def switch(self, row: AgentRow) -> bool:
        await trio.lowlevel.checkpoint()
        if row.name in self.unswitchable:
            raise self.unswitchable[row.name]
        if self.needs_start or row.manifest != self.given.get(row.name, NOTHING):
            return False
        self.did.append(f"switch {row.name}")
        return True

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
    def __init__(self, store: Store[MailboxOp], machines: FakeMachines, config: Config = CONFIG) -> None:
        self.store, self.machines = store, machines
        self.told: list[str] = []
        self.held: list[tuple[str, bool]] = []
        self.pinned: dict[str, object] = {}
        self.kicked: list[str] = []
        self.said: list[tuple[str, str]] = []
        self.mute: set[str] = set()
        self.shown: list[tuple[str, str | None]] = []
        self.noticed: list[tuple[str, bool | None]] = []
        self.laid_out: list[tuple[str, str | None]] = []
        self.quiesced = trio.Event()
        self.no_door: set[str] = set()
        self.purged: list[str] = []
        self.uids = iter(range(BASE, BASE + 100 * 65536, 65536))
        self.supervisor = Supervisor(
            store, machines, self._hooks(), lambda: config, lambda _name, _rows: next(self.uids)
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

        async def connected(name: str) -> None:
            if name in self.mute:
                await trio.sleep_forever()
            await trio.lowlevel.checkpoint()

        def tell(event: HelperEvent) -> None:
            self.told.append(render_body(event))

        def changed(name: str) -> None:
            if name in self.supervisor.names:
                transient = self.supervisor.agent(name).transient
                entry = (name, None if transient is None else transient.value)
                if not self.shown or self.shown[-1] != entry:
                    self.shown.append(entry)

        async def lay_out(row: AgentRow) -> None:
            if row.name not in self.machines.running:
                self.laid_out.append((row.name, row.deployed_sha))

        def notice(name: str, now: Condition) -> None:
            self.noticed.append((name, now.needs_update))

        return Hooks(
            enlist=enlist,
            open_door=open_door,
            vanish=vanish,
            purge=purge,
            lay_out=lay_out,
            quiesce=quiesce,
            pause=lambda _name, _paused: None,
            hold=lambda name, held: self.held.append((name, held)),
            pin=lambda name, recipients: self.pinned.__setitem__(name, recipients),
            changed=changed,
            kick=self.kicked.append,
            say=lambda name, text: self.said.append((name, text)),
            connected=connected,
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
async def hive_at(
    path: Path, machines: FakeMachines | None = None, *, config: Config = CONFIG
) -> AsyncIterator[Hive]:
    async with open_store(path / "broker.sqlite", apply_batch) as store, trio.open_nursery() as nursery:
        hive = Hive(store, machines or FakeMachines(), config)
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


async def test_what_was_deployed_is_laid_out_before_every_start(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        first = await hive.spawn("bob")
        assert hive.laid_out == [("bob", None)]
        await hive.supervisor.note_deployed("bob", "1" * 40, "deployed/1", NOTHING)
        await hive.supervisor.restart("bob")
        await hive.settle(lambda: hive.machines.running.get("bob") not in (None, first))

        assert hive.laid_out == [("bob", None), ("bob", "1" * 40)]


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


# ── what is deployed ────────────────────────────────────────────────────────────────────────────


CLAUDE = Manifest(provider="claude")


def declared(number: int, manifest: Manifest = NOTHING, shape: Shape | None = None) -> Declared:
    return Declared(shape or Shape(), manifest, f"{number}" * 40, f"deployed/{number}")


async def activate(hive: Hive, wanted: Declared) -> list[str]:
    lines: list[str] = []
    with trio.fail_after(600):
        await hive.supervisor.activate("bob", wanted, say=lines.append)
    return lines


async def test_what_needs_no_start_is_done_in_the_running_machine(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        machine = await hive.spawn("bob")
        wanted = declared(1, shape=Shape(memory_max_bytes=2**30))
        await activate(hive, wanted)

        assert hive.machines.running["bob"] is machine
        assert hive.machines.did[-1] == "switch bob"
        assert hive.supervisor.agent("bob").row.declared == wanted
        assert (await hive.store.read(agents.all_agents))[0].declared == wanted
        assert hive.said == [
            ("bob", "Your configuration deployed/1 runs now: nothing had to be started again for it.")
        ]


async def test_what_needs_a_start_waits_for_the_turn_and_is_told(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        machine = await hive.spawn("bob")
        nursery.start_soon(activate, hive, declared(2, CLAUDE))
        await hive.settle(lambda: hive.supervisor.agent("bob").quiescing)
        assert hive.machines.running["bob"] is machine
        assert hive.supervisor.agent("bob").transient == "rebuilding"
        hive.quiesced.set()
        await hive.settle(lambda: hive.machines.running.get("bob") not in (None, machine))

        assert hive.machines.given["bob"] == CLAUDE
        assert hive.said[0][1].startswith("Your configuration deployed/2 runs now: you were started again")
        assert hive.kicked == []
        assert len(hive.told) == 1  # of the spawn: who deploys tells of the rest


async def test_the_same_again_changes_nothing_and_says_nothing(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        hive.quiesced.set()
        await hive.spawn("bob")
        await activate(hive, declared(1, CLAUDE))
        machine, said = hive.machines.running["bob"], list(hive.said)
        await activate(hive, declared(1, CLAUDE))

        assert hive.machines.running["bob"] is machine
        assert hive.said == said


async def test_a_new_daemon_finds_what_runs_already(tmp_path: Path, clock: MockClock) -> None:
    machines = FakeMachines()
    async with hive_at(tmp_path, machines) as hive:
        hive.quiesced.set()
        await hive.spawn("bob")
        await activate(hive, declared(1, CLAUDE))
    machine = machines.running["bob"]
    async with hive_at(tmp_path, machines) as hive:
        assert hive.supervisor.agent("bob").row.declared == declared(1, CLAUDE)
        await activate(hive, declared(1, CLAUDE))

        assert machines.running["bob"] is machine
        assert hive.said == []


async def test_an_agent_that_is_not_to_run_only_gets_the_row(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await hive.supervisor.stop("bob", graceful=False)
        await hive.settle(lambda: hive.supervisor.agent("bob").machine is None)
        did = list(hive.machines.did)
        await activate(hive, declared(1, CLAUDE))

        assert hive.machines.did == did
        assert hive.supervisor.agent("bob").row.manifest == CLAUDE


async def test_what_cannot_be_had_leaves_the_old_machine_running(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        machine = await hive.spawn("bob")
        before = hive.supervisor.agent("bob").row.declared
        hive.machines.unswitchable["bob"] = CannotStart("cannot start bob: there is no image x")
        with pytest.raises(ActivationFailed, match="there is no image x"):
            await activate(hive, declared(1, CLAUDE))
        assert hive.machines.running["bob"] is machine

        hive.machines.unswitchable.clear()
        await activate(hive, before)
        assert hive.machines.running["bob"] is machine
        assert hive.said == [], "nothing has changed for it"


async def test_a_start_that_fails_fails_the_activation_and_one_can_go_back(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        hive.quiesced.set()
        await hive.spawn("bob")
        hive.machines.broken["bob"] = CannotStart("cannot start bob: its init died")
        with pytest.raises(ActivationFailed, match="its init died"):
            await activate(hive, declared(1, CLAUDE))
        hive.machines.broken.clear()
        await activate(hive, declared(0))

        assert hive.machines.given["bob"] == NOTHING
        assert hive.supervisor.agent("bob").row.deployed_tag == "deployed/0"
        ((_, told),) = hive.said
        assert told.startswith("Your configuration deployed/0 runs now: you were started again for it.")


async def test_a_machine_that_ends_at_once_did_not_come_up(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        hive.quiesced.set()
        first = await hive.spawn("bob")
        hive.mute.add("bob")

        async def crash() -> None:
            await hive.settle(lambda: hive.machines.running.get("bob") not in (None, first))
            hive.machines.running["bob"].end("exit status 2")

        nursery.start_soon(crash)
        with pytest.raises(ActivationFailed, match="it ended again at once: exit status 2"):
            await activate(hive, declared(1, CLAUDE))


async def test_a_harness_that_says_nothing_is_not_waited_for_long(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        hive.quiesced.set()
        await hive.spawn("bob")
        hive.mute.add("bob")
        began = trio.current_time()
        lines = await activate(hive, declared(1, CLAUDE))

        assert lines[-1] == "The machine is up; its harness has not connected yet"
        assert trio.current_time() - began < 30


async def test_an_agent_that_is_destroyed_meanwhile_fails_the_activation(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        await hive.spawn("bob")

        async def destroy() -> None:
            await hive.settle(lambda: hive.supervisor.agent("bob").quiescing)
            await hive.supervisor.destroy("bob", purge=False)

        nursery.start_soon(destroy)
        with pytest.raises(ActivationFailed, match="destroyed"):
            await activate(hive, declared(1, CLAUDE))
        await hive.settle(lambda: "bob" not in hive.supervisor.names)
        with pytest.raises(ActivationFailed, match="cannot find agent 'bob'"):
            await activate(hive, declared(1, CLAUDE))


async def test_a_stop_in_the_midst_is_obeyed_and_the_row_stays(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        await hive.spawn("bob")

        async def stop() -> None:
            await hive.settle(lambda: hive.supervisor.agent("bob").quiescing)
            await hive.supervisor.stop("bob", graceful=False)

        nursery.start_soon(stop)
        await activate(hive, declared(1, CLAUDE))
        await hive.settle(lambda: hive.supervisor.agent("bob").machine is None)

        assert hive.supervisor.agent("bob").row.wanted is Wanted.STOPPED
        assert hive.supervisor.agent("bob").row.manifest == CLAUDE


async def test_a_start_that_was_under_way_is_done_again_with_the_new(
    tmp_path: Path, clock: MockClock
) -> None:
    machines = FakeMachines(slow={"bob": trio.Event()})
    async with hive_at(tmp_path, machines) as hive, trio.open_nursery() as nursery:
        hive.quiesced.set()
        await hive.supervisor.spawn("bob")
        await hive.settle(lambda: machines.starting)
        nursery.start_soon(activate, hive, declared(1, CLAUDE))
        await hive.settle(lambda: hive.supervisor.agent("bob").activation)
        machines.slow["bob"].set()
        await hive.settle(lambda: machines.given.get("bob") == CLAUDE)

        assert machines.did.count("start bob") == 2


async def test_a_deployed_agent_begins_as_declared_and_nobody_is_told_twice(
    tmp_path: Path, clock: MockClock
) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.supervisor.spawn("bob", declared=declared(0, CLAUDE))
        await activate(hive, declared(0, CLAUDE))

        assert hive.machines.given["bob"] == CLAUDE
        assert hive.machines.did.count("start bob") == 1
        assert (hive.told, hive.said) == ([], [])


async def test_who_is_taken_up_again_runs_with_what_was_deployed(tmp_path: Path, clock: MockClock) -> None:
    limited = Manifest(provider="claude", limits=Limits(memory="1G", cpu="50%"))
    async with hive_at(tmp_path) as hive:
        await hive.supervisor.spawn("bob", declared=declared(3, limited, Shape(memory_max_bytes=2**30)))
        await activate(hive, declared(3, limited, Shape(memory_max_bytes=2**30)))
        await hive.supervisor.destroy("bob", purge=False)
        await hive.settle(lambda: "bob" not in hive.supervisor.names)
        await hive.supervisor.spawn("bob", Shape(memory_max_bytes=2**31))
        await hive.settle(lambda: hive.supervisor.agent("bob").machine)

        row = hive.supervisor.agent("bob").row
        assert row.deployed_tag == "deployed/3"
        assert row.manifest == limited
        assert row.shape == Shape(memory_max_bytes=2**31, cpu_quota_percent=50)
        assert hive.machines.given["bob"] == limited


async def test_what_is_noted_of_a_deploy_starts_nothing(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        machine = await hive.spawn("bob")
        await hive.supervisor.note_deployed("bob", "a" * 40, "deployed/0", NOTHING)

        assert hive.machines.running["bob"] is machine
        assert (await hive.store.read(agents.all_agents))[0].deployed_sha == "a" * 40


# ── the manager ─────────────────────────────────────────────────────────────────────────────────


async def test_a_hive_that_is_to_have_a_manager_makes_one_and_keeps_it(
    tmp_path: Path, clock: MockClock
) -> None:
    config = msgspec.structs.replace(CONFIG, approvals=Approvals(manager=True))
    async with hive_at(tmp_path, config=config) as hive:
        assert hive.supervisor.names == ["manager"]
        await hive.settle(lambda: hive.supervisor.agent("manager").machine)
        row = hive.supervisor.agent("manager").row
        assert row.uid_base == BASE
        for purge in (False, True):
            with pytest.raises(Refused) as refused:
                await hive.supervisor.destroy("manager", purge=purge)
            assert (refused.value.code, refused.value.reason) == (ErrorCode.CONFLICT, "manager")
        await hive.supervisor.stop("manager", graceful=False)
        await hive.settle(lambda: hive.supervisor.agent("manager").machine is None)
    async with hive_at(tmp_path, config=config) as hive:
        assert hive.supervisor.agent("manager").row.wanted is Wanted.STOPPED


async def test_a_manager_that_an_older_version_destroyed_is_taken_up(
    tmp_path: Path, clock: MockClock
) -> None:
    await write_rows(tmp_path, "manager")
    async with open_store(tmp_path / "broker.sqlite", apply_batch) as store:
        await store.write(agents.want, "manager", Wanted.GONE, 5.0)
    config = msgspec.structs.replace(CONFIG, approvals=Approvals(manager=True))
    async with hive_at(tmp_path, config=config) as hive:
        row = hive.supervisor.agent("manager").row

        assert (row.wanted, row.destroyed_at) == (Wanted.RUNNING, None)
        assert row.uid_base == BASE + 50 * 65536


async def test_a_hive_without_a_manager_gets_none_by_itself(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        assert hive.supervisor.names == []


# ── what the host's configuration says ──────────────────────────────────────────────────────────


async def declare(hive: Hive, declaration: DeclaredAgent | None) -> None:
    with trio.fail_after(600):
        await hive.supervisor.declare("bob", declaration, say=lambda _line: None)


async def stored(hive: Hive) -> AgentRow:
    (row,) = await hive.store.read(agents.all_agents)
    return row


async def test_what_the_host_says_is_kept_when_it_is_so(tmp_path: Path, clock: MockClock) -> None:
    slow = DeclaredAgent(model="slow", recipients=["alice"])
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        machine = await hive.spawn("bob")
        hive.machines.needs_start = True
        nursery.start_soon(declare, hive, slow)
        await hive.settle(lambda: hive.supervisor.agent("bob").quiescing)

        assert (await stored(hive)).declaration is None  # a daemon that is killed now does it again
        assert hive.pinned["bob"] == ["alice"]
        hive.quiesced.set()
        await hive.settle(lambda: hive.machines.running.get("bob") not in (None, machine))
        await hive.settle(lambda: hive.said)
        (said,) = hive.said
        assert said[1].startswith(
            "What the host's configuration says of you runs now: you were started again"
        )
    async with hive_at(tmp_path, hive.machines) as hive:
        assert hive.supervisor.agent("bob").row.declaration == slow
        assert hive.pinned["bob"] == ["alice"]


async def test_what_holds_at_once_wakes_nobody(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        machine = await hive.spawn("bob")
        await declare(hive, DeclaredAgent(recipients=[]))
        assert hive.pinned["bob"] == []
        await declare(hive, None)

        assert hive.pinned["bob"] is None
        assert hive.machines.running["bob"] is machine
        assert hive.said == []


async def test_what_cannot_be_had_of_it_is_noted_and_shown(tmp_path: Path, clock: MockClock) -> None:
    good, bad = DeclaredAgent(model="good"), DeclaredAgent(model="bad")
    async with hive_at(tmp_path) as hive:
        await hive.spawn("bob")
        await declare(hive, good)
        hive.machines.unswitchable["bob"] = CannotStart("cannot start bob: no such thing")
        with pytest.raises(ActivationFailed, match="no such thing"):
            await declare(hive, bad)
        assert (await stored(hive)).declaration == good

        hive.machines.unswitchable.clear()
        await declare(hive, good)
        await hive.supervisor.refuse_declaration("bob", "f")
        await hive.settle(lambda: hive.supervisor.agent("bob").needs_update)
        assert (await stored(hive)).refused_declaration == "f"
        await declare(hive, DeclaredAgent(model="better"))
        await hive.settle(lambda: not hive.supervisor.agent("bob").needs_update)
        assert (await stored(hive)).refused_declaration is None


async def test_who_is_declared_to_start_starts_also_after_a_kill(
    tmp_path: Path, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(name: str) -> None:
        await trio.sleep_forever()  # the daemon is dead here

    config = Config(agents={"bob": DeclaredAgent(auto_start=True)})
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        stays = DeclaredAgent(auto_start=False)
        await hive.supervisor.spawn("bob", declaration=stays, wanted=Wanted.STOPPED)
        monkeypatch.setattr(hive.supervisor, "start", never)
        declarations = Declarations(hive.supervisor, lambda: config, tmp_path / "hive.toml", print)
        await nursery.start(declarations.run)
        await hive.settle(lambda: hive.supervisor.agent("bob").row.declaration == config.agents["bob"])
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    async with hive_at(tmp_path, hive.machines) as hive:
        await hive.settle(lambda: "bob" in hive.machines.running)


async def test_what_is_said_of_it_during_a_deploy_stays(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.supervisor.spawn("bob", wanted=Wanted.STOPPED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(activate, hive, declared(2, CLAUDE))
            nursery.start_soon(hive.supervisor.set_status, "bob", "reading")

        row = hive.supervisor.agent("bob").row
        assert (row.status_text, row.manifest) == ("reading", CLAUDE)


async def test_a_deploy_and_the_host_wait_for_each_other(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive, trio.open_nursery() as nursery:
        await hive.spawn("bob")
        nursery.start_soon(activate, hive, declared(2, CLAUDE))
        await hive.settle(lambda: hive.supervisor.agent("bob").quiescing)
        nursery.start_soon(declare, hive, DeclaredAgent(model="host"))
        await wait_all_tasks_blocked()
        assert hive.supervisor.agent("bob").row.declaration is None
        hive.quiesced.set()
        await hive.settle(lambda: hive.supervisor.agent("bob").row.declaration)

        row = hive.supervisor.agent("bob").row
        assert (row.manifest, row.declared) == (CLAUDE, declared(2, CLAUDE))


async def test_one_that_is_destroyed_is_declared_no_more(tmp_path: Path, clock: MockClock) -> None:
    async with hive_at(tmp_path) as hive:
        await hive.supervisor.spawn("bob", declaration=DeclaredAgent(), wanted=Wanted.STOPPED)
        assert (await stored(hive)).declaration == DeclaredAgent()
        assert hive.supervisor.agent("bob").row.wanted is Wanted.STOPPED
        await hive.supervisor.destroy("bob", purge=False)
        await hive.settle(lambda: not hive.supervisor.names)
        assert (await stored(hive)).declaration is None

        await hive.spawn("bob")
        assert (await stored(hive)).declaration is None

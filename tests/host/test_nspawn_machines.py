"""The machines of a host, on a systemd that is played by scripts."""

import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from host.conftest import Fake, FakeProgram

from hive_core.config import Config, DeclaredAgent, Harness, Machines
from hive_core.declarable import Bind, Limits, McpServer
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, Network, Shape, Usage
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import Manifest
from hive_core.host import cgroup, machine_watch, machinectl, nix_roots, nspawn, nspawn_machine
from hive_core.host import usage as usage_module
from hive_core.host.blueprint import Blueprints
from hive_core.host.images import Image, Images, Kind, upper_dir
from hive_core.host.nspawn_machines import NspawnMachines, SwitchLive
from hive_core.host.process import CommandError
from hive_core.layout import Layout

BOB = AgentRow("bob", Wanted.RUNNING, False, 0.0, uid_base=os.geteuid(), shape=Shape(image="debian"))
UNIT = "systemd-nspawn@h-bob.service"
SHOWN = """\
MainPID={main_pid}
Result={result}
ExecMainCode={code}
ExecMainStatus={status}
ControlGroup=/machine.slice/systemd-nspawn@h-bob.service
ActiveState={active}
SubState=x
DropInPaths={drop_ins}
NeedDaemonReload=no
"""
NO_MACHINES = '{"type":"a(ssso)","data":[[]]}'
LISTED = '{"type":"a(ssssssouso)","data":[[["%s","","loaded","%s","","","/",0,"","/"]]]}'


class FakeSystemd:
    """A systemd with one unit, whose state is a file; *nspawn* is the process that its machine consists of."""

    def __init__(self, directory: Path, fake_program: Fake, nspawn_pid: int) -> None:
        self.directory = directory
        self.pid = nspawn_pid
        self.drop_ins = ""
        directory.mkdir()
        self.say(active="inactive")
        self.say(active="active", main_pid=nspawn_pid, file="started")
        self.systemctl = fake_program("systemctl", f"case $1 in show) cat {directory}/now;; esac")
        self.machinectl = self.on_start(fake_program, f"cp {directory}/started {directory}/now")
        self.journalctl = fake_program(
            "journalctl", f"case $1 in --sync) ;; *) cat {directory}/journal;; esac"
        )
        (directory / "journal").touch()
        (directory / "signals").touch()
        fake_program(
            "busctl",
            f"case \"$*\" in *ListMachines) echo '{NO_MACHINES}';; *monitor*) exec tail -n +1 -f {directory}/signals;;"
            f" *) cat {directory}/units;; esac",
        )

    def on_start(self, fake_program: Fake, script: str) -> FakeProgram:
        return fake_program("machinectl", f"case $2 in start) {script};; esac")

    def say(
        self,
        *,
        active: str,
        main_pid: int = 0,
        result: str = "success",
        code: int = 0,
        status: int = 0,
        file: str = "now",
    ) -> None:
        text = SHOWN.format(
            active=active, main_pid=main_pid, result=result, code=code, status=status, drop_ins=self.drop_ins
        )
        # At once, since somebody may be reading.
        (self.directory / "new").write_text(text)
        (self.directory / "new").rename(self.directory / file)
        if file == "now":
            (self.directory / "units").write_text(LISTED % (UNIT, active))

    @property
    def verbs(self) -> list[str]:
        """What systemctl was told to do, questions left out."""
        calls = [call.removeprefix("--quiet ") for call in self.systemctl.calls]
        return [call.split()[0] for call in calls if not call.startswith("show")]


@pytest.fixture
def nspawn_process() -> Iterator[subprocess.Popen[bytes]]:
    """What would be nspawn."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def systemd(
    tmp_path: Path,
    fake_program: Fake,
    nspawn_process: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> FakeSystemd:
    for name in ("SETTINGS_DIR", "ADMIN_SETTINGS_DIR", "UNIT_DIR"):
        monkeypatch.setattr(nspawn, name, tmp_path / name.lower())
        (tmp_path / name.lower()).mkdir()
    for function in (nix_roots.pin_booted, nix_roots.unpin_booted):
        monkeypatch.setattr(nix_roots, function.__name__, partial(function, roots=tmp_path / "gcroots"))
    monkeypatch.setattr(cgroup, "unit_of", lambda pid: UNIT if pid == nspawn_process.pid else None)
    return FakeSystemd(tmp_path / "systemd", fake_program, nspawn_process.pid)


@pytest.fixture
def make(tmp_path: Path, systemd: FakeSystemd) -> Callable[..., NspawnMachines]:
    """Give what makes a daemon's machines, on the same disk each time."""
    layout = Layout(tmp_path, tmp_path / "run", tmp_path / "state")
    dirs = layout.agent("bob")
    for path in (dirs.run, dirs.state, dirs.claude, layout.config_of("bob")):
        path.mkdir(parents=True)
    tree = tmp_path / "machines" / "debian"
    for path in (tree / "usr/bin", tree / "sbin"):
        path.mkdir(parents=True)
    (tree / "sbin/init").touch()

    def made(
        config: Config | None = None,
        appeared: Callable[[str], None] = lambda _: None,
        *,
        switch_live: SwitchLive | None = None,
        home: Path | None = None,
    ) -> NspawnMachines:
        settings = config or Config()
        where = layout if home is None else replace(layout, home=home)
        return NspawnMachines(where, lambda: settings, Images(tmp_path / "machines"), appeared, switch_live)

    return made


Make = Callable[..., NspawnMachines]


async def test_a_start_writes_everything_before_it_starts_anything(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    machine = await make(Config(harness=Harness(environment={"KEY": 'a"b$c'}))).start(BOB)

    assert machine.pid == systemd.pid
    assert systemd.verbs == ["daemon-reload", "reset-failed", "set-property"]
    assert systemd.machinectl.calls == ["--quiet start -- h-bob"]
    settings = (tmp_path / "settings_dir/h-bob.nspawn").read_text()
    assert settings.startswith(f"# Written by hive-core for agent bob.\n# digest={machine.digest}\n[Exec]\n")
    environment = tmp_path / "run/agents/bob/environment"
    assert stat.S_IMODE(environment.stat().st_mode) == 0o600
    assert {'HIVE_LABEL="bob"', 'KEY="a\\"b\\$c"'} <= set(environment.read_text().splitlines())
    assert (tmp_path / f"unit_dir/{UNIT}.d/50-hive.conf").exists()
    assert (tmp_path / "run/agents/bob/hive-agent.service").exists()
    assert (tmp_path / "machines/h-bob/usr").is_dir()


async def test_the_closure_of_a_machine_is_kept_until_another_one_takes_its_place_or_it_is_gone(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, root = Images(tmp_path / "machines"), tmp_path / "gcroots/bob-booted"
    closure = replace(images.resolve("debian"), kind=Kind.NIX, path=Path("/nix/store/one"))
    resolved = {"debian": images.resolve("debian"), "/nix/store/one": closure}
    monkeypatch.setattr(Images, "resolve", lambda _self, name, _agent="": resolved[name])
    of_nix = replace(BOB, shape=Shape(image="/nix/store/one"))

    for then in ("a tree", "nothing"):
        systemd.say(active="inactive")
        machines = make()
        await machines.start(of_nix)
        assert root.readlink() == Path("/nix/store/one")
        systemd.say(active="inactive")
        if then == "a tree":
            await make().start(BOB)
        else:
            await make().forget("bob")
        assert not root.is_symlink()


async def test_systemd_reads_its_units_again_only_when_one_has_changed(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    machines = make()
    await machines.start(BOB)
    systemd.drop_ins = str(nspawn.drop_in_path("h-bob"))
    systemd.say(active="inactive")
    machines = make()

    await machines.start(BOB)

    assert systemd.verbs.count("daemon-reload") == 1


async def test_a_failed_start_says_what_systemd_said_and_leaves_nothing(
    make: Make, systemd: FakeSystemd, fake_program: Fake
) -> None:
    (systemd.directory / "journal").write_text(
        '{"MESSAGE":"Failed to stat /nowhere: No such file","SYSLOG_IDENTIFIER":"systemd-nspawn"}\n'
    )
    systemd.say(active="failed", result="exit-code", file="started")
    script = f"cp {systemd.directory}/started {systemd.directory}/now; exit 1"
    systemd.on_start(fake_program, script)
    machines = make()

    with pytest.raises(CannotStart) as refusal:
        await machines.start(BOB)

    assert str(refusal.value) == (
        "cannot start bob: its machine did not come up: Failed to stat /nowhere: No such file"
    )
    assert systemd.verbs[-2:] == ["kill", "stop"]
    assert await machines.find("bob") is None


async def test_a_start_that_takes_too_long_is_ended(
    make: Make, systemd: FakeSystemd, fake_program: Fake
) -> None:
    systemd.say(active="activating", main_pid=systemd.pid, file="started")
    systemd.on_start(fake_program, f"cp {systemd.directory}/started {systemd.directory}/now; exec sleep 1000")

    with pytest.raises(CannotStart, match="was not up within 1 s"):
        await make(Config(machines=Machines(start_timeout_s=1))).start(BOB)

    assert systemd.verbs[-2:] == ["kill", "stop"]


async def test_a_cancelled_start_leaves_nothing(
    make: Make, systemd: FakeSystemd, fake_program: Fake, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "begun")
    systemd.on_start(fake_program, f"echo > {tmp_path}/begun; exec sleep 1000")
    machines = make()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(machines.start, BOB)
        async with await trio.open_file(tmp_path / "begun") as begun:
            await begun.read()
        nursery.cancel_scope.cancel()

    assert systemd.verbs[-2:] == ["kill", "stop"]
    assert await machines.find("bob") is None


async def test_what_a_killed_daemon_was_starting_is_ended_and_started_anew(
    make: Make, systemd: FakeSystemd
) -> None:
    await make().start(BOB)
    systemd.say(active="activating", main_pid=systemd.pid)
    machines = make()

    assert await machines.find("bob") is None
    await machines.start(BOB)

    assert systemd.verbs[3:5] == ["kill", "stop"]
    assert len(systemd.machinectl.calls) == 2


async def test_another_daemon_finds_it_as_it_was_started(make: Make, systemd: FakeSystemd) -> None:
    started = await make().start(BOB)
    systemd.say(active="active", main_pid=systemd.pid)
    machines = make()

    found = await machines.find("bob")

    assert found is not None
    assert found.pid == started.pid
    assert machines.applied("bob") == started.digest == machines.declared(BOB)
    assert await machines.find("bob") is found
    assert await machines.start(BOB) is found, "it runs"


async def test_what_would_be_started_differently_has_another_digest(make: Make, systemd: FakeSystemd) -> None:
    machines = make()
    digest = machines.declared(BOB)

    assert digest is not None
    assert machines.declared(replace(BOB, status_text="busy", paused=True)) == digest
    assert machines.declared(replace(BOB, shape=Shape("debian", tasks_max=99))) == digest, (
        "that needs no start"
    )
    assert make(Config(harness=Harness(environment={"A": "b"}))).declared(BOB) not in {digest, None}
    assert machines.declared(replace(BOB, shape=Shape("none-such"))) is None
    assert machines.applied("bob") is None


def deploy(tmp_path: Path, number: int, manifest: Manifest, **files: str) -> AgentRow:
    """Lay out a release of bob, and give the row that has it deployed."""
    config = tmp_path / "state/releases/bob" / (f"{number}" * 40) / "config"
    config.mkdir(parents=True)
    for name, text in files.items():
        (config / name).write_text(text)
    return replace(BOB, manifest=manifest, deployed_sha=f"{number}" * 40, deployed_tag=f"deployed/{number}")


async def test_a_machine_gets_what_was_deployed(make: Make, systemd: FakeSystemd, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    manifest = Manifest(
        provider="claude", prompt="task", environment={"A": "b"}, binds=[Bind(source=f"{tmp_path}/data")]
    )
    row = deploy(tmp_path, 1, manifest, task="do it")
    # Else the data would lie in the hive's home.
    await make(home=tmp_path / "home").start(row)

    settings = (tmp_path / "settings_dir/h-bob.nspawn").read_text().splitlines()
    assert f"BindReadOnly={tmp_path}/state/releases/bob:/etc/hyperhive/release:norbind" in settings
    assert f"BindReadOnly={tmp_path}/data:{tmp_path}/data:idmap,norbind" in settings
    assert (tmp_path / "state/releases/bob/config/task").read_text() == "do it"
    assert set((tmp_path / "run/agents/bob/environment").read_text().splitlines()) >= {
        'A="b"',
        'HIVE_PROVIDER="claude"',
        'HIVE_PROMPT_FILE="/etc/hyperhive/release/config/task"',
        'HIVE_RELEASE="/etc/hyperhive/release"',
    }


async def test_what_a_machine_can_be_shown_needs_no_start(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    prompted = Manifest(prompt="task")
    machines = make()
    await machines.start(deploy(tmp_path, 1, prompted, task="do it", notes="a"))
    limited = deploy(tmp_path, 2, prompted, task="do it", notes="b")
    limited = replace(limited, shape=replace(limited.shape, tasks_max=99))

    assert await machines.switch(limited)

    assert machines.applied("bob") == machines.declared(limited)
    assert (tmp_path / "state/releases/bob/config/notes").read_text() == "b"
    assert "TasksMax=99" in systemd.systemctl.calls[-1]


@pytest.mark.parametrize(
    "manifest",
    [Manifest(provider="x"), Manifest(environment={"A": "b"}), Manifest(prompt="task"), Manifest(model="x")],
)
async def test_what_it_has_for_as_long_as_it_runs_needs_a_start(
    make: Make, systemd: FakeSystemd, tmp_path: Path, manifest: Manifest
) -> None:
    machines = make()
    await machines.start(BOB)
    row = deploy(tmp_path, 1, manifest, task="do it")

    assert not await machines.switch(row)
    assert machines.applied("bob") != machines.declared(row)


async def test_what_the_host_does_not_have_is_said_before_anything_is_stopped(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    machines = make()
    await machines.start(BOB)
    row = deploy(tmp_path, 1, Manifest(binds=[Bind(source="/srv/none-such", path="/x")]))

    with pytest.raises(CannotStart, match="it is to see /srv/none-such: No such file"):
        await machines.switch(row)
    with pytest.raises(CannotStart, match="what was deployed of it is missing"):
        await machines.switch(replace(row, deployed_sha="f" * 40, manifest=Manifest(prompt="task")))
    assert machines.declared(row) is None


class Closures:
    """A store whose closures are names, and a machine that can or cannot be brought to one."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.switched: list[tuple[str, str]] = []
        self.outcome: bool | Exception = True
        tree = Images(tmp_path / "machines").resolve("debian")

        def resolve(_self: Images, name: str, _agent: str = "") -> Image:
            return replace(tree, kind=Kind.NIX, path=Path(name)) if name.startswith("/") else tree

        monkeypatch.setattr(Images, "resolve", resolve)

    async def switch(self, machine: str, closure: str) -> bool:
        self.switched.append((machine, closure))
        await trio.lowlevel.checkpoint()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


ONE, TWO = (replace(BOB, shape=Shape(image=f"/nix/store/{name}")) for name in ("one", "two"))


async def test_another_closure_is_switched_to_and_another_daemon_knows(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closures = Closures(tmp_path, monkeypatch)
    machines = make(switch_live=closures.switch)
    await machines.start(ONE)

    assert await machines.switch(TWO)
    assert await machines.switch(TWO)

    assert closures.switched == [("h-bob", "/nix/store/two")]
    assert machines.applied("bob") == machines.declared(TWO)
    systemd.say(active="active", main_pid=systemd.pid)
    another = make(switch_live=closures.switch)
    await another.find("bob")
    assert await another.switch(TWO)
    assert await another.switch(ONE), "and back"
    assert closures.switched[1:] == [("h-bob", "/nix/store/one")]


async def test_more_than_a_closure_is_not_switched(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closures = Closures(tmp_path, monkeypatch)
    machines = make(switch_live=closures.switch)
    await machines.start(ONE)

    assert not await machines.switch(replace(TWO, manifest=Manifest(provider="x")))
    assert not await machines.switch(BOB), "a tree"
    assert not await make().switch(TWO), "which does not run"
    assert closures.switched == []


async def test_a_switch_that_fails_half_way_leaves_a_machine_that_is_nothing_known(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closures = Closures(tmp_path, monkeypatch)
    machines = make(switch_live=closures.switch)
    await machines.start(ONE)
    closures.outcome = CommandError("exit status 1")

    with pytest.raises(CommandError):
        await machines.switch(TWO)

    assert not await machines.switch(ONE), "it may have some of the other"
    systemd.say(active="active", main_pid=systemd.pid)
    another = make(switch_live=closures.switch)
    assert await another.find("bob") is not None
    assert not await another.switch(ONE)


async def test_what_we_did_not_sign_is_not_ours(make: Make, systemd: FakeSystemd, tmp_path: Path) -> None:
    systemd.say(active="active", main_pid=systemd.pid)
    (tmp_path / "settings_dir/h-bob.nspawn").write_text("[Exec]\nBoot=yes\n")
    machines = make()

    assert await machines.find("bob") is None
    with pytest.raises(CannotStart, match="a machine h-bob runs that is not of this hive"):
        await machines.start(BOB)
    await machines.forget("bob")
    await machines.leftovers([])

    assert systemd.verbs == []


async def test_settings_that_would_win_over_ours_stop_the_start(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    (tmp_path / "admin_settings_dir/h-bob.nspawn").touch()

    with pytest.raises(CannotStart, match=r"cannot start bob: .*h-bob.nspawn would win over the settings"):
        await make().start(BOB)

    assert systemd.machinectl.calls == []


async def test_state_of_somebody_else_stops_the_start(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    with pytest.raises(CannotStart, match=rf"belongs to uid {os.geteuid()}, .*: chown -hR 4242:4242 "):
        await make().start(replace(BOB, uid_base=4242))

    (tmp_path / "state/agents/bob/state").rmdir()
    (tmp_path / "state/agents/bob/state").symlink_to("/etc")
    with pytest.raises(CannotStart, match="state is no directory"):
        await make().start(BOB)


async def test_an_environment_that_cannot_be_read_stops_the_start(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    path = tmp_path / "secrets"
    path.write_text("# a comment\nKEY=value\nnonsense\n")

    with pytest.raises(
        CannotStart, match=r"the environment of its harness: .*secrets: line 3 is not NAME=VALUE"
    ):
        await make(Config(harness=Harness(environment_file=str(path)))).start(BOB)


@pytest.mark.parametrize(
    ("end", "story"),
    [
        ({"active": "failed", "result": "exit-code", "code": 1, "status": 1}, "exit status 1"),
        ({"active": "failed", "result": "oom-kill", "code": 2, "status": 9}, "out of memory"),
        ({"active": "inactive"}, "it shut down"),
    ],
)
async def test_an_end_is_told_once_the_unit_is_down(
    make: Make,
    systemd: FakeSystemd,
    nspawn_process: subprocess.Popen[bytes],
    end: dict[str, str | int],
    story: str,
) -> None:
    machines = make()
    machine = await machines.start(BOB)
    told: list[str] = []

    async def wait() -> None:
        told.append(await machine.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nspawn_process.kill()
        nspawn_process.wait()
        while systemd.systemctl.calls[-1].startswith("show") is False:
            await trio.lowlevel.checkpoint()
        assert told == [], "its unit is not down yet"
        systemd.say(**end)  # type: ignore[arg-type]

    assert told == [story]
    assert machines.applied("bob") is None
    assert await machines.find("bob") is None


async def test_a_unit_that_starts_itself_again_is_stopped(
    make: Make, systemd: FakeSystemd, fake_program: Fake, nspawn_process: subprocess.Popen[bytes]
) -> None:
    machine = await make().start(BOB)
    systemd.say(active="inactive", result="exit-code", code=1, status=133, file="stopped")
    systemd.say(active="activating")
    d = systemd.directory
    fake_program("systemctl", f"case $1$2 in show*) cat {d}/now;; *stop) cp {d}/stopped {d}/now;; esac")
    nspawn_process.kill()

    assert await machine.wait() == "it rebooted"


async def test_a_unit_that_does_not_go_down_can_be_waited_for_again(
    make: Make,
    systemd: FakeSystemd,
    nspawn_process: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nspawn_machine, "DOWN_S", 0.05)
    machines = make()
    machine = await machines.start(BOB)
    nspawn_process.kill()

    with pytest.raises(CommandError, match="does not go down"):
        await machine.wait()

    assert await machines.find("bob") is machine
    systemd.say(active="failed", result="signal", code=2, status=9)
    assert await machine.wait() == "killed by SIGKILL"


async def test_without_machined_a_machine_is_shut_down_through_systemd(
    make: Make, systemd: FakeSystemd, fake_program: Fake
) -> None:
    machine = await make().start(BOB)
    fake_program("machinectl", "exit 1")

    await machine.terminate()

    assert systemd.systemctl.calls[-1] == f"--quiet kill --kill-whom=main -s TERM -- {UNIT}"


async def test_ending_what_has_ended_is_harmless(
    make: Make, systemd: FakeSystemd, fake_program: Fake
) -> None:
    machine = await make().start(BOB)
    systemd.say(active="inactive")
    fake_program("machinectl", "exit 1")
    fake_program("systemctl", f"case $1 in show) cat {systemd.directory}/now;; *) exit 1;; esac")

    await machine.terminate()
    await machine.kill()


async def test_a_machine_that_somebody_else_started_is_told_at_once(make: Make, systemd: FakeSystemd) -> None:
    appeared: list[str] = []
    seen = trio.Event()

    def note(agent: str) -> None:
        appeared.append(agent)
        seen.set()

    machines = make(None, note)
    async with trio.open_nursery() as nursery:
        await nursery.start(machines.run)
        assert await machines.find("bob") is None
        systemd.say(active="active", main_pid=systemd.pid)
        with (systemd.directory / "signals").open("a") as signals:
            signals.write('garbage\n{"member":"MachineNew","payload":{"data":["h-bob","/x"]}}\n')
        with trio.fail_after(5):
            await seen.wait()
        nursery.cancel_scope.cancel()

    assert appeared == ["bob"]


async def test_what_no_signal_tells_is_seen_at_the_next_look(
    make: Make, systemd: FakeSystemd, fake_program: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_watch, "LOOK_S", 0.01)
    monkeypatch.setattr(machine_watch, "MONITOR_AGAIN_S", (0.01, 0.02))
    busctl = fake_program(
        "busctl", f'case "$*" in *monitor*) exit 1;; *) cat {systemd.directory}/units;; esac'
    )
    seen = trio.Event()
    machines = make(None, lambda _: seen.set())

    async with trio.open_nursery() as nursery:
        await nursery.start(machines.run)
        systemd.say(active="active", main_pid=systemd.pid)
        with trio.fail_after(5):
            await seen.wait()
            while sum("monitor" in call for call in busctl.calls) < 3:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_our_own_starts_are_no_news(make: Make, systemd: FakeSystemd) -> None:
    appeared: list[str] = []
    machines = make(None, appeared.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(machines.run)
        await machines.start(BOB)
        systemd.say(active="active", main_pid=systemd.pid)
        await machines._watch.look()
        nursery.cancel_scope.cancel()

    assert appeared == []


async def test_a_systemd_that_does_not_answer_leaves_it_open_whether_there_is_a_machine(
    make: Make, systemd: FakeSystemd, fake_program: Fake
) -> None:
    fake_program("busctl", "exit 1")

    with pytest.raises(CommandError):
        await make().find("bob")


async def test_leftovers_of_agents_that_nobody_knows_are_removed(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    await make().start(BOB)
    systemd.say(active="inactive")
    (tmp_path / "settings_dir/h-stranger.nspawn").write_text("[Exec]\n")
    signed = (tmp_path / "settings_dir/h-bob.nspawn").read_text()
    (tmp_path / "settings_dir/hm1nd.nspawn").write_text(signed.replace("agent bob.", "agent manager."))
    (tmp_path / "settings_dir/h-manager.nspawn").write_text(signed.replace("agent bob.", "agent manager."))
    (tmp_path / "settings_dir/h-forged.nspawn").write_text(
        signed  # another agent's signature
    )

    await make().leftovers(["bob", "manager"])
    assert (tmp_path / "settings_dir/hm1nd.nspawn").exists()
    assert (tmp_path / "settings_dir/h-bob.nspawn").exists()
    await make().leftovers([])

    assert sorted(path.name for path in (tmp_path / "settings_dir").iterdir()) == [
        "h-forged.nspawn",
        "h-manager.nspawn",  # no machine of ours is called so
        "h-stranger.nspawn",
    ]
    assert systemd.verbs[-4:] == ["kill", "stop", "reset-failed", "revert"]
    assert not (tmp_path / "machines/h-bob").exists()
    assert not (tmp_path / "run/agents/bob/environment").exists()


async def test_who_is_spawned_while_leftovers_are_removed_is_none(make: Make, systemd: FakeSystemd) -> None:
    machines = make()
    await machines.start(BOB)
    known: list[str] = []

    async with trio.open_nursery() as nursery:
        nursery.start_soon(machines.leftovers, known)
        known.append("bob")

    assert "revert" not in systemd.verbs


@pytest.mark.parametrize("how", ["forget", "leftovers"])
async def test_the_root_of_an_agent_that_is_destroyed_after_a_boot_of_the_host_goes_too(
    make: Make, systemd: FakeSystemd, tmp_path: Path, how: str
) -> None:
    await make().start(BOB)
    systemd.say(active="inactive")
    machines = make()
    (tmp_path / "settings_dir/h-bob.nspawn").unlink()  # it was in /run

    await (machines.forget("bob") if how == "forget" else machines.leftovers([]))

    assert not (tmp_path / "machines/h-bob").exists()
    assert not upper_dir(tmp_path / "machines", "h-bob").exists()


async def test_a_machine_of_somebody_else_keeps_its_root(
    make: Make, systemd: FakeSystemd, tmp_path: Path
) -> None:
    theirs = tmp_path / "machines/h-bob"
    theirs.mkdir()
    (theirs / "precious").touch()

    with pytest.raises(CannotStart, match="h-bob is there and was not made by this hive; move it away"):
        await make().start(BOB)
    await make().forget("bob")

    assert (theirs / "precious").exists()


async def test_limits_are_changed_in_a_running_machine(make: Make, systemd: FakeSystemd) -> None:
    await make().update_limits(replace(BOB, shape=Shape("debian", memory_max_bytes=2**30)))

    assert "MemoryMax=1073741824 CPUQuota=200% TasksMax=2048" in systemd.systemctl.calls[-1]


async def test_many_starts_share_a_reload(
    make: Make, systemd: FakeSystemd, fake_program: Fake, tmp_path: Path
) -> None:
    first, second = tmp_path / "go1", tmp_path / "go2"
    os.mkfifo(first)
    os.mkfifo(second)
    fake_program("systemctl", f"read line < {tmp_path}/go$(grep -c daemon-reload {tmp_path}/calls)")
    machines = make()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(machines._reload)
        async with await trio.open_file(first, "w") as go:  # as soon as it has begun
            for _ in range(4):
                nursery.start_soon(machines._reload)
            await trio.testing.wait_all_tasks_blocked()
            await go.write("go\n")
        async with await trio.open_file(second, "w") as go:
            await go.write("go\n")

    calls = [call for call in systemd.systemctl.calls if "daemon-reload" in call]
    assert len(calls) == 2, "one that had begun already, and one for all who came later"


async def test_usage_is_read_from_the_cgroup_of_what_runs(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tmp_path / "cgroups/machine.slice" / UNIT
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1234\nuser_usec 1000\n")
    (group / "memory.current").write_text("4096\n")
    monkeypatch.setattr(usage_module.read_usage, "__defaults__", (tmp_path / "cgroups",))
    machines = make()
    await machines.start(BOB)

    assert await machines.usage(["bob", "alice"]) == {"bob": Usage(1234, 4096, 0)}


async def test_the_facts_of_a_machine_need_no_machine(make: Make, systemd: FakeSystemd) -> None:
    first = Config().machines.uid_first
    row = replace(BOB, uid_base=first, shape=Shape(image=None, network=Network.VETH))

    facts = await make().facts(row)

    assert (facts.machine, facts.image, facts.uid_base) == ("h-bob", "debian", first)
    assert facts.addresses == ("10.213.0.3",)
    assert (await make().facts(replace(BOB, uid_base=None))).limits is None


def test_units_of_machines_are_named_once() -> None:
    assert machinectl.unit_of("h-bob") == nspawn.unit_name("h-bob")


async def test_what_the_host_gives_an_agent_is_beside_its_socket_while_it_runs(
    make: Make, systemd: FakeSystemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Images, "resolv_conf", staticmethod(lambda: b"nameserver 192.0.2.1\n"))
    key, secrets = tmp_path / "key", tmp_path / "secrets"
    key.write_text("k")
    secrets.write_text("TOKEN=t\nMODEL=secret\n")
    declaration = DeclaredAgent(
        network="veth",
        model="large",
        limits=Limits(memory="1G"),
        environment={"MODEL": "plain"},
        environment_file=str(secrets),
        credentials={"api": str(key)},
        mcp_servers={"notes": McpServer(command="notes")},
    )
    declared = replace(BOB, declaration=declaration)
    blueprints = Blueprints(
        Layout(tmp_path, tmp_path / "run", tmp_path / "state"), Config, Images(tmp_path / "machines")
    )
    run = tmp_path / "run/agents/bob"

    blueprints.build(declared)

    said = (run / "environment").read_text().splitlines()
    assert {
        'TOKEN="t"',
        'MODEL="secret"',
        'HIVE_DEFAULT_MODEL="large"',
        'HIVE_EXTRA_MCP="/run/hive/extra-mcp.json"',
        'CREDENTIALS_DIRECTORY="/run/hive/credentials"',
    } <= set(said)
    assert (run / "credentials/api").read_text() == "k"
    assert (run / "resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert json.loads((run / "extra-mcp.json").read_text())["notes"]["command"] == "notes"
    assert "VirtualEthernet=yes" in nspawn.settings_path("h-bob").read_text()
    assert blueprints.cage(declared).limits.memory_max_bytes == 2**30
    # Neither what it may take nor what is in those files is a reason to start it anew.
    key.write_text("k2")
    for other in ({"limits": Limits(memory="2G")}, {"credentials": {"other": str(key)}}, {"recipients": []}):
        row = replace(BOB, declaration=msgspec.structs.replace(declaration, **other))
        assert blueprints.render(row)[1].digest == blueprints.render(declared)[1].digest
    for other in ({"network": "none"}, {"mcp_servers": {}}, {"model": "small"}):
        row = replace(BOB, declaration=msgspec.structs.replace(declaration, **other))
        assert blueprints.render(row)[1].digest != blueprints.render(declared)[1].digest

    blueprints.build(BOB)
    assert (run / "resolv.conf").read_text() == ""
    assert not (run / "credentials").exists()
    assert "HIVE_EXTRA_MCP" not in (run / "environment").read_text()


async def test_what_an_agent_is_given_is_gone_when_its_machine_is(
    make: Make, systemd: FakeSystemd, tmp_path: Path, nspawn_process: subprocess.Popen[bytes]
) -> None:
    key = tmp_path / "key"
    key.write_text("k")
    declared = replace(BOB, declaration=DeclaredAgent(credentials={"api": str(key)}))
    machine = await make().start(declared)
    assert (tmp_path / "run/agents/bob/credentials/api").read_text() == "k"

    systemd.say(active="inactive")
    nspawn_process.kill()
    with trio.fail_after(20):
        await machine.wait()

    assert not (tmp_path / "run/agents/bob/credentials").exists()

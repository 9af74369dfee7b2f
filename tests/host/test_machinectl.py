"""The verbs of machinectl and systemctl, played by scripts: every call ends, and garbage is an error."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from host.conftest import Fake
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.cage import Limits
from hive_core.host import machinectl
from hive_core.host.machinectl import Registered, UnitState, describe_end
from hive_core.host.process import CommandError

SHOWN = """\
MainPID=123
Result=success
ExecMainCode=0
ExecMainStatus=0
ControlGroup=/machine.slice/systemd-nspawn@h-bob.service
ActiveState=active
SubState=running
DropInPaths=/run/a.conf /run/b.conf
NeedDaemonReload=no
"""
LISTED = (
    '{"type":"a(ssssssouso)","data":[[["systemd-nspawn@h-alice.service","Container h-alice","loaded","active",'
    '"running","","/org/freedesktop/systemd1/unit/systemd_2dnspawn_40h_2dalice_2eservice",0,"","/"]]]}'
)
MACHINES = (
    '{"type":"a(ssso)","data":[[["h-alice","container","systemd-nspawn",'
    '"/org/freedesktop/machine1/machine/h_2dalice"]]]}'
)
PROPERTIES = (
    '{"type":"a{sv}","data":[{"Name":{"type":"s","data":"h-alice"},"Leader":{"type":"u","data":85},'
    '"NetworkInterfaces":{"type":"ai","data":[2]},"Unit":{"type":"s","data":"systemd-nspawn@h-alice.service"}}]}'
)
SIGNAL = (
    '{"type":"signal","endian":"l","flags":1,"member":"%s","payload":{"type":"so","data":["%s",'
    '"/org/freedesktop/machine1/machine/h_2dalice"]}}'
)
UP = UnitState("active", "running", "success", 123, "/machine.slice/x", 0, 0, (), False)


def down(**changed: Any) -> UnitState:
    values = (
        {name: getattr(UP, name) for name in UP.__slots__}
        | {"active_state": "failed", "main_pid": 0}
        | changed
    )
    return UnitState(**values)


async def test_a_machine_is_started_by_its_name_and_nothing_else(fake_program: Fake) -> None:
    program = fake_program("machinectl")

    await machinectl.start("h-bob", timeout_s=10)

    assert program.calls == ["--quiet start -- h-bob"]


@pytest.mark.parametrize(
    "name", ["", "-x", "h_bob", "../h-bob", "h-bob.service", "H-bob", "h-bob\n", "a" * 65]
)
async def test_what_is_no_machine_name_never_reaches_a_program(fake_program: Fake, name: str) -> None:
    programs = [fake_program(program) for program in ("machinectl", "systemctl", "busctl")]

    for verb in (
        machinectl.poweroff,
        machinectl.terminate,
        machinectl.reset_failed,
        machinectl.revert,
        machinectl.registered,
    ):
        with pytest.raises(ValueError, match="is no machine name"):
            await verb(name)  # type: ignore[operator]

    assert [program.calls for program in programs] == [[], [], []]


async def test_what_a_program_complains_of_can_be_pasted(fake_program: Fake) -> None:
    fake_program("machinectl", "echo 'Machine image h-bob does not exist' >&2; exit 1")

    with pytest.raises(CommandError) as refusal:
        await machinectl.start("h-bob", timeout_s=10)

    assert str(refusal.value) == (
        "machinectl --quiet start -- h-bob: exit status 1: Machine image h-bob does not exist"
    )


async def test_a_program_that_hangs_is_cut_off(fake_program: Fake) -> None:
    fake_program("machinectl", "exec sleep 1000")

    with pytest.raises(CommandError, match=r"not done within 0.2 s"):
        await machinectl.start("h-bob", timeout_s=0.2)


async def test_a_program_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CommandError, match=r"systemctl .*No such file or directory"):
        await machinectl.daemon_reload()


async def test_limits_are_set_without_a_reload_until_the_next_boot(fake_program: Fake) -> None:
    program = fake_program("systemctl")

    await machinectl.set_limits("h-bob", Limits(2**30, 150, 512))

    (call,) = program.calls
    assert call.split() == [
        *("--quiet", "set-property", "--runtime", "--", "systemd-nspawn@h-bob.service"),
        *("MemoryMax=1073741824", "CPUQuota=150%", "TasksMax=512"),
    ]


async def test_the_state_of_a_unit_is_read(fake_program: Fake, tmp_path: Path) -> None:
    (tmp_path / "shown").write_text(SHOWN)
    fake_program("systemctl", f"cat {tmp_path}/shown")

    state = await machinectl.unit_state("systemd-nspawn@h-bob.service")

    assert state == UnitState(
        active_state="active",
        sub_state="running",
        result="success",
        main_pid=123,
        control_group="/machine.slice/systemd-nspawn@h-bob.service",
        exec_main_code=0,
        exec_main_status=0,
        drop_ins=("/run/a.conf", "/run/b.conf"),
        need_daemon_reload=False,
    )
    assert not state.is_down


@pytest.mark.parametrize("answer", ["", "garbage", "MainPID=many", "\\377\\376", "=", "MainPID=1\\nMainPID"])
async def test_a_state_that_makes_no_sense_is_an_error(fake_program: Fake, answer: str) -> None:
    fake_program("systemctl", f"printf '{answer}'")

    with pytest.raises(CommandError, match="no such answer was expected"):
        await machinectl.unit_state("systemd-nspawn@h-bob.service")


async def test_units_are_listed_by_their_pattern(fake_program: Fake) -> None:
    program = fake_program("busctl", f"echo '{LISTED}'")

    units = await machinectl.units(*map(machinectl.unit_pattern, ("hm1nd", "h-*")))

    assert [(unit.name, unit.active_state) for unit in units] == [
        ("systemd-nspawn@h-alice.service", "active")
    ]
    assert program.calls[0].endswith(
        "ListUnitsByPatterns asas 0 2 systemd-nspawn@hm1nd.service systemd-nspawn@h-*.service"
    )


async def test_what_machined_knows_is_read_from_its_list(fake_program: Fake) -> None:
    fake_program("busctl", f"case \"$*\" in *ListMachines) echo '{MACHINES}';; *) echo '{PROPERTIES}';; esac")

    assert await machinectl.registered("h-alice") == Registered(85, (2,), "systemd-nspawn@h-alice.service")
    assert await machinectl.registered("h-bob") is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[]",
        "{}",
        '{"type":"x","data":5}',
        '{"type":"x","data":[]}',
        '{"type":"x","data":[5]}',
        '{"type":"x","data":[[5]]}',
        '{"type":"x","data":[[["h-bob"]]]}',
        '{"type":"x","data":[[["h-bob","","","/x"]]]}',
        "[" * 2000,
    ],
)
async def test_an_answer_of_d_bus_that_makes_no_sense_is_an_error(fake_program: Fake, answer: str) -> None:
    fake_program("busctl", f"echo '{answer}'")

    with pytest.raises(CommandError):
        await machinectl.units("x")
        await machinectl.registered("h-bob")


async def test_without_machined_the_leader_is_the_child_of_nspawn(fake_program: Fake) -> None:
    fake_program("busctl", "exit 1")
    with subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE) as nspawn:
        assert nspawn.stdout is not None
        child = int(nspawn.stdout.readline())
        try:
            leader = await machinectl.leader("h-bob", down(main_pid=nspawn.pid))
        finally:
            os.kill(child, 9)

    assert leader == child
    assert await machinectl.leader("h-bob", down(main_pid=0)) is None


async def test_a_unit_that_is_not_loaded_has_nothing_to_reset(fake_program: Fake, tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    fake_program("systemctl", f"case $1 in show) cat {shown};; *) echo 'Unit not loaded' >&2; exit 1;; esac")

    shown.write_text(SHOWN.replace("=active", "=inactive"))
    await machinectl.reset_failed("h-bob")

    shown.write_text(SHOWN.replace("=active", "=failed"))
    with pytest.raises(CommandError):
        await machinectl.reset_failed("h-bob")


@pytest.mark.parametrize(
    ("unit", "machine"),
    [
        ("systemd-nspawn@h-bob.service", "h-bob"),
        ("systemd-nspawn@h_bob.service", None),
        ("systemd-nspawn@.service", None),
        ("h-bob", None),
        ("systemd-nspawn@h-bob.service.d", None),
    ],
)
def test_a_unit_gives_its_machine(unit: str, machine: str | None) -> None:
    assert machinectl.machine_of(unit) == machine


def test_a_signal_tells_who_came_and_who_went() -> None:
    assert machinectl.read_signal((SIGNAL % ("MachineNew", "h-bob")).encode()) == ("h-bob", True)
    assert machinectl.read_signal((SIGNAL % ("MachineRemoved", "h-bob")).encode()) == ("h-bob", False)
    assert machinectl.read_signal((SIGNAL % ("NameAcquired", "h-bob")).encode()) is None
    assert machinectl.read_signal((SIGNAL % ("MachineNew", "../bob")).encode()) is None


@given(st.binary(max_size=300) | st.text().map(lambda text: (SIGNAL % ("MachineNew", text)).encode()))
def test_no_signal_is_too_strange(line: bytes) -> None:
    signal = machinectl.read_signal(line)

    assert signal is None or machinectl.machine_of(machinectl.unit_of(signal[0])) == signal[0]


@pytest.mark.parametrize(
    ("unit", "story"),
    [
        (down(result="success", active_state="inactive"), "it shut down"),
        (down(result="exit-code", exec_main_code=1, exec_main_status=1), "exit status 1"),
        (down(result="exit-code", exec_main_code=1, exec_main_status=133), "it rebooted"),
        (down(result="signal", exec_main_code=2, exec_main_status=9), "killed by SIGKILL"),
        (down(result="core-dump", exec_main_code=3, exec_main_status=11), "killed by SIGSEGV"),
        (down(result="oom-kill", exec_main_code=2, exec_main_status=9), "out of memory"),
        (down(result="start-limit-hit"), "started too often"),
        (down(result="something-new"), "it ended: something-new"),
    ],
)
def test_an_end_is_told_in_words(unit: UnitState, story: str) -> None:
    assert describe_end(unit) == story

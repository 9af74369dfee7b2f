"""The verbs of machinectl and systemctl, and what systemd and machined say over D-Bus.

Every call has a deadline and a bound on what it may say.  State is read from D-Bus as JSON or from
`systemctl show`, never from text that is meant for people.  Whatever goes wrong is a CommandError.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from hive_core.domain.cage import Limits
from hive_core.host import process
from hive_core.host.process import CommandError

STALE_LOOK_S: Final = 0.1
ANSWER_S: Final = 10.0
"""systemd and machined answer within milliseconds; a host that swaps may need seconds."""
RELOAD_S: Final = 60.0
"""daemon-reload reads every unit of the host."""
MAX_ANSWER_BYTES: Final = 4 * 2**20
"""Some hundred bytes per unit."""
MAX_SIGNAL_BYTES: Final = 64 * 2**10

PLAIN: Final = {"LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat"}

_MACHINE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_SHOWN: Final = (
    *("ActiveState", "SubState", "Result", "MainPID", "ControlGroup", "ExecMainCode", "ExecMainStatus"),
    *("DropInPaths", "NeedDaemonReload"),
)
_MACHINED: Final = ("org.freedesktop.machine1", "/org/freedesktop/machine1")
_MACHINED_VERBS: Final = "org.freedesktop.machine1.Manager"
_SYSTEMD: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1")

MONITOR: Final = (
    *("busctl", "--json=short", "monitor"),
    f"--match=type='signal',interface='{_MACHINED_VERBS}'",
)
"""Writes a line of JSON when a machine has started or ended."""


@dataclass(frozen=True, slots=True)
class UnitState:
    """What systemd says of a unit, in its own words."""

    active_state: str
    sub_state: str
    result: str
    main_pid: int
    """0 when none runs."""
    control_group: str
    """Its path below the cgroup mount; empty when it has none."""
    exec_main_code: int
    """How the last main process ended: CLD_EXITED is 1, CLD_KILLED 2, CLD_DUMPED 3."""
    exec_main_status: int
    """Its exit status, or its signal."""
    drop_ins: tuple[str, ...]
    """Those that systemd has read."""
    need_daemon_reload: bool
    """One of them has changed since.  A new one does not count."""

    @property
    def is_down(self) -> bool:
        return self.active_state in {"inactive", "failed"}


@dataclass(frozen=True, slots=True)
class ListedUnit:
    name: str
    active_state: str
    sub_state: str


@dataclass(frozen=True, slots=True)
class Registered:
    """What machined knows of a machine."""

    leader: int
    """The host's pid of its init."""
    interfaces: tuple[int, ...]
    """The indexes of the host's ends of its links."""
    unit: str


class _Reply(msgspec.Struct, frozen=True):
    type: str
    data: list[Any]


class _Payload(msgspec.Struct, frozen=True):
    data: list[Any] = []


class _Signal(msgspec.Struct, frozen=True):
    member: str = ""
    payload: _Payload = _Payload()


_REPLY: Final = msgspec.json.Decoder(_Reply)
_SIGNAL: Final = msgspec.json.Decoder(_Signal)


def unit_of(machine: str) -> str:
    """Give the unit that runs *machine*.

    Raises:
        ValueError: it is no name of a machine of ours.
    """
    if not _MACHINE_NAME.match(machine):
        raise ValueError(f"{machine[:80]!r} is no machine name")
    return f"systemd-nspawn@{machine}.service"


def unit_pattern(machines: str) -> str:
    """Give the shell pattern of the units that run the machines which match the pattern *machines*."""
    return f"systemd-nspawn@{machines}.service"


def machine_of(unit: str) -> str | None:
    """Give the machine that *unit* runs, None if it runs none."""
    machine = unit.removeprefix("systemd-nspawn@").removesuffix(".service")
    return machine if _MACHINE_NAME.match(machine) and unit == unit_of(machine) else None


# ── verbs ───────────────────────────────────────────────────────────────────────────────────────


async def start(machine: str, *, timeout_s: float) -> None:
    """Start *machine*, and wait until it says that it is ready.

    When this raises, or is cancelled, systemd may still be starting it.

    Raises:
        CommandError: it did not come up in *timeout_s*.
    """
    unit_of(machine)
    await _run("machinectl", "--quiet", "start", "--", machine, timeout_s=timeout_s)


async def poweroff(machine: str) -> None:
    """Ask the machine's init to power off.  Returns at once.

    Raises:
        CommandError: there is no such machine, or machined does not answer.
    """
    unit_of(machine)
    await _run("machinectl", "--quiet", "poweroff", "--", machine)


async def shut_down(machine: str) -> None:
    """The same by systemd alone: nspawn gets SIGTERM, and asks the machine's init.

    Raises:
        CommandError: systemd does not answer, or nothing of it runs.
    """
    await _run("systemctl", "--quiet", "kill", "--kill-whom=main", "-s", "TERM", "--", unit_of(machine))


async def terminate(machine: str) -> None:
    """Kill all its processes.

    Not `machinectl terminate`: that stops the unit, for which a machine may take its whole TimeoutStopSec.

    Raises:
        CommandError: systemd does not answer, or nothing of it runs.
    """
    await _run("systemctl", "--quiet", "kill", "-s", "KILL", "--", unit_of(machine))


async def stop(machine: str, *, timeout_s: float) -> None:
    """Stop the unit, cancel whatever systemd was about to do with it, and wait until it is down.

    Raises:
        CommandError: not in *timeout_s*.
    """
    await _run("systemctl", "--quiet", "stop", "--", unit_of(machine), timeout_s=timeout_s)


async def reset_failed(machine: str) -> None:
    """Forget its failures and how often it was started: the sixth start in 10 s would be refused otherwise.

    Raises:
        CommandError: systemd does not answer.
    """
    try:
        await _run("systemctl", "--quiet", "reset-failed", "--", unit_of(machine))
    except CommandError:
        # A unit that is not loaded has nothing to forget, and systemctl calls that an error.
        if (await unit_state(unit_of(machine))).active_state == "failed":
            raise


async def revert(machine: str) -> None:
    """Forget its limits and remove its drop-ins.

    Raises:
        CommandError: systemd does not answer.
    """
    await _run("systemctl", "--quiet", "revert", "--", unit_of(machine), timeout_s=RELOAD_S)


async def set_limits(machine: str, limits: Limits) -> None:
    """Set its limits until the next boot, whether it runs or not; needs no daemon-reload.

    Raises:
        CommandError: systemd refuses them.
    """
    await _run(
        *("systemctl", "--quiet", "set-property", "--runtime", "--", unit_of(machine)),
        f"MemoryMax={limits.memory_max_bytes}",
        f"CPUQuota={limits.cpu_quota_percent}%",
        f"TasksMax={limits.tasks_max}",
    )


async def daemon_reload() -> None:
    """Let systemd read its units again.

    Raises:
        CommandError: it did not in RELOAD_S.
    """
    await _run("systemctl", "--quiet", "daemon-reload", timeout_s=RELOAD_S)


# ── state ───────────────────────────────────────────────────────────────────────────────────────


async def unit_state(unit: str) -> UnitState:
    """Give the state of *unit*; one that nobody ever heard of is inactive.

    Raises:
        CommandError: systemd does not answer.
    """
    argv = ("systemctl", "show", *(f"--property={name}" for name in _SHOWN), "--", unit)
    shown = dict(
        line.split("=", 1)
        for line in (await _run(*argv)).decode(errors="replace").splitlines()
        if "=" in line
    )
    try:
        return UnitState(
            active_state=shown["ActiveState"],
            sub_state=shown["SubState"],
            result=shown["Result"],
            main_pid=int(shown["MainPID"]),
            control_group=shown["ControlGroup"],
            exec_main_code=int(shown["ExecMainCode"]),
            exec_main_status=int(shown["ExecMainStatus"]),
            drop_ins=tuple(shown["DropInPaths"].split()),
            need_daemon_reload=shown["NeedDaemonReload"] == "yes",
        )
    except (KeyError, ValueError) as error:
        raise CommandError(f"{' '.join(argv)}: no such answer was expected: {error!r}") from None


async def units(*patterns: str) -> list[ListedUnit]:
    """Give the loaded units whose names match one of the shell *patterns*.

    Raises:
        CommandError: systemd does not answer.
    """
    strings = ("0", str(len(patterns)), *patterns)
    rows = await _call(*_SYSTEMD, "org.freedesktop.systemd1.Manager", "ListUnitsByPatterns", "asas", *strings)
    try:
        return [ListedUnit(str(row[0]), str(row[3]), str(row[4])) for row in rows[0]]
    except (IndexError, TypeError):
        raise CommandError("busctl call … ListUnitsByPatterns: no such answer was expected") from None


async def registered(machine: str) -> Registered | None:
    """Give what machined knows of *machine*, None if it knows none.

    Raises:
        CommandError: machined does not answer.
    """
    unit_of(machine)
    try:
        rows = await _call(*_MACHINED, _MACHINED_VERBS, "ListMachines")
        path = next((row[3] for row in rows[0] if row[0] == machine), None)
        if path is None:
            return None
        properties = await _call(
            *(_MACHINED[0], path, "org.freedesktop.DBus.Properties", "GetAll", "s"),
            "org.freedesktop.machine1.Machine",
        )
        values = {name: value["data"] for name, value in properties[0].items()}
        interfaces = tuple(int(index) for index in values["NetworkInterfaces"])
        return Registered(int(values["Leader"]), interfaces, str(values["Unit"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CommandError(f"busctl call … {machine}: no such answer was expected: {error!r}") from None


async def drop_stale(machine: str) -> None:
    """Have machined forget *machine*, whose unit is down: a killed one remembers it and refuses another."""
    with trio.move_on_after(ANSWER_S), suppress(CommandError):
        known = await registered(machine)
        if known is None or known.unit != unit_of(machine):
            return
        await _run("machinectl", "--quiet", "terminate", "--", machine)
        while await registered(machine) is not None:
            await trio.sleep(STALE_LOOK_S)


async def leader(machine: str, unit: UnitState) -> int | None:
    """Give the host's pid of the init of *machine*: machined's word, or without it the child of nspawn."""
    with suppress(CommandError):
        known = await registered(machine)
        if known is not None and known.unit == unit_of(machine):
            return known.leader
    return _only_child(unit.main_pid) if unit.main_pid else None


def read_signal(line: bytes) -> tuple[str, bool] | None:
    """Read a line of MONITOR: a machine's name and whether it has come or gone; None for any other."""
    try:
        signal = _SIGNAL.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if signal.member not in {"MachineNew", "MachineRemoved"} or not signal.payload.data:
        return None
    machine = signal.payload.data[0]
    if not isinstance(machine, str) or not _MACHINE_NAME.match(machine):
        return None
    return machine, signal.member == "MachineNew"


def describe_end(unit: UnitState) -> str:
    """Say how a unit that is down has ended."""
    match unit.result:
        case "success":
            return "it shut down"
        case "oom-kill":
            return "out of memory"
        case "timeout":
            return "it took too long, and systemd killed it"
        case "watchdog":
            return "its watchdog ran out"
        case "start-limit-hit":
            return "started too often"
        case "resources":
            return "systemd could not start it"
    if unit.exec_main_code == 1:
        # What nspawn ends with when a machine reboots itself.
        return "it rebooted" if unit.exec_main_status == 133 else f"exit status {unit.exec_main_status}"
    if unit.exec_main_code in {2, 3}:
        return process.describe_exit(-unit.exec_main_status)
    return f"it ended: {unit.result[:40]}"


# ── calls ───────────────────────────────────────────────────────────────────────────────────────


def _only_child(pid: int) -> int | None:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if len(children) == 1 else None


async def _call(service: str, path: str, interface: str, method: str, *arguments: str) -> list[Any]:
    argv = ("busctl", "--json=short", "call", "--", service, path, interface, method, *arguments)
    answer = await _run(*argv)
    try:
        return _REPLY.decode(answer).data
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CommandError(f"{' '.join(argv)}: no such answer was expected: {error}") from None


async def _run(*argv: str, timeout_s: float = ANSWER_S) -> bytes:
    return await run(argv, timeout_s=timeout_s)


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    max_output_bytes: int = MAX_ANSWER_BYTES,
    said_to: bytes | None = None,
) -> bytes:
    """Run a tool of the host to its end, and return what it said.

    Raises:
        CommandError: it failed, it is missing, or *timeout_s* ran out.
    """
    try:
        return await process.run(
            argv, timeout_s=timeout_s, max_output_bytes=max_output_bytes, env=PLAIN, said_to=said_to
        )
    except OSError as error:
        raise CommandError(f"{' '.join(argv)}: {error.strerror}") from None
    except trio.TooSlowError:
        raise CommandError(f"{' '.join(argv)}: not done within {timeout_s:g} s") from None

"""Run inside a bed by test_machines: drives NspawnMachines as a daemon would, and prints what it saw as JSON.

Each call is a daemon of its own, that knows nothing of those before.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from hive_core.config import Config, Machines
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart, Network, Shape
from hive_core.domain.machine import Wanted
from hive_core.host import agent_dirs, machinectl
from hive_core.host.images import Images
from hive_core.host.nspawn_machines import NspawnMachines
from hive_core.layout import host_layout

CONFIG = Config(machines=Machines(start_timeout_s=20))
LAYOUT = host_layout(CONFIG)
IMAGE = "test-machines"


def row(agent: str) -> AgentRow:
    number = ["zoe", "yan", "xia", "wim"].index(agent) + 100
    network = Network.VETH if agent in {"xia", "wim"} else Network.NONE
    base = CONFIG.machines.uid_first + number * 65536
    return AgentRow(agent, Wanted.RUNNING, False, 0.0, uid_base=base, shape=Shape(IMAGE, network))


async def start(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    began = trio.current_time()
    machine = await machines.start(row(agent))
    took_s = trio.current_time() - began
    owner = Path(f"/proc/{machine.pid}").stat().st_uid
    return {"pid": machine.pid, "seconds": took_s, "owner": owner - (row(agent).uid_base or 0)}


async def find(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    machine = await machines.find(agent)
    if machine is None:
        return {"pid": None}
    taken = (await machines.usage([agent]))[agent]
    as_declared = machines.applied(agent) == machines.declared(row(agent))
    member = machines.is_member(agent, machine.pid), machines.is_member(agent, os.getpid())
    return {"pid": machine.pid, "cpu_usec": taken.cpu_usec, "as_declared": as_declared, "member": member}


async def end(machines: NspawnMachines, agent: str, how: str) -> dict[str, Any]:
    machine = await machines.find(agent)
    assert machine is not None
    told: list[str] = []

    async def wait() -> None:
        told.append(await machine.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        match how:
            case "terminate":
                await machine.terminate()
            case "kill":
                await machine.kill()
            case "init":
                os.kill(machine.pid, signal.SIGKILL)
            case "nspawn":
                os.kill(machine.main_pid, signal.SIGKILL)
            case "reboot":
                os.kill(machine.pid, signal.SIGRTMIN + 5)
        asked_s = trio.current_time() - began
    again = await machines.find(agent)
    return {
        "story": told[0],
        "asked": asked_s,
        "seconds": trio.current_time() - began,
        "found": again is not None,
    }


async def break_start(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    moved = LAYOUT.config_of(agent).rename(LAYOUT.config_of(agent).with_name("away"))
    try:
        await machines.start(row(agent))
        said = ""
    except CannotStart as error:
        said = str(error)
    finally:
        moved.rename(LAYOUT.config_of(agent))
    state = await machinectl.unit_state(machinectl.unit_of(f"h-{agent}"))
    return {"said": said, "state": state.active_state}


async def cancel_start(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    with trio.move_on_after(0.25) as scope:
        await machines.start(row(agent))
    state = await machinectl.unit_state(machinectl.unit_of(f"h-{agent}"))
    return {"cancelled": scope.cancelled_caught, "state": state.active_state, "pid": state.main_pid}


async def appear(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    """Somebody starts the machine by hand, while machined has just been killed."""
    subprocess.run(["systemctl", "kill", "-s", "KILL", "systemd-machined"], check=False)
    began = trio.current_time()
    subprocess.run(["systemctl", "start", f"systemd-nspawn@h-{agent}"], check=True)
    with trio.fail_after(15):
        await APPEARED.wait()
    return {"seconds": trio.current_time() - began, "found": await machines.find(agent) is not None}


async def limit(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    shape = Shape(memory_max_bytes=2**29, cpu_quota_percent=50, tasks_max=300)
    await machines.update_limits(replace(row(agent), shape=shape))
    return {}


async def read_logs(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    followed: list[str] = []
    async with aclosing(machines.follow_log(agent, 5)) as batches:
        async for batch in batches:
            if not followed:
                said = r"printf 'a \033[31mred\033[0m marker\n' > /dev/console"
                argv = ["systemd-run", "-M", f"h-{agent}", "--quiet", "--wait", "sh", "-c", said]
                await trio.run_process(argv)
            followed += batch
            if "a red marker" in followed:
                break
    return {"followed": followed, "read": await machines.read_log(agent, 50)}


async def tidy(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    await machines.find(agent)
    await machines.tidy(agent)
    return {}


async def forget(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    await machines.forget(agent)
    return {
        "left": [str(path) for root in ("/run/systemd", "/var/lib/machines") for path in named(root, agent)]
    }


def named(root: str, agent: str) -> list[Path]:
    # Not rglob: it raises when systemd removes a directory under it.
    found = (Path(place) / name for place, dirs, files in os.walk(root) for name in (*dirs, *files))
    return [path for path in found if f"h-{agent}" in path.name and "journal" not in path.parts]


async def clear(machines: NspawnMachines, agent: str) -> dict[str, Any]:
    """Remove all machines but that of *agent*."""
    await machines.leftovers([agent])
    return {}


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        *(start, find, end, break_start, cancel_start),
        *(appear, limit, read_logs, tidy, forget, clear),
    )
}
APPEARED = trio.Event()


async def main(scenario: str, agent: str, *more: str) -> None:
    LAYOUT.make()
    agent_dirs.make_common(LAYOUT)
    base = row(agent).uid_base
    assert base is not None
    agent_dirs.make(LAYOUT, agent, base, None)
    machines = NspawnMachines(LAYOUT, lambda: CONFIG, Images(), lambda _: APPEARED.set())
    async with trio.open_nursery() as nursery:
        await nursery.start(machines.run)
        try:
            seen = await SCENARIOS[scenario](machines, agent, *more)
        except CannotStart as error:
            seen = {"cannot": str(error)}
        nursery.cancel_scope.cancel()
    print(json.dumps(seen))


if __name__ == "__main__":
    import trio.testing

    trio.run(main, *sys.argv[1:])

"""python -m benchmarks.machines: how long agents in machines take to come up, beside bare systemd-nspawn.

On a host of its own (tests/host_bed), so it needs root.  In each round, in an order that rotates, in the
same bed: as many agents from cold by `hive start --all` until all harnesses are connected, and as many bare
machines from the same image by plain `systemd-nspawn`, until each says that it is ready.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hive_core.wire.client import Client
from tests.host_bed.bed import Bed, open_bed, why_not

LOOK_S = 0.01
TIMEOUT_S = 180.0
IMAGE = "/srv/guest"
PARALLEL = 4
"""What machines.start_parallel is by default: bare machines are started as many at once."""

BARE = """
import json, subprocess, sys, threading, time
image, count, parallel = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = [f"bare-{number}" for number in range(count)]
waiting, took = list(names), []
def work():
    while waiting:
        try:
            name = waiting.pop(0)
        except IndexError:
            return
        at = time.monotonic()
        unit = ["--service-type=notify", "--property=NotifyAccess=all", "--property=KillMode=mixed",
            "--property=Delegate=yes", "--property=TimeoutStopSec=10", "--slice=machine.slice"]
        subprocess.run(["systemd-run", "-q", f"--unit={name}", *unit, "systemd-nspawn", "-q", "--keep-unit",
            "--boot", f"--machine={name}", f"--directory={image}", "--volatile=overlay", "--link-journal=no",
            "--notify-ready=yes", "--private-network"], check=True, stdin=subprocess.DEVNULL)
        took.append(time.monotonic() - at)
began = time.monotonic()
threads = [threading.Thread(target=work) for _ in range(parallel)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
all_s = time.monotonic() - began
subprocess.run(["systemctl", "kill", "-s", "KILL", *names])
subprocess.run(["systemctl", "stop", *names])
subprocess.run(["systemctl", "reset-failed"])
print(json.dumps({"all_s": all_s, "each_s": took}))
"""
"""Runs in the bed: as bare as a machine can be, without users of its own, limits and a harness."""


@dataclass
class Seen:
    """Of one way to start them: seconds until all were up, and of each one."""

    all_s: list[float] = field(default_factory=list)
    each_s: list[float] = field(default_factory=list)

    def p50_each_s(self) -> float:
        return statistics.median(self.each_s)


def main() -> int:
    options = _options()
    reason = why_not()
    if reason is not None:
        print(f"skipped: {reason}")
        return 0
    print(
        f"{options.agents} agents, {options.rounds} rounds,"
        f" {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    )
    hive, bare = Seen(), Seen()
    with open_bed(f"benchmark-{os.getpid()}") as bed:
        _set_up(bed, options.agents)
        ways: list[Callable[[], None]] = [
            lambda: _start_hive(bed, options.agents, hive),
            lambda: _start_bare(bed, options.agents, bare),
        ]
        for number in range(options.rounds):
            for place in range(len(ways)):
                ways[(number + place) % len(ways)]()
    _report(hive, bare, options.agents)
    return 0


def _set_up(bed: Bed, agents: int) -> None:
    bed.install_product()
    bed.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"])
    bed.run(["ln", "-s", IMAGE, "/var/lib/machines/debian"])
    bed.run(["systemctl", "start", "hive-core"], timeout_s=30)
    names = _names(agents)
    bed.run(["hive", "spawn", *names, "--timeout", str(TIMEOUT_S)], timeout_s=TIMEOUT_S)
    _stop(bed)


def _names(agents: int) -> list[str]:
    return [f"agent-{number}" for number in range(agents)]


def _stop(bed: Bed) -> None:
    bed.run(["hive", "stop", "--all", "--now", "--timeout", str(TIMEOUT_S)], timeout_s=TIMEOUT_S)


def _start_hive(bed: Bed, agents: int, seen: Seen) -> None:
    """From cold: no machine runs."""
    connected: dict[str, float] = {}
    with Client(bed.path("/run/hyperhive/host.sock")) as client:
        start_s = time.monotonic()
        argv = ["hive", "start", "--all", "--timeout", str(TIMEOUT_S)]
        with bed.popen(argv, stdout=subprocess.DEVNULL) as command:
            while len(connected) < agents and time.monotonic() < start_s + TIMEOUT_S:
                for row in client.ask({"cmd": "agent_status"})["agent_statuses"]:
                    if row.get("running") and row.get("connected"):
                        connected.setdefault(row["name"], time.monotonic() - start_s)
                time.sleep(LOOK_S)
            command.wait()
    if len(connected) < agents:
        raise SystemExit(f"only {len(connected)} of {agents} agents came up")
    ends = sorted(connected.values())
    seen.all_s.append(ends[-1])
    # As many start at once as there are places; each begins when the one that had its place is up.
    seen.each_s += [
        end - (0.0 if place < PARALLEL else ends[place - PARALLEL]) for place, end in enumerate(ends)
    ]
    _stop(bed)


def _start_bare(bed: Bed, agents: int, seen: Seen) -> None:
    argv = ["python3", "-c", BARE, IMAGE, str(agents), str(PARALLEL)]
    found = json.loads(bed.run(argv, timeout_s=TIMEOUT_S).stdout)
    seen.all_s.append(found["all_s"])
    seen.each_s += found["each_s"]


def _report(hive: Seen, bare: Seen, agents: int) -> None:
    ratios = [ours / theirs for ours, theirs in zip(hive.all_s, bare.all_s, strict=True)]
    rows = [
        (f"{agents} from cold, all up", statistics.median(hive.all_s), statistics.median(bare.all_s)),
        ("each, p50", hive.p50_each_s(), bare.p50_each_s()),
    ]
    print(f"{'':26}{'hive':>10}{'nspawn':>10}{'ratio':>8}")
    for name, ours_s, theirs_s in rows:
        print(f"{name:26}{ours_s:>8.2f} s{theirs_s:>8.2f} s{ours_s / theirs_s:>8.2f}")
    print(f"ratios of the rounds: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def _options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.machines", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--agents", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(argv)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())

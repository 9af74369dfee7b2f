"""How long commands take from exec to their end, beside an interpreter that does nothing."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ours import Daemon, senders
from benchmarks.processes import ROOT

BARE = "bare Python"
_TIMEOUT_S = 30


def start_times(daemon: Daemon, times: int) -> dict[str, float]:
    """Give the median milliseconds of each command, run in turn with the others."""
    script = Path(sys.executable).with_name("hive")
    hive = [str(script)] if script.exists() else [sys.executable, "-m", "hive_core.cli"]
    commands: dict[str, Sequence[str]] = {
        BARE: [sys.executable, "-I", "-S", "-c", "pass"],
        "hive --version": [*hive, "--version"],
        "hive ls": [*hive, "ls"],
        "hive send": [*hive, "send", senders(1)[0], "hello"],
    }
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "HIVE_SOCKET": str(daemon.layout.host_socket),
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, command in commands.items():
            took_ms = _run(command, environment)
            if turn:  # the first fills the caches
                spent[name].append(took_ms)
    return {name: statistics.median(took) for name, took in spent.items()}


def _run(command: Sequence[str], environment: Mapping[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    took_s = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} exited with {done.returncode}: {done.stderr.decode()[-500:]}"
        )
    return took_s * 1000

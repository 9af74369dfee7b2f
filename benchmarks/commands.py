"""How long commands take from exec to their end, beside an interpreter that does nothing.

What a client starts and talks to, `hive-agent mcp`, is timed until its first answer is there.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ours import Daemon, senders
from benchmarks.processes import ROOT

BARE = "bare Python"
BRIDGE = "hive-agent mcp"
_TIMEOUT_S = 30


def start_times(daemon: Daemon, times: int) -> dict[str, float]:
    """Give the median milliseconds of each command, run in turn with the others."""
    hive = _installed("hive", "hive_core.cli")
    bridge = [*_installed("hive-agent", "hive_agent"), "mcp"]
    agent = senders(1)[0]
    commands: dict[str, Sequence[str]] = {
        BARE: [sys.executable, "-I", "-S", "-c", "pass"],
        "hive --version": [*hive, "--version"],
        "hive ls": [*hive, "ls"],
        "hive send": [*hive, "send", agent, "hello"],
        BRIDGE: [*bridge, "--socket", str(daemon.layout.agent(agent).socket)],
    }
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": str(ROOT),
        "HIVE_SOCKET": str(daemon.layout.host_socket),
    }
    spent: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, command in commands.items():
            run = _greet if name == BRIDGE else _run
            took_ms = run(command, environment)
            if turn:  # the first fills the caches
                spent[name].append(took_ms)
    return {name: statistics.median(took) for name, took in spent.items()}


def _installed(script: str, module: str) -> list[str]:
    path = Path(sys.executable).with_name(script)
    return [str(path)] if path.exists() else [sys.executable, "-m", module]


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


def _greet(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Give the milliseconds from exec to the answer of the client's `initialize`."""
    hello = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    }
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}).encode() + b"\n"
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        watchdog = threading.Timer(_TIMEOUT_S, process.kill)
        watchdog.start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
            answer = process.stdout.readline()
            took_s = time.perf_counter() - began
            _, said = process.communicate()
        finally:
            watchdog.cancel()
    if b'"serverInfo"' not in answer:
        raise RuntimeError(f"{' '.join(command)} answered {answer[:500]!r}: {said.decode()[-500:]}")
    return took_s * 1000

"""A `claude` that does what a scenario says: argv[1] is that file, a JSON list of steps.

Every line of stdin is kept in FILE.stdin; argv, environment, system prompt and MCP servers in FILE.started.
Steps:

    "handshake"              what claude says before it takes a prompt; needs our `initialize`
    "prompt" "interrupt"     wait for a user line, for an interrupt; "eof" waits for the end of stdin
    ["print", LINE]          a line, an object or bytes as they are
    ["replay", FILE]         the lines of a recording but its control lines, with a little time between
    ["call", NAME, ARGS]     a tool of the hive's server; its answer is kept in FILE.stdin
    ["stderr", TEXT] ["sleep", SECONDS] ["exit", STATUS]
    "stubborn"               from now on SIGTERM does nothing
    ["socket", NAME, LINE]   bind NAME, in which PID stands for our own, and print LINE with its path
    "child"                  start a process in a session of its own; its pid goes to FILE.child
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

place = sys.argv[1]
kept = Path(f"{place}.stdin").open("ab", buffering=0)  # noqa: SIM115
calls = 100


def say(line: object) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def hear() -> dict[str, object] | None:
    line = sys.stdin.buffer.readline()
    if not line:
        return None
    kept.write(line)
    return json.loads(line)


def hear_until(wanted: object) -> dict[str, object]:
    while (heard := hear()) is not None:
        if wanted(heard):
            return heard
    sys.exit(3)


def is_interrupt(line: dict[str, object]) -> bool:
    return line["type"] == "control_request" and line["request"]["subtype"] == "interrupt"


def ask(message: dict[str, object]) -> None:
    global calls
    calls += 1
    name = f"c{calls}"
    request = {"subtype": "mcp_message", "server_name": "hyperhive", "message": {"jsonrpc": "2.0", **message}}
    say({"type": "control_request", "request_id": name, "request": request})
    hear_until(lambda line: line["type"] == "control_response" and line["response"]["request_id"] == name)


def do(step: object) -> None:
    global calls
    match step:
        case "handshake":
            hear_until(lambda line: line["type"] == "control_request")
            ask({"id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}})
            ask({"method": "notifications/initialized"})
            ask({"id": 1, "method": "tools/list"})
        case "prompt":
            hear_until(lambda line: line["type"] == "user")
        case "interrupt":
            hear_until(is_interrupt)
        case "eof":
            while hear() is not None:
                pass
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        case "child":
            child = subprocess.Popen(["sleep", "300"], start_new_session=True, stdout=subprocess.DEVNULL)
            with open(f"{place}.child", "w") as file:
                file.write(str(child.pid))
        case ["socket", name, line]:
            path = os.path.join(os.path.dirname(place), name.replace("PID", str(os.getpid())))
            os.chdir(os.path.dirname(path))  # an address has 107 bytes
            socket.socket(socket.AF_UNIX).bind(os.path.basename(path))
            say({**line, "messaging_socket_path": path})
        case ["print", line]:
            say(line)
        case ["replay", file]:
            for line in Path(file).read_text().splitlines():
                if '"type":"control_' not in line:
                    time.sleep(0.002)
                    say(line)
        case ["call", name, arguments]:
            calls += 1
            meta = {"claudecode/toolUseId": f"toolu_{calls}"}
            params = {"name": name, "arguments": arguments, "_meta": meta}
            ask({"id": calls, "method": "tools/call", "params": params})
        case ["stderr", text]:
            print(text, file=sys.stderr, flush=True)
        case ["sleep", seconds]:
            time.sleep(seconds)
        case ["exit", status]:
            sys.exit(status)


with open(f"{place}.started", "a") as file:
    told = Path(sys.argv[sys.argv.index("--system-prompt-file") + 1]).read_text()
    started = {"argv": sys.argv[2:], "env": dict(os.environ), "cwd": os.getcwd(), "system_prompt": told}
    started["mcp"] = json.loads(Path(sys.argv[sys.argv.index("--mcp-config") + 1]).read_text())
    file.write(json.dumps(started) + "\n")
for step in json.loads(Path(place).read_text()):
    do(step)

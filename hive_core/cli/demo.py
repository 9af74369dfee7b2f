"""A hive in a fresh directory, two agents, one message: what `make demo` shows.

Nothing of it is staged: it starts the daemon that `hive-core serve --local` is, talks to it as `hive`
does, and shows what `hive watch` would show.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from hive_core.cli import output, problems
from hive_core.cli.hive import Deadline, Hive, Row
from hive_core.cli.problems import Problem
from hive_core.cli.safe import visible
from hive_core.cli.traffic import Traffic
from hive_core.wire.unix import short_address

AGENTS: Final = ("alice", "bob")
MESSAGE: Final = "say bob: please count the words of this sentence"
LIMIT_S: Final = 17.0
"""From the start of the daemon to the end of the last turn; `make demo` has 20 s for everything."""
LOOK_S: Final = 0.05
QUIET_LOOKS: Final = 3
"""How often in a row the hive must be found at rest before it counts."""
STOP_S: Final = 8.0
LOG_LINES: Final = 15


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and give its exit code."""
    options = _parse(argv)
    home = Path(options.home or tempfile.mkdtemp(prefix="hyperhive-demo-")).absolute()
    home.mkdir(parents=True, exist_ok=True)
    try:
        output.say(f"A hive in {home}, with two agents: {' and '.join(AGENTS)}.")
        output.say(f"You, the operator, write to alice: {visible(options.message)}")
        output.say("")
        output.flush()
        answers, all_ok = _run(home, options.message)
        output.say("")
        _show_results(home, answers, all_ok)
        output.flush()
    except KeyboardInterrupt:
        return problems.INTERRUPTED
    except BrokenPipeError as error:
        return problems.output_failed(error)
    except Problem as problem:
        output.flush()
        problems.report(problem)
        return _show_log(home, problem.exit_code)
    return problems.OK if all_ok else problems.FAILED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="Watch two agents talk to each other.")
    parser.add_argument("--message", default=MESSAGE, help="what to tell alice (default: %(default)s)")
    parser.add_argument("--home", help="the directory to use (default: a fresh one)")
    return parser.parse_args(argv)


def _run(home: Path, message: str) -> tuple[list[Row], bool]:
    """Give the messages that came to the operator, and whether every turn went well."""
    deadline = Deadline(LIMIT_S)
    with _daemon(home) as (hive, daemon):
        _wait_ready(hive, daemon, deadline)
        with _Watch(hive.path) as watch:
            traffic = Traffic(columns=output.width())
            _spawn(hive, watch, traffic, deadline)
            sent_id = hive.ask({"cmd": "send", "to": AGENTS[0], "body": message})["id"]
            all_ok = _until_quiet(hive, watch, traffic, sent_id, deadline)
        inbox = hive.ask({"cmd": "inbox", "agent": "operator"})["messages"]
    return [row for row in inbox if row["id"] > sent_id], all_ok


# ── the daemon ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _daemon(home: Path) -> Iterator[tuple[Hive, subprocess.Popen[bytes]]]:
    """A daemon of our own; at the end neither it nor a process it started is left."""
    hive = _RememberingHive(home)
    command = [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(home)]
    with _log_file(home).open("ab") as log:
        # A session of its own: Ctrl-C in this terminal is ours to handle.
        daemon = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield hive, daemon
    finally:
        restore = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            _stop(hive, daemon)
        finally:
            signal.signal(signal.SIGINT, restore)


class _RememberingHive(Hive):
    """Keeps the process ids it has seen, in case the daemon dies before its agents."""

    def __init__(self, home: Path) -> None:
        super().__init__(home=str(home), timeout_s=5.0)
        self.home = home
        self.pids: set[int] = set()

    def roster(self, *, timeout_s: float | None = None) -> dict[str, Row]:
        roster = super().roster(timeout_s=timeout_s)
        self.pids |= {row["pid"] for row in roster.values() if row.get("pid")}
        return roster


def _stop(hive: _RememberingHive, daemon: subprocess.Popen[bytes]) -> None:
    # Ctrl-C to the daemon ends the agents too, and leaves it wished that they run: the next one starts them.
    daemon.send_signal(signal.SIGINT)
    try:
        daemon.wait(STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    for pid in hive.pids:
        if _is_harness(pid, hive.home):
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def _is_harness(pid: int, home: Path) -> bool:
    """Whether *pid* is still what it was when it was seen: a harness of the hive at *home*."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"hive_agent" in command and os.fsencode(home) in command


def _wait_ready(hive: Hive, daemon: subprocess.Popen[bytes], deadline: Deadline) -> None:
    while True:
        try:
            hive.ask({"cmd": "status"}, timeout_s=max(deadline.left_s(), LOOK_S))
            return
        except Problem as problem:
            if problem.exit_code != problems.UNREACHABLE:
                raise
            if (status := daemon.poll()) is not None:
                raise Problem(
                    problems.FAILED, f"cannot start the daemon: it ended with status {status}"
                ) from None
            if deadline.left_s() <= 0:
                raise
        time.sleep(LOOK_S)


# ── the conversation ────────────────────────────────────────────────────────────────────────────


class _Watch:
    """The `watch` stream with a limit on each look; wire.client waits without one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> "_Watch":
        with short_address(self._path) as address:
            self._socket.connect(address)
        self._socket.sendall(b'{"cmd":"watch"}\n')
        if self.look(5.0) is None:
            raise Problem(problems.TIMED_OUT, "cannot watch: the daemon does not answer")
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def look(self, timeout_s: float) -> dict[str, Any] | None:
        """Give the next item, or None when there is none for *timeout_s*."""
        self._socket.settimeout(timeout_s)
        while b"\n" not in self._buffer:
            try:
                received = self._socket.recv(65536)
            except TimeoutError:
                return None
            if not received:
                raise Problem(problems.UNREACHABLE, "cannot watch any longer: the daemon is gone")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        item: dict[str, Any] = json.loads(line)
        if not item.get("ok"):
            raise Problem(problems.FAILED, str(item.get("error", "cannot watch")))
        return item


def _spawn(hive: Hive, watch: _Watch, traffic: Traffic, deadline: Deadline) -> None:
    for agent in AGENTS:
        try:
            hive.ask({"cmd": "spawn", "name": agent})
        except Problem as problem:
            if problem.exit_code != problems.CONFLICT:
                raise
            hive.ask({"cmd": "start", "scope": {"agent_names": [agent]}})
    while True:
        _show(watch.look(LOOK_S), traffic)
        roster = hive.roster()
        if all(roster.get(agent, {}).get("connected") for agent in AGENTS):
            return
        for agent in AGENTS:
            if roster.get(agent, {}).get("failed"):
                raise Problem(problems.FAILED, f"cannot start {agent}: {roster[agent].get('failure')}")
        if deadline.left_s() <= 0:
            raise Problem(problems.TIMED_OUT, f"cannot start the agents within {LIMIT_S:g} s")


def _until_quiet(hive: Hive, watch: _Watch, traffic: Traffic, sent_id: int, deadline: Deadline) -> bool:
    """Show the traffic until nobody has anything left to do; give whether every turn went well."""
    unfinished, all_ok, quiet_looks = {sent_id}, True, 0
    while quiet_looks < QUIET_LOOKS:
        if deadline.left_s() <= 0:
            raise Problem(
                problems.TIMED_OUT,
                f"cannot see the end of it within {LIMIT_S:g} s: {_what_is_left(hive, unfinished)}",
            )
        item = watch.look(LOOK_S)
        _show(item, traffic)
        if item is None:
            quiet_looks = quiet_looks + 1 if not unfinished and _at_rest(hive) else 0
            continue
        quiet_looks = 0
        message, event = item.get("message", {}), item.get("event", {})
        if message.get("recipient") in AGENTS:
            unfinished.add(message["id"])
        if event.get("kind") == "turn_end":
            unfinished.discard(event["payload"].get("message_id"))
            all_ok = all_ok and bool(event["payload"].get("ok"))
    return all_ok


def _at_rest(hive: Hive) -> bool:
    return all(
        row.get("connected") and row.get("turn_state", "idle") == "idle" and not row.get("unread")
        for row in hive.roster().values()
    )


def _what_is_left(hive: Hive, unfinished: set[int]) -> str:
    with suppress(Problem):
        busy = [name for name, row in hive.roster().items() if row.get("turn_state", "idle") != "idle"]
        if busy:
            return f"{' and '.join(busy)} still at work"
    return f"messages {', '.join(map(str, sorted(unfinished)))} not worked on" if unfinished else "no rest"


def _show(item: dict[str, Any] | None, traffic: Traffic) -> None:
    for line in traffic.render(item or {}):
        output.say(line)
    output.flush()


# ── what is left to say ─────────────────────────────────────────────────────────────────────────


def _show_results(home: Path, answers: Sequence[Row], all_ok: bool) -> None:
    if answers:
        output.say("What came to your inbox:")
        for row in answers:
            first, *others = visible(row["body"], multiline=True).split("\n")
            lead = f"  {row['sender']}: "
            for line in [lead + first] + [" " * len(lead) + line for line in others]:
                output.say(line)
    else:
        output.say("Nothing came to your inbox.")
    if not all_ok:
        output.say("A turn failed: see above.")
    output.say("")
    where = shlex.quote(str(home))
    hive, core = _program("hive", "hive_core.cli"), _program("hive-core", "hive_core")
    output.say("The agents and the daemon are stopped. Everything they did is kept in")
    output.say(f"  {home}")
    output.say("To go on with the same two agents:")
    output.say("")
    output.say(f"  {core} serve --local --home {where}")
    output.say("")
    output.say("and in another terminal:")
    output.say("")
    output.say(f"  {hive} --home {where} ls")
    output.say(f'  {hive} --home {where} send bob "say alice: hello"')
    output.say(f"  {hive} --home {where} watch")


def _program(name: str, module: str) -> str:
    """The shortest command that starts the program *name* of this installation."""
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        return f"{shlex.quote(sys.executable)} -m {module}"
    with suppress(ValueError):
        script = script.relative_to(Path.cwd())
    command = str(script)
    return shlex.quote(command if "/" in command else f"./{command}")


def _log_file(home: Path) -> Path:
    return home / "hive-core.log"


def _show_log(home: Path, exit_code: int) -> int:
    with suppress(OSError):
        lines = _log_file(home).read_text(errors="replace").splitlines()[-LOG_LINES:]
        output.note(f"hint: the end of {_log_file(home)}:")
        for line in lines:
            output.note(f"  {visible(line)}")
    return exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

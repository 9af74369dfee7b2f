"""Root of a machine against the host, the daemon and the other agents.

What runs in the machine is in attack/: it can do all that root can do there, without the fence of the harness's
unit.  All the time somebody asks the daemon for its status, which must answer as if nothing were the matter.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .bed import open_bed
from .hive_kit import HiveHost, Watcher, table, wait_until

ATTACK = Path(__file__).with_name("attack")
PYTHON = "/opt/hyperhive/bin/python3"
VICTIM = "/var/lib/hyperhive/victim"
PORT, ABSTRACT = 7999, "host-of-the-hive"
PLANTED = {"HOST_FILE": VICTIM, "HOST_PORT": PORT, "HOST_ABSTRACT": ABSTRACT, "OTHER_AGENT": "bob"}
FILES = ("hyperhive-events.sqlite", "hyperhive-turn-stats.sqlite")
READ_S = 15.0
"""A child that reads an agent's file has 10 s; the command that asked for it waits a little longer."""
MAX_P99_MS = 100.0
"""Beyond what a process takes meanwhile that only echoes: the attacks leave none of two processors alone."""

OPEN: dict[str, str] = {}
"""Attempts that are known to succeed, and the point of `hive doctor` that says so.  There is none."""

IN_THE_OPEN = {
    *(
        "raw_sockets",
        "packet_sockets",
        "host_service",
        "host_abstract_socket",
        "operator_verbs",
        "make_devices",
    ),
    *(
        "kernel_settings",
        "rare_calls",
        "user_namespaces",
        "other_agent",
        "more_than_its_share",
    ),
    *(
        "take_covers_away",
        "chroot_and_up",
        "roots_of_processes",
        "up_from_binds",
        "host_processes",
        "cgroups",
    ),
}
"""What the same script gets at when it runs as root of the bed, so that *blocked* means something."""

SERVE = """
import select, socket, sys
listeners = [socket.create_server(("", int(sys.argv[1]))), socket.socket(socket.AF_UNIX)]
listeners[1].bind("\\0" + sys.argv[2])
listeners[1].listen()
while True:
    for listener in select.select(listeners, [], [])[0]:
        client, _ = listener.accept()
        client.send(b"the host")
        client.close()
"""


@pytest.fixture(scope="module")
def hive(worker_id: str) -> Iterator[HiveHost]:
    with open_bed(f"pytest-{os.getpid()}-{worker_id}-attack") as bed:
        host = HiveHost(bed).set_up()
        host.hive("spawn", "alice", "bob")
        bed.path(VICTIM).write_text("the host's own\n")
        yield host


@pytest.fixture(scope="module")
def watcher(hive: HiveHost) -> Iterator[Watcher]:
    """Watches during all tests of this module, and has its say at the end."""
    pid = hive.daemon_pid()
    with Watcher(hive).watching() as watching:
        yield watching
    daemon, echo = watching.daemon, watching.echo
    print(f"\nstatus: {daemon.describe()}\nan echo: {echo.describe()}; load {os.getloadavg()[0]:.1f}")
    for name in daemon.slowest(12):
        print(f"  {name}: {daemon.describe(name)}; an echo: p99 {echo.p99_ms(name):.1f} ms")
    assert daemon.failures == echo.failures == []
    assert hive.daemon_pid() == pid, "the daemon that was there before is there after"
    assert daemon.p99_ms() < MAX_P99_MS + echo.p99_ms()


@pytest.fixture(autouse=True)
def phase(watcher: Watcher, request: pytest.FixtureRequest) -> None:
    watcher.phase = request.node.name


@pytest.fixture(autouse=True)
def unharmed(hive: HiveHost) -> Iterator[None]:
    """The host's own file, and the other agent, after each test as before."""
    leader = hive.leader("bob")
    yield
    assert hive.bed.path(VICTIM).read_text() == "the host's own\n"
    assert hive.leader("bob") == leader
    assert hive.row("bob")["connected"]
    assert hive.bed.run(["systemctl", "--failed", "--no-legend", "--plain"]).stdout == ""


def attack(
    hive: HiveHost, script: str, *words: str, agent: str = "alice", timeout_s: float = 60, host_pid: int = 0
) -> str:
    """Run *script* of attack/ as root of the machine of *agent*, and give what it prints."""
    text = (ATTACK / f"{script}.py").read_text()
    variables = [f"-e{name}={value}" for name, value in {**PLANTED, "HOST_PID": host_pid}.items()]
    argv = ["exec", *variables, agent, "--", PYTHON, "-", *words]
    return hive.hive(*argv, input=text, timeout_s=timeout_s).stdout


# ── out of the cage ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def host_service(hive: HiveHost) -> Iterator[int]:
    """Somebody on the host who answers on a port and on an abstract socket; gives its pid, which none in a
    machine has."""
    hive.run(["sh", "-c", "echo 20000 > /proc/sys/kernel/ns_last_pid"])
    unit = "a-service-of-the-host.service"
    hive.run(["systemd-run", "-q", f"--unit={unit}", "--", "python3", "-c", SERVE, str(PORT), ABSTRACT])
    pid = int(hive.run(["systemctl", "show", unit, "-p", "MainPID", "--value"]).stdout)
    listening = f"@{ABSTRACT}"
    wait_until(lambda: listening in hive.run(["cat", "/proc/net/unix"]).stdout, "it listens")
    assert pid > 20000
    yield pid
    hive.run(["systemctl", "stop", unit])


def report(lines: str) -> dict[str, dict[str, str]]:
    rows = [json.loads(line) for line in lines.splitlines()]
    print("\n" + table([("NAME", "OUTCOME", "TRIED: SAID")] + [
        (row["name"], row["outcome"], f"{row['tried']}: {row['said']}"[:160]) for row in rows
    ]))  # fmt: skip
    return {row["name"]: row for row in rows}


def test_nothing_gets_out_of_a_machine(hive: HiveHost, host_service: int) -> None:
    main_pid = hive.unit("alice", "MainPID")

    rows = report(attack(hive, "escape", timeout_s=200, host_pid=host_service))

    assert len(rows) > 35
    assert {name: row["said"] for name, row in rows.items() if row["outcome"] == "broken"} == {}
    assert {name: row["said"] for name, row in rows.items() if row["outcome"] == "open"}.keys() == OPEN.keys()
    doctor = {check["name"]: check for check in json.loads(hive.hive("doctor", "--json", check=False).stdout)}
    assert [name for name, point in OPEN.items() if doctor[point]["status"] == "ok"] == []
    # It could tell the host's systemd whatever it liked.
    assert hive.unit("alice", "MainPID") == main_pid
    assert hive.unit("alice", "ActiveState") == "active"


def test_the_same_script_gets_at_things_where_there_is_no_cage(hive: HiveHost, host_service: int) -> None:
    variables = {name: str(value) for name, value in PLANTED.items()}
    script = (ATTACK / "escape.py").read_text()

    done = hive.run(
        ["python3", "-", *sorted(IN_THE_OPEN)],
        input=script,
        env={**variables, "HOST_PID": str(host_service), "HIVE_AGENT_STATE": "/var/lib/hyperhive/agents/alice/state"},
        timeout_s=60,
    )  # fmt: skip

    rows = report(done.stdout)
    assert {name for name in IN_THE_OPEN if rows[name]["outcome"] != "open"} == set()


# ── as somebody else ────────────────────────────────────────────────────────────────────────────


def said_to(hive: HiveHost, since: int, text: str) -> list[tuple[str, str]]:
    rows = hive.messages(since)
    return [(row["sender"], row["recipient"]) for row in rows if row["body"] == text]


def test_an_agent_speaks_as_itself_and_not_as_an_operator(hive: HiveHost) -> None:
    since = hive.last_message()

    told = json.loads(attack(hive, "speak", "/run/hive/mcp.sock", "frames", "it is me"))

    assert said_to(hive, since, "it is me") == [("alice", "operator")]
    kinds = [line[0] if isinstance(line, list) else line["type"] for line in told]
    assert kinds.count("reply") == 1, told
    assert set(hive.rows()) == {"alice", "bob"}


@pytest.mark.parametrize("language", ["frames", "mcp"])
def test_who_holds_the_socket_of_another_cannot_speak_as_it(hive: HiveHost, language: str) -> None:
    """The test puts bob's own socket where alice sees it; its mode alone would keep her off already."""
    since = hive.last_message()
    theirs = "/run/hyperhive/agents/bob/mcp.sock"
    text = f"I am bob, in {language}"
    hive.run(["ln", theirs, "/run/hyperhive/agents/alice/bob.sock"])
    try:
        closed = json.loads(attack(hive, "speak", "/run/hive/bob.sock", language, text))
        hive.run(["chmod", "666", theirs])
        told = json.loads(attack(hive, "speak", "/run/hive/bob.sock", language, text))
    finally:
        hive.run(["chmod", "600", theirs])
        hive.run(["rm", "/run/hyperhive/agents/alice/bob.sock"])

    assert closed == [["error", "Permission denied"]]
    assert "forbidden" in json.dumps(told)
    assert "cannot serve you: uid" in json.dumps(told)
    assert said_to(hive, since, text) == []
    alice = hive.ask(cmd="machine", name="alice")["uid_base"]
    if language == "frames":  # told once a minute at most
        wait_until(lambda: hive.events_told(since, "peer_refused"), "it is reported", 5)
        assert hive.events_told(since, "peer_refused") == [
            {"event": "peer_refused", "agent": "bob", "uid": alice, "unit": "systemd-nspawn@h-alice.service"}
        ]


def test_the_uid_alone_is_not_enough(hive: HiveHost) -> None:
    since = hive.last_message()
    uid = hive.ask(cmd="machine", name="alice")["uid_base"]
    hive.bed.path("/run/speak.py").write_text((ATTACK / "speak.py").read_text())
    argv = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", PYTHON, "-I", "/run/speak.py"]

    told = json.loads(
        hive.run([*argv, "/run/hyperhive/agents/alice/mcp.sock", "frames", "I am alice"]).stdout
    )

    assert "forbidden" in json.dumps(told)
    assert said_to(hive, since, "I am alice") == []
    wait_until(lambda: hive.events_told(since, "peer_refused"), "it is reported", 5)


# ── more than its share ─────────────────────────────────────────────────────────────────────────


def test_a_fork_bomb_ends_at_the_limit_of_tasks(hive: HiveHost) -> None:
    hive.hive("limits", "alice", "--tasks", "200")

    said = attack(hive, "hog", "forks", "600")

    print(said, hive.unit("alice", "TasksMax"))
    hive.hive("limits", "alice", "--tasks", "default")
    if enforces(hive, "pids"):
        assert "then Resource temporarily unavailable" in said
    assert hive.row("alice")["connected"]


def test_a_memory_hog_ends_at_the_limit_of_memory(hive: HiveHost) -> None:
    hive.hive("limits", "alice", "--memory", "512M")
    assert hive.unit("alice", "MemoryMax") == str(2**29)

    said = attack(hive, "hog", "memory", str(2**30))

    print(said)
    hive.hive("limits", "alice", "--memory", "default")
    if enforces(hive, "memory"):
        assert "signal 9" in said
    assert hive.row("alice")["connected"]


def enforces(hive: HiveHost, controller: str) -> bool:
    """Whether limits of that kind hold here.  Where they do not, the doctor says so."""
    controllers = hive.bed.path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    if controller in controllers:
        return True
    (note,) = [check for check in hive.ask(cmd="doctor")["checks"] if check["name"] == "cgroups"]
    assert note["status"] == "warn"
    assert controller in note["text"]
    return False


@pytest.mark.parametrize(
    ("what", "amount"),
    [("processors", 2), ("console", 40), ("connections", 500), ("frames", 40), ("calls", 40), ("objects", 40), ("nests", 40), ("sends", 1000)],
)  # fmt: skip
def test_a_hog_holds_nobody_up(hive: HiveHost, watcher: Watcher, what: str, amount: int) -> None:
    since = hive.last_message()

    print(attack(hive, "hog", what, str(amount)))

    phase = watcher.phase
    print(f"status: {watcher.daemon.describe(phase)}; an echo: {watcher.echo.describe(phase)}")
    hive.send("bob", "say operator: still here")
    wait_until(lambda: said_to(hive, since, "still here") == [("bob", "operator")], "bob is served", 10)
    wait_until(lambda: hive.row("alice")["connected"], "alice's harness is served again", 15)


def test_what_a_machine_writes_to_its_console_cannot_move_a_cursor(hive: HiveHost) -> None:
    attack(hive, "hog", "console", "2")

    shown = hive.hive("logs", "alice", "-n", "200").stdout

    assert "\x1b" not in shown
    assert "\x07" not in shown


# ── traps ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def state(hive: HiveHost) -> Iterator[Path]:
    """alice's state directory, whose harness does not write to it for now."""
    hive.inside("alice", "systemctl", "stop", "hive-agent")
    yield hive.bed.path("/var/lib/hyperhive/agents/alice/state")
    attack(hive, "plant", "nothing", *FILES)
    hive.inside("alice", "systemctl", "start", "hive-agent")
    hive.wait_as_wanted("alice", "bob")


TRAPS = (
    *(
        "link_to_the_hive",
        "link_to_itself",
        "link_to_a_process",
        "fifo",
        "named_socket",
        "directory",
        "sparse_giant",
    ),
    *(
        "sparse_giant_with_a_header",
        "noise",
        "noise_behind_a_schema",
        "hot_journal",
        "truncated_shm",
        "shm_is_a_fifo",
    ),
    *(
        "row_of_10_gigabytes",
        "row_of_900_megabytes",
        "row_of_300_megabytes",
        "many_rows",
        "view_without_an_end",
        "wild_values",
    ),
)


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_in_a_file_that_the_host_reads_costs_its_agent_only(
    hive: HiveHost, state: Path, trap: str
) -> None:
    attack(hive, "plant", trap, *FILES)

    said = look_into(hive)

    print(f"\n{trap}: {said}")
    assert "Traceback" not in said
    assert hive.bed.path("/var/lib/hyperhive/broker.sqlite").exists()
    assert "Internal error" not in hive.bed.journal("hive-core", lines=20)


@pytest.mark.parametrize("trap", ["leased", "locked"])
def test_a_file_that_somebody_holds_keeps_nobody_waiting(hive: HiveHost, state: Path, trap: str) -> None:
    text = (ATTACK / "plant.py").read_text()
    holding = []
    for file in FILES:
        holder = hive.bed.popen(
            ["hive", "exec", "alice", "--", PYTHON, "-c", text, trap, file], stdout=subprocess.PIPE, text=True
        )
        holding.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

    said = look_into(hive)

    for holder in holding:
        holder.terminate()
        holder.communicate()
    print(f"\n{trap}: {said}")


def look_into(hive: HiveHost) -> str:
    """Let the host read alice's files as operators do, and give what it says."""
    said = []
    for words in (["events", "alice", "-n", "50"], ["stats", "alice"]):
        began = time.monotonic()
        done = hive.hive(*words, "--timeout", "20", check=False, timeout_s=30)
        assert time.monotonic() - began < READ_S
        assert done.returncode in {0, 1, 4, 5, 6}, done
        assert "\x1b" not in done.stdout + done.stderr
        said.append(
            f"{words[0]} {time.monotonic() - began:.1f} s: {(done.stderr or done.stdout).strip()[:150]!r}"
        )
    return "; ".join(said)


# ── the end ─────────────────────────────────────────────────────────────────────────────────────


def test_all_that_an_agent_leaves_behind_can_be_deleted(hive: HiveHost) -> None:
    hive.hive("spawn", "mallory")
    attack(hive, "plant", "litter", agent="mallory", timeout_s=90)
    deep = (
        "import os\nos.chdir('/var/tmp')\nfor _ in range(3000):\n os.mkdir('d' * 100); os.chdir('d' * 100)\n"
    )
    hive.inside("mallory", "python3", "-", input=deep)
    for _ in range(3):  # the same again, in the way of the roots of the next machines
        hive.hive("restart", "mallory")
        hive.inside("mallory", "python3", "-", input=deep)

    hive.hive("destroy", "mallory", "--purge", "--yes", "--timeout", "60", timeout_s=70)

    gone = ("/var/lib/hyperhive/agents/mallory", "/var/lib/hyperhive/configs/mallory", "/run/hyperhive/agents/mallory",
            "/var/lib/machines/h-mallory", "/run/systemd/nspawn/h-mallory.nspawn")  # fmt: skip
    assert [path for path in gone if os.path.lexists(hive.bed.path(path))] == []
    trash = hive.bed.path("/var/lib/machines/.hive")
    wait_until(
        lambda: not list(trash.glob(".trash-*")) and not list(trash.glob("*mallory*")),
        "its roots are gone",
        30,
    )


def test_a_machine_that_will_not_end_is_ended(hive: HiveHost) -> None:
    hive.hive("spawn", "mallory")
    # Its init is told to ignore what asks it to end.
    stubborn = (
        "mkdir -p /run/systemd/system/never.service.d; systemctl mask --runtime poweroff.target halt.target"
    )
    hive.inside("mallory", "sh", "-c", stubborn)
    began = time.monotonic()

    hive.hive("destroy", "mallory", "--purge", "--yes", "--timeout", "60", timeout_s=70)

    print(f"gone after {time.monotonic() - began:.1f} s")
    assert "mallory" not in hive.rows()


def test_the_host_is_as_it_was(hive: HiveHost) -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(5)
        assert client.connect_ex(f"/proc/{hive.bed.pid}/root/run/hyperhive/host.sock") == 0
    assert hive.is_as_wanted("alice", "bob")
    log = hive.bed.journal("hive-core", lines=2000)
    assert "Traceback" not in log
    assert "ended by a bug" not in log
    assert "Internal error" not in log

"""What systemd is given: the units in systemd/, and the sockets it hands back."""

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hive_core.config import Config, flatten, load_config
from hive_core.domain.machine_names import MachineNames

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "systemd"
MAX_EXPOSURE = 3.4

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)


def setting(unit: str, section: str, name: str) -> list[str]:
    """All values of *name*, in their order."""
    here, values = "", []
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        elif here == section and line.startswith(f"{name}="):
            values.append(line.partition("=")[2])
    return values


# ── units ───────────────────────────────────────────────────────────────────────────────────────


@needs_analyze
def test_systemd_finds_nothing_to_complain_about_in_the_units(tmp_path: Path) -> None:
    program = tmp_path / "bin"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in UNITS.glob("*.s*"):
        if unit.suffix in {".service", ".socket", ".slice"}:
            (tmp_path / unit.name).write_text(
                re.sub(r"/opt/hyperhive/bin/\S+", str(program), unit.read_text())
            )
    units = sorted(path.name for path in tmp_path.glob("*.*"))
    assert units

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        timeout=30,
    )

    complaints = [line for line in done.stderr.splitlines() if re.search("hive|hyperhive", line)]
    assert complaints == []


@needs_analyze
def test_the_daemon_is_exposed_no_more_than_promised() -> None:
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=yes"),
            *(f"--threshold={MAX_EXPOSURE * 10:.0f}", UNITS / "hive-core.service"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot look at a file")

    assert done.returncode == 0, done.stdout


def test_a_stop_of_the_daemon_stops_no_machine() -> None:
    text = (UNITS / "hive-core.service").read_text()

    assert not re.search(r"^(PartOf|BindsTo|Slice|PropagatesStopTo)=", text, re.MULTILINE)
    assert setting("hive-core.service", "Service", "RuntimeDirectoryPreserve") == ["yes"]


def test_a_bad_configuration_is_not_tried_again() -> None:
    from hive_core.__main__ import EXIT_CONFIG

    assert setting("hive-core.service", "Service", "RestartPreventExitStatus") == [str(EXIT_CONFIG)]


def test_the_socket_is_the_one_that_hive_looks_for() -> None:
    from hive_core.cli.where import SYSTEM_SOCKET

    assert setting("hive-core.socket", "Socket", "ListenStream") == [SYSTEM_SOCKET]
    assert setting("hive-core.socket", "Socket", "SocketGroup") == [Config().admin_group]
    assert setting("hive-core.socket", "Socket", "SocketMode") == ["0660"]
    assert f"g {Config().admin_group} -" in (UNITS / "sysusers.d/hyperhive.conf").read_text().splitlines()


def test_polkit_and_networkd_know_our_machines_by_the_default_prefix() -> None:
    names = MachineNames(Config().machines.prefix)

    rules = (UNITS / "polkit/49-hyperhive.rules").read_text()
    assert f'(machine.indexOf("{names.prefix}") == 0 || machine == "{names.manager}")' in rules
    network = configparser.ConfigParser()
    network.read(UNITS / "network/10-hyperhive.network")
    assert network["Match"]["Name"] == f"ve-{names.prefix}* ve-{names.manager}"


def test_the_harness_has_the_unit_that_machines_are_given() -> None:
    from hive_core.host import nspawn

    rendered = nspawn.render_guest_unit()
    if os.environ.get("HIVE_WRITE_GOLDEN"):
        (UNITS / "hive-agent.service").write_text(rendered)
    assert (UNITS / "hive-agent.service").read_text() == rendered


def test_every_file_is_installed_by_make_and_stands_in_the_wheel() -> None:
    not_for_hosts = {"install.sh", "config.toml", "hive-agent.service"}
    files = {str(path.relative_to(UNITS)) for path in UNITS.rglob("*") if path.is_file()} - not_for_hosts
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    shared = build["targets"]["wheel"]["shared-data"]
    script = (UNITS / "install.sh").read_text()

    assert {
        name for name in files if f" {name} " not in f" {script} ".replace('"', " ").replace(";", " ")
    } == set()
    assert {
        name for name in files if not {f"systemd/{name}", f"systemd/{Path(name).parent}"} & shared.keys()
    } == set()


# ── the sample configuration ────────────────────────────────────────────────────────────────────


def test_the_sample_configuration_shows_the_defaults(tmp_path: Path) -> None:
    sample = (UNITS / "config.toml").read_text()
    spelled_out = re.sub(r"^#(\w+ = )", r"\1", sample, flags=re.MULTILINE)
    path = tmp_path / "config.toml"
    path.write_text(spelled_out)

    config, origins = load_config(path, {})

    assert tomllib.loads(sample) == {"harness": {}, "machines": {}}
    shown = {key for key, origin in origins.items() if origin == str(path)}
    assert len(shown) >= 8
    values, defaults = flatten(config), flatten(Config())
    assert {key: values[key] for key in shown} == {key: defaults[key] for key in shown}


# ── inherited sockets ───────────────────────────────────────────────────────────────────────────

REPORT = """
import os, socket
from hive_core.host.systemd import inherited_sockets
try:
    sockets = inherited_sockets()
except ValueError as error:
    print(error)
else:
    for name, taken in sockets.items():
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        print(name, taken.fileno(), listens, taken.getblocking(), taken.get_inheritable())
print(sorted(key for key in os.environ if key.startswith("LISTEN_")))
print([fd for fd in (3, 4) if os.path.exists(f"/proc/self/fd/{fd}")])
"""


def take_over(variables: str, *passed: int) -> list[str]:
    """Start a process as systemd does, with *passed* from descriptor 3 on, and return what it saw."""
    # A shell, because $$ has to be the pid of the program.  The copies of high numbers are for 3 and 4 to be free.
    moved = [os.dup2(fd, 50 + number, inheritable=True) for number, fd in enumerate(passed)]
    redirections = " ".join(f"{3 + number}<&{fd}" for number, fd in enumerate(moved))
    closed = " ".join(f"{fd}<&-" for fd in moved)
    try:
        done = subprocess.run(
            [
                "bash",
                "-c",
                f'export {variables}; exec {redirections}; exec "$0" -c "$1" {closed}',
                sys.executable,
                REPORT,
            ],
            pass_fds=moved,
            env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=20,
        )
    finally:
        for fd in moved:
            os.close(fd)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        made.listen()
        yield made


def test_the_sockets_of_systemd_are_taken_by_their_names(listener: socket.socket) -> None:
    seen = take_over(
        "LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=host.sock:http", listener.fileno(), listener.fileno()
    )

    assert seen == ["host.sock 3 1 False False", "http 4 1 False False", "[]", "[3, 4]"]


def test_a_socket_without_a_name_is_unknown(listener: socket.socket) -> None:
    assert take_over("LISTEN_PID=$$ LISTEN_FDS=1", listener.fileno())[0] == "unknown 3 1 False False"


@pytest.mark.parametrize(
    "variables",
    [
        "OTHER=1",
        "LISTEN_PID=1 LISTEN_FDS=1 LISTEN_FDNAMES=a",
        "LISTEN_FDS=1",
        "LISTEN_PID=$$ LISTEN_FDS=x",
        "LISTEN_PID=$$",
    ],
)
def test_what_was_passed_to_another_process_is_left_alone(variables: str, listener: socket.socket) -> None:
    assert take_over(variables, listener.fileno()) == ["[]", "[3]"]


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ("LISTEN_FDS=2 LISTEN_FDNAMES=a:a", "two are named 'a'"),
        ("LISTEN_FDS=2 LISTEN_FDNAMES=a", "2 with 1 names"),
        ("LISTEN_FDS=3 LISTEN_FDNAMES=a:b:c", "'c' of systemd: Bad file descriptor"),
    ],
)
def test_sockets_that_make_no_sense_are_refused_and_closed(
    variables: str, complaint: str, listener: socket.socket
) -> None:
    seen = take_over(f"LISTEN_PID=$$ {variables}", listener.fileno(), listener.fileno())

    assert complaint in seen[0]
    assert seen[1:] == ["[]", "[]"]


def test_a_file_is_no_socket(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        seen = take_over("LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=a", file.fileno())

    assert seen[0] == "cannot use the socket 'a' of systemd: Socket operation on non-socket"

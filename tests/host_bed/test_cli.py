"""What an operator types on a host with machines, typed there."""

import json
import os
import pty
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from .bed import Bed, open_bed

HIVE: Final = "/opt/hyperhive/bin/hive"


def hive(
    bed: Bed, *argv: str, stdin: bytes = b"", user: str | None = None
) -> subprocess.CompletedProcess[bytes]:
    become = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user else []
    return subprocess.run(
        bed.argv([*become, HIVE, *argv]), input=stdin, capture_output=True, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def host(worker_id: str) -> Iterator[Bed]:
    """A host on which alice runs, and ada is in hive-admin."""
    with open_bed(f"pytest-cli-{worker_id}") as bed:
        bed.install_product()
        bed.run(["sh", "/src/hyperhive/systemd/install.sh", "install-files"], timeout_s=60)
        bed.run(["useradd", "--create-home", "--groups", "hive-admin", "ada"], timeout_s=20)
        bed.run(["useradd", "--create-home", "eve"], timeout_s=20)
        bed.run([HIVE, "image", "add", "guest", "/srv/guest"], timeout_s=60)
        bed.run(["systemctl", "start", "hive-core"], timeout_s=30)
        bed.run([HIVE, "spawn", "alice", "--timeout", "60"], timeout_s=90)
        yield bed


def test_exec_has_the_commands_words_streams_and_exit_code(host: Bed) -> None:
    script = 'cat; pwd; printf "%s|" "$@"; echo "$HIVE_LABEL $A" >&2; exit 3'
    words = ["a b", "", "$HOME", "$$", "%n", "new\nline", "ä"]

    done = hive(
        host, "exec", "alice", "-e", "A=b $c", "--", "sh", "-c", script, "sh", *words, stdin=b"sent\n"
    )

    said = "".join(f"{word}|" for word in words)
    assert done.stdout.decode() == f"sent\n/agents/alice/state\n{said}"
    assert (done.stderr, done.returncode) == (b"alice b $c\n", 3)


@pytest.mark.parametrize(("script", "code"), [("kill -9 $$", 137), ("kill -INT $$", 130), ("exec nope", 127)])
def test_exec_ends_as_a_shell_would_say(script: str, code: int, host: Bed) -> None:
    assert hive(host, "exec", "alice", "--", "sh", "-c", script).returncode == code


def test_exec_passes_many_bytes_both_ways(host: Bed) -> None:
    sent = bytes(range(256)) * 8192

    assert hive(host, "exec", "alice", "--", "cat", stdin=sent).stdout == sent


def test_exec_leaves_nothing_behind_when_it_is_ended(host: Bed) -> None:
    command = host.argv(["timeout", "2", HIVE, "exec", "alice", "--", "sh", "-c", "echo up; exec sleep 1000"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert process.wait(30) == 124

    # systemd is asked to stop it, and does within TimeoutStopSec.
    gone = "for _ in $(seq 100); do pgrep -x sleep >/dev/null || exit 0; sleep 0.1; done; exit 1"
    assert hive(host, "exec", "alice", "--", "sh", "-c", gone).returncode == 0


def test_what_runs_there_never_holds_our_files(host: Bed) -> None:
    """A command that is handed a file of the host could keep it; it gets pipes."""
    script = "for fd in 0 1 2; do readlink /proc/self/fd/$fd; done"

    typed = f"{HIVE} exec alice -- sh -c '{script}' </etc/passwd 2>/root/errors | cat"
    shown = host.run(["sh", "-c", typed], timeout_s=30).stdout

    assert [line.partition(":")[0] for line in str(shown).split()] == ["pipe"] * 3


def test_exec_is_for_root_and_shell_for_the_admins(host: Bed) -> None:
    refused = hive(host, "exec", "alice", "--", "ls", user="ada")
    assert refused.returncode == 4
    assert b"hint: sudo hive exec alice -- ls\n" in refused.stderr

    command = ["setpriv", "--reuid", "ada", "--regid", "ada", "--init-groups", HIVE, "shell", "alice"]
    leader, follower = pty.openpty()
    with (
        os.fdopen(leader, "wb", buffering=0) as keyboard,
        subprocess.Popen(host.argv(command), stdin=follower, stdout=subprocess.PIPE) as process,
    ):
        os.close(follower)
        assert process.stdout is not None
        too_late = threading.Timer(30, process.kill)
        too_late.start()
        shown = b""
        # A shell forgets what was typed before its prompt.
        for awaited, typed in ((b"# ", b"echo it is $(hostname)\n"), (b"it is alice", b"exit\n")):
            while awaited not in shown and (chunk := os.read(process.stdout.fileno(), 4096)):
                shown += chunk
            keyboard.write(typed)
        process.wait()
        too_late.cancel()
    assert b"it is alice" in shown

    outsider = hive(host, "shell", "alice", user="eve")
    assert outsider.returncode == 5
    assert b"hive-admin" in outsider.stderr


def test_limits_hold_at_once_and_default_is_the_hives(host: Bed) -> None:
    def memory_max() -> str:
        command = ["systemctl", "show", "systemd-nspawn@h-alice.service", "--property=MemoryMax", "--value"]
        return str(host.run(command, timeout_s=20).stdout).strip()

    assert hive(host, "limits", "alice", "--memory", "1G").stdout.splitlines()[0] == b"memory\t1G"
    assert memory_max() == str(2**30)
    shown = hive(host, "limits", "alice", "--memory", "default").stdout.splitlines()
    assert shown[0] == b"memory\t4G default"
    assert memory_max() == str(4 * 2**30)


def test_show_and_ls_tell_of_the_machine(host: Bed) -> None:
    shown = json.loads(hive(host, "show", "alice", "--json").stdout)
    row: dict[str, Any] = json.loads(hive(host, "ls", "--json").stdout)[0]

    assert (shown["machine"], shown["image"], shown["network"]) == ("h-alice", "guest", "none")
    assert Path(host.path("/var/lib/hyperhive/agents/alice/state")).stat().st_uid == shown["uid_base"]
    assert (row["isolation"], row["machine"]) == ("nspawn", "h-alice")


def test_the_managers_machine_has_the_name_that_is_kept_for_it_through_its_whole_life(host: Bed) -> None:
    def pid() -> int:
        return int(json.loads(hive(host, "show", "manager", "--json").stdout)["pid"])

    hive(host, "spawn", "manager").check_returncode()
    try:
        assert json.loads(hive(host, "show", "manager", "--json").stdout)["machine"] == "hm1nd"
        assert host.run(["machinectl", "show", "hm1nd", "-p", "Leader", "--value"]).stdout == f"{pid()}\n"
        assert hive(host, "exec", "manager", "--", "ls", "/agents").stdout.split() == [b"alice", b"manager"]

        before = pid()
        host.run(["systemctl", "restart", "hive-core"], timeout_s=30)

        assert pid() == before, "the next daemon finds it"
        host.run(["machinectl", "terminate", "hm1nd"], timeout_s=30)
        hive(host, "start", "manager").check_returncode()
        assert pid() != before
    finally:
        hive(host, "stop", "manager").check_returncode()
    refused = hive(host, "destroy", "manager", "--purge", "--yes")
    assert b"a hive keeps its manager" in refused.stderr
    assert host.run(["machinectl", "show", "hm1nd"], check=False).returncode != 0


def test_top_sees_every_agent(host: Bed) -> None:
    rows = json.loads(hive(host, "top", "--json", "--interval", "0.2").stdout)
    (row,) = [row for row in rows if row["name"] == "alice"]  # a manager of another test may be there

    assert row["name"] == "alice"
    assert row["cpu_percent"] >= 0


def test_the_log_is_followed_out_of_the_journal(host: Bed) -> None:
    assert b"Harness started" in hive(host, "logs", "alice", "-n", "200").stdout


@pytest.mark.parametrize("verb", ["rebuild", "restart"])
def test_a_machine_that_would_not_start_again_is_left_running(verb: str, host: Bed) -> None:
    def show() -> dict[str, Any]:
        row: dict[str, Any] = json.loads(hive(host, "show", "alice", "--json").stdout)
        return row

    def configure(text: str, image: str) -> None:
        host.path("/etc/hyperhive/config.toml").write_text(text)
        host.run(["systemctl", "reload", "hive-core"], timeout_s=20)
        until = time.monotonic() + 15
        while show()["image"] != image:
            assert time.monotonic() < until

    before = show()["pid"]
    configure('[machines]\nimage = "misspelt"\n', "misspelt")
    try:
        done = hive(host, verb, "alice")
        assert done.returncode == 4
        assert done.stderr.decode() == (
            f"hive: cannot {verb} alice: there is no image misspelt; there is guest; its machine is left running\n"
        )
        assert (show()["running"], show()["pid"]) == (True, before)

        refused = hive(host, "spawn", "dora")
        assert (refused.returncode, refused.stderr) == (
            4,
            b"hive: cannot spawn dora: there is no image misspelt; there is guest\n",
        )
        assert "dora" not in [row["name"] for row in json.loads(hive(host, "ls", "--json").stdout)]
    finally:
        configure("", "guest")


def test_rebuild_gives_it_another_machine(host: Bed) -> None:
    before = json.loads(hive(host, "show", "alice", "--json").stdout)["pid"]

    assert hive(host, "rebuild", "alice", "--timeout", "60").stdout == b"alice is running\n"

    assert json.loads(hive(host, "show", "alice", "--json").stdout)["pid"] != before


def test_the_doctor_finds_this_host_fit(host: Bed) -> None:
    done = hive(host, "doctor", "--json")

    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert [check for check in checks.values() if check["status"] == "fail"] == []
    assert done.returncode == 0
    assert checks["id-mapped mounts"]["status"] == "ok"
    assert checks["group hive-admin"]["text"] == "exists; in it: ada"
    assert checks["hive-core.service"]["text"] == "is active"


def test_an_image_in_use_is_kept(host: Bed) -> None:
    done = hive(host, "image", "rm", "guest")

    assert done.returncode == 4
    assert b"alice" in done.stderr

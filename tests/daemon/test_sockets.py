"""Who gets in, through what, and what is said to those who do not."""

import grp
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hive_core.wire.client import Unreachable

from .kit import (
    AgentClient,
    Daemon,
    Fault,
    clean_environment,
    connect,
    frame,
    raw_line,
    read_all,
    refusal,
    run_core,
    wait_until,
)

AS_ROOT = os.geteuid() == 0
NOBODY = 65534


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_sockets_and_directories_have_their_modes(daemon: Daemon) -> None:
    umask = os.umask(0o077)
    try:
        daemon.add_stopped("a").start()
    finally:
        os.umask(umask)

    assert _mode(daemon.host_socket) == 0o660
    assert _mode(daemon.home / "run") == 0o751
    assert _mode(daemon.home / "run" / "agents") == 0o751
    assert _mode(daemon.agent_socket("a")) == 0o600
    assert _mode(daemon.home / "state") == 0o700
    assert _mode(daemon.home / "state" / "agents" / "a") == 0o700
    assert _mode(daemon.database) & 0o077 == 0 or _mode(daemon.home / "state") == 0o700
    assert not list((daemon.home / "run").rglob("*.new"))


def test_a_second_daemon_is_refused_and_the_first_goes_on(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    with daemon.client() as client, daemon.agent("a") as agent:
        second = subprocess.run(
            [sys.executable, "-m", "hive_core", "serve", "--local", "--home", str(daemon.home)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            env=clean_environment(),
        )

        assert second.returncode == 1
        last = second.stderr.splitlines()[-1]
        assert last.startswith("hive-core: cannot serve ")
        assert f"pid {daemon.pid}" in last
        assert "Traceback" not in second.stderr
        assert client.ask({"cmd": "status"})["pid"] == daemon.pid
        assert agent.call("whoami")["name"] == "a"
    assert daemon.ask("status")["pid"] == daemon.pid


def test_two_homes_cannot_share_a_run_directory(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start()
    config = tmp_path / "hive.toml"
    config.write_text(f'run_dir = "{daemon.home}/run"\n')

    second = run_core("serve", "--local", "--home", str(tmp_path / "h"), "--config", str(config))

    assert second.returncode == 1
    assert f"cannot serve {daemon.home}/run: another hive-core (pid {daemon.pid})" in second.stderr
    assert daemon.ask("status")["pid"] == daemon.pid


@pytest.mark.skipif(not AS_ROOT, reason="only root can be somebody else")
def test_members_of_the_admin_group_are_let_in_to_host_sock_and_nowhere_else(daemon: Daemon) -> None:
    group = grp.getgrgid(1)
    daemon.config_path.write_text(f'admin_group = "{group.gr_name}"\n')
    daemon.add_stopped("a").start()
    assert daemon.host_socket.stat().st_gid == group.gr_gid
    daemon.agent_socket("a").chmod(0o666)
    daemon.agent_socket("a").parent.chmod(0o755)
    program = f"""
import os, socket
os.chdir({str(daemon.host_socket.parent)!r})
os.setgroups([{group.gr_gid}])
os.setgid({NOBODY})
os.setuid({NOBODY})
for path, words in (("host.sock", b'{{"cmd":"list"}}\\n'), ("agents/a/mcp.sock", b"")):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(10)
    sock.connect(path)
    if words:  # sending nothing fails too, once the other side has closed
        sock.sendall(words)
    print(sock.recv(65536))
"""

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)

    at_host, at_agent = done.stdout.splitlines()
    assert '"agents":["a"]' in at_host
    assert "forbidden" in at_agent


def test_sockets_of_a_killed_daemon_are_replaced(daemon: Daemon) -> None:
    daemon.add_stopped("a", "b").start()
    daemon.kill()
    assert daemon.host_socket.exists()
    with pytest.raises(Unreachable, match="nobody listens"):
        daemon.ask("status")
    stale = daemon.home / "run" / "agents" / "gone" / "mcp.sock"
    stale.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    (daemon.agent_socket("b").parent / ".mcp.sock.new").write_text("half made")

    daemon.start()

    for name in ("a", "b"):
        with daemon.agent(name) as agent:
            assert agent.call("whoami")["name"] == name
    assert not stale.exists()
    assert not list((daemon.home / "run").rglob("*.new"))


def test_a_daemon_that_stops_leaves_nobody_waiting_at_its_sockets(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    with daemon.client() as client, daemon.agent("a") as agent:
        agent.begin("recv", wait_seconds=100)

        assert daemon.stop(limit_s=5) == 0

        assert agent.read() is None
        with pytest.raises(Unreachable):
            client.ask({"cmd": "list"})


@pytest.mark.parametrize("length", [108, 400])
def test_home_paths_of_any_length_work(daemon: Daemon, length: int) -> None:
    path = str(daemon.base)
    while len(path) < length:
        path = f"{path}/{'d' * min(200, length - len(path))}"
    daemon.home = Path(path)
    daemon.start()
    daemon.spawn("alice")

    message_id = daemon.send("alice", "hello")

    with daemon.agent("alice") as agent:
        assert agent.call("whoami")["name"] == "alice"
    assert message_id == 1
    assert daemon.stop() == 0


@pytest.mark.parametrize("place", ["host.sock", "agents/a/mcp.sock"])
@pytest.mark.skipif(not AS_ROOT, reason="only root can be somebody else")
def test_another_uid_is_refused_even_where_the_modes_let_it_in(daemon: Daemon, place: str) -> None:
    daemon.add_stopped("a").start()
    path = daemon.home / "run" / place
    path.chmod(0o666)
    path.parent.chmod(0o755)
    program = f"""
import os, socket
os.chdir({str(path.parent)!r})
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(10)
sock.connect({path.name!r})
said = b""
while chunk := sock.recv(65536):
    said += chunk
print(said)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    ).stdout

    assert f"uid {NOBODY} is not the uid of agent a" in said or "you are neither root nor the hive" in said
    assert "forbidden" in said
    assert f"uid={NOBODY}" in daemon.log


@pytest.mark.skipif(not AS_ROOT, reason="only root can be somebody else")
def test_the_modes_keep_another_uid_out(daemon: Daemon) -> None:
    daemon.add_stopped("a").start()
    for place in ("host.sock", "agents/a/mcp.sock"):
        path = daemon.home / "run" / place
        program = f"""
import os, socket
os.chdir({str(path.parent)!r})
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
try:
    socket.socket(socket.AF_UNIX).connect({path.name!r})
except PermissionError:
    print("kept out")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
        assert done.stdout == "kept out\n", done


# ── the first words on an agent's socket ────────────────────────────────────────────────────────


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"\xff", b"\x01\x00\x00\x00", b"hello\n"])
def test_any_other_language_gets_one_clear_line(shared: Daemon, first: bytes) -> None:
    with connect(shared.agent_socket("alice")) as sock:
        sock.sendall(first)

        assert read_all(sock) == b"cannot read this: a frame begins with the byte 0x00, MCP with {\n"


@pytest.mark.parametrize(
    ("protocol", "side"), [(0, "hive-agent"), (2, "hive-core"), (2**40, "hive-core"), (-1, "hive-agent")]
)
def test_another_version_is_refused_with_the_side_to_update(shared: Daemon, protocol: int, side: str) -> None:
    with AgentClient(shared.agent_socket("alice"), hello=False) as agent:
        agent.write(["hello", protocol, "agent", "from another time"])
        fault = agent.read()

        assert fault is not None
        assert fault[:3] == ["fault", 0, "precondition_failed"]
        assert f"update the {'daemon' if side == 'hive-core' else 'harness'} ({side})" in fault[3]
        assert agent.read() is None


@pytest.mark.parametrize(
    "first",
    [
        ["call", 1, {"type": "whoami"}],
        ["hello", 1, "daemon", "a mirror"],
        ["hello", "one", "agent", "x"],
        ["hello"],
        {"hello": 1},
        ["hello", 1, "agent", "x" * 5000],
        7,
    ],
    ids=str,
)
def test_a_first_frame_that_is_no_hello_is_refused(shared: Daemon, first: object) -> None:
    with connect(shared.agent_socket("alice")) as sock:
        sock.sendall(frame(msgspec.msgpack.encode(first)))
        said = read_all(sock)

    assert msgspec.msgpack.decode(said[4:])[:3] == ["fault", 0, "invalid_argument"]
    assert b"cannot " in said
    assert len(said) < 600


def test_a_hello_may_come_byte_by_byte_and_with_the_first_call(shared: Daemon) -> None:
    hello = frame(msgspec.msgpack.encode(["hello", 1, "agent", "slow"]))
    call = frame(msgspec.msgpack.encode(["call", 9, {"type": "whoami"}]))
    with AgentClient(shared.agent_socket("alice"), hello=False) as agent:
        for byte in hello[:-1]:
            agent.socket.sendall(bytes([byte]))
        agent.socket.sendall(hello[-1:] + call)

        assert agent.read()[:3] == ["hello", 1, "daemon"]  # type: ignore[index]
        assert agent.read()[:2] == ["reply", 9]  # type: ignore[index]


# ── calls on an agent's socket ──────────────────────────────────────────────────────────────────


def test_a_parked_recv_blocks_nothing_and_can_be_cancelled(shared: Daemon) -> None:
    with shared.agent("bob") as bob:
        while bob.recv(max=32):
            bob.call("ack_turn")
        parked = bob.begin("recv", wait_seconds=100)
        assert bob.call("whoami")["name"] == "bob"
        assert bob.call("inbox_status") == {"unread": 0}

        bob.write(["cancel", parked])

        assert bob.read()[:3] == ["fault", parked, "cancelled"]  # type: ignore[index]
        bob.write(["cancel", 12345])
        assert bob.call("whoami")["name"] == "bob"


def test_a_message_is_not_lost_with_the_connection_that_waited_for_it(shared: Daemon) -> None:
    for _ in range(30):
        lost = shared.agent("bob")
        lost.begin("recv", wait_seconds=100)
        with shared.client() as client, shared.agent("bob") as bob:
            lost.close()
            message_id = client.ask({"cmd": "send", "to": "bob", "body": "for whoever is there"})["id"]
            got = bob.recv(wait_seconds=5, max=32)

            assert message_id in [message["id"] for message in got]
            bob.call("ack_turn")


def test_what_is_above_the_limits_of_a_connection_is_refused_by_name(shared: Daemon) -> None:
    with shared.agent("bob") as bob:
        while bob.recv(max=32):
            bob.call("ack_turn")
        parked = [bob.begin("recv", wait_seconds=100) for _ in range(64)]
        with pytest.raises(Fault, match="64") as failed:
            bob.call("whoami")
        assert failed.value.code == "unavailable"
        for call_id in parked:
            bob.write(["cancel", call_id])
            assert bob.read()[1] == call_id  # type: ignore[index]
        streams = [bob.begin("subscribe_control") for _ in range(8)]
        assert len(streams) == 8


def test_the_65th_connection_is_told_and_the_others_go_on(shared: Daemon) -> None:
    agents = [shared.agent("carol") for _ in range(64)]
    try:
        with pytest.raises(Fault, match="too many connections"):
            shared.agent("carol")
        assert all(agent.call("whoami")["name"] == "carol" for agent in agents)
    finally:
        for agent in agents:
            agent.close()
    clients = [shared.client() for _ in range(64)]
    try:
        assert clients[0].ask({"cmd": "list"})
        reply = raw_line(shared.host_socket, b'{"cmd":"list"}')
        assert reply["code"] == "unavailable"
        assert "too many connections" in reply["error"]
        assert clients[-1].ask({"cmd": "list"})
    finally:
        for client in clients:
            client.close()


def test_operator_verbs_and_foreign_names_do_not_exist_on_an_agent_s_socket(shared: Daemon) -> None:
    with shared.agent("alice") as alice:
        for type_ in ("destroy", "spawn", "list", "set_model", "watch", "messages", "quiesce", ""):
            with pytest.raises(Fault) as failed:
                alice.call(type_, name="bob")
            assert failed.value.code == "invalid_argument"
        message_id = alice.call("send", to="bob", body="who am I", sender="operator", sender_uid=0)["id"]
        assert shared.message(message_id)["sender"] == "alice"
        for label in ("bob", "operator", "system", "manager"):
            with pytest.raises(Fault) as failed:
                alice.call("wake", **{"from": label, "body": "x"})
            assert failed.value.code == "forbidden"
        other = shared.send("carol", "between others")
        with pytest.raises(Fault) as failed:
            alice.call("send", to="bob", body="about it", in_reply_to=other)
        assert failed.value.code == "not_found"


def test_a_large_frame_of_one_connection_does_not_hold_up_the_others(shared: Daemon) -> None:
    header = struct.pack(">I", 15 * 2**20)
    with shared.agent("alice") as first, shared.agent("alice") as second, shared.agent("alice") as third:
        for agent in (first, second):
            agent.socket.sendall(header + b"x" * 65536)

        assert third.call("whoami")["name"] == "alice"
        with pytest.raises(Fault) as failed:
            third.call("send", to="bob", body="x" * 500_000)
        assert failed.value.code == "invalid_argument"


def test_sigkill_of_a_peer_frees_its_place(shared: Daemon) -> None:
    program = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect({str(shared.host_socket)!r}); print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as peer:
        assert peer.stdout is not None
        peer.stdout.readline()
        with_it = shared.ask("status")["connections"]
        peer.send_signal(signal.SIGKILL)
        peer.wait(10)

    wait_until(lambda: shared.ask("status")["connections"] < with_it, "its connection is gone")
    assert refusal(lambda: shared.ask("why", id=0)).code == "not_found"

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from hive_core.host.sockets import AlreadyServed, bind_unix, is_listening_at, only_daemon, usable_group
from hive_core.wire.stream import connect


def test_a_socket_appears_with_its_mode_and_replaces_a_dead_one(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()

    with bind_unix(path, mode=0o640):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        connect(path).close()
    assert os.listdir(tmp_path) == ["a.sock"]


def test_a_socket_in_use_goes_over_to_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with bind_unix(path, mode=0o600) as old, bind_unix(path, mode=0o600) as new:
        connect(path).close()
        assert new.accept()[0].close() is None
        with pytest.raises(BlockingIOError):
            old.accept()


def test_a_path_of_any_length_can_be_bound(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-with-a-long-name"] * 8)
    deep.mkdir(parents=True)
    with bind_unix(deep / "a.sock", mode=0o600):
        connect(deep / "a.sock").close()


def test_a_failed_bind_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bind_unix(tmp_path / "nowhere" / "a.sock", mode=0o600)
    assert os.listdir(tmp_path) == []


def test_the_second_daemon_is_told_who_the_first_is(tmp_path: Path) -> None:
    with only_daemon(tmp_path), pytest.raises(AlreadyServed, match=rf"pid {os.getpid()}\) serves it already"):
        with only_daemon(tmp_path):
            pass
    with only_daemon(tmp_path):
        pass


def test_a_group_that_is_missing_is_none() -> None:
    assert usable_group("no-such-group-here") is None
    assert usable_group(grp.getgrgid(os.getegid()).gr_name) == os.getegid()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a socket away")
def test_a_socket_belongs_to_whom_it_is_for_from_the_first_moment(tmp_path: Path) -> None:
    with bind_unix(tmp_path / "a.sock", mode=0o600, uid=0x40000000, gid=0x40000000):
        status = (tmp_path / "a.sock").stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0x40000000, 0x40000000, 0o600)


def test_a_listener_of_somebody_else_is_used_only_where_clients_find_it(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert not is_listening_at(listener, path)
        listener.listen()
        assert is_listening_at(listener, path)
        assert not is_listening_at(listener, tmp_path / "b.sock")
    with socket.create_server(("127.0.0.1", 0)) as inet:
        assert not is_listening_at(inet, path)

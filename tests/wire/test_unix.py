import os
import socket
from pathlib import Path

import pytest

from hive_core.wire.unix import MAX_PATH_BYTES, short_address


def deep(path: Path, size: int = 300) -> Path:
    while len(os.fsencode(path)) < size:
        path /= "d" * 40
    path.mkdir(parents=True)
    return path


def talk(path: Path) -> bytes:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        with short_address(path) as address:
            listener.bind(address)
        listener.listen()
        with short_address(path) as address:
            client.connect(address)
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"hi")
            return accepted.recv(10)


def test_a_socket_below_a_path_of_300_bytes_is_bound_and_reached(tmp_path: Path) -> None:
    path = deep(tmp_path) / "mcp.sock"

    assert talk(path) == b"hi"
    assert path.is_socket()


def test_a_short_path_is_used_as_it_is(tmp_path: Path) -> None:
    with short_address("/run/hive/mcp.sock") as address:
        assert address == "/run/hive/mcp.sock"


@pytest.mark.parametrize("size", [MAX_PATH_BYTES, MAX_PATH_BYTES + 1])
def test_the_exact_limit_works_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("d" * 60)
    directory.mkdir()

    assert talk(directory / ("s" * (size - 61))) == b"hi"


def test_a_long_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = deep(tmp_path).relative_to(tmp_path) / "s"

    assert talk(relative) == b"hi"


def test_a_name_too_long_for_any_address_is_an_os_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OSError, match="path too long"):
        talk(Path("n" * 120))


def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), short_address(tmp_path / ("d" * 120) / "s"):
        pass


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    path = deep(tmp_path) / "s"
    before = len(os.listdir("/proc/self/fd"))

    with short_address(path):
        pass
    with pytest.raises(RuntimeError), short_address(path):
        raise RuntimeError

    assert len(os.listdir("/proc/self/fd")) == before

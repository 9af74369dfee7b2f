import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from hive_core.wire.client import Client, RequestFailed, TimedOut, Unreachable
from hive_core.wire.unix import short_address

Serve = Callable[[socket.socket], None]
Daemon = Callable[[Serve], AbstractContextManager[Path]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "host.sock"


def listen(path: Path, backlog: int = 8) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    with short_address(path) as address:
        sock.bind(address)
    sock.listen(backlog)
    return sock


@contextmanager
def daemon(path: Path, serve: Serve) -> Iterator[None]:
    """A daemon in a thread that treats one connection as *serve* says."""

    def run() -> None:
        accepted, _ = listener.accept()
        with accepted:
            serve(accepted)

    with listen(path) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()


def answers(*lines: bytes) -> Serve:
    """Each request gets one of the lines, the last one gets what is left."""

    def serve(sock: socket.socket) -> None:
        with sock.makefile("rb") as requests:
            for line in lines[:-1]:
                requests.readline()
                sock.sendall(line)
            requests.readline()
            sock.sendall(lines[-1])

    return serve


def test_a_request_gets_its_reply(path: Path) -> None:
    seen: list[object] = []

    def serve(sock: socket.socket) -> None:
        with sock.makefile("rb") as requests:
            seen.append(json.loads(requests.readline()))
        sock.sendall(b'{"version":1,"ok":true,"agents":["alice"],"later":1}\n')

    with daemon(path, serve), Client(path) as hive:
        assert hive.ask({"cmd": "list"})["agents"] == ["alice"]
    assert seen == [{"cmd": "list"}]


def test_one_connection_serves_many_requests(path: Path) -> None:
    with (
        daemon(path, answers(b'{"version":1,"ok":true,"id":1}\n', b'{"version":1,"ok":true,"id":2}\n')),
        Client(path) as hive,
    ):
        assert [hive.ask({"cmd": "send"})["id"] for _ in range(2)] == [1, 2]


def test_any_text_can_be_asked_for(path: Path) -> None:
    seen: list[object] = []

    def serve(sock: socket.socket) -> None:
        with sock.makefile("rb") as requests:
            seen.append(json.loads(requests.readline())["body"])
        sock.sendall(b'{"version":1,"ok":true}\n')

    with daemon(path, serve), Client(path) as hive:
        hive.ask({"cmd": "send", "body": "ü\n\u2028\udcff"})
    assert seen == ["ü\n\u2028\udcff"]


def test_a_long_path_is_reached(tmp_path: Path) -> None:
    path = tmp_path / "/".join(["d" * 60] * 5) / "host.sock"
    path.parent.mkdir(parents=True)

    with daemon(path, answers(b'{"version":1,"ok":true}\n')), Client(path) as hive:
        assert hive.ask({"cmd": "list"})["ok"] is True


# ── each failure has its own diagnosis ──────────────────────────────────────────────────────────


def unreachable(path: Path) -> str:
    with pytest.raises(Unreachable) as caught:
        Client(path)
    assert caught.value.path == str(path)
    assert str(caught.value) == f"cannot reach the daemon at {path}: {caught.value.why}"
    return caught.value.why


def test_no_socket(path: Path) -> None:
    assert unreachable(path) == "there is no socket"


def test_no_directory(path: Path) -> None:
    assert unreachable(path / "run" / "host.sock") == "there is no socket"
    assert unreachable(path.joinpath(*["d" * 60] * 5)) == "there is no socket"


def test_a_file_where_a_directory_should_be(path: Path) -> None:
    path.touch()

    assert unreachable(path / "host.sock") == "there is no socket"


def test_a_socket_file_that_a_dead_daemon_left(path: Path) -> None:
    listen(path).close()

    assert unreachable(path) == "a socket is there but nobody listens"


def test_a_plain_file(path: Path) -> None:
    path.touch()

    assert unreachable(path) == "a socket is there but nobody listens"


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's powers, for root passes every permission."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_of_another_group(path: Path) -> None:
    with listen(path):
        path.chmod(0)
        with nobody():
            why = unreachable(path)

    assert why == "permission denied"


def test_a_daemon_that_accepts_nothing(path: Path) -> None:
    with listen(path, backlog=0), Client(path, timeout_s=1):
        assert unreachable(path) == "the daemon accepts no connection"


def test_a_daemon_that_hangs(path: Path) -> None:
    with listen(path), Client(path, timeout_s=0.02) as hive:
        with pytest.raises(TimedOut, match="did not answer in time"):
            hive.ask({"cmd": "list"})


def test_a_daemon_that_reads_nothing(path: Path) -> None:
    with listen(path), Client(path, timeout_s=0.02) as hive:
        with pytest.raises(TimedOut, match="takes no request"):
            hive.ask({"cmd": "send", "body": "x" * 2_000_000})


def asks_and_is_not_answered(path: Path, serve: Serve) -> str:
    with daemon(path, serve), Client(path) as hive:
        with pytest.raises(Unreachable) as caught:
            hive.ask({"cmd": "list"})
    return caught.value.why


def test_a_daemon_that_closes_without_an_answer(path: Path) -> None:
    why = asks_and_is_not_answered(path, answers(b""))

    assert why == "the daemon closed the connection without an answer"


def test_a_daemon_that_dies_in_the_middle_of_a_line(path: Path) -> None:
    why = asks_and_is_not_answered(path, answers(b'{"version":1,"ok":tr'))

    assert why == "the daemon closed the connection without an answer"


def test_a_daemon_that_dies_before_it_reads(path: Path) -> None:
    with listen(path) as listener, Client(path) as hive:
        accepted, _ = listener.accept()
        hive._write({"cmd": "list"})
        accepted.close()

        with pytest.raises(Unreachable, match="the connection broke"):
            hive._read()


@pytest.mark.parametrize(
    "line", [b"HTTP/1.1 400 Bad Request\r\n", b"[]\n", b"{}\n", b"\n", b"\xff\n", b"[" * 100_000 + b"\n"]
)
def test_something_else_that_answers(path: Path, line: bytes) -> None:
    why = asks_and_is_not_answered(path, answers(line))

    assert why == "what answers there is no hyperhive daemon"


def test_a_daemon_that_says_why_and_leaves_before_it_is_asked(path: Path) -> None:
    with listen(path) as listener, Client(path) as hive:
        accepted, _ = listener.accept()
        accepted.sendall(b'{"version":1,"ok":false,"error":"cannot serve: too many","code":"unavailable"}\n')
        accepted.close()

        with pytest.raises(RequestFailed, match="cannot serve: too many"):
            hive.ask({"cmd": "list"})


def test_a_refusal_carries_the_sentence_the_code_and_the_reason(path: Path) -> None:
    line = b'{"version":1,"ok":false,"error":"cannot send: no","code":"conflict","reason":"busy"}\n'
    with daemon(path, answers(line)), Client(path) as hive:
        with pytest.raises(RequestFailed) as caught:
            hive.ask({"cmd": "send"})

    assert str(caught.value) == "cannot send: no"
    assert caught.value.code == "conflict"
    assert caught.value.reply["reason"] == "busy"


def test_the_same_path_works_again_when_the_daemon_is_back(path: Path) -> None:
    listen(path).close()
    unreachable(path)
    path.unlink()

    with daemon(path, answers(b'{"version":1,"ok":true}\n')), Client(path) as hive:
        assert hive.ask({"cmd": "list"})["ok"] is True


# ── following ───────────────────────────────────────────────────────────────────────────────────

SUCCESS = b'{"version":1,"ok":true}\n'


def test_following_gives_the_items_after_the_bare_success_until_the_end(path: Path) -> None:
    items = b"".join(b'{"version":1,"ok":true,"id":%d}\n' % number for number in range(5))
    with daemon(path, answers(SUCCESS + items)), Client(path) as hive:
        assert [item["id"] for item in hive.follow({"cmd": "watch"})] == list(range(5))


def test_following_that_is_refused_gives_no_item(path: Path) -> None:
    with (
        daemon(path, answers(b'{"version":1,"ok":false,"error":"cannot","code":"not_found"}\n')),
        Client(path) as hive,
    ):
        with pytest.raises(RequestFailed):
            list(hive.follow({"cmd": "events"}))


def test_a_follower_that_is_cut_off_gets_its_last_id(path: Path) -> None:
    lines = (
        SUCCESS
        + b'{"version":1,"ok":true,"id":41}\n'
        + b'{"version":1,"ok":false,"error":"too slow","code":"unavailable","last_id":41}\n'
    )
    with daemon(path, answers(lines)), Client(path) as hive:
        following = hive.follow({"cmd": "events"})
        assert next(following)["id"] == 41
        with pytest.raises(RequestFailed, match="too slow") as caught:
            next(following)

    assert caught.value.reply["last_id"] == 41


def test_between_items_there_is_no_time_limit(path: Path) -> None:
    with daemon(path, answers(SUCCESS + SUCCESS)), Client(path, timeout_s=5) as hive:
        following = hive.follow({"cmd": "watch"})
        next(following)

        assert hive._socket.gettimeout() is None
        assert list(following) == []

"""The ordinary way to build a broker, to be compared with: a thread per connection, one SQLite connection
behind a lock, a commit for every send, every hand-out and every ack.  WAL and synchronous=FULL.

Run as a script: standin_server.py SOCKET DATABASE.  JSON lines, one request open per connection.
"""

import json
import socket
import sqlite3
import sys
import threading
import time
from typing import Any


class Broker:
    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = full")
        self._db.execute(
            "create table messages (id integer primary key autoincrement, sender text, recipient text,"
            " body text, sent_at real, delivered_at real, acked_at real)"
        )
        self._db.execute("create index waiting on messages (recipient, id) where acked_at is null")
        self._lock = threading.Lock()
        self._waiting: dict[str, threading.Semaphore] = {}

    def _arrived(self, agent: str) -> threading.Semaphore:
        with self._lock:
            return self._waiting.setdefault(agent, threading.Semaphore(0))

    def send(self, sender: str, to: str, body: str) -> int:
        with self._lock:
            cursor = self._db.execute(
                "insert into messages (sender, recipient, body, sent_at) values (?, ?, ?, ?)",
                (sender, to, body, time.time()),
            )
        self._arrived(to).release()
        return int(cursor.lastrowid or 0)

    def recv(self, agent: str, wait_s: float) -> list[dict[str, Any]]:
        if not self._arrived(agent).acquire(timeout=wait_s):
            return []
        with self._lock:
            row = self._db.execute(
                "select id, sender, body, sent_at from messages"
                " where recipient = ? and acked_at is null and delivered_at is null order by id limit 1",
                (agent,),
            ).fetchone()
            self._db.execute("update messages set delivered_at = ? where id = ?", (time.time(), row[0]))
        return [dict(zip(("id", "sender", "body", "sent_at"), row, strict=True))]

    def ack(self, agent: str) -> int:
        with self._lock:
            return self._db.execute(
                "update messages set acked_at = ?"
                " where recipient = ? and acked_at is null and delivered_at is not null",
                (time.time(), agent),
            ).rowcount


def serve(broker: Broker, connection: socket.socket) -> None:
    lines = connection.makefile("rb")
    hello = lines.readline()
    if not hello:
        return
    agent = json.loads(hello)["agent"]
    for line in lines:
        request = json.loads(line)
        reply: dict[str, Any] = {"n": request["n"]}
        match request["cmd"]:
            case "send":
                reply["id"] = broker.send(agent, request["to"], request["body"])
            case "recv":
                reply["messages"] = broker.recv(agent, request["wait"])
            case "ack":
                reply["acked"] = broker.ack(agent)
        connection.sendall(json.dumps(reply, separators=(",", ":")).encode() + b"\n")


def main(path: str, database: str) -> None:
    broker = Broker(database)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1024)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(broker, connection), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

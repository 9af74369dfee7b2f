"""Gives every byte back.  Run as a script: echo_server.py SOCKET.  The limit of what Python can answer."""

import select
import socket
import sys


def main(path: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1024)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                connection, _ = listener.accept()
                connections[connection.fileno()] = connection
                epoll.register(connection, select.EPOLLIN)
            elif data := connections[fd].recv(65536):
                connections[fd].sendall(data)
            else:
                connections.pop(fd).close()


if __name__ == "__main__":
    main(sys.argv[1])

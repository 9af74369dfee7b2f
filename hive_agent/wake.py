"""hive-agent wake: one message into the own agent's inbox, from whatever runs beside it."""

import os
import socket
from typing import Final, TypeVar

import msgspec

from hive_core.wire import envelope
from hive_core.wire.agent import Sent, Wake
from hive_core.wire.errors import ErrorCode, ProtocolError, Refused
from hive_core.wire.frame import FrameDecoder
from hive_core.wire.unix import short_address
from hive_core.wire.version import VERSION

ANSWER_TIMEOUT_S: Final = 30.0

T = TypeVar("T")


class Unreachable(Exception):
    """No daemon answers.  The message may have arrived, if the connection broke after it was sent."""


def wake(path: str | os.PathLike[str], label: str, body: str) -> int:
    """Put *body* into the inbox of the agent whose socket is at *path*, as from *label*; give its id.

    Raises:
        Refused: the daemon said no.
        Unreachable: it is not there, or stopped answering.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            with short_address(path) as address:
                sock.connect(address)
            answers = _Answers(sock)
            sock.sendall(envelope.encode_hello("agent", f"hive-agent wake {VERSION}"))
            answers.next(envelope.Hello)
            sock.sendall(envelope.encode_call(1, Wake(from_=label, body=body)))
            reply = answers.next(envelope.Reply)
        except TimeoutError:
            raise Unreachable(f"cannot reach the daemon at {path}: it does not answer") from None
        except (OSError, ProtocolError) as error:
            raise Unreachable(f"cannot reach the daemon at {path}: {error}") from None
    return msgspec.msgpack.decode(reply.result, type=Sent).id


class _Answers:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = FrameDecoder()

    def next(self, kind: type[T]) -> T:
        while (payload := self._decoder.next_payload()) is None:
            chunk = self._socket.recv(64 * 1024)
            if not chunk:
                raise ProtocolError("it closed the connection without an answer")
            self._decoder.receive_data(chunk)
        answer = envelope.decode_to_harness(payload)
        if isinstance(answer, envelope.Fault):
            code = ErrorCode(answer.code) if answer.code in set(ErrorCode) else ErrorCode.INTERNAL
            raise Refused(code, answer.text, answer.reason)
        if not isinstance(answer, kind):
            raise ProtocolError("an answer to something else")
        return answer

"""Run with /opt/hyperhive/bin/python3 as whoever tries: speaks at an agent's socket, and prints what it is told.

    speak.py SOCKET frames|mcp TEXT

In frames: shakes hands as a harness does and sends TEXT to the operator.  Then, as an agent may not, the verbs of
operators under their own names.
"""

import contextlib
import json
import socket
import struct
import sys

import msgspec

from hive_core.wire import agent, envelope
from hive_core.wire.frame import FrameDecoder, encode_frame

path, language, text = sys.argv[1:]
OPERATORS = (
    "list",
    "agent_status",
    "destroy",
    "spawn",
    "start",
    "stop",
    "set_limits",
    "images",
    "messages",
    "status",
)


def told(payload: bytes) -> object:
    match envelope.decode_to_harness(payload):
        case envelope.Reply(call_id, result):
            return ["reply", call_id, msgspec.msgpack.decode(result)]
        case other:
            return msgspec.to_builtins(other)


def say(data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # who has refused us has closed, and said why
        client.sendall(data)


def frames() -> list[object]:
    calls = [envelope.encode_call(1, agent.Send(to="operator", body=text))]
    for number, verb in enumerate(OPERATORS):
        request = {"type": verb, "cmd": verb, "name": "bob", "agent": "bob", "scope": {"all": True}}
        calls.append(encode_frame(msgspec.msgpack.encode(("call", number + 2, request))))
    say(envelope.encode_hello("agent", "an attacker") + b"".join(calls))
    decoder, found = FrameDecoder(), []
    with contextlib.suppress(ConnectionError):
        while len(found) < len(calls) + 1 and (chunk := client.recv(65536)):
            decoder.receive_data(chunk)
            while (payload := decoder.next_payload()) is not None:
                found.append(told(payload))
    return found


def mcp() -> list[object]:
    arguments = {"to": "operator", "body": text}
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "send", "arguments": arguments},
    }
    say(json.dumps(call).encode() + b"\n")
    said = client.recv(65536)
    if said[:1] == b"\x00":
        return [told(said[4 : 4 + struct.unpack(">I", said[:4])[0]])]
    return [json.loads(said.splitlines()[0])]


with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(5)
    try:
        client.connect(path)
        print(json.dumps(frames() if language == "frames" else mcp()))
    except OSError as error:
        print(json.dumps([["error", error.strerror or str(error)]]))

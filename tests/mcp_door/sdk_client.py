"""The official MCP client at our door, in a process of its own: its warnings are not ours.

python sdk_client.py socket|bridge PATH [manager]     prints what it saw as one JSON object
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter


@asynccontextmanager
async def unix_client(path: str) -> AsyncIterator[tuple[Any, Any]]:
    """The SDK's transport for lines, over a Unix socket, which it does not have."""
    to_session, incoming = anyio.create_memory_object_stream[Any](16)
    outgoing, from_session = anyio.create_memory_object_stream[SessionMessage](16)

    async def read() -> None:
        buffer = b""
        async with to_session:
            async for chunk in stream:
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    await to_session.send(
                        SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                    )

    async def write() -> None:
        async with from_session:
            async for message in from_session:
                text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
                await stream.send(text.encode() + b"\n")

    async with await anyio.connect_unix(path) as stream, anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(write)
        yield incoming, outgoing
        tasks.cancel_scope.cancel()


async def main(how: str, path: str, who: str = "agent") -> dict[str, Any]:
    transport: Any = unix_client(path)
    if how == "bridge":
        transport = StdioServerParameters(
            command=sys.executable, args=["-m", "hive_agent", "mcp", "--socket", path], cwd="/"
        )
    seen: dict[str, Any] = {}
    async with Client(transport) as client:
        assert client.server_info is not None
        seen["server"] = client.server_info.name
        seen["protocol"] = client.protocol_version
        seen["instructions"] = client.instructions
        seen["tools"] = [tool.name for tool in (await client.list_tools()).tools]

        async def call(name: str, /, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(name, arguments)
            text = "".join(part.text for part in result.content)
            return {"error": result.is_error or False, "text": text, "data": result.structured_content}

        seen["whoami"] = await call("whoami")
        if who == "manager":
            seen["list_agents"] = await call("list_agents")
            seen["kill"] = await call("kill", name="manager")
            asked = seen["request_spawn"] = await call("request_spawn", name="carol", description="why")
            seen["list_approvals"] = await call("list_approvals")
            seen["cancel_thread"] = await call("cancel_thread", kind="approval", id=asked["data"]["id"])
            return seen
        seen["set_status"] = await call("set_status", text="testing")
        seen["get_logs"] = await call("get_logs", lines=5)
        seen["send"] = await call("send", to="bob", body="from the SDK")
        seen["refused"] = await call("send", to="nobody", body="x")
        seen["empty"] = await call("recv")
        seen["ask"] = await call("ask", question="Which one?", options=["red"], to="bob", ttl_seconds=60)
        seen["remind"] = await call("remind", message="look again", delay_seconds=3600)
        seen["threads"] = await call("get_open_threads")
        for kind in ("question", "reminder"):
            asked = seen["ask" if kind == "question" else "remind"]["data"]["id"]
            seen[f"cancel {kind}"] = await call("cancel_thread", kind=kind, id=asked)
        seen["told"] = await call("recv")
        seen["answer"] = await call("answer", id=10**6, answer="x")

        async def wait() -> None:
            seen["parked"] = await call("recv", wait_seconds=30)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            for _ in range(5):
                await call("whoami")
            assert "parked" not in seen
            await call("send", to="alice", body="to myself")

        with anyio.move_on_after(0.3) as given_up:
            await call("recv", wait_seconds=30)
        seen["given_up"] = given_up.cancelled_caught
        seen["request_next_turn"] = await call("request_next_turn")
        seen["after"] = await call("recv")
        await client.send_ping()
    return seen


if __name__ == "__main__":
    print(json.dumps(anyio.run(main, *sys.argv[1:], backend="trio")))

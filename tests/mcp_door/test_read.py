"""Reading lines of JSON-RPC: whatever comes, it is a message or one of the protocol's own errors."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.handlers.deps import Role
from hive_core.serve import mcp
from hive_core.serve.mcp_tools import tools_for
from hive_core.wire.agent import Request
from hive_core.wire.errors import ErrorCode, Refused

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | JSON,
        "id": st.integers() | st.text() | JSON,
        "method": st.sampled_from(["ping", "tools/call"]) | JSON,
        "params": JSON,
        "result": JSON,
    },
)


@given(line=st.binary(max_size=200) | (JSON | MESSAGE).map(msgspec.json.encode))
def test_a_line_is_a_message_or_an_error_of_the_protocol(line: bytes) -> None:
    try:
        incoming = mcp._read_line(line)
    except mcp._RpcError as error:
        assert error.code in {mcp.PARSE_ERROR, mcp.INVALID_REQUEST}
        answer = mcp._encode_error(error.request_id, error.code, error.message)
        assert answer.count(b"\n") == 1
        assert len(answer) < 2000
    else:
        assert incoming.jsonrpc == "2.0"


@pytest.mark.parametrize("name", tools_for(Role.AGENT))
@given(
    arguments=st.dictionaries(
        st.sampled_from(["to", "body", "max", "type", "wait_seconds", "text"]) | st.text(), JSON
    )
)
def test_arguments_are_a_request_or_a_refusal(name: str, arguments: dict[str, Any]) -> None:
    try:
        request = tools_for(Role.AGENT)[name].read(arguments, arguments)
    except Refused as refused:
        assert refused.code is ErrorCode.INVALID_ARGUMENT
        assert refused.text.startswith(f"cannot call {name}: ")
    else:
        assert isinstance(request, Request)

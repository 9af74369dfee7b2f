"""What the manager may ask, as bytes: whoever sends them, they are a harmless request or refused."""

import re
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hive_core.wire import agent, agent_manager
from hive_core.wire.errors import ErrorCode, Refused
from hive_core.wire.ids import AGENT_NAME_PATTERN
from hive_core.wire.limits import MAX_INPUTS

REQUESTS = {
    str(request.__struct_config__.tag): request
    for request in get_args(agent.AnyRequest)
    if request.__module__ == agent_manager.__name__
}
NAMES = st.sampled_from(["bob", "manager", "..", ".", "-u", "--upload-pack=x", "a/b", "", "A", "a\n", "*"])
HASHES = st.sampled_from(
    ["0123456", "main", "HEAD", "-u", "refs/heads/x", "0" * 40, "0" * 41, "ABCDEF0", "a\n"]
)
TEXTS = st.text(max_size=40) | st.sampled_from(["x" * 2000, "x" * 2001, "\x1b[2J", "\u202e"])
ODD = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.just([[]])
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "name": NAMES | TEXTS,
    "agent": NAMES | TEXTS,
    "commit_ref": HASHES | st.from_regex(r"[0-9a-f]{5,42}\n?", fullmatch=True),
    "description": TEXTS,
    "idempotency_key": TEXTS,
    "inputs": st.lists(TEXTS | ODD, max_size=MAX_INPUTS + 2),
}


def decode(kind: str, fields: dict[str, Any]) -> agent.AnyRequest:
    return agent.decode_request(msgspec.msgpack.encode({"type": kind, **fields}))


def test_these_are_the_requests() -> None:
    assert REQUESTS.keys() == {
        *("request_spawn", "request_init_config", "request_apply_commit", "request_update_meta_inputs"),
        *("open_config", "list_approvals", "list_agents", "kill", "start", "restart", "update"),
    }


@given(
    kind=st.sampled_from(sorted(REQUESTS)),
    fields=st.fixed_dictionaries({}, optional={name: some | ODD for name, some in FIELDS.items()}),
)
@example(kind="kill", fields={"name": "a" * 63})
def test_what_passes_is_safe_to_use_and_the_rest_is_refused(kind: str, fields: dict[str, Any]) -> None:
    try:
        request = msgspec.to_builtins(decode(kind, fields))
    except Refused as refused:
        assert refused.code is ErrorCode.INVALID_ARGUMENT
        assert refused.text.startswith(f"cannot read the request: {kind}: ")
        assert len(refused.text) < 500
        return
    for key in ("name", "agent"):
        if key in request:
            assert re.match(AGENT_NAME_PATTERN, request[key])
    if "commit_ref" in request:
        assert 7 <= len(request["commit_ref"]) <= 40
        assert set(request["commit_ref"]) <= set("0123456789abcdef")
    assert len(request.get("description") or "") <= 2000
    assert all(text and text.isprintable() for text in request.get("inputs", ()) if text.isascii())


@pytest.mark.parametrize("name", ["..", ".", "", "-u", "a/b", "a b", "A", "a\n", "é", "a" * 64, "a\x00"])
@pytest.mark.parametrize(
    "kind", ["request_spawn", "request_init_config", "open_config", "kill", "update", "logs"]
)
def test_a_name_that_is_a_path_or_an_option_is_refused(kind: str, name: str) -> None:
    with pytest.raises(Refused, match=r"`\$\.name`"):
        decode(kind, {"name": name})


@pytest.mark.parametrize(
    "ref",
    ["main", "HEAD", "HEAD~1", "-u", "--all", "refs/heads/main", "012345", "0" * 41, "0123456\n", "ABCDEF0"],
)
def test_a_commit_that_is_no_hash_is_refused(ref: str) -> None:
    with pytest.raises(Refused, match=r"`\$\.commit_ref`"):
        decode("request_apply_commit", {"agent": "bob", "commit_ref": ref})


def test_a_huge_description_is_refused_by_its_limit() -> None:
    with pytest.raises(Refused, match="<= 2000"):
        decode("request_spawn", {"name": "bob", "description": "x" * 2001})

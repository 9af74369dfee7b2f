"""The flake of a hive as text, and what its lock may say."""

import copy
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.domain.meta_flake import (
    MAX_LOCK_BYTES,
    BadFlake,
    Pin,
    allowed_uris,
    carry_over,
    deployed_pins,
    quoted,
    render,
    verify,
)

INPUTS = {"hyperhive": "path:/nix/store/h", "nixpkgs": "github:NixOS/nixpkgs/nixos-26.05"}
ALICE, BOB = (
    Pin("/var/lib/hyperhive/applied/alice", "a" * 40),
    Pin("/var/lib/hyperhive/applied/bob", "b" * 40),
)
PINS = {"alice": ALICE, "bob": BOB}
HASH = f"sha256-{'A' * 43}="


def agent(pin: Pin) -> dict[str, Any]:
    node = {"type": "git", "url": pin.url, "rev": pin.sha, "ref": "main", "allRefs": True}
    return {"flake": False, "locked": {**node, "narHash": HASH, "lastModified": 1}, "original": node}


def lock() -> dict[str, Any]:
    return {
        "version": 7,
        "root": "root",
        "nodes": {
            "root": {"inputs": {name: name for name in ("agent-alice", "agent-bob", "hyperhive", "nixpkgs")}},
            "agent-alice": agent(ALICE),
            "agent-bob": agent(BOB),
            "hyperhive": {
                "inputs": {"nixpkgs": ["nixpkgs"], "tools": "tools"},
                "locked": {"type": "path", "path": "/nix/store/h", "narHash": HASH},
                "original": {"type": "path", "path": "/nix/store/h"},
            },
            "tools": {
                "locked": {"type": "tarball", "url": "https://example.org/t.tar.gz", "narHash": HASH},
                "original": {},
            },
            "nixpkgs": {
                "locked": {
                    "type": "github",
                    "owner": "NixOS",
                    "repo": "nixpkgs",
                    "rev": "c" * 40,
                    "narHash": HASH,
                },
                "original": {},
            },
        },
    }


def text(table: object) -> bytes:
    return json.dumps(table).encode()


def test_a_lock_as_nix_writes_it_is_taken() -> None:
    verify(text(lock()), INPUTS, PINS)


PLACES: list[tuple[str, tuple[str, ...], object]] = [
    ("another commit", ("nodes", "agent-alice", "locked", "rev"), "b" * 40),
    ("another repository", ("nodes", "agent-alice", "locked", "url"), BOB.url),
    (
        "a host directory",
        ("nodes", "agent-alice", "locked"),
        {"type": "path", "path": "/root", "narHash": HASH},
    ),
    ("a flake", ("nodes", "agent-alice", "flake"), True),
    ("inputs of an agent", ("nodes", "agent-alice", "inputs"), {"x": "nixpkgs"}),
    ("submodules", ("nodes", "agent-alice", "locked", "submodules"), True),
    ("a directory of it", ("nodes", "agent-alice", "locked", "dir"), "sub"),
    ("no hash", ("nodes", "agent-alice", "locked", "narHash"), ""),
    ("another original", ("nodes", "agent-alice", "original", "rev"), "main"),
    ("another agent's", ("nodes", "root", "inputs", "agent-alice"), "agent-bob"),
    ("an input more", ("nodes", "root", "inputs", "x"), "nixpkgs"),
    ("a follower", ("nodes", "root", "inputs", "agent-alice"), ["agent-bob"]),
    ("a node of nobody", ("nodes", "x"), {"locked": {"type": "path", "path": "/root"}}),
    ("a dangling input", ("nodes", "hyperhive", "inputs", "tools"), "nothing"),
    ("another path", ("nodes", "hyperhive", "locked", "path"), "/root"),
    ("a path below", ("nodes", "hyperhive", "locked", "path"), "/nix/store/h/../../../root"),
    ("a relative path", ("nodes", "hyperhive", "parent"), []),
    (
        "a path of an input's",
        ("nodes", "tools", "locked"),
        {"type": "path", "path": "/root", "narHash": HASH},
    ),
    ("a file", ("nodes", "tools", "locked", "url"), "file:///root/x.tar.gz"),
    ("no encryption", ("nodes", "tools", "locked", "url"), "http://example.org/t.tar.gz"),
    (
        "a local repository",
        ("nodes", "tools", "locked"),
        {"type": "git", "url": "file:///root", "rev": "c" * 40},
    ),
    ("a branch", ("nodes", "nixpkgs", "locked", "rev"), "master"),
    ("a registry's name", ("nodes", "nixpkgs", "locked", "type"), "indirect"),
    ("an unknown kind", ("nodes", "tools", "locked", "type"), "file"),
    ("a kind that is no text", ("nodes", "tools", "locked", "type"), ["path"]),
    ("a node that is none", ("nodes", "tools"), 5),
    ("nothing locked", ("nodes", "tools"), {}),
    ("another version", ("version",), 8),
    ("no root", ("root",), "elsewhere"),
    ("a root that is no text", ("root",), []),
    ("inputs that are none", ("nodes", "root", "inputs"), []),
]


@pytest.mark.parametrize(("what", "place", "value"), PLACES, ids=[what for what, _, _ in PLACES])
def test_a_tampered_lock_is_refused(what: str, place: tuple[str, ...], value: object) -> None:
    table: Any = lock()
    at = table
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value

    with pytest.raises(BadFlake, match=r"flake\.lock"):
        verify(text(table), INPUTS, PINS)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b" " * (MAX_LOCK_BYTES + 1), b'{"nodes": 1}']
)
def test_what_is_no_lock_is_refused_and_carried_nowhere(raw: bytes) -> None:
    with pytest.raises(BadFlake):
        verify(raw, INPUTS, PINS)
    assert carry_over(raw, INPUTS, PINS) is None


def test_what_is_gone_changed_or_renewed_is_left_out() -> None:
    newer = {"alice": Pin(ALICE.repository, "d" * 40), "carol": Pin("/c", "e" * 40)}

    kept = json.loads(carry_over(text(lock()), INPUTS, newer, ["hyperhive"]) or b"")

    assert kept["nodes"].keys() == {"root", "nixpkgs"}
    assert kept["nodes"]["root"] == {"inputs": {"nixpkgs": "nixpkgs"}}


def test_what_still_holds_stays_as_it_was() -> None:
    assert json.loads(carry_over(text(lock()), INPUTS, PINS) or b"") == lock()


def test_only_what_is_locked_for_it_may_be_fetched() -> None:
    allowed = allowed_uris(text(lock()), "alice", PINS)

    assert ALICE.url in allowed
    assert BOB.url not in allowed
    assert not any(
        "file:///var/lib/hyperhive/applied/".startswith(uri) for uri in allowed if uri.startswith("file")
    )
    assert {"github:NixOS/nixpkgs", "https://example.org/t.tar.gz", "path:/nix/store/"} <= allowed


def test_a_flake_is_written_the_same_each_time() -> None:
    turned = dict(reversed(PINS.items()))

    assert render(INPUTS, PINS, "x86_64-linux") == render(
        dict(reversed(INPUTS.items())), turned, "x86_64-linux"
    )
    assert f'rev = "{ALICE.sha}";' in render(INPUTS, PINS, "x86_64-linux")


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"hyperhive": "path:/h"},
        {**INPUTS, "hyperhive": ""},
        {**INPUTS, "agent-bob": "path:/x"},
        {**INPUTS, "self": "path:/x"},
        {**INPUTS, 'x" = y; "': "path:/x"},
        {**INPUTS, "x": "path:${builtins.getEnv}"},
        {**INPUTS, "x": "path:/x\n"},
    ],
)
def test_inputs_that_cannot_be_are_refused(inputs: dict[str, str]) -> None:
    with pytest.raises(BadFlake):
        render(inputs, PINS, "x86_64-linux")


@pytest.mark.parametrize("sha", ["", "main", "a" * 39, "A" * 40, '"; x = "'])
def test_what_is_no_commit_is_refused(sha: str) -> None:
    with pytest.raises(BadFlake):
        render(INPUTS, {"alice": Pin("/a", sha)}, "x86_64-linux")


@given(st.text())
def test_a_quoted_text_ends_where_it_ends(plain: str) -> None:
    try:
        shown = quoted(plain)
    except BadFlake:
        return
    assert json.loads(shown) == plain
    assert "${" not in shown
    assert "\\u" not in shown.replace("\\\\", "")


def test_who_was_built_with_nix_is_read_of_meta() -> None:
    entries: dict[str, Any] = {
        "alice": {"sha": "a" * 40, "builder": "nix"},
        "tree": {"sha": "a" * 40, "builder": "tree"},
        "purged": {"sha": "a" * 40, "builder": "nix"},
        "odd": {"sha": "main", "builder": "nix"},
    }
    there = {name: f"/applied/{name}" for name in ("alice", "tree", "odd")}

    assert deployed_pins(text({"agents": entries}), there) == {"alice": Pin("/applied/alice", "a" * 40)}


@pytest.mark.parametrize("raw", [None, b"", b"[]", b'{"agents": 3}', b'{"agents": {"alice": 3}}', b"\xff"])
def test_of_a_meta_that_cannot_be_read_nobody_is_known(raw: bytes | None) -> None:
    assert deployed_pins(raw, {"alice": "/a"}) == {}


@given(st.data())
def test_no_damage_to_a_lock_raises_anything_else(draw: st.DataObject) -> None:
    table: Any = copy.deepcopy(lock())
    at: Any = table
    while isinstance(at, dict) and at:
        key = draw.draw(st.sampled_from(sorted(at)))
        if draw.draw(st.booleans()):
            at[key] = draw.draw(st.none() | st.integers() | st.text() | st.lists(st.text()) | st.just({}))
            break
        at = at[key]
    with suppress(BadFlake):
        verify(text(table), INPUTS, PINS)
    with suppress(BadFlake):
        allowed_uris(text(table), "alice", PINS)
    carry_over(text(table), INPUTS, PINS)

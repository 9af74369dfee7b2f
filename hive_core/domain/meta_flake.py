"""The flake of a hive: one input per agent, and what its lock may say.

Nobody but the hive writes it.  Nothing of an agent's repository is in it but the hash of a commit, and its
inputs are no flakes: of each only agent.nix is imported, so a flake.nix that an agent wrote is never read.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hive_core.domain.manifest import NIX_NAME
from hive_core.wire.ids import MANAGER

FLAKE_NAME: Final = "flake.nix"
LOCK_NAME: Final = "flake.lock"
PRODUCT: Final = "hyperhive"
NEEDED_INPUTS: Final = (PRODUCT, "nixpkgs")
PREFIX: Final = "agent-"

MAX_LOCK_BYTES: Final = 4 * 2**20
MAX_NODES: Final = 5000
"""One per agent, and what the hive's own inputs bring along."""

LOCK_VERSION: Final = 7
_INPUT: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}\Z")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}\Z")
_HASH: Final = re.compile(r"sha256-[A-Za-z0-9+/]{43}=\Z")
_FORGES: Final = frozenset({"github", "gitlab", "sourcehut"})
_AGENT_KEYS: Final = frozenset(
    {"type", "url", "rev", "ref", "allRefs", "narHash", "lastModified", "revCount", "shallow"}
)


class BadFlake(Exception):
    """The flake cannot be written, or its lock cannot be used.  The text says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Pin:
    """What an agent is made of."""

    repository: str
    """The absolute path of its applied repository."""
    sha: str
    """Of the commit, in full."""

    @property
    def url(self) -> str:
        return f"file://{self.repository}"


def input_of(agent: str) -> str:
    return PREFIX + agent


def installable(agent: str) -> str:
    """Name what is built for *agent*, as a path of attributes."""
    return f"nixosConfigurations.{quoted(agent)}.config.system.build.toplevel"


def quoted(text: str) -> str:
    """Give *text* as a string of Nix.

    Raises:
        BadFlake: it has control characters, or `${`, which would be evaluated.
    """
    if "${" in text or not text.isprintable():
        raise BadFlake(
            f"cannot write {text[:80]!r} into {FLAKE_NAME}: it has control characters or ${{ in it"
        )
    # Nix knows JSON's escapes of quotes and backslashes, and not those of other letters.
    return json.dumps(text, ensure_ascii=False)


def render(inputs: Mapping[str, str], pins: Mapping[str, Pin], system: str) -> str:
    """Give the flake.nix for the agents *pins*; *inputs* are the hive's own, names and URLs.

    *system* is this host's platform, such as `x86_64-linux`.

    Raises:
        BadFlake: an input is missing, or has a name or URL that cannot be used.
    """
    lines = [
        "# Written by hyperhive with each deploy: what runs, and what it is made of.",
        "{",
        '  description = "The agents of a hive";',
        "",
        "  inputs = {",
    ]
    for name, url in _checked(inputs).items():
        lines.append(f"    {quoted(name)}.url = {quoted(url)};")
    lines.append(f'    "{PRODUCT}".inputs."nixpkgs".follows = "nixpkgs";')
    for agent, pin in sorted(pins.items()):
        if not _COMMIT.match(pin.sha):
            raise BadFlake(f"cannot write {pin.sha[:80]!r} into {FLAKE_NAME}: that is no commit")
        lines += [
            f"    {quoted(input_of(agent))} = {{",
            '      type = "git";',
            f"      url = {quoted(pin.url)};",
            '      ref = "main";',
            # A commit is pinned before its branch leads to it: only a tag does then.
            "      allRefs = true;",
            f"      rev = {quoted(pin.sha)};",
            "      flake = false;",
            "    };",
        ]
    lines += ["  };", "", "  outputs = inputs: {", "    nixosConfigurations = {"]
    for agent in sorted(pins):
        lines += [
            f"      {quoted(agent)} = inputs.{quoted(PRODUCT)}.lib.agentSystem {{",
            f"        name = {quoted(agent)};",
            f"        modules = [ (inputs.{quoted(input_of(agent))} + {quoted('/' + NIX_NAME)}) ];",
            f"        identity = {_value(identity_of(agent, system))};",
            "      };",
        ]
    lines += ["    };", "  };", "}", ""]
    return "\n".join(lines)


def identity_of(agent: str, system: str) -> dict[str, Any]:
    """Give what a machine is told of whose it is; the same for each of its configurations."""
    return {
        "label": agent,
        "committer": {"name": agent, "email": f"{agent}@{PRODUCT}"},
        "isManager": agent == MANAGER,
        "system": system,
    }


def carry_over(
    lock: bytes | None,
    inputs: Mapping[str, str],
    pins: Mapping[str, Pin],
    renew: Collection[str] = (),
) -> bytes | None:
    """Give of *lock* what still holds, for nix to add the rest; None: nothing does, or it cannot be read.

    What goes are inputs that there are no more, those to *renew*, and agents at another commit.
    """
    try:
        nodes, root = _parsed(lock or b"")
        kept = {
            name: node
            for name, node in nodes[root].get("inputs", {}).items()
            if _still_holds(name, nodes.get(node) if isinstance(node, str) else None, inputs, pins)
            and name not in renew
        }
        fresh = {**nodes, root: {"inputs": kept}}
        reached = _reachable(fresh, root)
    except (BadFlake, AttributeError, TypeError):
        return None
    left = {name: node for name, node in fresh.items() if name in reached}
    text = json.dumps({"nodes": left, "root": root, "version": LOCK_VERSION}, indent=2, sort_keys=True)
    return f"{text}\n".encode()


def verify(lock: bytes, inputs: Mapping[str, str], pins: Mapping[str, Pin]) -> None:
    """See that *lock* pins exactly these, and nothing that an agent or a host file could be behind.

    Of an agent: its commit in its own repository.  Of the hive's inputs: the configured path, or a source
    with a hash; what they bring along are such sources too.

    Raises:
        BadFlake: it does not.
    """
    nodes, root = _parsed(lock)
    wanted = {*_checked(inputs), *map(input_of, pins)}
    direct = nodes[root].get("inputs", {})
    if not isinstance(direct, dict) or direct.keys() != wanted:
        raise BadFlake(f"{LOCK_NAME} has other inputs than {FLAKE_NAME}")
    try:
        if _reachable(nodes, root) != nodes.keys():
            raise BadFlake(f"{LOCK_NAME} has nodes that nothing needs")
        agents = {direct[input_of(agent)]: pin for agent, pin in pins.items()}
        own = {direct[name]: url for name, url in inputs.items()}
        if len(agents) + len(own) != len(wanted):
            raise BadFlake(f"{LOCK_NAME} has one node for two inputs")
        for name, node in nodes.items():
            if name == root:
                continue
            if name in agents:
                _verify_agent(name, node, agents[name])
            else:
                _verify_source(name, node, inputs.values(), own.get(name))
    except (AttributeError, TypeError, KeyError):
        raise BadFlake(f"{LOCK_NAME} is not as nix writes it") from None


def allowed_uris(lock: bytes, agent: str, pins: Mapping[str, Pin]) -> set[str]:
    """Give prefixes of what may be fetched to evaluate *agent*: what a verified *lock* names for it.

    Raises:
        BadFlake: it is no lock.
    """
    nodes, _ = _parsed(lock)
    others = {pin.url for name, pin in pins.items() if name != agent}
    uris: set[str] = set()
    for node in nodes.values():
        locked = node.get("locked")
        if not isinstance(locked, dict):
            continue
        kind, url = str(locked.get("type")), locked.get("url")
        if kind in _FORGES:
            uris.add(f"{kind}:{locked.get('owner')}/{locked.get('repo')}")
        elif kind == "path":
            uris.add(f"path:{locked.get('path')}")
        elif isinstance(url, str) and url not in others:
            uris |= {url, f"{kind}+{url}"}
    # Newer versions of nix hold the query of a URI against it too: then only a directory above can match.
    uris |= {f"{uri.rpartition('/')[0]}/" for uri in uris if not uri.startswith("file:")}
    return {uri for uri in uris if not set(uri) & set(" \t\n")}


def deployed_pins(agents: bytes | None, repository_of: Mapping[str, str]) -> dict[str, Pin]:
    """Read of an agents.json who was built with nix; *repository_of* tells the repository of each.

    What cannot be read there is left out.
    """
    try:
        entries = json.loads(agents or b"{}").get("agents", {})
        return {
            name: Pin(repository_of[name], entry["sha"])
            for name, entry in entries.items()
            if name in repository_of and entry.get("builder") == "nix" and _COMMIT.match(entry["sha"])
        }
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError):
        return {}


def paths_of(urls: Collection[str]) -> set[str]:
    """Give the directories of this host that are inputs."""
    found = {url.removeprefix("path:").partition("?")[0] for url in urls if url.startswith("path:")}
    return found | {url.partition("?")[0] for url in urls if url.startswith("/")}


# ── looking at a lock ───────────────────────────────────────────────────────────────────────────


def _checked(inputs: Mapping[str, str]) -> dict[str, str]:
    for name in NEEDED_INPUTS:
        if not inputs.get(name):
            raise BadFlake(f"deploy.inputs of the hive's configuration has no {name}; say its URL there")
    for name, url in inputs.items():
        if not _INPUT.match(name) or name.startswith(PREFIX) or name == "self":
            raise BadFlake(
                f"deploy.inputs of the hive's configuration: {name[:80]!r} is no name for an input"
            )
        quoted(url)
    return dict(sorted(inputs.items()))


def _parsed(lock: bytes) -> tuple[dict[str, Any], str]:
    """Give its nodes, and the name of the root among them."""
    if len(lock) > MAX_LOCK_BYTES:
        raise BadFlake(f"{LOCK_NAME} is over {MAX_LOCK_BYTES // 2**20} MiB")
    try:
        table = json.loads(lock)
        nodes, root = table["nodes"], table["root"]
        if table["version"] != LOCK_VERSION or not isinstance(nodes[root], dict):
            raise BadFlake(f"{LOCK_NAME} has another version than {LOCK_VERSION}")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BadFlake(f"{LOCK_NAME} is not as nix writes it") from None
    if len(nodes) > MAX_NODES or not all(isinstance(node, dict) for node in nodes.values()):
        raise BadFlake(f"{LOCK_NAME} is not as nix writes it, or has over {MAX_NODES} nodes")
    return nodes, root


def _reachable(nodes: Mapping[str, Any], root: str) -> set[str]:
    reached, waiting = {root}, [root]
    while waiting:
        for target in nodes[waiting.pop()].get("inputs", {}).values():
            # A list is a path from the root, of one that follows another.
            if isinstance(target, str) and target not in reached:
                if target not in nodes:
                    raise BadFlake(f"{LOCK_NAME} names a node that it does not have: {target[:80]!r}")
                reached.add(target)
                waiting.append(target)
    return reached


def _still_holds(name: str, node: Any, inputs: Mapping[str, str], pins: Mapping[str, Pin]) -> bool:
    if name in inputs:
        return True  # nix itself compares it with the URL
    pin = pins.get(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    if pin is None or not isinstance(node, dict):
        return False
    try:
        _verify_agent(name, node, pin)
    except (BadFlake, KeyError):
        return False
    return True


def _verify_agent(name: str, node: Mapping[str, Any], pin: Pin) -> None:
    locked, original = node["locked"], node["original"]
    as_written = {"type": "git", "url": pin.url, "rev": pin.sha}
    if (
        node.keys() != {"flake", "locked", "original"}
        or node["flake"] is not False
        or any(part.get(key) != value for part in (locked, original) for key, value in as_written.items())
        or not locked.keys() <= _AGENT_KEYS
        or not original.keys() <= _AGENT_KEYS
        or not _HASH.match(str(locked.get("narHash")))
    ):
        raise BadFlake(f"{LOCK_NAME}: {name[:80]!r} is not the commit of that agent")


def _verify_source(name: str, node: Mapping[str, Any], urls: Collection[str], url: str | None) -> None:
    """*urls* are all that are configured, *url* is that of this one, None: another brought it along."""
    locked = node["locked"]
    kind, where = locked.get("type"), locked.get("url")
    if kind == "path":
        path = locked.get("path")
        allowed = path in (paths_of(urls) if url is None else paths_of([url])) and "parent" not in node
    elif kind in _FORGES:
        allowed = bool(_COMMIT.match(str(locked.get("rev"))))
    elif kind == "git":
        near = isinstance(where, str) and _is_named(where, urls if url is None else [url])
        allowed = bool(_COMMIT.match(str(locked.get("rev")))) and (near or _is_remote(where))
    else:
        allowed = kind == "tarball" and (_is_remote(where) or where in urls)
    if not allowed or not _HASH.match(str(locked.get("narHash"))):
        raise BadFlake(
            f"{LOCK_NAME}: {name[:80]!r} comes from where no input may: {json.dumps(locked)[:300]}"
        )


def _is_named(where: str, urls: Collection[str]) -> bool:
    return where in {url.removeprefix("git+").partition("?")[0] for url in urls}


def _is_remote(where: object) -> bool:
    return isinstance(where, str) and where.startswith(("https://", "ssh://"))


def _value(value: object) -> str:
    """Render *value* as an expression of Nix."""
    if isinstance(value, dict):
        return "{ " + "".join(f"{quoted(key)} = {_value(inner)}; " for key, inner in value.items()) + "}"
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(str(value))

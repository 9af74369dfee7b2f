"""What a proposal would change, computed from what it declares and from its files, never from its words."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, Protocol

from hive_core.declarable import Bind, Limits, McpServer
from hive_core.domain.cage import parse_percent, parse_size
from hive_core.domain.manifest import MANIFEST_NAME, NOTHING, Manifest
from hive_core.domain.visible import one_line
from hive_core.wire.ids import MANAGER

MAX_VALUE_CHARS: Final = 200
"""Of a variable or a path; what is longer is cut, and says so."""
MAX_COMMAND_CHARS: Final = 1000
MAX_NAMED: Final = 12
"""Files or names in one line."""
MAX_CONSEQUENCES: Final = 500
"""Beyond, only their number: a manifest may set thousands of variables."""


class Weight(StrEnum):
    INFO = "info"
    NOTICE = "notice"
    """Worth a look: it can cost money or time, or changes how the agent behaves."""
    DANGER = "danger"
    """It opens a way out of the machine, or lets somebody else speak for the model."""


@dataclass(frozen=True, slots=True)
class Consequence:
    """One thing that would be different."""

    kind: str
    """Such as `bind` or `network`."""
    text: str
    """One line in which everything can be seen."""
    weight: Literal["info", "notice", "danger"] = "info"


class Change(Protocol):
    """A file that differs."""

    @property
    def path(self) -> str:
        """As it is in the repository, with surrogates for what is no UTF-8."""
        ...

    @property
    def change(self) -> str:
        """`added`, `changed`, `deleted` or `mode`."""
        ...

    @property
    def binary(self) -> bool: ...

    @property
    def mode(self) -> str:
        """git's, of the file as it would be: `100644`, `100755`, `120000`, `160000`; empty: deleted."""
        ...


_ORDER: Final = (Weight.DANGER, Weight.NOTICE, Weight.INFO)


def consequences(before: Manifest | None, after: Manifest, changes: Sequence[Change]) -> list[Consequence]:
    """Say what would be different if *after* took the place of *before*; None: of nothing.

    *changes* are the files that differ.  The gravest come first, those of a kind together.
    """
    base = NOTHING if before is None else before
    found = [
        *_binds(base.binds, after.binds),
        *_network(base, after),
        *_mcp_servers(base.mcp_servers, after.mcp_servers),
        *_environment(base.environment, after.environment, "environment", ""),
        *_limits(base.limits, after.limits),
        *_packages(base.packages, after.packages),
        *_words(base, after),
        *_recipients(base.recipients, after.recipients),
        *_files(base, after, changes),
    ]
    found.sort(key=lambda one: (_ORDER.index(Weight(one.weight)), one.kind))
    if rest := found[MAX_CONSEQUENCES:]:
        found[MAX_CONSEQUENCES:] = [
            Consequence("more", f"{len(rest)} more that are not shown", rest[0].weight)
        ]
    return found


def overruled(keys: Sequence[tuple[str, str]]) -> list[Consequence]:
    """Say of each of *keys*, which agent.toml says in vain, what the host's configuration says of it."""
    found = [
        Consequence(
            "declared", f"{_cut(key)}: the host's configuration says {_cut(value)}, and wins", "notice"
        )
        for key, value in keys[:MAX_NAMED]
    ]
    if rest := keys[MAX_NAMED:]:
        names = _named([key for key, _ in rest])
        found.append(Consequence("declared", f"the same holds for {names}", "notice"))
    return found


# ── what the host gives ─────────────────────────────────────────────────────────────────────────

_WHOLE: Final = ("", "home", "root", "etc", "var", "usr", "opt", "srv", "mnt", "media", "boot")
"""Directories near the top that hold what belongs to everybody."""
_BELOW: Final = (
    *("proc", "sys", "dev", "run", "home", "root", "var/lib/hyperhive", "var/run", "nix/var"),
    # Sockets of sessions, copies of /etc/shadow, letters, the inside of other containers, credentials.
    *("tmp", "var/tmp", "var/backups", "var/mail", "var/spool", "var/lib/docker", "var/lib/containers"),
    *("var/lib/containerd", "var/lib/lxc", "var/lib/lxd", "var/lib/libvirt", "var/lib/kubelet"),
    *("var/lib/systemd", "var/lib/private", "var/snap"),
)
"""Whatever lies below is the host's inside, or a person's."""
_PARTS: Final = frozenset(
    {
        *(".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".config", ".claude", ".password-store"),
        *(
            ".netrc",
            ".git-credentials",
            ".npmrc",
            ".pypirc",
            ".pgpass",
            "ssh",
            "shadow",
            "gshadow",
            "sudoers",
        ),
        *("sudoers.d", "ssl", "pki", "secrets", "credentials", "credstore", "private", "wireguard"),
        *("letsencrypt", "networkmanager", "system-connections", "kubernetes", "krb5.keytab"),
    }
)
_ENDS: Final = (".sock", ".socket", ".pem", ".key")


def _binds(before: Sequence[Bind], after: Sequence[Bind]) -> Iterator[Consequence]:
    for bind in after:
        if bind not in before:
            why = _why_dangerous(bind)
            said = f"{_place(bind)} becomes {'writable' if bind.writable else 'readable'} for it"
            yield Consequence("bind", said + (f": {why}" if why else ""), "danger" if why else "notice")
    for bind in before:
        if bind not in after:
            yield Consequence("bind", f"{_place(bind)} is taken away from it")


def _why_dangerous(bind: Bind) -> str | None:
    source = _normal(bind.source)
    if bind.writable:
        return "what it writes there is on the host"
    if not source:
        return "that is the whole host"
    if source in _WHOLE or any(source == top or source.startswith(f"{top}/") for top in _BELOW):
        return "that holds what is the host's or a person's"
    parts = set(source.lower().split("/"))
    if parts & _PARTS or source.lower().endswith(_ENDS) or any(part.startswith("id_") for part in parts):
        return "that looks like keys, passwords or a socket"
    return None


def _normal(path: str) -> str:
    """Give *path* without `.`, `..`, doubled slashes and the first one."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _place(bind: Bind) -> str:
    at = f" (at {_cut(bind.path)})" if bind.path not in {None, bind.source} else ""
    return f"{_cut(bind.source)} of the host{at}"


def _network(before: Manifest, after: Manifest) -> Iterator[Consequence]:
    if before.network == after.network:
        return
    old = before.network or "the hive's default"
    match after.network:
        case "veth":
            yield Consequence(
                "network", f"its machine gets a link to the host's network (before: {old})", "danger"
            )
        case "none":
            yield Consequence("network", f"its machine has no network (before: {old})")
        case None:
            yield Consequence("network", f"its network is the hive's default (before: {old})", "notice")


_LIMITS: Final[dict[str, Callable[[Any], int]]] = {"memory": parse_size, "cpu": parse_percent, "tasks": int}


def _limits(before: Limits, after: Limits) -> Iterator[Consequence]:
    for name, number in _LIMITS.items():
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        weight: Literal["info", "notice"] = "notice"
        if new is None:
            said = f"{name} is the hive's default (before: {_cut(str(old))})"
        elif old is None:
            said = f"{name} {_cut(str(new))} (before: as the operator or the hive says)"
        else:
            raised = _number(number, new) > _number(number, old)
            weight = "notice" if raised else "info"
            said = f"{name} {_cut(str(new))}, {'raised' if raised else 'lowered'} from {_cut(str(old))}"
        yield Consequence("limit", said, weight)


def _number(read: Callable[[Any], int], value: object) -> float:
    try:
        return float(read(value))
    except ValueError:
        return float("inf")  # it cannot be read, and is shown as the graver case


# ── what runs, and what it is told ──────────────────────────────────────────────────────────────

_STEERS: Final = frozenset(
    {
        *("PATH", "HOME", "SHELL", "ENV", "BASH_ENV", "IFS", "EDITOR", "VISUAL", "PAGER", "BROWSER"),
        *("SSH_AUTH_SOCK", "SSH_ASKPASS", "SUDO_ASKPASS", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
        *("CURL_HOME", "WGETRC", "PERL5LIB", "PERL5OPT", "RUBYOPT", "RUBYLIB", "JAVA_TOOL_OPTIONS"),
        *("PROMPT_COMMAND", "GCONV_PATH", "RES_OPTIONS", "HOSTALIASES", "OPENSSL_CONF", "LOCPATH"),
        *("LESSOPEN", "LESSCLOSE", "MANPAGER", "SHELLOPTS", "BASHOPTS", "PS4", "ZDOTDIR", "GOPROXY"),
        *("GOFLAGS", "MAKEFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "CLASSPATH", "PHPRC", "KUBECONFIG"),
        *("DOCKER_HOST", "GNUPGHOME", "PERL5DB", "TERMINFO", "INPUTRC"),
    }
)
_STEER_BEGINS: Final = (
    *("ANTHROPIC_", "CLAUDE_", "HIVE_", "AWS_", "GOOGLE_", "OPENAI_", "LD_", "PYTHON", "NODE_", "NPM_"),
    *("GIT_", "SSL_", "PIP_", "UV_", "NIX_", "CARGO_", "DBUS_", "SYSTEMD_", "XDG_", "LUA_", "DENO_"),
    *("BUN_", "YARN_", "VERTEX_", "AZURE_"),
)
_STEER_ENDS: Final = ("_PROXY", "_BASE_URL", "_PRELOAD", "_API_KEY", "_AUTH_TOKEN", "JAVA_OPTIONS")


def _steers(name: str) -> bool:
    """Say whether programs read the variable to decide whom they talk to, or what they load."""
    name = name.upper()
    return name in _STEERS or name.startswith(_STEER_BEGINS) or name.endswith(_STEER_ENDS)


def _environment(
    before: Mapping[str, str], after: Mapping[str, str], kind: str, of_what: str
) -> Iterator[Consequence]:
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        shown = f"{of_what}{one_line(name)}"
        steers = _steers(name)
        why = ": programs are steered by it" if steers else ""
        if new is None:
            yield Consequence(kind, f"{shown} is not set any more", "notice" if steers else "info")
        else:
            was = "" if old is None else f" (before: {_quoted(old)})"
            yield Consequence(kind, f"{shown}={_quoted(new)}{was}{why}", "danger" if steers else "notice")


def _mcp_servers(before: Mapping[str, McpServer], after: Mapping[str, McpServer]) -> Iterator[Consequence]:
    kind = "mcp_server"
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if new is None:
            yield Consequence(kind, f"{one_line(name)} is given up")
            continue
        if old is None:
            yield Consequence(kind, f"{one_line(name)} is new and runs {_command(new)}", "notice")
        elif (old.command, old.args) != (new.command, new.args):
            said = f"{one_line(name)} runs {_command(new)} (before: {_command(old)})"
            yield Consequence(kind, said, "notice")
        old_env = {} if old is None else old.env
        yield from _environment(old_env, new.env, kind, f"{one_line(name)}: ")


def _command(server: McpServer) -> str:
    return _cut(shlex.join([server.command, *server.args]), MAX_COMMAND_CHARS)


def _packages(before: Sequence[str], after: Sequence[str]) -> Iterator[Consequence]:
    if new := sorted(set(after) - set(before)):
        yield Consequence("package", f"its image gets {_named(new)}", "notice")
    if gone := sorted(set(before) - set(after)):
        yield Consequence("package", f"its image has no longer {_named(gone)}")


_WORDS: Final[tuple[tuple[str, str, Literal["info", "notice"]], ...]] = (
    ("description", "its description", "info"),
    ("image", "its image", "notice"),
    ("provider", "the provider that thinks for it", "notice"),
    ("model", "its model", "notice"),
    ("prompt", "the file with its task", "notice"),
)


def _words(before: Manifest, after: Manifest) -> Iterator[Consequence]:
    for name, said, weight in _WORDS:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            is_now = "as the operator or the hive says" if new is None else _quoted(new)
            was = "" if old is None else f" (before: {_quoted(old)})"
            yield Consequence(name, f"{said} is {is_now}{was}", weight)


def _recipients(before: Sequence[str] | None, after: Sequence[str] | None) -> Iterator[Consequence]:
    kind = "recipients"
    if before == after:
        return
    if after is None:
        was = _named(sorted({*(before or ()), MANAGER}))
        yield Consequence(kind, f"it may write to anyone (before: {was})", "danger")
    elif before is None:
        allowed = _named(sorted({*after, MANAGER}))
        yield Consequence(kind, f"it may write to {allowed} only, whatever hive allow said", "notice")
    else:
        if more := sorted(set(after) - set(before)):
            yield Consequence(kind, f"it may write also to {_named(more)}", "notice")
        if less := sorted(set(before) - set(after)):
            yield Consequence(kind, f"it may write no longer to {_named(less)}")


# ── files ───────────────────────────────────────────────────────────────────────────────────────

_MODES: Final[tuple[tuple[str, str, str, Literal["info", "notice"]], ...]] = (
    ("100755", "executable", "can be executed", "notice"),
    (
        "120000",
        "symlink",
        "a symbolic link, which becomes a plain file with its target as text",
        "notice",
    ),
    ("160000", "submodule", "a submodule: nothing of it is fetched", "notice"),
)


def _files(before: Manifest, after: Manifest, changes: Sequence[Change]) -> Iterator[Consequence]:
    there = [change for change in changes if change.change != "deleted"]
    paths = {change.path for change in changes}
    if "agent.nix" in paths:
        yield Consequence(
            "agent_nix", "agent.nix differs: with Nix the system of its machine is built anew", "notice"
        )
    if paths & {"flake.nix", "flake.lock"}:
        yield Consequence("flake_nix", "flake.nix or flake.lock differs: neither is ever read")
    if after.prompt is not None and after.prompt == before.prompt and after.prompt in paths:
        yield Consequence("prompt", f"what it is told of its task differs: {_cut(after.prompt)}", "notice")
    if any(change.path == MANIFEST_NAME and change.change == "deleted" for change in changes):
        yield Consequence("manifest", f"{MANIFEST_NAME} is gone: nothing is declared any more", "notice")
    for mode, kind, said, weight in _MODES:
        if named := [change.path for change in there if change.mode == mode]:
            yield Consequence(kind, f"{_named(named)}: {said}", weight)
    if named := [change.path for change in there if change.binary]:
        yield Consequence("binary", f"{_named(named)}: binary, its content is not shown", "notice")


# ── words ───────────────────────────────────────────────────────────────────────────────────────


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(_cut(name) for name in names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _quoted(value: str) -> str:
    return f'"{_cut(value)}"'


def _cut(text: str, most: int = MAX_VALUE_CHARS) -> str:
    if len(text) <= most:
        return one_line(text)
    return f"{one_line(text[:most])}… ({len(text)} characters)"

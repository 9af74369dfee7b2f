"""What an agent's `agent.toml` declares: its side of the machine that the host gives it.

The file lies at the top of the agent's repository, and what it says holds from the deploy that an operator
approved.  What it leaves out is as the operator or the hive's configuration says.
"""

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from hive_core.declarable import Bind, Limits, McpServer, ServerName, Value, VariableName
from hive_core.domain.cage import Network, Shape, parse_percent, parse_size
from hive_core.wire.ids import AgentName, Label
from hive_core.wire.machine import ImageName

MANIFEST_NAME: Final = "agent.toml"
NIX_NAME: Final = "agent.nix"
"""Of which the machine's system is built, where the hive builds with nix."""
NOT_READ: Final = frozenset({MANIFEST_NAME, NIX_NAME})
"""The files of a repository that nothing in a running machine looks at."""

MAX_MANIFEST_BYTES: Final = 64 * 2**10
MAX_VARIABLES: Final = 256
MAX_SERVERS: Final = 32
MIN_MEMORY_BYTES: Final = 64 * 2**20
"""Less than that, and a machine's init does not come up."""

Package = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9+._:-]{0,127}\Z")]
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}\Z")]
"""Of a file in the repository."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An agent.toml.  None and empty: nothing was said."""

    description: Label | None = None
    image: ImageName | None = None
    network: Literal["none", "veth"] | None = None
    provider: Label | None = None
    model: Label | None = None
    prompt: FileName | None = None
    """A file of the repository with what its model is told about its task, after what every agent is told."""
    packages: Annotated[list[Package], Meta(max_length=256)] = []
    """What is added to the image, by the hive's `deploy.packages_hook`."""
    recipients: Annotated[list[AgentName], Meta(max_length=256)] | None = None
    """To whom it may write beside the manager; None: the operator's list stays as it is."""
    limits: Limits = Limits()
    environment: dict[VariableName, Value] = {}
    mcp_servers: dict[ServerName, McpServer] = {}
    binds: Annotated[list[Bind], Meta(max_length=32)] = []


NOTHING: Final = Manifest()

NEED_RESTART: Final = (
    *("image", "network", "provider", "model", "prompt", "packages", "environment", "mcp_servers", "binds"),
)
"""Keys that a machine has for as long as it runs."""

OWN_VARIABLES: Final = frozenset(
    {
        *("PATH", "HOME", "SHELL", "USER", "LOGNAME", "TMPDIR", "IFS", "ENV", "BASH_ENV"),
        *(
            "CLAUDE_CONFIG_DIR",
            "RUNTIME_DIRECTORY",
            "NOTIFY_SOCKET",
            "INVOCATION_ID",
            "CREDENTIALS_DIRECTORY",
        ),
        *("GCONV_PATH", "OPENSSL_CONF", "OPENSSL_MODULES", "OPENSSL_ENGINES", "NODE_OPTIONS", "BUN_OPTIONS"),
    }
)
OWN_PREFIXES: Final = ("HIVE_", "HYPERHIVE_", "LD_", "PYTHON", "GLIBC_", "SYSTEMD_", "LISTEN_")
"""Variables that say which agent this is, or that would put other code into the hive's own programs."""
OWN_SERVER: Final = "hyperhive"
"""Whose tools are `mcp__hyperhive__…`: no other server's name begins so, however it is written."""

NEVER_BOUND: Final = (
    *("/proc", "/sys", "/dev", "/run", "/var/run", "/boot", "/root"),
    *("/etc/hyperhive", "/var/lib/hyperhive", "/var/lib/machines"),
)
"""With them a machine would have the host, or the hive.  What holds one of them is refused too, such as /."""
NEVER_WRITABLE: Final = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/nix", "/opt/hyperhive"),
    *("/var/spool/cron", "/var/lib/systemd"),
)
"""What is written there runs on the host."""
OWN_INSIDE: Final = (
    *("/proc", "/sys", "/dev", "/run", "/nix", "/.image", "/opt/hyperhive", "/etc/hyperhive"),
    *("/state", "/agents", "/applied", "/meta", "/root/.claude"),
)
"""Of a machine: what the hive and its systemd have put there."""
TOPS_INSIDE: Final = frozenset(
    {
        *("/", "/bin", "/boot", "/etc", "/home", "/lib", "/lib32", "/lib64", "/libx32", "/root", "/sbin"),
        *("/usr", "/var", "/tmp"),  # noqa: S108
    }
)
"""Without them no machine boots."""
BOOTS_INSIDE: Final = (
    *("/etc/systemd", "/etc/init.d", "/etc/dbus-1", "/usr/lib/systemd", "/lib/systemd"),
    *("/usr/local/lib/systemd", "/usr/share/dbus-1", "/root/.config"),
)
"""What is there runs while a machine boots, before it is sealed."""
NEVER_WRITABLE_INSIDE: Final = (
    *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/sbin", "/usr"),
    *("/var/spool", "/var/lib/systemd", "/var/lib/dbus"),
)
"""Else what the agent wrote there would be back before its next machine is sealed."""

_SECTIONS: Final = (("limits", Limits),)
_NO_CHARACTERS: Final = re.compile(
    "[\ufdd0-\ufdef"
    + "".join(chr((plane << 16) + low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
    + "]"
)
"""systemd takes them for broken UTF-8, and reads no variable of a file with one."""


class BadManifest(Exception):
    """An agent.toml cannot be used.  The text names the key and what is wrong with it."""


def parse(text: bytes) -> Manifest:
    """Read an agent.toml, of whomever: nothing in it is believed before it was looked at.

    Paths of binds come out normalised: absolute, one slash between names, none at the end.

    Raises:
        BadManifest: it is larger than 64 KiB, is no TOML, has a key that there is not, or a value that
            cannot be had or is kept for the hive.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise BadManifest(f"it is over {MAX_MANIFEST_BYTES // 1024} KiB")
    try:
        table = tomllib.loads(text.decode())
    except UnicodeDecodeError as error:
        raise BadManifest(f"it is not UTF-8, at byte {error.start}") from None
    except RecursionError:
        raise BadManifest("it is nested too deep") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise BadManifest(f"it is no TOML: {_shown(str(error))}") from None
    _refuse_unknown(table)
    try:
        manifest = msgspec.convert(table, Manifest)
    except msgspec.ValidationError as error:
        raise BadManifest(_sentence(str(error))) from None
    except RecursionError:
        raise BadManifest("it is nested too deep") from None
    return checked(manifest)


def checked(manifest: Manifest) -> Manifest:
    """Look at what the types of *manifest* do not say, and give it with the paths of binds normalised.

    Raises:
        BadManifest: a value cannot be had, or is kept for the hive.
    """
    if _NO_CHARACTERS.search(msgspec.json.encode(manifest).decode()):
        raise BadManifest("there is a code point in it that is no character, such as U+FFFE")
    _check_limits(manifest.limits)
    _check_names(manifest)
    return msgspec.structs.replace(manifest, binds=_checked(manifest.binds))


def shape_after(shape: Shape, before: Manifest, after: Manifest) -> Shape:
    """Give what an agent of *shape*, deployed with *before*, is declared to have once *after* is.

    What *after* leaves out and *before* said is as the hive's configuration says again; what neither of
    them says stays, so that an operator's `hive limits` holds until a deploy says otherwise.
    """
    said = said_shape(after)
    dropped = said_shape(before)
    if before.packages:
        # What it has then was made for them.
        dropped = dataclasses.replace(dropped, image=dropped.image or shape.image)

    def one(name: str) -> Any:
        value = getattr(said, name)
        if value is not None:
            return value
        return None if getattr(dropped, name) is not None else getattr(shape, name)

    return Shape(**{field.name: one(field.name) for field in dataclasses.fields(Shape)})


def shape_over(shape: Shape, manifest: Manifest) -> Shape:
    """Give *shape*, and what *manifest* says where it says nothing."""
    said = said_shape(manifest)

    def one(name: str) -> Any:
        value = getattr(shape, name)
        return getattr(said, name) if value is None else value

    return Shape(**{field.name: one(field.name) for field in dataclasses.fields(Shape)})


def said_shape(manifest: Manifest) -> Shape:
    """Give what *manifest* itself says of the machine."""
    limits = manifest.limits
    return Shape(
        image=manifest.image,
        network=None if manifest.network is None else Network(manifest.network),
        memory_max_bytes=None if limits.memory is None else parse_size(limits.memory),
        cpu_quota_percent=None if limits.cpu is None else parse_percent(limits.cpu),
        tasks_max=limits.tasks,
    )


def restart_needed(before: Manifest, after: Manifest, files: Collection[str] = ()) -> bool:
    """Say whether a running machine has to be started anew for *after*; *files* are those that differ.

    Limits and recipients hold at once.  A file of the repository matters when it is the prompt, and
    any may when there are MCP servers, which may read it; not those that a machine is only made from.
    """
    if any(getattr(before, key) != getattr(after, key) for key in NEED_RESTART):
        return True
    if after.mcp_servers:
        return any(file not in NOT_READ for file in files)
    return after.prompt is not None and after.prompt in files


def in_or_above(path: str, places: Iterable[str]) -> str | None:
    """Give the one of *places*, all absolute and normalised, that *path* lies in, is, or holds."""
    return next((place for place in places if _is_below(path, place) or _is_below(place, path)), None)


def why_not_bound(source: str, *, writable: bool) -> str | None:
    """Say why no machine gets the host's *source*, a normalised path; None: it may be asked for."""
    place = in_or_above(source, NEVER_BOUND) or (in_or_above(source, NEVER_WRITABLE) if writable else None)
    if place is None:
        return None
    how = "writable" if writable and in_or_above(source, NEVER_BOUND) is None else "into a machine"
    reason = "that is" if source == place else f"it has to do with {place}, which is"
    return f"cannot bind {source} {how}: {reason} the host's own"


# ── looking at it ───────────────────────────────────────────────────────────────────────────────


def _refuse_unknown(table: Mapping[str, Any]) -> None:
    """Name the first key that there is not; msgspec would not say which was meant."""
    _check_keys(table, Manifest, "")
    limits, binds, servers = table.get("limits"), table.get("binds"), table.get("mcp_servers")
    if isinstance(limits, dict):
        _check_keys(limits, Limits, "limits.")
    for number, bind in enumerate(binds if isinstance(binds, list) else []):
        if isinstance(bind, dict):
            _check_keys(bind, Bind, f"binds[{number}].")
    for name, server in servers.items() if isinstance(servers, dict) else ():
        if isinstance(server, dict):
            _check_keys(server, McpServer, f"mcp_servers.{_shown(name)}.")


def _check_keys(table: Mapping[str, Any], struct: type[msgspec.Struct], prefix: str) -> None:
    known = struct.__struct_fields__
    for key in table:
        if key in known:
            continue
        everywhere = {name: name for name in known} | {
            name: f"{section}.{name}" for section, inner in _SECTIONS for name in inner.__struct_fields__
        }
        near = difflib.get_close_matches(key[:64], everywhere, n=1, cutoff=0.6)
        hint = f"; did you mean {everywhere[near[0]]}?" if near else ""
        if prefix and key in Manifest.__struct_fields__:
            hint = f"; {key} is a key of the file: put it above the first [table]"
        raise BadManifest(f"unknown key {prefix}{_shown(key)}{hint}")


def _check_limits(limits: Limits) -> None:
    for key, text, read in (("memory", limits.memory, parse_size), ("cpu", limits.cpu, parse_percent)):
        if text is None:
            continue
        try:
            value = read(text)
        except ValueError as error:
            raise BadManifest(f"limits.{key}: {error}") from None
        if read is parse_size and value < MIN_MEMORY_BYTES:
            raise BadManifest("limits.memory: with so little memory no machine boots; 64M is the least")


def _check_names(manifest: Manifest) -> None:
    _check_variables("environment", manifest.environment)
    if len(manifest.mcp_servers) > MAX_SERVERS:
        raise BadManifest(f"mcp_servers: there are over {MAX_SERVERS}")
    for name, server in manifest.mcp_servers.items():
        if name.lower().startswith(OWN_SERVER):
            raise BadManifest(
                f"mcp_servers.{name}: that is the name of the hive's own server, or begins so; use another"
            )
        if not server.command:
            raise BadManifest(f"mcp_servers.{name}.command: it is empty")
        _check_variables(f"mcp_servers.{name}.env", server.env)
    if manifest.prompt is not None and not _is_plain(manifest.prompt):
        raise BadManifest("prompt: it has an empty name, . or .. in it; name a file of the repository")


def _check_variables(key: str, variables: Mapping[str, str]) -> None:
    if len(variables) > MAX_VARIABLES:
        raise BadManifest(f"{key}: there are over {MAX_VARIABLES} variables")
    for name in variables:
        if name in OWN_VARIABLES or name.startswith(OWN_PREFIXES):
            raise BadManifest(f"{key}.{name}: that is set by the hive, or would change its own programs")


def _checked(binds: Sequence[Bind]) -> list[Bind]:
    checked: list[Bind] = []
    for number, bind in enumerate(binds):
        source = _normal(bind.source, f"binds[{number}].source")
        path = source if bind.path is None else _normal(bind.path, f"binds[{number}].path")
        why = why_not_bound(source, writable=bind.writable)
        if why is not None:
            raise BadManifest(f"binds[{number}].source: {why}")
        places = OWN_INSIDE + BOOTS_INSIDE + (NEVER_WRITABLE_INSIDE if bind.writable else ())
        inside = path if path in TOPS_INSIDE else in_or_above(path, places)
        if inside is not None:
            raise BadManifest(
                f"binds[{number}].path: cannot bind anything at {path}: {inside} is the machine's own"
            )
        over = in_or_above(path, [other.path for other in checked if other.path is not None])
        if over is not None:
            raise BadManifest(
                f"binds[{number}].path: {path} and {over}, another bind, are in each other's way"
            )
        checked.append(Bind(source=source, path=path, writable=bind.writable))
    return checked


def _normal(path: str, key: str) -> str:
    names = [name for name in path.split("/") if name]
    if "." in names or ".." in names:
        raise BadManifest(f"{key}: the path {path[:200]!r} has . or .. in it; say it without")
    return "/" + "/".join(names)


def _is_plain(path: str) -> bool:
    return not {"", ".", ".."} & set(path.split("/"))


def _is_below(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


def _sentence(error: str) -> str:
    """Put the key, which msgspec says last, first: `limits.tasks: Expected …`."""
    what, _, where = error.rpartition(" - at `")
    if not what:
        return _shown(error)
    if where.startswith("key` in `"):
        where, what = where.removeprefix("key` in `"), f"a name in it: {what}"
    return f"{_shown(where.rstrip('`').removeprefix('$').lstrip('.') or 'it')}: {_shown(what)}"


def _shown(text: str) -> str:
    """Cut *text* and show what could do something to a terminal as what it is."""
    return text[:200].encode("unicode_escape").decode() if not text.isprintable() else text[:200]

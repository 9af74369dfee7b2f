"""Writes the manual pages, the completions and docs/configuration.md, from the parsers and the structs.

    python docs/generate_manual.py            writes the files
    python docs/generate_manual.py --check    ends with status 1 if that would change one

hive(1), hive-core(8) and hive-agent(1) are what `--help` says, hive.toml(5) is hive_core/config.py.
"""

import argparse
import ast
import inspect
import itertools
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import msgspec
from click.shell_completion import ShellComplete, get_completion_class
from msgspec import inspect as types

from hive_agent import commands as agent_commands
from hive_core.__main__ import main as core
from hive_core.cli.app import COMMANDS, COMPLETION_VARIABLE, hive
from hive_core.config import NEEDS_RESTART, SYSTEM_CONFIG, Config
from hive_core.wire.version import VERSION

HERE: Final = Path(__file__).parent
COMMAND: Final = "python docs/generate_manual.py"

SHELLS: Final = {"bash": "hive.bash", "zsh": "_hive", "fish": "hive.fish"}
OURS: Final = ("hive(1)", "hive-core(8)", "hive-agent(1)", "hive.toml(5)")

CONFIG_HEAD: Final = """\
# Configuration

`hive-core` reads one TOML file: `{path}`, or what `--config` or `HIVE_CONFIG` names.  It need not
be there; each key has a default.  A key that is unknown, or a value that cannot be, is refused at the start
with its name.  `hive-core config` prints every value in force and where it came from.

`systemctl reload hive-core` reads the file again.  Keys marked *restart* take effect when the daemon starts;
what a machine is given changes at its next start, and until then `hive ls` says that it is behind.

This page is made by `{command}`.  On NixOS the same keys are below `services.hyperhive.settings`.
"""


# ── pages ───────────────────────────────────────────────────────────────────────────────────────


def escape(text: str) -> str:
    """Give *text* so that troff prints it as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line[:1] in {".", "'"} else line for line in text.splitlines())


def plain(text: str) -> str:
    """A docstring's paragraph, without the marks of Markdown."""
    return re.sub(r"(?<![\w*])[*`]([^*`\n]+)[*`](?![\w*])", r"\1", text)


def paragraphs(text: str) -> Iterator[str]:
    """Render the help of click: paragraphs are filled, those behind a \\b stay as they are."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b"):
            yield f".nf\n{escape(paragraph.removeprefix(chr(8)).strip(chr(10)))}\n.fi"
        elif paragraph.strip():
            yield escape(" ".join(paragraph.split()))


def section(title: str, *parts: str) -> str:
    body = "\n.PP\n".join(filter(None, parts))
    return f".SH {title}\n{body}"


def entry(term: str, text: str) -> str:
    said = escape(" ".join(text.split())) or "\\&"
    return f".TP\n\\fB{escape(term)}\\fR\n{said}"


def page(name: str, number: int, summary: str, sections: Iterable[str]) -> str:
    me = f"{name}({number})"
    others = ", ".join(
        f"\\fB{escape(other.partition('(')[0])}\\fR({other[-2]})" for other in OURS if other != me
    )
    return "\n".join(
        [
            f'.\\" Made by {COMMAND}',
            f'.TH {escape(name.upper())} {number} "" "hyperhive {VERSION}" "hyperhive"',
            section("NAME", f"{escape(name)} \\- {escape(summary)}"),
            *sections,
            section("SEE ALSO", others),
            "",
        ]
    )


# ── click ───────────────────────────────────────────────────────────────────────────────────────


def usage_of(context: click.Context) -> str:
    words = " ".join(context.command.collect_usage_pieces(context))
    return f"\\fB{escape(context.command_path)}\\fR {escape(words)}".rstrip()


def options_of(context: click.Context, skip: Iterable[str] = ()) -> list[str]:
    records = (
        parameter.get_help_record(context)
        for parameter in context.command.params
        if parameter.name not in skip
    )
    return [entry(record[0], record[1]) for record in records if record is not None and record[1]]


def leaves_of(group: click.Group, context: click.Context) -> Iterator[click.Context]:
    """Every command below *group*; a group that can be called by itself is one too."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield inner
        if isinstance(command, click.Group):
            yield from leaves_of(command, inner)


def described(context: click.Context, skip: Iterable[str]) -> str:
    command = context.command
    options = options_of(context, skip)
    parts = [
        f".SS {escape(context.command_path)}",
        usage_of(context),
        *(f".PP\n{text}" for text in paragraphs(command.help or "")),
        *options,
        *(f".PP\n{text}" for text in paragraphs(command.epilog or "")),
    ]
    return "\n".join(parts)


def hive_page() -> str:
    context = click.Context(hive, info_name="hive")
    shared = {str(parameter.name) for parameter in hive.params}
    leaves = list(leaves_of(hive, context))
    sections = dict.fromkeys(listed.section for listed in COMMANDS.values())
    commands = [
        section(
            escape(title.upper()),
            "\n".join(
                described(leaf, shared)
                for leaf in leaves
                if COMMANDS[leaf.command_path.split()[1]].section == title
            ),
        )
        for title in sections
    ]
    return page(
        "hive",
        1,
        "operate a hive of coding agents",
        [
            section("SYNOPSIS", "\\fBhive\\fR [OPTIONS] COMMAND [ARGS]..."),
            section("DESCRIPTION", *paragraphs(hive.help or ""), "These options go with every command:"),
            *options_of(context),
            *commands,
            section("NOTES", *paragraphs(hive.epilog or "")),
        ],
    )


def core_page() -> str:
    context = click.Context(core, info_name="hive-core")
    return page(
        "hive-core",
        8,
        "the daemon of a hive of coding agents",
        [
            section("SYNOPSIS", "\\fBhive\\-core\\fR COMMAND [ARGS]..."),
            section("DESCRIPTION", *paragraphs(core.help or "")),
            section("COMMANDS", "\n".join(described(leaf, ()) for leaf in leaves_of(core, context))),
            section(
                "FILES",
                "\n".join(
                    [
                        entry(str(SYSTEM_CONFIG), "The configuration: hive.toml(5)."),
                        entry("/run/hyperhive/host.sock", "Where the operator asks, by hive(1)."),
                        entry("/var/lib/hyperhive", "The database, the agents and their repositories."),
                    ]
                ),
            ),
            section(
                "SIGNALS",
                "\n".join(
                    [
                        entry("SIGTERM", "Ends the daemon; machines go on."),
                        entry("SIGHUP", "Reads the configuration again."),
                    ]
                ),
            ),
        ],
    )


# ── argparse ────────────────────────────────────────────────────────────────────────────────────


def agent_page() -> str:
    parser = agent_commands.parser()
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    helps = {choice.dest: choice.help or "" for choice in subparsers._choices_actions}
    parts = []
    for name, command in subparsers.choices.items():
        formatter = command._get_formatter()
        actions = [action for action in command._actions if action.help != argparse.SUPPRESS]
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        parts += [
            f".SS {escape(f'hive-agent {name}')}",
            escape(usage),
            f".PP\n{escape(command.description or helps[name])}",
            *(
                entry(formatter._format_action_invocation(action), formatter._expand_help(action))
                for action in actions
            ),
            f".PP\n.nf\n{escape((command.epilog or '').strip())}\n.fi",
        ]
    return page(
        "hive-agent",
        1,
        "what runs beside an agent of a hive",
        [
            section("SYNOPSIS", "\\fBhive\\-agent\\fR COMMAND [ARGS]..."),
            section("DESCRIPTION", escape(parser.description or "")),
            section("COMMANDS", "\n".join(parts)),
        ],
    )


# ── the configuration ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Key:
    name: str
    """Dotted."""
    default: str
    kind: str
    doc: str
    restart: bool


def field_docs(struct: type) -> dict[str, str]:
    """What the string below each field says about it."""
    (definition,) = ast.parse(inspect.getsource(struct)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        assignment.target.id: " ".join(text.value.value.split())
        for assignment, text in itertools.pairwise(definition.body)
        if isinstance(assignment, ast.AnnAssign)
        and isinstance(assignment.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def kind_of(kind: types.Type) -> str:
    match kind:
        case types.LiteralType(values=values):
            return " or ".join(map(json.dumps, sorted(values)))
        case types.BoolType():
            return "true or false"
        case types.IntType(ge=low, le=high):
            return "a number" if low is None else f"a number, {low} to {high}"
        case types.FloatType(ge=low, gt=above, le=high):
            first = low if low is not None else above
            return f"seconds, {first:g} to {high:g}" if high else f"a number, {first or 0:g} or more"
        case types.DictType(value_type=value):
            return f"a table of {kind_of(value).replace('a table', 'tables')}"
        case types.ListType(item_type=item):
            return f"a list of {kind_of(item).replace('a table', 'tables')}"
        case types.StructType():
            return "a table"
        case types.Metadata(type=inner):
            return kind_of(inner)
        case types.UnionType(types=members):
            return " or ".join(kind_of(m) for m in members if not isinstance(m, types.NoneType))
        case _:
            return "text"


def as_toml(value: object) -> str:
    value = msgspec.to_builtins(value)
    if value is None:
        return ""
    return "{}" if value == {} else json.dumps(value, ensure_ascii=False)


def keys_of(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[Key]:
    docs, info = field_docs(struct), types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field, inner in zip(info.fields, msgspec.structs.fields(struct), strict=True):
        name = prefix + field.name
        inside = table_at(field.type, name)
        if inside is not None:
            yield from keys_of(inside[1], f"{inside[0]}.")
            continue
        value = inner.default if inner.default is not msgspec.NODEFAULT else inner.default_factory()
        kind = kind_of(field.type)
        if name.endswith("_hours"):
            kind = kind.replace("seconds", "hours")
        yield Key(name, as_toml(value), kind, docs.get(field.name, ""), name in NEEDS_RESTART)


def table_at(kind: types.Type, name: str) -> tuple[str, type[msgspec.Struct]] | None:
    """Give the heading and the struct of a key that is a table of known keys, or of such tables; None: it is
    a value.  The small ones inside of lists are values: their key says what they have.
    """
    match kind:
        case types.StructType(cls=struct):
            return name, struct
        case types.DictType(value_type=types.StructType(cls=struct)) if "." not in name:
            return f"{name}.NAME", struct
    return None


def sections_of_config() -> Mapping[str, tuple[str, list[Key]]]:
    """The keys by table; the first are those of none."""
    docs = dict(docs_of_tables(Config))
    found: dict[str, tuple[str, list[Key]]] = {"": ("", [])}
    for key in keys_of(Config):
        table = key.name.rpartition(".")[0]
        found.setdefault(table, (docs.get(table, ""), []))[1].append(key)
    return found


def docs_of_tables(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Give what the docstrings say, by heading."""
    info = types.type_info(struct)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        inside = table_at(field.type, prefix + field.name)
        if inside is not None:
            yield inside[0], " ".join((inside[1].__doc__ or "").split())
            yield from docs_of_tables(inside[1], f"{inside[0]}.")


def shown(key: Key) -> str:
    """The key with its default, if it has one."""
    name = key.name.rpartition(".")[2]
    return f"{name} = {key.default}" if key.default else name


def config_page() -> str:
    parts = []
    for table, (doc, keys) in sections_of_config().items():
        rows = [
            entry(
                shown(key),
                plain(f"{key.doc} ({key.kind}{'; needs a restart' if key.restart else ''})"),
            )
            for key in keys
        ]
        parts.append(section(escape(f"[{table}]") if table else "KEYS", escape(plain(doc)), "\n".join(rows)))
    text = (
        f"hive-core(8) reads one TOML file: {SYSTEM_CONFIG}, or what --config or HIVE_CONFIG names. Each key"
        " is shown with its default. systemctl reload hive-core reads it again; some keys need a restart."
    )
    return page(
        "hive.toml", 5, "the configuration of a hive's daemon", [section("DESCRIPTION", escape(text)), *parts]
    )


def config_document() -> str:
    lines = [CONFIG_HEAD.format(path=SYSTEM_CONFIG, command=COMMAND)]
    for table, (doc, keys) in sections_of_config().items():
        lines += [f"## `[{table}]`" if table else "## Keys of no table", "", *([doc, ""] if doc else [])]
        lines += ["| key | default | what |", "| --- | --- | --- |"]
        for key in keys:
            restart = " *restart*" if key.restart else ""
            what = f"{key.doc} ({key.kind}){restart}".strip().replace("|", "\\|")
            default = f"`{key.default}`" if key.default else "not said"
            lines.append(f"| `{key.name.rpartition('.')[2]}` | {default} | {what} |")
        lines.append("")
    return "\n".join(lines)


# ── files ───────────────────────────────────────────────────────────────────────────────────────


def completion(shell: str) -> str:
    found = get_completion_class(shell)
    assert found is not None
    return ShellComplete.source(found(hive, {}, "hive", COMPLETION_VARIABLE)).strip() + "\n"


def render() -> dict[str, str]:
    """Give every file, by its path below docs/."""
    return {
        "man/hive.1": hive_page(),
        "man/hive-core.8": core_page(),
        "man/hive-agent.1": agent_page(),
        "man/hive.toml.5": config_page(),
        "configuration.md": config_document(),
        **{f"completions/{name}": completion(shell) for shell, name in SHELLS.items()},
    }


def stale() -> dict[str, str]:
    """Give those that are not as they should be."""
    return {
        name: text
        for name, text in render().items()
        if not (HERE / name).is_file() or (HERE / name).read_text() != text
    }


def main() -> int:
    changed = stale()
    for name, text in changed.items():
        if "--check" in sys.argv:
            sys.stderr.write(f"docs/{name} is out of date: run  {COMMAND}\n")
            continue
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text)
    return 1 if changed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

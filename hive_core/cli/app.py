"""The table of commands, and what they have in common.

A command lives in commands/<module>.py under its own name; its module is imported when it is called.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import click

from hive_core.cli import problems
from hive_core.cli.hive import TIMEOUT_S, Hive
from hive_core.wire.version import VERSION


class Entry(NamedTuple):
    module: str
    section: str
    help: str


COMMANDS: Final[dict[str, Entry]] = {
    "ls": Entry("roster", "Look", "List the agents and what they do"),
    "show": Entry("roster", "Look", "Show everything about one agent"),
    "watch": Entry("watch", "Look", "Follow the live traffic of the whole hive"),
    "top": Entry("top", "Look", "Show what the agents' machines use"),
    "status": Entry("roster", "Look", "Show the daemon's health"),
    "send": Entry("mail", "Messages", "Send a message to an agent"),
    "inbox": Entry("mail", "Messages", "Show what was sent to you, or what waits for an agent"),
    "messages": Entry("mail", "Messages", "Show the newest messages of the hive"),
    "why": Entry("mail", "Messages", "Show which messages led to a message"),
    "thread": Entry("mail", "Messages", "Show the thread that a message is in"),
    "search": Entry("mail", "Messages", "Find messages by their words"),
    "dead": Entry("dead", "Messages", "Show messages that are handed out no more"),
    "questions": Entry("questions", "Questions", "Show the questions that nobody has answered"),
    "answer": Entry("questions", "Questions", "Answer a question"),
    "ask": Entry("questions", "Questions", "Ask an agent a question"),
    "reminders": Entry("reminders", "Questions", "Show what agents left for themselves"),
    "pending": Entry("approvals", "Approvals", "Show what waits for your decision"),
    "approvals": Entry("approvals", "Approvals", "Show approvals, or all about one of them"),
    "approve": Entry("approvals", "Approvals", "Approve what was asked for"),
    "deny": Entry("approvals", "Approvals", "Deny what was asked for"),
    "withdraw": Entry("approvals", "Approvals", "Take back what waits for a decision"),
    "config": Entry("proposals", "Approvals", "Print where an agent's configuration can be edited"),
    "propose": Entry("proposals", "Approvals", "Ask for the deploy of a commit"),
    "request-spawn": Entry("proposals", "Approvals", "Ask for a new agent"),
    "init-config": Entry("proposals", "Approvals", "Ask for a configuration to begin with"),
    "update-inputs": Entry("proposals", "Approvals", "Ask for newer inputs of the hive's flake"),
    "deploys": Entry("deploys", "Deploys", "Show what is being deployed and was, or the log of one"),
    "history": Entry("deploys", "Deploys", "Show what was proposed and deployed for an agent"),
    "rollback": Entry("deploys", "Deploys", "Go back to what ran before"),
    "spawn": Entry("lifecycle", "Agents", "Create agents and start them"),
    "start": Entry("lifecycle", "Agents", "Start agents"),
    "stop": Entry("lifecycle", "Agents", "Stop agents after their running turn"),
    "restart": Entry("lifecycle", "Agents", "Stop agents and start them again"),
    "rebuild": Entry("lifecycle", "Agents", "Stop agents and start them as they are declared now"),
    "pause": Entry("lifecycle", "Agents", "Hand out no message to agents"),
    "resume": Entry("lifecycle", "Agents", "Hand out messages to paused agents again"),
    "destroy": Entry("lifecycle", "Agents", "Stop agents and forget them, but keep their state"),
    "tombstones": Entry("tombstones", "Agents", "Show destroyed agents whose state is kept"),
    "revive": Entry("tombstones", "Agents", "Ask for the return of a destroyed agent"),
    "purge": Entry("tombstones", "Agents", "Delete what is kept of a destroyed agent"),
    "shell": Entry("inside", "One agent", "Open a shell in an agent's machine"),
    "exec": Entry("inside", "One agent", "Run a command in an agent's machine"),
    "limits": Entry("limits", "One agent", "Show or set what an agent may use"),
    "allow": Entry("allow", "Agents", "Show or set to whom an agent may write"),
    "events": Entry("history", "One agent", "Show what an agent did, event by event"),
    "logs": Entry("history", "One agent", "Show the end of an agent's log"),
    "stats": Entry("stats", "One agent", "Show what an agent's turns took"),
    "model": Entry("session", "One agent", "Show or set the model an agent uses"),
    "effort": Entry("session", "One agent", "Show or set how hard an agent's model thinks"),
    "new-session": Entry("session", "One agent", "Let an agent begin its next turn afresh"),
    "compact": Entry("session", "One agent", "Shorten an agent's conversation to a summary"),
    "cancel": Entry("session", "One agent", "Interrupt an agent's running turn"),
    "login": Entry("login", "One agent", "Log an agent in to its model's provider"),
    "vacuum": Entry("retention", "The hive", "Delete what is old, or show what that is"),
    "backup": Entry("backup", "The hive", "Put everything aside in one file, and make a hive of it again"),
    "export": Entry("backup", "The hive", "Put one agent aside in one file"),
    "import": Entry("backup", "The hive", "Make an agent of a file that export wrote"),
    "image": Entry("image", "The host", "List, add, build and remove images of machines"),
    "doctor": Entry("doctor", "The host", "Check whether this host has what machines need"),
    "completion": Entry("completion", "This program", "Print a completion script for your shell"),
    "version": Entry("version", "This program", "Print the version of this program"),
}

INSTEAD: Final = {
    "accept": "approve", "reject": "deny", "refuse": "deny", "deploy": "propose", "undo": "rollback",
    "deploy-log": "deploys log ID", "approval": "approvals show ID", "graveyard": "tombstones",
    "delete": "destroy", "rm": "destroy", "remove": "destroy",
    "create": "spawn", "launch": "spawn", "new": "spawn",
    "list": "ls", "ps": "ls", "info": "show", "describe": "show",
    "poweroff": "stop", "terminate": "stop", "reboot": "restart", "update": "rebuild",
    "attach": "shell", "console": "shell", "enter": "shell", "run": "exec",
    "log": "logs", "images": "image ls", "check": "doctor",
}  # fmt: skip
"""What other programs call it."""

COMPLETION_VARIABLE: Final = "_HIVE_COMPLETE"


class Settings:
    """What the options that every command takes were set to."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.home: str | None = None
        self.timeout_s = TIMEOUT_S
        self.as_json = False

    def hive(self) -> Hive:
        return Hive(self.socket, self.home, self.timeout_s)


def command(
    name: str, *, examples: str, cls: type[click.Command] = click.Command
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function whose first parameter is the Settings."""

    def decorate(function: Callable[..., None]) -> click.Command:
        made = click.command(name, cls, short_help=COMMANDS[name].help, epilog=_examples(examples))(
            click.pass_obj(function)
        )
        made.params += _shared_options()
        return made

    return decorate


def subcommand(
    group: click.Group, name: str, *, examples: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of *group* of a function whose first parameter is the Settings."""

    def decorate(function: Callable[..., None]) -> click.Command:
        made = click.command(name, epilog=_examples(examples))(click.pass_obj(function))
        made.params += _shared_options()
        group.add_command(made)
        return made

    return decorate


def group(name: str, *, examples: str) -> Callable[[Callable[..., None]], click.Group]:
    """Make a group of commands of a function that is only its help."""

    def decorate(function: Callable[..., None]) -> click.Group:
        made = click.group(name, short_help=COMMANDS[name].help, epilog=_examples(examples))(function)
        made.params += _shared_options()
        return made

    return decorate


def agent_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of an agent by asking the daemon; without one, by nothing."""
    settings = ctx.find_object(Settings) or Settings()
    try:
        names = Hive(settings.socket, settings.home, 0.5).ask({"cmd": "list"})["agents"]
        return [name for name in names if name.startswith(incomplete)]
    except Exception:
        return []


def image_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of an image by asking the daemon; without one, by nothing."""
    settings = ctx.find_object(Settings) or Settings()
    try:
        rows = Hive(settings.socket, settings.home, 0.5).ask({"cmd": "images"})["images"]
        return [row["name"] for row in rows if row["name"].startswith(incomplete)]
    except Exception:
        return []


def approval_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the id of an approval that waits, by asking the daemon; without one, by nothing."""
    from click.shell_completion import CompletionItem

    settings = ctx.find_object(Settings) or Settings()
    try:
        rows = Hive(settings.socket, settings.home, 0.5).ask({"cmd": "pending"})["approvals"]
        return [
            CompletionItem(str(row["id"]), help=f"{row['kind']} {row['agent']}")
            for row in rows
            if row["status"] == "pending" and str(row["id"]).startswith(incomplete)
        ]
    except Exception:
        return []


def deploy_ids(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
    """Complete the id of a deploy, the newest first, by asking the daemon; without one, by nothing."""
    from click.shell_completion import CompletionItem

    settings = ctx.find_object(Settings) or Settings()
    try:
        rows = Hive(settings.socket, settings.home, 0.5).ask({"cmd": "deploys", "limit": 20})["deploys"]
        return [
            CompletionItem(str(row["id"]), help=f"{row['kind']} {row['agent']} {row['step']}")
            for row in reversed(rows)
            if str(row["id"]).startswith(incomplete)
        ]
    except Exception:
        return []


Completion = Callable[[click.Context, click.Parameter, str], list[Any]]


def either(first: Completion, word: str, then: Completion) -> Completion:
    """Complete an argument of several words: *first*, or *word* and *then* what follows it."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        typed = ctx.params.get(str(param.name)) or ()
        if not typed:
            return first(ctx, param, incomplete) + [word] * word.startswith(incomplete)
        return then(ctx, param, incomplete) if tuple(typed) == (word,) else []

    return complete


def deployed_tags(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete a tag to which the agent on the command line can go back."""
    settings = ctx.find_object(Settings) or Settings()
    try:
        request = {"cmd": "history", "agent": ctx.params["agent"]}
        rows = Hive(settings.socket, settings.home, 0.5).ask(request)["history"]
        tags = [str(row["tag"]) for row in reversed(rows) if row["tag"].startswith("deployed/")]
        return [tag for tag in tags if tag.startswith(incomplete)]
    except Exception:
        return []


def tombstone_names(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a destroyed agent whose state is kept."""
    settings = ctx.find_object(Settings) or Settings()
    try:
        rows = Hive(settings.socket, settings.home, 0.5).ask({"cmd": "tombstones"})["tombstones"]
        return [row["name"] for row in rows if row["name"].startswith(incomplete)]
    except Exception:
        return []


def agent_argument(
    *, nargs: int = 1, required: bool = False, default: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """One agent's name as `agent`, required unless it has a default; or with nargs=-1 several as `agents`."""
    if nargs == 1:
        # click takes default=None for a default.
        how: dict[str, Any] = {"metavar": "AGENT"}
        if default is not None:
            how = {"metavar": "[AGENT]", "default": default}
        return click.argument("agent", shell_complete=agent_names, **how)
    metavar = "AGENT..." if required else "[AGENT]..."
    return click.argument(
        "agents", metavar=metavar, nargs=nargs, required=required, shell_complete=agent_names
    )


def rows_option(default: int, of_what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "-n", "limit", type=click.IntRange(1, 1000), default=default, metavar="N", show_default=True,
        help=f"How many {of_what}.",
    )  # fmt: skip


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    settings = ctx.ensure_object(Settings)
    if value not in (None, False):
        setattr(settings, str(param.name), value)


def _shared_options() -> list[click.Parameter]:
    common: dict[str, Any] = {"expose_value": False, "callback": _remember}
    return [
        click.Option(
            ["--socket"], metavar="PATH", help="The daemon's host.sock [env: HIVE_SOCKET].", **common
        ),
        click.Option(
            ["--home"],
            metavar="DIR",
            help="A local hive's directory; its socket is DIR/run/host.sock [env: HIVE_HOME].",
            **common,
        ),
        click.Option(
            ["--timeout", "timeout_s"],
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="How long to wait for the daemon, or for what was asked to come true (30).",
            **common,
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON.", **common),
    ]


def _examples(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def _group_epilog() -> str:
    codes = "\n".join(f"  {code:<4}{meaning}" for code, meaning in problems.MEANING.items())
    return (
        "\b\nThe daemon is looked for at --socket, --home, HIVE_SOCKET, HIVE_HOME,\n"
        "/run/hyperhive/host.sock, and ~/.local/state/hyperhive/run/host.sock.\n\n"
        "\b\nInto a pipe, one line per thing: columns between tabs, no heading, nothing cut,\n"
        '"-" for nothing, \\n for a newline. --json prints all there is. NO_COLOR is honoured.\n\n'
        f"\b\nExit codes:\n{codes}\n\n"
        "\b\nExamples:\n"
        "  hive spawn alice bob\n"
        "  hive send alice say bob: please count the words\n"
        "  hive watch"
    )


class CommandTable(click.Group):
    """Commands by name, each loaded when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module = importlib.import_module(f"hive_core.cli.commands.{COMMANDS[cmd_name].module}")
        function = cmd_name.replace("-", "_")
        # A name of Python's own has an underscore there.
        found = getattr(module, function, None) or getattr(module, f"{function}_")
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
            near = [INSTEAD[name]] if name in INSTEAD else near
            raise problems.Problem(
                problems.USAGE,
                f"cannot run {name!r}: there is no such command",
                f"did you mean: hive {near[0]}" if near else "hive --help lists them",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section in dict.fromkeys(entry.section for entry in COMMANDS.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [(name, entry.help) for name, entry in COMMANDS.items() if entry.section == section]
                )

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name].help) for name in names]
        return items + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=CommandTable,
    invoke_without_command=True,
    epilog=_group_epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, message="hive %(version)s")
@click.pass_context
def hive(ctx: click.Context) -> None:
    """Run a hive of agents: spawn them, write to them, watch them work."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


hive.params += _shared_options()


def run(arguments: Sequence[str]) -> int:
    """Run one command and give its exit code.

    Raises:
        Exception: what ended it otherwise; problems.of_error() puts it into words.
    """
    if COMPLETION_VARIABLE in os.environ:
        hive.main(list(arguments), prog_name="hive", complete_var=COMPLETION_VARIABLE)
    try:
        with hive.make_context("hive", list(arguments)) as ctx:
            hive.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return problems.interrupted()
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hive"
        text = error.format_message().rstrip(".")
        return problems.report(
            problems.Problem(problems.USAGE, f"cannot run {path}: {text}", f"{path} --help shows how")
        )
    except click.ClickException as error:
        return problems.report(problems.Problem(problems.FAILED, f"cannot go on: {error.format_message()}"))
    return problems.OK

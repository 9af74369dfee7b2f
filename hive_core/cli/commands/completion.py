"""hive completion."""

import click

from hive_core.cli import output
from hive_core.cli.app import COMPLETION_VARIABLE, Settings, command, hive


@command(
    "completion",
    examples="""
    hive completion bash > ~/.local/share/bash-completion/completions/hive
    hive completion zsh > "${fpath[1]}/_hive"
    hive completion fish > ~/.config/fish/completions/hive.fish
    eval "$(hive completion bash)"
    """,
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(_settings: Settings, shell: str) -> None:
    """Print a completion script for your shell.

    It completes commands, options, and the names of the agents, which it asks the daemon for.
    """
    from click.shell_completion import ShellComplete, get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    # The source() of bash's own class starts a bash to look at its version; that is the caller's business.
    output.say(ShellComplete.source(found(hive, {}, "hive", COMPLETION_VARIABLE)).strip())

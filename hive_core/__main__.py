"""hive-core: the daemon's command line."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import click

from hive_core.config import Config, ConfigError, flatten, load_config
from hive_core.wire.version import VERSION

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78  # EX_CONFIG of sysexits.h, which systemd shows by name

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="HIVE_CONFIG",
    help="The TOML file to read.",
)
_home_option = click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where run/ and state/ are.  [default: $XDG_STATE_HOME/hyperhive]",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message="hive-core %(version)s")
def main() -> None:
    """The daemon of a hive: runs agents, brokers their messages, keeps their history."""


@main.command()
@click.option("--local", is_flag=True, help="Run agents as plain child processes.  Nothing isolates them.")
@_home_option
@_config_option
def serve(local: bool, home: Path | None, config_file: Path | None) -> None:
    """Serve a hive until SIGTERM or Ctrl-C.

    \b
    Examples:
      hive-core serve --local
      hive-core serve --local --home /tmp/hive --config hive.toml
    """
    overrides = _overrides(home)
    try:
        config, _ = load_config(config_file, overrides)
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    if not local:
        _fail("cannot serve machines of systemd-nspawn: this version has only local ones; add --local")
    _serve_local(config, partial(_load, config_file, overrides))


@main.command("config")
@_home_option
@_config_option
def show_config(home: Path | None, config_file: Path | None) -> None:
    """Print every value in force and where it came from.

    \b
    Example:
      hive-core config --config hive.toml
    """
    try:
        config, origins = load_config(config_file, _overrides(home))
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    values = {key: _toml(value) for key, value in flatten(config).items()}
    width = max(len(f"{key} = {value}") for key, value in values.items())
    for key, value in values.items():
        click.echo(f"{f'{key} = {value}':<{width}}  # {origins[key]}")


def _serve_local(config: Config, load: partial[Config]) -> None:
    import trio

    from hive_core.daemon import LiveConfig, serve
    from hive_core.host.sockets import AlreadyServed
    from hive_core.layout import local_layout
    from hive_core.log import set_up_log
    from hive_core.store.schema import SchemaError
    from hive_core.wire.errors import Refused

    set_up_log(config.log_level)
    layout = local_layout(config)
    click.echo(
        f"hive-core {VERSION}: a local hive in {layout.home}\n"
        "Its agents are plain processes of yours: nothing isolates them from your files or each other.",
        err=True,
    )
    try:
        trio.run(serve, layout, LiveConfig(config, load))
    except* (AlreadyServed, SchemaError) as group:
        _fail(str(_first(group)))
    except* (OSError, Refused) as group:
        _fail(f"cannot serve {layout.home}: {_first(group)}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _load(config_file: Path | None, overrides: Mapping[str, str]) -> Config:
    return load_config(config_file, overrides)[0]


def _overrides(home: Path | None) -> dict[str, str]:
    return {} if home is None else {"home": str(home)}


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _fail(text: str, status: int = EXIT_FAILED) -> None:
    click.echo(f"hive-core: {text}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()

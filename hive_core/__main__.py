"""hive-core: the daemon's command line."""

import json
import os
import re
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec

from hive_core import admin
from hive_core.config import SYSTEM_CONFIG, Config, ConfigError, flatten, load_config
from hive_core.domain import declared
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

    Without --local each agent has a machine of systemd-nspawn: as root, on a host with systemd.  Its
    configuration is /etc/hyperhive/config.toml, if that is there and no other is named.

    \b
    Examples:
      hive-core serve
      hive-core serve --local
      hive-core serve --local --home /tmp/hive --config hive.toml
    """
    if not local:
        _check_host(home)
        if config_file is None and SYSTEM_CONFIG.exists():
            config_file = SYSTEM_CONFIG
    overrides = _overrides(home)
    try:
        config = _load(config_file, overrides)
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    _serve(config, partial(_load, config_file, overrides), config_file, local=local)


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
        declared.usable(config, str(config_file))
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    values = {key: _toml(msgspec.to_builtins(value)) for key, value in flatten(config).items()}
    width = max(len(f"{key} = {value}") for key, value in values.items())
    for key, value in values.items():
        click.echo(f"{f'{key} = {value}':<{width}}  # {origins[key]}")


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--local", is_flag=True, help="Make a local hive, as serve --local serves it.")
@_home_option
@_config_option
def restore(file: Path, local: bool, home: Path | None, config_file: Path | None) -> None:
    """Make a hive of a backup, where there is none and no daemon runs.

    With --home it is a local one.

    \b
    Examples:
      hive-core restore hive-20260907T123456Z.tar.gz --home /tmp/hive
      hive-core restore /mnt/usb/hive-20260907T123456Z.tar.gz
    """
    from functools import partial

    import trio

    from hive_core import backup
    from hive_core.host.archive import BadArchive
    from hive_core.host.process import CommandError
    from hive_core.host.sockets import AlreadyServed
    from hive_core.layout import host_layout, local_layout
    from hive_core.store.schema import SchemaError

    try:
        config, _ = load_config(config_file, _overrides(home))
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)
    local = local or home is not None
    layout = local_layout(config) if local else host_layout(config)
    try:
        made = trio.run(partial(backup.restore, isolated=not local), layout, file)
    except (AlreadyServed, BadArchive, SchemaError, CommandError, OSError, trio.TooSlowError) as error:
        _fail(f"cannot restore {file}: {error}")
    click.echo(
        f"{layout.state} is a hive again; messages: {made.messages}, agents: {len(made.agents)}", err=True
    )


@main.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def verify(file: Path) -> None:
    """Read a backup whole, and look whether its database is sound.

    \b
    Example:
      hive-core verify hive-20260907T123456Z.tar.gz
    """
    from hive_core import backup

    with file.open("rb") as held:
        found = backup.verify(file, held)
    if found.problem is not None:
        _fail(f"cannot use {file}: {found.problem}")
    assert found.manifest is not None
    click.echo(f"{file} is whole; messages: {found.manifest.messages}, agents: {len(found.manifest.agents)}")


def _check_host(home: Path | None) -> None:
    """End with a sentence where there can be no machines."""
    if home is not None:
        _fail("cannot serve with --home: only a local hive has one; add --local")
    if os.geteuid() != 0:
        _fail("cannot serve machines of systemd-nspawn: only root may start them; or add --local")
    if not Path("/run/systemd/system").is_dir():
        _fail("cannot serve machines of systemd-nspawn: systemd does not run this host; or add --local")


def _serve(config: Config, load: partial[Config], config_file: Path | None, *, local: bool) -> None:
    import trio

    from hive_core.backends import Mode
    from hive_core.daemon import LiveConfig, serve
    from hive_core.host.sockets import AlreadyServed
    from hive_core.layout import host_layout, local_layout
    from hive_core.log import set_up_log
    from hive_core.store.schema import SchemaError
    from hive_core.wire.errors import Refused

    set_up_log(config.log_level)
    layout = local_layout(config) if local else host_layout(config)
    if local:
        click.echo(
            f"hive-core {VERSION}: a local hive in {layout.home}\n"
            "Its agents are plain processes of yours: nothing isolates them from your files or each other.",
            err=True,
        )
    try:
        live = LiveConfig(config, load, config_file)
        trio.run(serve, layout, live, Mode.LOCAL if local else Mode.NSPAWN)
    except* ConfigError as group:
        _fail(str(_first(group)), EXIT_CONFIG)
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
    return declared.usable(load_config(config_file, overrides)[0], str(config_file))


def _overrides(home: Path | None) -> dict[str, str]:
    return {} if home is None else {"home": str(home)}


def _toml(value: object) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_toml_key(key)} = {_toml(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _fail(text: str, status: int = EXIT_FAILED) -> None:
    click.echo(f"hive-core: {text}", err=True)
    sys.exit(status)


main.add_command(admin.doctor)
main.add_command(admin.image)

if __name__ == "__main__":
    main()

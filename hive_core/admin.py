"""`hive-core image …` and `hive-core doctor`: what an administrator does on the host, daemon or not."""

import json
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from hive_core.config import SYSTEM_CONFIG, Config, ConfigError, load_config

if TYPE_CHECKING:
    from hive_core.host.images import Images

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78
EXIT_INTERRUPTED: Final = 130

_MARKS: Final = {"ok": "✓", "warn": "!", "fail": "✗"}

T = TypeVar("T")

_config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="HIVE_CONFIG",
    help="The TOML file to read, if not /etc/hyperhive/config.toml.",
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_config_option
def doctor(as_json: bool, config_file: Path | None) -> None:
    """Check whether this host has what machines need.

    Run it as root: others cannot look everywhere.  The exit code is 1 when a point failed.

    \b
    Examples:
      hive-core doctor
      hive-core doctor --json
    """
    from hive_core.host.doctor import check

    config = _load(config_file)
    checks = _run(check, config)
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(checks)))
    else:
        for point in checks:
            click.echo(f"{_MARKS[point.status]} {point.name} — {point.text}")
            for line in str(point.mend or "").splitlines():
                click.echo(f"    {line}")
    if any(point.status == "fail" for point in checks):
        sys.exit(EXIT_FAILED)


@click.group()
def image() -> None:
    """List, add, build and remove images of machines, without asking the daemon.

    `hive image` is the same for who is used to it.
    """


@image.command("ls")
@_config_option
def list_images(config_file: Path | None) -> None:
    """List the images: name, kind, path.

    \b
    Example:
      hive-core image ls
    """
    for found in _images(config_file).list():
        click.echo(f"{found.name}\t{found.kind}\t{found.path}")


@image.command("add")
@click.argument("name", metavar="IMAGE")
@click.argument("source")
@_config_option
def add(name: str, source: str, config_file: Path | None) -> None:
    """Copy an image in, from a directory or a tar file.

    \b
    Examples:
      hive-core image add debian ./debian.tar.zst
      hive-core image add debian /srv/trees/debian
    """
    _run(_images(config_file).add, name, source)
    click.echo(f"{name} is an image now")


@image.command("build")
@click.argument("kind", type=click.Choice(["debian"]))
@click.option("--name", metavar="IMAGE", help="What to call it; without that, as its kind.")
@click.option("--include", metavar="PACKAGE,...", default="", help="Packages to put in besides.")
@_config_option
def build(kind: str, name: str | None, include: str, config_file: Path | None) -> None:
    """Build an image out of the packages of a distribution.  Needs mmdebstrap.

    \b
    Examples:
      hive-core image build debian
      hive-core image build debian --name tools --include git,nodejs
    """
    packages = [package for package in include.replace(",", " ").split() if package]
    images = _images(config_file)

    async def make() -> None:
        await images.build(
            kind, name=name or kind, include=packages, progress=lambda line: click.echo(line, err=True)
        )

    _run(make)
    click.echo(f"{name or kind} is an image now; hive spawn alice --image {name or kind}")


@image.command("rm")
@click.argument("name", metavar="IMAGE")
@_config_option
def remove(name: str, config_file: Path | None) -> None:
    """Delete an image.  `hive image rm` knows whether an agent uses it; this does not.

    \b
    Example:
      hive-core image rm debian-old
    """
    _run(_images(config_file).remove, name)
    click.echo(f"{name} is deleted")


def _images(config_file: Path | None) -> "Images":
    from hive_core.host.images import Images

    machines = _load(config_file).machines
    return Images(harness=Path(machines.harness_dir or sys.prefix), prefix=machines.prefix)


def _load(config_file: Path | None) -> Config:
    if config_file is None and SYSTEM_CONFIG.exists():
        config_file = SYSTEM_CONFIG
    try:
        return load_config(config_file, {})[0]
    except ConfigError as error:
        _fail(str(error), EXIT_CONFIG)


def _run(function: Callable[..., Coroutine[Any, Any, T]], *arguments: object) -> T:
    import trio

    from hive_core.domain.cage import CannotStart
    from hive_core.host.process import CommandError

    try:
        return trio.run(function, *arguments)
    except BaseException as raised:
        error = raised
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        if isinstance(error, CannotStart):
            _fail(str(error))
        if isinstance(error, (OSError, CommandError, trio.TooSlowError)):
            _fail(f"cannot go on: {str(error) or 'it took too long'}")
        raise


def _fail(text: str, status: int = EXIT_FAILED) -> NoReturn:
    click.echo(f"hive-core: {text}", err=True)
    sys.exit(status)

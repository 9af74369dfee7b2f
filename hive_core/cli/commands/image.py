"""hive image ls, add, rm, build."""

import os
import shlex
from typing import NoReturn

import click

from hive_core.cli import output, programs
from hive_core.cli.app import Settings, group, image_names, subcommand
from hive_core.cli.problems import REFUSED, UNREACHABLE, Problem
from hive_core.cli.safe import visible


@group("image", examples="hive image ls\nhive image build debian\nhive image rm old")
def image() -> None:
    """List, add, build and remove images of machines.

    An image is the tree of an operating system below /var/lib/machines, or a NixOS closure. Machines see it
    read-only, and nothing of the hive is ever written into it.
    """


@subcommand(image, "ls", examples="hive image ls\nhive image ls --json | jq -r '.[].name'")
def ls(settings: Settings) -> None:
    """List the images.

    Columns: image, kind (tree or nix), path, and the agents that use it. Where no daemon answers,
    `hive-core image ls` lists them.
    """
    try:
        rows = settings.hive().ask({"cmd": "images"})["images"]
    except Problem as problem:
        if problem.exit_code != UNREACHABLE or settings.as_json:
            raise
        output.note(f"{visible(problem.text)}; looking without it")
        programs.become([*programs.own("hive-core"), "image", "ls"])
    if settings.as_json:
        output.dump(rows)
    elif rows:
        output.table(
            ("IMAGE", "KIND", "PATH", "USED BY"),
            [
                (row["name"], row.get("kind"), row.get("path"), ", ".join(row.get("used_by", ())))
                for row in rows
            ],
            lambda heading, _cell: "bold" if heading == "IMAGE" else "",
        )
    else:
        output.note("no images yet; make one with: hive image build debian")


@subcommand(image, "rm", examples="hive image rm debian-old")
@click.argument("name", metavar="IMAGE", shell_complete=image_names)
def rm(settings: Settings, name: str) -> None:
    """Delete an image that no agent uses."""
    settings.hive().ask({"cmd": "image_rm", "name": name})
    if settings.as_json:
        output.dump({"name": name})
    else:
        output.say(f"{visible(name)} is deleted")


@subcommand(
    image, "add", examples="hive image add debian ./debian.tar.zst\nhive image add debian /srv/trees/debian"
)
@click.argument("name", metavar="IMAGE")
@click.argument("source")
def add(_settings: Settings, name: str, source: str) -> None:
    """Copy an image in, from a directory or a tar file.

    On the host itself, as root; no daemon is needed.
    """
    _as_root("add", name, source)


@subcommand(
    image,
    "build",
    examples="hive image build debian\nhive image build debian --name tools --include git,nodejs",
)
@click.argument("kind", type=click.Choice(["debian"]))
@click.option("--name", metavar="IMAGE", help="What to call it; without that, as its kind.")
@click.option("--include", metavar="PACKAGE,...", help="Packages to put in besides.")
def build(_settings: Settings, kind: str, name: str | None, include: str | None) -> None:
    """Build an image out of the packages of a distribution.

    It has what a machine needs: systemd, D-Bus and Python. On the host itself, as root; no daemon is needed.
    It takes a minute or so, and needs mmdebstrap.
    """
    options = [*(("--name", name) if name else ()), *(("--include", include) if include else ())]
    _as_root("build", kind, *options)


def _as_root(verb: str, *arguments: str) -> NoReturn:
    if os.geteuid() != 0:
        raise Problem(
            REFUSED,
            f"cannot {verb} an image: only root may write to the place of images",
            shlex.join(["sudo", "hive", "image", verb, *arguments]),
        )
    programs.become([*programs.own("hive-core"), "image", verb, *arguments])

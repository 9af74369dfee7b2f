"""The images of machines: trees of operating systems below /var/lib/machines, and NixOS closures.

An image is never written by a machine, and nothing of ours is ever written into one.  It is made by root
of this host, who is trusted; its files are nevertheless looked at without following a link out of it.

What is not async here is a handful of system calls: the daemon runs it in a thread.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from hive_core.domain.cage import Cage, CannotStart, Network
from hive_core.domain.machine_names import MachineNames
from hive_core.host import image_build, machine_root, process
from hive_core.host.image_build import NoImage
from hive_core.host.tree import python_of, python_of_harness, read_pretty_name, resolve_in, resolve_link_chain

MACHINES_DIR: Final = Path("/var/lib/machines")
"""Where systemd-nspawn@.service looks for the root of a machine."""
NIX_STORE: Final = Path("/nix/store")

OWN_DIR: Final = ".hive"
"""Below machines_dir: upper directories, and what waits for its deletion.  Same file system: renames."""

SWEEP_S: Final = 1800.0
SWEPT_AT_ONCE: Final = 100

_RESOLV_CONFS: Final = (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf"))
"""resolved's own file, where there is one, names servers; the other then names resolved, on our loopback."""
_MAX_RESOLV_CONF_BYTES: Final = 16 * 2**10

_IMAGE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_TOP_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_CLOSURE: Final = re.compile(r"/nix/store/[a-z0-9]{32}-[A-Za-z0-9+._?=-]{1,200}\Z")
_FROM_NSPAWN: Final = frozenset({"dev", "proc", "run", "sys", "tmp"})


class Kind(StrEnum):
    TREE = "tree"
    """The tree of any distribution with systemd; the harness is bound in."""
    NIX = "nix"
    """A NixOS closure, which has its own harness."""


@dataclass(frozen=True, slots=True)
class Image:
    name: str
    kind: Kind
    path: Path
    """Without links in it."""
    pretty_name: str = ""
    """What it calls itself."""
    python: str | None = None
    """The newest that it has, as `3.11`."""
    directories: tuple[str, ...] = ()
    """The directories at the top of a tree, without those that nspawn mounts over."""
    init: str = "init"
    """What of a closure is started."""


def upper_dir(machines_dir: Path, machine: str) -> Path:
    """Where what a machine changes of its image is kept while it runs."""
    return machines_dir / OWN_DIR / machine


class Images:
    """The images of this host.

    *harness* is what machines get at /opt/hyperhive, if it is to be checked against an image; *prefix*
    begins the names of our machines (`MachineNames`), whose roots lie among the images.
    """

    def __init__(
        self, machines_dir: Path = MACHINES_DIR, *, harness: Path | None = None, prefix: str = "h-"
    ) -> None:
        self.machines_dir = machines_dir
        self._harness = harness
        self._names = MachineNames(prefix)

    def list(self) -> Sequence[Image]:
        """Give the trees there are, by name."""
        try:
            names = sorted(entry.name for entry in self.machines_dir.iterdir())
        except FileNotFoundError:
            return []
        return [image for name in names if (image := self._tree(name)) is not None]

    def resolve(self, name: str, agent: str = "") -> Image:
        """Give the image *name*: a tree, the path of a closure, or "" for the only tree there is.

        *agent* is named in the sentence when there is none.

        Raises:
            CannotStart: it is missing, or no machine can run from it.
        """
        who = f"cannot start {agent}" if agent else "cannot start a machine"
        if name.startswith("/"):
            return self._closure(name, who)
        if not name:
            return self._usable(self._only(who), who)
        image = self._tree(name)
        if image is None:
            raise CannotStart(f"{who}: {self._why_no_tree(name)}")
        return self._usable(image, who)

    def prepare_root(self, cage: Cage, image: Image) -> None:
        """Make the root of a machine that does not run, and put away what its last run left.

        Raises:
            CannotStart: there is one that we did not make.
            OSError: the disk is full, or read-only.
        """
        self.remove_root(cage.machine)
        self._own_dir().mkdir(mode=0o700, exist_ok=True)
        root, uppers = self.machines_dir / cage.machine, upper_dir(self.machines_dir, cage.machine)
        if os.path.lexists(root):
            raise CannotStart(
                f"cannot start {cage.agent}: {root} is there and was not made by this hive; move it away, or"
                " set another machines.prefix"
            )
        top = machine_root.Top(image.path, image.directories) if image.kind is Kind.TREE else None
        names = self.resolv_conf() if top is not None and cage.network is Network.VETH else None
        machine_root.make(root, uppers, cage, top, names, with_store=self._is_in_store)

    def remove_root(self, machine: str) -> None:
        """Put away the root of *machine*, which does not run, if we made it.  `sweep` deletes it."""
        uppers = upper_dir(self.machines_dir, machine)
        if uppers.is_dir():
            self._discard(self.machines_dir / machine)
            # Made first and put away last: they say that the root is ours, and no machine of somebody else's.
            self._discard(uppers)

    def rooted(self) -> Sequence[str]:
        """Give the machines that have a root of ours, running or not."""
        try:
            entries = sorted(self._own_dir().iterdir())
        except FileNotFoundError:
            return []
        return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]

    async def sweep(self) -> None:
        """Delete what was put away.  It may take minutes: agents like to have many files.

        Raises:
            CommandError, OSError: something cannot be deleted.
        """
        waiting = sorted(str(path) for path in self._own_dir().glob(".trash-*"))
        for start in range(0, len(waiting), SWEPT_AT_ONCE):
            # rm follows no link, and knows how to walk trees deeper than a path may be long.
            argv = ["rm", "-rf", "--one-file-system", "--", *waiting[start : start + SWEPT_AT_ONCE]]
            await process.run(argv, timeout_s=SWEEP_S, max_output_bytes=64 * 1024)

    async def add(self, name: str, source: str | Path) -> None:
        """Copy an image in, from the directory or the tar file *source*.  Half an hour at most.

        Raises:
            NoImage: it is there already, or *source* has no tree of an operating system.
            CommandError, OSError, trio.TooSlowError: it cannot be copied.
        """
        self._check_new(name, "add")
        await image_build.add(self._own_dir(), self.machines_dir / name, Path(source))

    async def build(
        self,
        kind: str,
        *,
        name: str = "",
        include: Sequence[str] = (),
        progress: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Build an image out of the packages of a distribution, *include* among them.  Half an hour at most.

        *kind* is `debian`: the release that has the harness's Python.

        Raises:
            NoImage: it is there already, mmdebstrap is missing or fails, or the packages do not fit.
            OSError, trio.TooSlowError: it cannot be built.
        """
        name = name or kind
        self._check_new(name, "build")
        python = (self._harness and python_of_harness(self._harness)) or image_build.OWN_PYTHON
        await image_build.build_debian(
            self._own_dir(), self.machines_dir / name, python=python, include=include, progress=progress
        )

    async def remove(self, name: str, used_by: Iterable[str] = ()) -> None:
        """Delete the tree *name*.

        Raises:
            NoImage: there is none, or the agents *used_by* need it.
            CommandError, OSError: it cannot be deleted.
        """
        self.put_away(name, used_by)
        await self.sweep()

    def put_away(self, name: str, used_by: Iterable[str] = ()) -> None:
        """Take the tree *name* out of the images; `sweep` frees its space.

        Raises:
            NoImage, OSError: as remove.
        """
        users = sorted(used_by)
        if users:
            shown = ", ".join(users[:5]) + (" and others" if len(users) > 5 else "")
            raise NoImage(
                f"cannot delete image {name}: {shown} would not start again; give them another one first"
            )
        self.check_name(name, "delete")
        path = self.machines_dir / name
        if not path.is_dir():
            raise NoImage(f"cannot delete image {name}: there is none of that name")
        if path.is_symlink():
            path.unlink()
        else:
            self._discard(path)

    def _check_new(self, name: str, verb: str) -> None:
        if os.geteuid() != 0:
            raise NoImage(f"cannot {verb} image {name}: only root may write to {self.machines_dir}")
        self.check_name(name, verb)
        if os.path.lexists(self.machines_dir / name):
            raise NoImage(f"cannot {verb} image {name}: there is one; delete it first, or use another name")

    def check_name(self, name: str, verb: str) -> None:
        """Refuse a *name* that is no image's.

        Raises:
            NoImage: it is none, or the root of a machine.
        """
        if not _IMAGE_NAME.match(name):
            raise NoImage(f"cannot {verb} image {name[:80]!r}: a name is letters, digits and . _ - only")
        if self._names.covers(name):
            ours = f"{self._names.prefix}… and {self._names.manager}"
            raise NoImage(f"cannot {verb} image {name}: {ours} are the machines of agents")

    @staticmethod
    def resolv_conf() -> bytes | None:
        """Say who knows the names of the network; None: nobody can say."""
        for path in _RESOLV_CONFS:
            try:
                with path.open("rb") as file:
                    return file.read(_MAX_RESOLV_CONF_BYTES)
            except OSError:
                continue
        return None

    @property
    def _is_in_store(self) -> bool:
        return self._harness is not None and self._harness.is_relative_to(NIX_STORE)

    def _own_dir(self) -> Path:
        return self.machines_dir / OWN_DIR

    def _discard(self, path: Path) -> None:
        if not path.is_symlink() and not path.exists():
            return
        self._own_dir().mkdir(mode=0o700, exist_ok=True)
        path.rename(self._own_dir() / f".trash-{secrets.token_hex(8)}")

    def _tree(self, name: str) -> Image | None:
        if not _IMAGE_NAME.match(name) or self._names.covers(name):
            return None
        try:
            path = (self.machines_dir / name).resolve(strict=True)
            entries = sorted(path.iterdir())
        except (OSError, RuntimeError):
            return None
        usr = path / "usr"
        if usr.is_symlink() or not usr.is_dir():
            return None
        directories = tuple(
            entry.name
            for entry in entries
            if entry.name not in _FROM_NSPAWN
            and _TOP_NAME.match(entry.name)
            and entry.is_dir()
            and not entry.is_symlink()
        )
        return Image(name, Kind.TREE, path, read_pretty_name(path), python_of(path), directories)

    def _only(self, who: str) -> Image:
        trees = self.list()
        if not trees:
            raise CannotStart(f"{who}: there is no image yet; make one with: hive image build debian")
        if len(trees) > 1:
            names = ", ".join(tree.name for tree in trees[:8])
            raise CannotStart(
                f"{who}: there are several images ({names}) and none is named; give one to spawn --image, or"
                " set machines.image in the configuration"
            )
        return trees[0]

    def _why_no_tree(self, name: str) -> str:
        if not _IMAGE_NAME.match(name):
            return f"{name[:80]!r} is no name of an image"
        if self._names.covers(name):
            return f"{name} is the root of a machine, no image"
        if not (self.machines_dir / name).exists():
            known = ", ".join(tree.name for tree in self.list()[:8])
            return f"there is no image {name}; " + (
                f"there is {known}" if known else "make one with: hive image build debian"
            )
        return f"the image {name} has no /usr directory, so it is no tree of an operating system"

    def _usable(self, image: Image, who: str) -> Image:
        missing = [path for path in ("sbin/init", "usr/bin") if resolve_in(image.path, path) is None]
        if missing:
            raise CannotStart(
                f"{who}: the image {image.name} has no /{missing[0]}; it must have systemd, D-Bus and Python"
            )
        if self._harness is None or self._is_in_store:  # then machines get the store, and its Python with it
            return image
        python = resolve_link_chain(self._harness / "bin/python3", self._harness)
        inside = python.is_relative_to(self._harness) or resolve_in(image.path, str(python)) is not None
        if not inside:
            raise CannotStart(
                f"{who}: the image {image.name} has no {python}, with which {self._harness} runs;"
                " install that Python in the image, or hyperhive with a Python that the image has"
            )
        wanted = python_of_harness(self._harness)
        if wanted is not None and image.python != wanted:
            has = f"Python {image.python}" if image.python else "no Python"
            raise CannotStart(
                f"{who}: the image {image.name} has {has}, and the harness in {self._harness} needs {wanted}"
            )
        return image

    def _closure(self, name: str, who: str) -> Image:
        if _CLOSURE.match(name) is None:
            raise CannotStart(
                f"{who}: {name[:200]!r} is neither a path of /nix/store nor the name of an image"
            )
        path = Path(name)
        init = "prepare-root" if os.path.lexists(path / "prepare-root") else "init"
        if not os.path.lexists(path / init):
            raise CannotStart(f"{who}: {name} is not there or is no NixOS closure: it has no {init}")
        return Image(name, Kind.NIX, path, init=init)

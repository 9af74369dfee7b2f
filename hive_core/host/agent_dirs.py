"""Makes the directories of agents whose files belong to users of their own.

What an agent may write stands below a directory that is root's and that it cannot reach: so it can put
nothing in the place of its own directory, and nobody else's files are ever given to it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hive_core.layout import Layout
from hive_core.wire.ids import MANAGER


def make_common(layout: Layout) -> None:
    """Make what the machines of all agents share, or are shown of each other.

    Raises:
        OSError: something else is in the way.
    """
    layout.agents.mkdir(exist_ok=True)
    layout.agents.chmod(0o700)
    for path in (layout.configs, layout.applied, layout.meta):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def make(layout: Layout, name: str, uid: int, manager_uid: int | None) -> None:
    """Make what is missing for agent *name*, whose root is *uid* on this host.

    *manager_uid* is the manager's, if there is one: it writes the configurations.

    Raises:
        OSError: something else is in the way, or belongs to somebody else.
    """
    dirs = layout.agent(name)
    # Bound into the machine, where root is nobody: it may look, and connect to the socket that is its own.
    dirs.run.mkdir(parents=True, exist_ok=True)
    dirs.run.chmod(0o755)
    dirs.base.mkdir(exist_ok=True)
    dirs.base.chmod(0o700)
    _own(dirs.base, "state", uid, 0o700)
    _own(dirs.base, "claude", uid, 0o700)
    _make_config(layout, name, manager_uid)
    if name == MANAGER:
        for entry in sorted(layout.configs.iterdir()):
            _make_config(layout, entry.name, manager_uid)


def owner_of_configs(layout: Layout) -> int:
    """Give the uid that configurations belong to: that of a manager, destroyed or not; ours if nobody's."""
    for entry in sorted(layout.configs.iterdir()):
        with suppress(FileNotFoundError):
            owner = (entry / "config").lstat().st_uid
            if owner != os.geteuid():
                return owner
    return os.geteuid()


def _make_config(layout: Layout, name: str, manager_uid: int | None) -> None:
    parent = layout.config_of(name).parent
    parent.mkdir(exist_ok=True)
    parent.chmod(0o755)
    if manager_uid is None:
        (parent / "config").mkdir(exist_ok=True)  # the manager's, when there is one
    else:
        _own(parent, "config", manager_uid, 0o755)


def _own(parent: Path, name: str, uid: int, mode: int) -> None:
    """Let directory *name* in *parent* be one of *uid*'s; one that root made and nobody used is given to it.

    Raises:
        OSError: it is somebody else's, a link, or no directory.
    """
    with _opened(parent) as parent_fd:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        with _opened(name, parent_fd) as fd:
            owner = os.fstat(fd).st_uid
            if owner == uid:
                return
            if owner != os.geteuid() or os.listdir(fd):  # noqa: PTH208 - of a descriptor
                raise PermissionError(f"{parent / name} belongs to uid {owner}, and must to {uid}")
            os.fchmod(fd, mode)
            os.fchown(fd, uid, uid)


@contextmanager
def _opened(path: Path | str, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)

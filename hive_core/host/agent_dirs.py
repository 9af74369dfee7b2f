"""Makes the directories of agents whose files belong to users of their own.

What an agent may write stands below a directory that is root's and that it cannot reach: so it can put
nothing in the place of its own directory, and nobody else's files are ever given to it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hive_core.domain.cage import UID_RANGE
from hive_core.host.git import USER
from hive_core.host.process import find_user
from hive_core.layout import Layout
from hive_core.wire.ids import MANAGER


def make_common(layout: Layout) -> None:
    """Make what the machines of all agents share, or are shown of each other.

    Others get through the state directory then: git and the machines to what is theirs there.  So everything
    else in it is shut first.

    Raises:
        OSError: something else is in the way.
    """
    layout.agents.mkdir(exist_ok=True)
    # In a directory of its own, git could put a link in the place of a repository, for root to follow.
    ours = {
        layout.configs: 0o755,
        layout.applied: 0o755,
        layout.releases: 0o755,
        layout.staging: 0o711,
    }
    of_git = {layout.meta: 0o755}
    for path in ours | of_git:
        if path.is_symlink():
            raise NotADirectoryError(
                f"{path} is a link, and has to be a directory; mount there what is to lie elsewhere"
            )
    for path in sorted(layout.state.iterdir()):
        if path not in {*ours, *of_git, layout.builds} and not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o600)
    for path, mode in (ours | of_git).items():
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    for path in ours:
        os.chown(path, os.geteuid(), os.getegid())
    # Where there is no such user the doctor says so, and nothing but repositories is missed.
    with suppress(OSError):
        user = find_user(USER)
        for path in of_git:
            os.chown(path, user.uid, user.gid)
    layout.state.chmod(0o711)


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
        (parent / "config").chmod(0o755)
    else:
        # What was proposed while there was no manager is its to go on with.
        _own(parent, "config", manager_uid, 0o755, with_contents=True)


def shift_owners(directory: Path, base: int) -> None:
    """Give what belongs to the first 65536 users of this host to those from *base* on, following no link.

    So the files of a machine that had the host's own users become those of one that has its own.  What was
    shifted before stays, so this may be done again after a kill.

    Raises:
        OSError, RecursionError: it cannot be.
    """
    with _opened(directory) as fd:
        found = os.fstat(fd)
        _hand_over(fd, lambda owner: owner + base if owner < UID_RANGE else owner)
        if found.st_uid < UID_RANGE:
            os.fchown(fd, found.st_uid + base, found.st_gid + base if found.st_gid < UID_RANGE else -1)


def _hand_over(fd: int, new_owner: Callable[[int], int]) -> None:
    """Change the owner of all that is in an open directory; the innermost first, for whoever is given a
    directory may put links into it from then on.
    """
    for _, directories, files, at in os.fwalk(".", topdown=False, follow_symlinks=False, dir_fd=fd):
        for name in (*directories, *files):
            found = os.stat(name, dir_fd=at, follow_symlinks=False)
            owner, group = new_owner(found.st_uid), new_owner(found.st_gid)
            if (owner, group) != (found.st_uid, found.st_gid):
                os.chown(name, owner, group, dir_fd=at, follow_symlinks=False)


def _own(parent: Path, name: str, uid: int, mode: int, *, with_contents: bool = False) -> None:
    """Let directory *name* in *parent* be one of *uid*'s; one that root made and nobody used is given to it.

    *with_contents*: also one that root has used.

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
            if owner != os.geteuid() or (os.listdir(fd) and not with_contents):  # noqa: PTH208 - of a descriptor
                raise PermissionError(f"{parent / name} belongs to uid {owner}, and must to {uid}")
            # Nobody else gets in while it is half given.
            os.fchmod(fd, 0o700)
            _hand_over(fd, lambda _: uid)
            os.fchmod(fd, mode)
            os.fchown(fd, uid, uid)


@contextmanager
def _opened(path: Path | str, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)

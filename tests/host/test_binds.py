"""What of the host a machine is given: where a path leads counts, not how it is called."""

import os
import socket
from pathlib import Path

import pytest

from hive_core.declarable import Bind
from hive_core.domain.cage import CannotStart
from hive_core.host import binds
from hive_core.host.binds import Mount, resolve

NOBODYS = range(0x40000000, 0x50000000)


@pytest.fixture
def srv(tmp_path: Path) -> Path:
    """A place that is nothing of the system's."""
    path = tmp_path / "srv"
    path.mkdir()
    return path


def mounts(
    *wanted: Bind,
    hive: tuple[Path, ...] = (),
    uid_base: int = 1000,
    uids: range = NOBODYS,
    programs: Path | None = None,
) -> list[Mount]:
    here = Path("/opt/hive")
    return list(
        resolve("bob", wanted, uid_base=uid_base, machine_uids=uids, hive=hive, programs=programs or here)
    )


def test_a_link_is_followed_once_and_what_it_leads_to_is_bound(srv: Path) -> None:
    (srv / "data").mkdir()
    (srv / "link").symlink_to("data")

    assert mounts(Bind(source=f"{srv}/link", path="/data")) == [
        Mount(srv / "data", "/data", False, "idmap,norbind")
    ]


@pytest.mark.parametrize("target", ["/", "/etc", "/proc/self", "/dev", "/root", "/etc/hyperhive/x"])
def test_a_link_leads_nowhere_that_could_not_be_named(srv: Path, target: str) -> None:
    (srv / "link").symlink_to(target)

    with pytest.raises(CannotStart, match="cannot start bob: "):
        mounts(Bind(source=f"{srv}/link"))


def test_what_is_missing_is_named(srv: Path) -> None:
    with pytest.raises(CannotStart, match=rf"it is to see {srv}/none: No such file or directory"):
        mounts(Bind(source=f"{srv}/none"))
    (srv / "loop").symlink_to("loop")
    with pytest.raises(CannotStart, match=f"it is to write to {srv}/loop: "):
        mounts(Bind(source=f"{srv}/loop", writable=True))


def test_nothing_of_the_hive_is_bound_however_it_is_reached(srv: Path) -> None:
    hive = srv / "hive"
    (hive / "agents/alice").mkdir(parents=True)
    (srv / "link").symlink_to(hive / "agents/alice")
    (srv / "moved").symlink_to(hive)

    for source in (srv / "link", hive, srv, hive / "agents"):
        for own in (hive, srv / "moved"):
            with pytest.raises(CannotStart, match="is the hive's own"):
                mounts(Bind(source=str(source)), hive=(own,))


def test_the_hives_programs_are_seen_and_never_written(srv: Path) -> None:
    (srv / "programs/bin").mkdir(parents=True)
    source = f"{srv}/programs/bin"

    assert mounts(Bind(source=source), programs=srv / "programs")[0].source == srv / "programs/bin"
    with pytest.raises(CannotStart, match="is the hive's own"):
        mounts(Bind(source=source, writable=True), programs=srv / "programs")


def test_only_files_and_directories_are_bound(srv: Path) -> None:
    os.mkfifo(srv / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(srv / "socket"))
    (srv / "file").touch()

    for name in ("fifo", "socket"):
        with pytest.raises(CannotStart, match="neither directory nor file"):
            mounts(Bind(source=f"{srv}/{name}"))
    assert mounts(Bind(source=f"{srv}/file"))[0].source == srv / "file"


def test_nothing_is_bound_that_another_agent_could_replace(srv: Path) -> None:
    (srv / "data").mkdir()
    me = os.geteuid()

    with pytest.raises(CannotStart, match="lies in a directory of another agent's"):
        mounts(Bind(source=f"{srv}/data"), uids=range(me, me + 1))


def test_what_is_written_is_never_roots(srv: Path) -> None:
    def owned_by(uid: int) -> Bind:
        path = srv / str(uid)
        path.mkdir()
        os.chown(path, uid, uid)
        return Bind(source=str(path), path="/out", writable=True)

    if os.geteuid() != 0:
        pytest.skip("only root can give directories away")
    assert mounts(owned_by(1234), uid_base=0x40000000)[0].options == "rootidmap,norbind"
    assert mounts(owned_by(0x40000000), uid_base=0x40000000)[0].options == "norbind"
    with pytest.raises(CannotStart, match="belongs to root; give it to a user"):
        mounts(owned_by(0))


def test_none_are_none() -> None:
    assert binds.resolve("bob", [], uid_base=1, machine_uids=NOBODYS, hive=(), programs=Path("/opt")) == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
@pytest.mark.parametrize("owner", [1234, 0x40010000])
def test_who_could_lead_it_elsewhere_decides_nothing(srv: Path, owner: int) -> None:
    """An agent's own directory, or one of a user, that some agent may write as that user."""
    (srv / "host").mkdir()
    (srv / "own/inner").mkdir(parents=True)
    (srv / "own/link").symlink_to(srv / "host")
    (srv / "way").symlink_to("own/link")
    os.chown(srv / "own", owner, owner)

    for source in ("own/link", "way", "own/inner"):
        for writable in (False, True):
            with pytest.raises(CannotStart, match=r"let it lead elsewhere|directory of another agent's"):
                mounts(Bind(source=f"{srv}/{source}", writable=writable))


def test_where_anybody_writes_names_are_their_owners(srv: Path) -> None:
    (srv / "open").mkdir()
    (srv / "open").chmod(0o1777)
    (srv / "open/mine").mkdir()
    assert mounts(Bind(source=f"{srv}/open/mine"))[0].source == srv / "open/mine"

    if os.geteuid() == 0:
        os.chown(srv / "open/mine", 1234, 1234)
        with pytest.raises(CannotStart, match=r"others than root write in .*/open/mine"):
            mounts(Bind(source=f"{srv}/open/mine"))
    (srv / "open").chmod(0o777)
    with pytest.raises(CannotStart, match=r"others than root write in .*/open: they could"):
        mounts(Bind(source=f"{srv}/open/mine"))


def test_links_are_followed_as_the_kernel_does(srv: Path) -> None:
    (srv / "a/b").mkdir(parents=True)
    (srv / "a/up").symlink_to("../a/./b/..//b/")
    (srv / "round").symlink_to(srv / "a/up")
    assert mounts(Bind(source=f"{srv}/round"))[0].source == (srv / "round").resolve() == srv / "a/b"

    (srv / "file").touch()
    with pytest.raises(CannotStart, match="Not a directory"):
        mounts(Bind(source=f"{srv}/file/x"))

"""Files of the host that an agent is given."""

import os
import stat
from pathlib import Path

import pytest

from hive_core.domain.cage import CannotStart
from hive_core.host.credentials import MAX_BYTES, lay_out, remove


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def found(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "credentials").iterdir()}


def test_they_are_copied_for_one_user_alone_and_change_in_place(run: Path, tmp_path: Path) -> None:
    key, link = tmp_path / "key", tmp_path / "link"
    key.write_bytes(b"\x00one")
    link.symlink_to("key")
    owner = os.geteuid()

    lay_out("bob", {"a": str(link), "b": str(key)}, run, owner)
    assert found(run) == {"a": b"\x00one", "b": b"\x00one"}
    for path in (run / "credentials", *(run / "credentials").iterdir()):
        seen = path.stat()
        assert seen.st_uid == owner
        assert stat.S_IMODE(seen.st_mode) == (0o500 if path.is_dir() else 0o400)

    key.write_bytes(b"two")
    directory = (run / "credentials").stat().st_ino
    lay_out("bob", {"b": str(key)}, run, owner)
    assert found(run) == {"b": b"two"}
    assert (run / "credentials").stat().st_ino == directory  # a machine has it bound

    lay_out("bob", {}, run, owner)
    assert list(run.iterdir()) == []
    remove(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_they_belong_to_the_root_of_the_machine(run: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")

    lay_out("bob", {"a": str(key)}, run, 0x40000000)

    assert {path.stat().st_uid for path in (run / "credentials", run / "credentials/a")} == {0x40000000}


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "No such file or directory"),
        ("directory", "Is a directory"),
        ("fifo", "it is no plain file"),
        ("large", "it is over 64 KiB"),
        ("device", "it is no plain file"),
    ],
)
def test_what_cannot_be_one_is_refused_with_option_and_path(
    kind: str, why: str, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "it"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.write_bytes(b"x" * (MAX_BYTES + 1))
        case "device":
            path = Path("/dev/null")
    good = tmp_path / "good"
    good.write_text("g")
    lay_out("bob", {"good": str(good)}, run)

    with pytest.raises(CannotStart) as refused:
        lay_out("bob", {"good": str(good), "api": str(path)}, run)

    assert str(refused.value) == f"cannot start bob: agents.bob.credentials.api: {path}: {why}"
    assert found(run) == {"good": b"g"}  # a machine that runs keeps what it has

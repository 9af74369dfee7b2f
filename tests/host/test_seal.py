from pathlib import Path

import pytest

from hive_core.host.seal import NotAsDeclared, check, find_leader, limit, main

BASE = 0x40000000
KEPT = 0x802C05FF
KINDS = ("user", "net", "mnt", "pid", "ipc", "uts", "cgroup")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc in which 7 is nspawn and 8 the init of a machine as it should be."""
    for pid, number in (("self", 1), ("8", 2)):
        (tmp_path / pid / "ns").mkdir(parents=True)
        for kind in KINDS:
            (tmp_path / pid / "ns" / kind).symlink_to(f"{kind}:[{number}]")
    for kind in ("uid", "gid"):
        (tmp_path / f"8/{kind}_map").write_text(f"         0 {BASE}      65536\n")
    (tmp_path / "8/status").write_text(f"Name:\tsystemd\nCapBnd:\t{KEPT:016x}\nSeccomp:\t2\nGroups:\t \n")
    (tmp_path / "7/task/7").mkdir(parents=True)
    (tmp_path / "7/task/7/children").write_text("8 ")
    return tmp_path


def test_a_machine_as_declared_passes(proc: Path) -> None:
    check(str(proc), find_leader(str(proc), 7), BASE, KEPT)


def test_a_machine_with_fewer_capabilities_passes(proc: Path) -> None:
    (proc / "8/status").write_text("CapBnd:\t0000000000000000\nSeccomp:\t2\n")

    check(str(proc), 8, BASE, KEPT)


@pytest.mark.parametrize("children", ["", "8 9 "])
def test_without_one_single_init_nothing_is_sealed(proc: Path, children: str) -> None:
    (proc / "7/task/7/children").write_text(children)

    with pytest.raises(NotAsDeclared, match="where it should have one"):
        find_leader(str(proc), 7)


@pytest.mark.parametrize("kind", ["uid", "gid"])
@pytest.mark.parametrize(
    "mapped",
    [
        "0 0 4294967295\n",
        f"0 {BASE} 65536\n100000 5 1\n",
        f"0 {BASE + 65536} 65536\n",
        f"1 {BASE} 65536\n",
        "",
    ],
)
def test_a_machine_with_other_users_is_refused(proc: Path, kind: str, mapped: str) -> None:
    (proc / f"8/{kind}_map").write_text(mapped)

    with pytest.raises(NotAsDeclared, match=f"its {kind}s are mapped as"):
        check(str(proc), 8, BASE, KEPT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_machine_that_shares_a_namespace_is_refused(proc: Path, kind: str) -> None:
    (proc / f"8/ns/{kind}").unlink()
    (proc / f"8/ns/{kind}").symlink_to(f"{kind}:[1]")

    with pytest.raises(NotAsDeclared, match=f"it shares the host's {kind} namespace"):
        check(str(proc), 8, BASE, KEPT)


@pytest.mark.parametrize("more", [12, 13, 24, 40, 63])  # NET_ADMIN, NET_RAW, SYS_RESOURCE, the last, none yet
def test_a_machine_with_a_capability_too_many_is_refused(proc: Path, more: int) -> None:
    (proc / "8/status").write_text(f"CapBnd:\t{KEPT | 1 << more:016x}\nSeccomp:\t2\n")

    with pytest.raises(NotAsDeclared, match=f"capabilities that were dropped .{1 << more:#x}"):
        check(str(proc), 8, BASE, KEPT)


@pytest.mark.parametrize("mode", ["0", "1"])
def test_a_machine_without_a_filter_is_refused(proc: Path, mode: str) -> None:
    (proc / "8/status").write_text(f"CapBnd:\t{KEPT:016x}\nSeccomp:\t{mode}\n")

    with pytest.raises(NotAsDeclared, match="no filter of system calls"):
        check(str(proc), 8, BASE, KEPT)


@pytest.mark.parametrize("argv", [[], ["x", "1", "1"], ["4194305", "1", "1"], ["1", "1"]])
def test_what_cannot_be_sealed_fails_the_start_with_a_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 1
    assert capsys.readouterr().err.startswith("cannot seal the machine: ")


def test_a_limit_is_set(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("128")

    limit({f"{tmp_path}/max": 0})

    assert (tmp_path / "max").read_text() == "0"


def test_a_limit_that_does_not_hold_fails_the_start() -> None:
    with pytest.raises(NotAsDeclared, match="/dev/null could not be set to 0"):
        limit({"/dev/null": 0})

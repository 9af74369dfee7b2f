import os
import stat
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hive_core.config import Machines
from hive_core.domain.cage import CannotStart, Network, Shape, resolve
from hive_core.host import image_build, nix_roots
from hive_core.host import images as images_module
from hive_core.host.image_build import NoImage
from hive_core.host.images import Images, Kind, upper_dir
from hive_core.host.tree import read_pretty_name, resolve_in

UID = os.geteuid()  # what is made is given to it, and stays readable for this test
ALICE = resolve("alice", UID, Shape(), Machines())
MANAGER = resolve("manager", UID, Shape(), Machines())


@pytest.fixture
def machines(tmp_path: Path) -> Path:
    path = tmp_path / "machines"
    path.mkdir(mode=0o700)
    return path


def make_tree(path: Path, *, python: str | None = "3.11") -> Path:
    """A tree with what is looked at, and what is at the top of a Debian."""
    for directory in (
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/bin",
        "usr/lib/systemd",
        "usr/sbin",
        "var",
    ):
        (path / directory).mkdir(parents=True)
    for link in ("bin", "lib", "sbin"):
        (path / link).symlink_to(f"usr/{link}")
    (path / "root").chmod(0o700)
    (path / "usr/lib/systemd/systemd").touch()
    (path / "usr/sbin/init").symlink_to("/lib/systemd/systemd")
    (path / "usr/lib/os-release").write_text('NAME=D\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    (path / "etc/os-release").symlink_to("../usr/lib/os-release")
    (path / "etc/machine-id").write_text("f" * 32)
    if python:
        (path / f"usr/bin/python{python}").touch()
        (path / "usr/bin/python3").symlink_to(f"python{python}")
    return path


def make_harness(path: Path, *, python: str = "3.11", interpreter: str = "/usr/bin/python3") -> Path:
    (path / "bin").mkdir(parents=True)
    (path / f"lib/python{python}/site-packages").mkdir(parents=True)
    (path / "bin/python3").symlink_to("python")
    (path / "bin/python").symlink_to(interpreter)
    return path


def test_images_are_the_trees_and_not_the_machines(machines: Path) -> None:
    for name in ("debian", "arch.old", "h-alice", ".hive", "has_no_usr"):
        (machines / name).mkdir()
    for name in ("debian", "arch.old", "h-alice", ".hive"):
        (machines / name / "usr").mkdir()
    (machines / "raw.raw").touch()
    (machines / "gone").symlink_to("/nonexistent")
    (machines / "loop").symlink_to("loop")

    assert [image.name for image in Images(machines).list()] == ["arch.old", "debian"]


def test_a_host_without_machines_has_no_images(tmp_path: Path) -> None:
    assert Images(tmp_path / "none").list() == []


def test_an_image_tells_what_a_machine_needs_to_know(machines: Path) -> None:
    tree = make_tree(machines / "debian")
    (tree / "usr/bin/python3.9").touch()
    (tree / "lost+found").mkdir()
    (tree / "a b").mkdir()

    image = Images(machines).resolve("debian")

    assert (image.kind, image.path, image.python) == (Kind.TREE, tree, "3.11")
    assert image.pretty_name == "Debian GNU/Linux 12 (bookworm)"
    # What nspawn mounts over is no overlay; neither is a name that it would read as syntax.
    assert image.directories == ("etc", "root", "usr", "var")


def test_an_image_may_lie_elsewhere(machines: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "elsewhere")
    (machines / "debian").symlink_to(tree)

    assert Images(machines).resolve("debian").path == tree


def test_the_only_image_needs_no_name(machines: Path) -> None:
    make_tree(machines / "debian")
    make_tree(machines / "h-alice")

    assert Images(machines).resolve("").name == "debian"


def refused(machines: Path, name: str, **options: Path) -> str:
    with pytest.raises(CannotStart) as refusal:
        Images(machines, **options).resolve(name, "alice")
    return str(refusal.value)


def test_without_an_image_one_is_told_how_to_make_one(machines: Path) -> None:
    for name in ("", "debian"):
        assert refused(machines, name).startswith("cannot start alice: there is no image")
        assert refused(machines, name).endswith("hive image build debian")


def test_several_images_and_none_named_is_a_question(machines: Path) -> None:
    make_tree(machines / "one")
    make_tree(machines / "two")

    assert refused(machines, "") == (
        "cannot start alice: there are several images (one, two) and none is named; give one to spawn --image,"
        " or set machines.image in the configuration"
    )


def test_a_missing_image_is_refused_with_those_there_are(machines: Path) -> None:
    make_tree(machines / "debian")

    assert refused(machines, "debain") == "cannot start alice: there is no image debain; there is debian"


@pytest.mark.parametrize("name", ["../etc", "a/b", "..", ".hive", "a b", "-x", "x" * 65, "a\n", "deb:ian"])
def test_what_is_no_name_reaches_no_file(machines: Path, name: str) -> None:
    assert "is no name of an image" in refused(machines, name)


def test_no_machine_starts_from_another_ones_root(machines: Path) -> None:
    make_tree(machines / "h-bob")

    assert refused(machines, "h-bob") == "cannot start alice: h-bob is the root of a machine, no image"


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("usr", "has no /usr directory"),
        ("usr/sbin/init", "has no /sbin/init"),
        ("usr/lib/systemd/systemd", "no /sbin/init"),
    ],
)
def test_a_tree_that_cannot_boot_is_refused(machines: Path, missing: str, said: str) -> None:
    tree = make_tree(machines / "debian")
    (tree / missing).rename(tree / "away")

    assert said in refused(machines, "debian")


def test_a_harness_runs_with_the_python_of_the_image(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian")

    assert Images(machines, harness=make_harness(tmp_path / "venv")).resolve("debian").python == "3.11"


def test_an_image_with_another_python_is_refused_with_both(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian", python="3.13")

    said = refused(machines, "debian", harness=make_harness(tmp_path / "venv"))

    assert said.endswith(f"has Python 3.13, and the harness in {tmp_path}/venv needs 3.11")


def test_an_image_without_python_is_refused(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian", python=None)

    assert "has no /usr/bin/python3, with which" in refused(
        machines, "debian", harness=make_harness(tmp_path / "venv")
    )


def test_a_harness_whose_interpreter_is_only_on_the_host_is_refused(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian")
    harness = make_harness(tmp_path / "venv", interpreter="/opt/own/bin/python3.11")

    assert "has no /opt/own/bin/python3.11, with which" in refused(machines, "debian", harness=harness)


def test_a_harness_may_bring_its_own_interpreter(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian")
    harness = make_harness(tmp_path / "venv", interpreter="../python/bin/python3.11")

    assert Images(machines, harness=harness).resolve("debian").name == "debian"


CLOSURE = "0123456789abcdfghijklmnpqrsvwxyz-nixos-system-alice"


@pytest.mark.parametrize(
    "path",
    [
        "/etc",
        "/nix/store",
        "/nix/store/../../etc",
        f"/nix/store/{CLOSURE}/sub",
        f"/nix/store/{CLOSURE}%h",
        "/nix/store/x-y",
    ],
)
def test_what_is_no_closure_is_refused(machines: Path, path: str) -> None:
    assert "is neither a path of /nix/store nor the name of an image" in refused(machines, path)


def test_a_closure_that_is_not_there_is_refused(machines: Path) -> None:
    assert refused(machines, f"/nix/store/{CLOSURE}").endswith("is no NixOS closure: it has no init")


@pytest.mark.parametrize("files", [("init",), ("init", "prepare-root")])
def test_a_closure_is_started_by_prepare_root_where_it_has_one(
    machines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    # The pattern names the store, which a test cannot have.
    monkeypatch.setattr(images_module, "_CLOSURE", images_module.re.compile(r".*\Z"))
    for name in files:
        (tmp_path / name).symlink_to("/nix/store/not-here")

    image = Images(machines).resolve(str(tmp_path))

    assert (image.kind, image.init) == (Kind.NIX, files[-1])


def test_a_root_is_made_of_directories_and_nothing_of_the_image(machines: Path) -> None:
    tree = make_tree(machines / "debian")
    before = everything(tree)
    images = Images(machines)

    images.prepare_root(ALICE, images.resolve("debian"))

    root = machines / "h-alice"
    assert {path.name for path in root.iterdir()} == {
        "agents",
        "bin",
        "etc",
        "lib",
        "root",
        "sbin",
        "usr",
        "var",
    }
    assert (root / "bin").readlink() == Path("usr/bin")
    assert everything(tree) == before


def test_overlays_begin_as_the_image_has_them(machines: Path) -> None:
    make_tree(machines / "debian")
    images = Images(machines)

    images.prepare_root(ALICE, images.resolve("debian"))

    uppers = upper_dir(machines, "h-alice")
    assert {path.name for path in uppers.iterdir()} == {"etc", "root", "usr", "var"}
    assert stat.S_IMODE((uppers / "root").stat().st_mode) == 0o700
    assert stat.S_IMODE((uppers / "usr").stat().st_mode) == 0o755
    assert not any((uppers / "usr").iterdir())


def test_a_machine_has_a_name_and_starts_its_harness(machines: Path) -> None:
    make_tree(machines / "debian")
    images = Images(machines)

    images.prepare_root(ALICE, images.resolve("debian"))

    etc = upper_dir(machines, "h-alice") / "etc"
    assert (etc / "hostname").read_text() == "alice\n"
    assert "127.0.0.1 localhost alice\n" in (etc / "hosts").read_text()
    assert (etc / "machine-id").read_text() == ""  # the image's id would be that of all its machines
    wants = etc / "systemd/system/multi-user.target.wants/hive-agent.service"
    assert wants.readlink() == Path("/etc/systemd/system/hive-agent.service")


@pytest.mark.parametrize("network", Network)
def test_only_a_machine_with_a_network_is_told_who_knows_names(
    machines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    (tmp_path / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    monkeypatch.setattr(images_module, "_RESOLV_CONFS", (tmp_path / "none", tmp_path / "resolv.conf"))
    make_tree(machines / "debian")
    images = Images(machines)

    images.prepare_root(replace(ALICE, network=network), images.resolve("debian"))

    resolv_conf = upper_dir(machines, "h-alice") / "etc/resolv.conf"
    assert resolv_conf.exists() == (network is Network.VETH)


def test_the_managers_root_has_a_place_for_its_state(machines: Path) -> None:
    make_tree(machines / "debian")
    images = Images(machines)

    images.prepare_root(MANAGER, images.resolve("debian"))

    assert {"agents", "state"} <= {path.name for path in (machines / "hm1nd").iterdir()}


def test_a_closure_gets_an_empty_root(machines: Path) -> None:
    closure = replace(
        Images(machines).resolve(str(make_tree(machines / "x").name)), kind=Kind.NIX, directories=()
    )

    Images(machines).prepare_root(ALICE, closure)

    root = machines / "h-alice"
    assert {path.name for path in root.iterdir()} == {"agents", "etc", "nix", "usr"}
    # nspawn would make it for the bind as nobody's, and no closure could make /nix/var then.
    assert (root / "nix/store").is_dir()


def test_what_the_last_run_left_is_gone_at_the_next(machines: Path) -> None:
    make_tree(machines / "debian")
    images = Images(machines)
    image = images.resolve("debian")
    images.prepare_root(ALICE, image)
    fresh = everything(machines / "h-alice")
    (machines / "h-alice/planted").touch()
    (upper_dir(machines, "h-alice") / "etc/rc.local").touch()
    (upper_dir(machines, "h-alice") / ".#etc0123").mkdir()  # as a killed nspawn leaves it

    images.prepare_root(ALICE, image)

    assert everything(machines / "h-alice") == fresh
    assert not (upper_dir(machines, "h-alice") / "etc/rc.local").exists()
    assert not (upper_dir(machines, "h-alice") / ".#etc0123").exists()


def test_no_link_of_an_image_leads_out_of_it(machines: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (make_tree(machines / "debian") / "agents").symlink_to(outside)
    images = Images(machines)

    images.prepare_root(ALICE, images.resolve("debian"))

    assert stat.S_IMODE(outside.stat().st_mode) == 0o700
    assert not list(outside.iterdir())
    assert not (machines / "h-alice/agents").is_symlink()


@pytest.mark.parametrize("missing", ["root", "uppers", "none"])
def test_a_daemon_killed_while_it_makes_a_root_leaves_one_that_is_replaced(
    machines: Path, missing: str
) -> None:
    make_tree(machines / "debian")
    images = Images(machines)
    images.prepare_root(ALICE, images.resolve("debian"))
    if missing != "none":
        (machines / "h-alice").rename(machines / ".hive/.trash-0")
    if missing == "uppers":
        upper_dir(machines, "h-alice").rename(machines / ".hive/.trash-1")

    images.prepare_root(ALICE, images.resolve("debian"))

    assert images.rooted() == ["h-alice"]
    assert (machines / "h-alice").is_dir()


async def test_what_was_put_away_is_deleted_and_no_link_of_it_followed(
    machines: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    make_tree(machines / "debian")
    images = Images(machines)
    images.prepare_root(ALICE, images.resolve("debian"))
    (machines / "h-alice/link").symlink_to(precious)
    os.mkfifo(machines / "h-alice/fifo")

    images.remove_root("h-alice")
    await images.sweep()

    assert [path.name for path in machines.iterdir() if path.name != ".hive"] == ["debian"]
    assert not list((machines / ".hive").iterdir())
    assert (precious / "file").exists()


async def test_the_root_of_a_machine_that_has_none_is_removed_in_peace(machines: Path) -> None:
    images = Images(machines)

    images.remove_root("h-alice")
    await images.sweep()

    assert not list(machines.iterdir())


async def test_an_image_in_use_stays(machines: Path) -> None:
    make_tree(machines / "debian")

    with pytest.raises(NoImage, match="cannot delete image debian: alice, bob would not start again"):
        await Images(machines).remove("debian", ["bob", "alice"])

    assert (machines / "debian").exists()


async def test_an_image_that_nobody_uses_is_deleted(machines: Path) -> None:
    make_tree(machines / "debian")

    await Images(machines).remove("debian")

    assert Images(machines).list() == []
    assert not list((machines / ".hive").iterdir())


async def test_deleting_an_image_that_lies_elsewhere_only_forgets_it(machines: Path, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (machines / "debian").symlink_to(tree)

    await Images(machines).remove("debian")

    assert not (machines / "debian").is_symlink()
    assert (tree / "usr").is_dir()


@pytest.mark.parametrize("name", ["h-alice", "none", "../machines", ".hive"])
async def test_nothing_but_an_image_is_deleted(machines: Path, name: str) -> None:
    make_tree(machines / "h-alice")
    (machines / ".hive").mkdir()

    with pytest.raises(NoImage, match="cannot delete image"):
        await Images(machines).remove(name)

    assert (machines / "h-alice/usr").is_dir()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root adds images")
@pytest.mark.parametrize("packed", [False, True])
async def test_a_tree_is_added_from_a_directory_or_a_tar_file(
    machines: Path, tmp_path: Path, packed: bool
) -> None:
    source = make_tree(tmp_path / "tree")
    if packed:
        with tarfile.open(tmp_path / "tree.tar.gz", "w:gz") as tar:
            tar.add(source, arcname=".")
        source = tmp_path / "tree.tar.gz"

    await Images(machines).add("debian", source)

    assert Images(machines).resolve("debian").python == "3.11"
    assert stat.S_IMODE((machines / "debian").stat().st_mode) == 0o755
    assert leftovers(machines) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root adds images")
async def test_what_is_no_tree_does_not_become_an_image(machines: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "no.tar").write_text("no tar file")
    images = Images(machines)

    for source, said in (("photos", "has no /usr"), ("no.tar", "tar"), ("gone", "neither a directory nor")):
        with pytest.raises(NoImage, match=f"cannot add image debian: .*{said}"):
            await images.add("debian", tmp_path / source)
    await images.sweep()

    assert images.list() == []
    assert leftovers(machines) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root adds images")
async def test_an_image_is_never_replaced(machines: Path, tmp_path: Path) -> None:
    make_tree(machines / "debian")

    with pytest.raises(NoImage, match="cannot add image debian: there is one; delete it first"):
        await Images(machines).add("debian", tmp_path)


FakeTool = Callable[[str], None]


@pytest.fixture
def mmdebstrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    """Put a script in its place; `$tree` is where it is asked to build."""
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def install(script: str) -> None:
        path = tools / "mmdebstrap"
        path.write_text(f'#!/bin/sh\necho "$*" > {tools}/argv\nfor tree; do :; done\n{script}\n')
        path.chmod(0o755)

    return install


def leftovers(machines: Path) -> list[str]:
    return [path.name for path in (machines / ".hive").iterdir() if path.name != "build.lock"]


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root builds images")


@pytest.mark.root
@needs_root
async def test_a_debian_is_built_with_the_python_of_the_harness(
    machines: Path, tmp_path: Path, mmdebstrap: FakeTool
) -> None:
    mmdebstrap('mkdir -p "$tree/usr" "$tree/etc"; echo host > "$tree/etc/hostname"; echo I: success >&2')
    said: list[str] = []
    images = Images(machines, harness=make_harness(tmp_path / "venv", python="3.13"))

    await images.build("debian", name="tools", include=["nodejs", "g++"], progress=said.append)

    argv = (tmp_path / "tools/argv").read_text().split()
    assert argv[-2] == "trixie"
    assert any(word.startswith("--include=systemd,") and word.endswith(",nodejs,g++") for word in argv)
    assert said == ["I: success"]
    assert not (machines / "tools/etc/hostname").exists()
    assert (machines / "tools/etc/machine-id").read_text() == ""
    assert leftovers(machines) == []


@pytest.mark.root
@needs_root
async def test_a_build_that_fails_says_what_the_tool_said_and_leaves_no_image(
    machines: Path, mmdebstrap: FakeTool
) -> None:
    mmdebstrap('mkdir -p "$tree/usr"; echo "E: apt-get failed" >&2; exit 25')
    images = Images(machines)

    with pytest.raises(
        NoImage, match="cannot build image debian: mmdebstrap: exit status 25: E: apt-get failed"
    ):
        await images.build("debian")

    assert images.list() == []
    await images.sweep()
    assert leftovers(machines) == []


@pytest.mark.root
@needs_root
async def test_what_a_killed_builder_left_goes_with_the_next_build(
    machines: Path, mmdebstrap: FakeTool
) -> None:
    mmdebstrap('mkdir -p "$tree/usr" "$tree/etc"')
    (machines / ".hive/.build-dead/usr").mkdir(parents=True)
    images = Images(machines)

    await images.build("debian")
    await images.sweep()

    assert leftovers(machines) == []


@pytest.mark.root
@needs_root
async def test_without_mmdebstrap_one_is_told_how_to_get_it(
    machines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(NoImage, match="apt install mmdebstrap"):
        await Images(machines).build("debian")


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("package", ["", "--hook-dir=/x", "a,b", "a b", "../x", "x\n", "ä"])
async def test_what_is_no_package_never_reaches_the_tool(
    machines: Path, tmp_path: Path, mmdebstrap: FakeTool, package: str
) -> None:
    mmdebstrap("exit 1")

    with pytest.raises(NoImage, match="is no name of a package"):
        await Images(machines).build("debian", include=[package])

    assert not (tmp_path / "tools/argv").exists()


@pytest.mark.root
@needs_root
async def test_a_python_that_no_debian_has_is_said_before_anything_is_built(
    machines: Path, tmp_path: Path
) -> None:
    images = Images(machines, harness=make_harness(tmp_path / "venv", python="3.12"))

    with pytest.raises(NoImage, match=r"no Debian release has Python 3\.12"):
        await images.build("debian")


def test_debians_are_known_for_the_pythons_they_have() -> None:
    assert image_build.DEBIAN_OF_PYTHON["3.11"] == "bookworm"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12"', "Debian GNU/Linux 12"),
        ("PRETTY_NAME=Arch", "Arch"),
        ("PRETTY_NAME='a b'", "a b"),
        ('PRETTY_NAME="\\"q\\""', '"q"'),
        ('PRETTY_NAME="\x1b]0;x\x07red\x1b[31m"', "]0;xred[31m"),
        ("PRETTY_NAME=" + "x" * 200, "x" * 80),
        ("NAME=x", ""),
        ("PRETTY_NAME", ""),
    ],
)
def test_an_image_calls_itself_something_that_can_be_shown(tmp_path: Path, line: str, shown: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(f"# comment\n{line}\n")

    assert read_pretty_name(tmp_path) == shown


@given(st.binary(max_size=300))
def test_any_bytes_of_an_image_give_a_line(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    tree = tmp_path_factory.mktemp("tree")
    (tree / "etc").mkdir()
    (tree / "etc/os-release").write_bytes(b"PRETTY_NAME=" + text)

    shown = read_pretty_name(tree)

    assert len(shown) <= 80
    assert shown.isprintable()


def test_a_trap_in_place_of_os_release_is_not_walked_into(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc/os-release")

    assert read_pretty_name(tmp_path) == ""


def test_links_are_followed_as_they_are_inside(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/python3.11").touch()
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/python3").symlink_to("../../../../usr/bin/python3.11")
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "up").symlink_to("../../../../../../etc/passwd")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")

    assert resolve_in(tmp_path, "/bin/python3") == tmp_path / "usr/bin/python3.11"
    for path in ("out", "up", "one", "none", "usr/bin/python3.11/x"):
        assert resolve_in(tmp_path, path) is None


def test_the_closure_that_runs_has_a_root_of_its_own(tmp_path: Path) -> None:
    roots = tmp_path / "gcroots/hive"

    nix_roots.pin_booted("alice", Path("/nix/store/one"), roots)
    nix_roots.pin_booted("alice", Path("/nix/store/two"), roots)

    assert [(path.name, str(path.readlink())) for path in roots.iterdir()] == [
        ("alice-booted", "/nix/store/two")
    ]
    nix_roots.unpin_booted("alice", roots)
    nix_roots.unpin_booted("alice", roots)
    assert not list(roots.iterdir())


def everything(tree: Path) -> dict[str, object]:
    """Each path, with what a change would change."""
    return {
        str(path.relative_to(tree)): (
            path.lstat().st_mode,
            path.lstat().st_uid,
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(tree.rglob("*"))
    }


def test_a_harness_of_the_store_has_a_python_of_its_own_in_any_image(
    machines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    monkeypatch.setattr(images_module, "NIX_STORE", store)
    harness = make_harness(store / "0123-hyperhive", interpreter=str(store / "4567-python/bin/python3.13"))
    make_tree(machines / "debian", python=None)
    tree = make_tree(machines / "with-nix", python=None)
    (tree / "nix").mkdir()
    images = Images(machines, harness=harness)

    for name, place in (("debian", machines / "h-alice"), ("with-nix", upper_dir(machines, "h-alice"))):
        images.prepare_root(ALICE, images.resolve(name))
        assert (place / "nix/store").is_dir()

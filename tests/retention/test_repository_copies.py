"""The repositories of a hive, and of one agent of it, come back as they were, and nothing hostile comes along."""

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import apsw
import pytest
import trio

from hive_core.backup import MARK, Backups, restore
from hive_core.declarable import McpServer
from hive_core.domain.agent import AgentRow
from hive_core.domain.cage import CannotStart
from hive_core.domain.machine import Wanted
from hive_core.domain.manifest import NOTHING, Manifest
from hive_core.host import git
from hive_core.host.archive import BadArchive
from hive_core.layout import Layout
from hive_core.release_files import ReleaseFiles
from hive_core.repositories import Repositories
from hive_core.store.schema import migrate
from hive_core.wire.errors import Refused

from .archives import Parts, changed

WRITER, AGENT = 0x5000_0000, 0x5001_0000
TOML = b'prompt = "task.md"\n'


def layout_at(home: Path) -> Layout:
    layout = Layout(home, home / "run", home / "state")
    layout.make()
    return layout


def backups_of(
    layout: Layout, *, isolated: bool = False, known: tuple[str, ...] = (), writer: int | None = None
) -> Backups:
    async def named() -> list[str]:
        return list(known)

    async def uid_of(agent: str) -> int | None:
        if agent not in known:
            raise LookupError(agent)
        return AGENT if isolated else None

    repositories = Repositories(layout, isolated=isolated)
    return Backups(layout, repositories, agents=named, uid_of=uid_of, writer_uid=lambda: writer)


async def a_hive(home: Path, *, isolated: bool = False) -> tuple[Layout, str, str]:
    """A hive where something was deployed, denied and proposed of alice; what was deployed, and is proposed."""
    layout = layout_at(home)
    layout.home.chmod(0o755)
    layout.state.chmod(0o711)
    db = apsw.Connection(str(layout.database))
    migrate(db, str(layout.database))
    db.close()
    repositories = Repositories(layout, isolated=isolated)
    writer = WRITER if isolated else None
    assert await repositories.seed("alice", {"agent.toml": TOML, "task.md": b"one"}, writer)
    first = await repositories.take_in("alice", None, "proposal/1")
    for word in ("approved", "building", "deployed"):
        await repositories.tag("alice", f"{word}/1", first)
    await repositories.move_main("alice", first)
    await repositories.write_meta({"agents.json": b"{}"}, "deploy alice deployed/1")
    await repositories.write_meta({"agents.json": b'{"a": 1}'}, "deploy alice deployed/2")
    config = layout.config_of("alice")
    (config / "task.md").write_text("two")
    who = ("-c", "user.name=m", "-c", "user.email=m@h")
    says(config, *who, "commit", "--quiet", "--all", "--message", "two")
    if isolated:
        for path in (config, *config.rglob("*")):
            os.chown(path, WRITER, WRITER)
    second = await repositories.take_in("alice", None, "proposal/2")
    await repositories.tag("alice", "denied/2", second, "not so")
    await ReleaseFiles(layout, repositories).lay_out("alice", first, Manifest(prompt="task.md"))
    (layout.staging / "take-0123").mkdir()
    layout.deploy_logs.mkdir()
    (layout.deploy_logs / "1.log").write_text("It runs.\n")
    layout.agents.mkdir()
    layout.agent("alice").base.mkdir()
    for path in (layout.agent("alice").state, layout.agent("alice").claude):
        path.mkdir()
        if isolated:
            os.chown(path, AGENT, AGENT)
    return layout, first, second


def says(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", str(directory), *arguments],
        capture_output=True,
        check=True,
    )
    return done.stdout.decode()


async def seen(layout: Layout, *, isolated: bool = False) -> dict[str, object]:
    """Everything that the repositories of a hive say."""
    repositories = Repositories(layout, isolated=isolated)
    config = layout.config_of("alice")
    return {
        "history": await repositories.history("alice", 100),
        "main": await repositories.main("alice"),
        "meta": says(layout.meta, "log", "--format=%H %s"),
        "meta files": (layout.meta / "agents.json").read_bytes(),
        "proposed": says(config, "log", "--format=%H %s"),
        "changed": says(config, "status", "--porcelain"),
        "files": {path.name: path.read_bytes() for path in config.iterdir() if path.is_file()},
    }


# ── a whole hive ────────────────────────────────────────────────────────────────────────────────


async def test_a_restored_hive_has_the_same_repositories(tmp_path: Path) -> None:
    layout, first, _ = await a_hive(tmp_path / "h")
    (layout.config_of("alice") / "task.md").write_text("not committed")
    before = await seen(layout)
    made = await backups_of(layout, known=("alice",)).create()
    other = Layout(tmp_path / "o", tmp_path / "o" / "run", tmp_path / "o" / "state")

    await restore(other, made.path)

    assert await seen(other) == before
    assert (other.deploy_logs / "1.log").read_text() == "It runs.\n"
    assert not other.staging.exists()
    assert not other.releases.exists()
    for directory in (other.applied_of("alice"), other.meta, other.config_of("alice")):
        says(directory, "fsck", "--strict", "--full")
    # And it goes on from there.
    repositories = Repositories(other, isolated=False)
    assert await repositories.take_in("alice", first, "proposal/3") == first
    await repositories.write_meta({"agents.json": b"{}"}, "deploy alice deployed/3")


async def test_what_names_commits_is_packed_before_what_holds_them(tmp_path: Path) -> None:
    layout, _, _ = await a_hive(tmp_path / "h")
    made = await backups_of(layout).create()

    for part in ("configs/alice.tar", "applied/alice.tar", "meta.tar"):
        with tarfile.open(made.path) as archive:
            held = archive.extractfile(part)
            assert held is not None
            names = tarfile.open(fileobj=held).getnames()  # noqa: SIM115
        last_name = max(
            number for number, name in enumerate(names) if "refs/" in name or name.endswith("HEAD")
        )
        assert last_name < min(number for number, name in enumerate(names) if name.endswith("objects"))


async def test_a_backup_waits_for_what_git_is_doing(tmp_path: Path) -> None:
    layout, first, _ = await a_hive(tmp_path / "h")
    repositories = Repositories(layout, isolated=False)
    backups = Backups(
        layout, repositories, agents=trio.sleep_forever, uid_of=lambda _agent: trio.sleep_forever()
    )
    done = trio.Event()

    async def export() -> None:
        with pytest.raises(Refused):  # of the agent itself nothing is known here
            await Backups(layout, repositories, agents=none, uid_of=unknown).export("alice", b"{}", 0)
        await backups._copies.pack("alice", tmp_path)
        done.set()

    async def none() -> list[str]:
        return []

    async def unknown(agent: str) -> None:
        raise LookupError(agent)

    async with trio.open_nursery() as nursery:
        async with repositories.held("alice"):
            nursery.start_soon(export)
            with trio.move_on_after(0.3):
                await done.wait()
            assert not done.is_set()
        with trio.fail_after(10):
            await done.wait()
    assert await repositories.main("alice") == first


async def test_a_part_of_no_agent_is_refused(tmp_path: Path) -> None:
    layout, _, _ = await a_hive(tmp_path / "h")
    made = await backups_of(layout).create()
    other = Layout(tmp_path / "o", tmp_path / "o" / "run", tmp_path / "o" / "state")
    for name in ("configs/-x.tar", "applied/alice.zip", "applied/Z.tar"):
        with pytest.raises(BadArchive, match="of no agent"):
            await restore(other, changed(made.path, partial(put, name, b"")))
        assert not other.state.exists()


def row_of(sha: str, manifest: Manifest) -> AgentRow:
    return AgentRow("alice", Wanted.RUNNING, False, 1.0, deployed_sha=sha, manifest=manifest)


async def test_what_runs_is_laid_out_again_and_main_is_where_it_was(tmp_path: Path) -> None:
    layout, first, second = await a_hive(tmp_path / "h")
    repositories = Repositories(layout, isolated=False)
    releases = ReleaseFiles(layout, repositories)
    manifest = Manifest(prompt="task.md", mcp_servers={"x": McpServer(command="y")})
    # The backup was taken in the midst of a deploy that the database knows nothing of.
    await repositories.move_main("alice", second)
    shutil.rmtree(layout.releases)

    await releases.lay_out_again(row_of(first, manifest))

    release = layout.release_of("alice", first)
    assert (release / "config" / "task.md").read_text() == "one"
    assert json.loads((release / "extra-mcp.json").read_text()) == {"x": {"command": "y"}}
    assert await repositories.main("alice") == first
    # Where it is there nothing is asked of git, which may be at work.
    async with repositories.held("alice"):
        with trio.fail_after(5):
            await releases.lay_out_again(row_of(first, manifest))
            await releases.lay_out_again(AgentRow("bob", Wanted.RUNNING, False, 1.0))


async def test_a_release_that_cannot_be_had_stops_only_who_needs_it(tmp_path: Path) -> None:
    layout, _, _ = await a_hive(tmp_path / "h")
    releases = ReleaseFiles(layout, Repositories(layout, isolated=False))
    await releases.lay_out_again(row_of("f" * 40, NOTHING))
    with pytest.raises(CannotStart, match="cannot start alice: what was deployed of it cannot be laid out"):
        await releases.lay_out_again(row_of("f" * 40, Manifest(prompt="task.md")))
    assert not layout.release_of("alice", "f" * 40).exists()


# ── one agent ───────────────────────────────────────────────────────────────────────────────────


async def no_uid(_agent: str) -> None:
    return None


async def any_rows(_agent: str, _uid: int | None, _text: bytes) -> None:
    return


async def test_an_agent_takes_its_history_and_what_is_proposed_along(tmp_path: Path) -> None:
    here, first, second = await a_hive(tmp_path / "h")
    there = layout_at(tmp_path / "there")
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)

    await backups_of(there).take_in(made.path, "carol", peer_uid=0, uid_for=no_uid, take_rows=any_rows)

    old, new = Repositories(here, isolated=False), Repositories(there, isolated=False)
    before, after = await old.history("alice", 100), await new.history("carol", 100)
    assert {(one.tag, one.sha, one.note) for one in after} == {(one.tag, one.sha, one.note) for one in before}
    assert await new.main("carol") == first
    config = there.config_of("carol")
    assert says(config, "rev-parse", "HEAD").strip() == second
    assert says(config, "status", "--porcelain") == ""
    assert (config / "task.md").read_text() == "two"
    assert says(config, "config", "remote.applied.url").strip() == str(there.applied_of("carol"))
    for directory in (there.applied_of("carol"), config):
        says(directory, "fsck", "--strict", "--full")
    with pytest.raises(Refused, match="its files are there already"):
        await backups_of(there).take_in(made.path, "carol", peer_uid=0, uid_for=no_uid, take_rows=any_rows)


async def test_one_that_was_never_configured_travels_without(tmp_path: Path) -> None:
    here, there = layout_at(tmp_path / "h"), layout_at(tmp_path / "there")
    here.agent("alice").make()
    here.config_of("alice").mkdir(parents=True)
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)

    await backups_of(there).take_in(made.path, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)

    assert there.agent("alice").state.is_dir()
    assert not there.applied_of("alice").exists()
    assert not (there.config_of("alice") / ".git").exists()


async def test_repositories_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    here, _, _ = await a_hive(tmp_path / "h")
    there = layout_at(tmp_path / "there")
    repositories = Repositories(there, isolated=False)
    assert await repositories.seed("alice", {"agent.toml": b""}, None)
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)

    with pytest.raises(Refused, match="its files are there already"):
        await backups_of(there).take_in(made.path, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)
    assert await repositories.has_proposed("alice")


def put(name: str, text: bytes, parts: Parts) -> None:
    parts[name] = text


def repacked(part: bytes, change: Callable[[Path], object], tmp_path: Path) -> bytes:
    """A tar stream of what is in *part* after *change* was done to it."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as work:
        subprocess.run(["tar", "-x", "-C", work], input=part, check=True)
        change(Path(work))
        names = sorted(os.listdir(work))
        return subprocess.run(["tar", "-c", "-C", work, *names], capture_output=True, check=True).stdout


def plant(dot_git: Path, trap: Path) -> None:
    """Everything by which a repository could make git run something, or read something else."""
    script = f"#!/bin/sh\ntouch {trap}\n"
    with (dot_git / "config").open("a") as config:
        config.write(f'[core]\n\tfsmonitor = "touch {trap}"\n\tsshCommand = touch {trap}\n')
        config.write(
            f'[filter "x"]\n\tsmudge = touch {trap}\n[uploadpack]\n\tpackObjectsHook = touch {trap}\n'
        )
        config.write(f"[include]\n\tpath = {trap}.inc\n")
    for hook in ("post-checkout", "reference-transaction", "post-index-change"):
        (dot_git / "hooks").mkdir(exist_ok=True)
        (dot_git / "hooks" / hook).write_text(script)
        (dot_git / "hooks" / hook).chmod(0o755)
    (dot_git / "objects" / "info").mkdir(exist_ok=True)
    (dot_git / "objects" / "info" / "alternates").write_text("/nonexistent/objects\n")
    (dot_git / "refs" / "heads" / "link").symlink_to("/etc/passwd")
    os.mkfifo(dot_git / "refs" / "tags" / "fifo")


async def test_what_a_repository_could_make_git_do_stays_behind(tmp_path: Path) -> None:
    here, first, _ = await a_hive(tmp_path / "h")
    there, trap = layout_at(tmp_path / "there"), tmp_path / "trap"
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)

    def arm(parts: Parts) -> None:
        def no_fifo(dot_git: Path) -> None:
            plant(dot_git, trap)
            (dot_git / "refs" / "tags" / "fifo").unlink()  # of which a tar stream of ours never speaks

        parts["applied/alice.tar"] = repacked(parts["applied/alice.tar"], no_fifo, tmp_path)
        parts["configs/alice.tar"] = repacked(
            parts["configs/alice.tar"], lambda top: no_fifo(top / ".git"), tmp_path
        )

    archive = changed(made.path, arm)
    await backups_of(there).take_in(archive, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)

    assert await Repositories(there, isolated=False).main("alice") == first
    for dot_git in (there.applied_of("alice"), there.config_of("alice") / ".git"):
        text = "".join(
            path.read_text(errors="replace")
            for path in dot_git.rglob("*")
            if path.is_file() and "objects" not in path.parts
        )
        assert str(trap) not in text
        assert not (dot_git / "hooks").exists()
        assert not (dot_git / "objects" / "info" / "alternates").exists()
        assert not any(path.is_symlink() for path in dot_git.rglob("*"))
    says(there.config_of("alice"), "status")
    assert not trap.exists()


def damage_objects(top: Path) -> None:
    for path in (top / "objects").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.write_bytes(b"x" * 100)


def lose_objects(top: Path) -> None:
    shutil.rmtree(top / "objects")
    (top / "objects" / "pack").mkdir(parents=True)


def empty(top: Path) -> None:
    shutil.rmtree(top / "objects")


def forged_parent(top: Path) -> None:
    """A pack that is none."""
    (top / "objects" / "pack" / f"pack-{'a' * 40}.pack").write_bytes(b"PACK\0\0\0\2\0\0\0\1junk" + bytes(40))


@pytest.mark.parametrize("harm", [damage_objects, lose_objects, empty, forged_parent])
@pytest.mark.parametrize("part", ["applied", "configs"])
async def test_an_unsound_repository_is_refused_and_leaves_nothing(
    tmp_path: Path, part: str, harm: Callable[[Path], None]
) -> None:
    here, _, _ = await a_hive(tmp_path / "h")
    there = layout_at(tmp_path / "there")
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)

    def spoil(parts: Parts) -> None:
        name = f"{part}/alice.tar"
        inner = "." if part == "applied" else ".git"
        parts[name] = repacked(parts[name], lambda top: harm(top / inner), tmp_path)

    with pytest.raises(Refused, match=f"its repository in {part}: cannot take"):
        await backups_of(there).take_in(
            changed(made.path, spoil), None, peer_uid=0, uid_for=no_uid, take_rows=any_rows
        )
    assert not there.agent("alice").base.exists()
    assert not there.applied_of("alice").exists()
    assert not there.config_of("alice").exists()
    assert not any(there.staging.iterdir())


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "objects/../../escaped"])
async def test_a_part_that_names_something_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    here, _, _ = await a_hive(tmp_path / "h")
    there = layout_at(tmp_path / "there")
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))

    for part in ("applied", "configs"):
        archive = changed(made.path, partial(put, f"{part}/alice.tar", stream.getvalue()))
        with pytest.raises(Refused, match="cannot import"):
            await backups_of(there).take_in(archive, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)
    assert not any(path.name == "escaped" for path in tmp_path.rglob("*"))
    assert not there.applied_of("alice").exists()


async def test_what_a_killed_import_left_is_deleted_unless_somebody_is_there(tmp_path: Path) -> None:
    here, _, _ = await a_hive(tmp_path / "h")
    there = layout_at(tmp_path / "there")
    made = await backups_of(here, known=("alice",)).export("alice", b"{}", 0)
    await backups_of(there).take_in(made.path, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)
    work = there.state / "backups" / ".work-killed"
    work.mkdir()
    (work / MARK).write_text("alice")

    await backups_of(there, known=("alice",)).recover()
    assert there.applied_of("alice").exists()

    await backups_of(there).recover()
    assert not there.agent("alice").base.exists()
    assert not there.applied_of("alice").exists()
    assert not there.config_of("alice").exists()
    (work / MARK).write_text("../../etc")
    await backups_of(there).recover()
    await backups_of(there).take_in(made.path, None, peer_uid=0, uid_for=no_uid, take_rows=any_rows)


# ── with users of their own ─────────────────────────────────────────────────────────────────────

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def open_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where others may get through; `nobody` is the user of git."""
    monkeypatch.setattr(git, "USER", "nobody")
    path = Path(tempfile.mkdtemp(prefix="hive-copies-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def owners_below(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in (directory, *directory.rglob("*"))}


@pytest.mark.root
@needs_root
async def test_everything_is_its_owners_again(open_path: Path) -> None:
    layout, _, _ = await a_hive(open_path / "h", isolated=True)
    (layout.config_of("alice") / "notes").symlink_to("/etc/shadow")
    made = await backups_of(layout, isolated=True, known=("alice",)).create()
    before = await seen(layout, isolated=True)
    other = Layout(open_path / "o", open_path / "o" / "run", open_path / "o" / "state")

    await restore(other, made.path, isolated=True)
    other.state.chmod(0o711)
    other.home.chmod(0o755)

    assert await seen(other, isolated=True) == before
    assert owners_below(other.config_of("alice")) == {WRITER}
    assert os.readlink(other.config_of("alice") / "notes") == "/etc/shadow"
    nobody, group = (found := layout.applied_of("alice").stat()).st_uid, found.st_gid
    assert nobody != 0
    # The directory of all of them is root's: git could put a link in the place of one.
    assert other.applied.stat().st_uid == 0
    assert owners_below(other.applied_of("alice")) == owners_below(other.meta) == {nobody}
    assert {path.lstat().st_gid for path in other.applied.rglob("*")} == {group}
    for path in (other.configs, other.config_of("alice").parent):
        assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (0, 0o755)
    repositories = Repositories(other, isolated=True)
    assert await repositories.take_in("alice", None, "proposal/3")
    await repositories.write_meta({"agents.json": b"{}"}, "deploy alice deployed/3")


@pytest.mark.root
@needs_root
async def test_root_opens_nothing_that_the_manager_may_write(open_path: Path) -> None:
    layout, _, _ = await a_hive(open_path / "h", isolated=True)
    config = layout.config_of("alice")
    secret = open_path / "secret"
    secret.write_text("the canary")
    secret.chmod(0o600)
    (config / "mine").write_text("of root alone")
    (config / "mine").chmod(0o600)
    os.link(secret, config / "hard")
    (config / "soft").symlink_to(secret)
    (config / "up").symlink_to("/")
    os.mkfifo(config / "fifo")

    with trio.fail_after(30):
        made = await backups_of(layout, isolated=True).create()

    with tarfile.open(made.path) as archive:
        held = archive.extractfile("configs/alice.tar")
        assert held is not None
        text = held.read()
    assert b"the canary" not in text
    assert b"of root alone" not in text
    names = tarfile.open(fileobj=io.BytesIO(text)).getnames()  # noqa: SIM115
    assert "task.md" in names
    assert not {"hard", "mine", "fifo"} & set(names)


@pytest.mark.root
@needs_root
async def test_what_is_imported_is_its_new_owners(open_path: Path) -> None:
    here, first, second = await a_hive(open_path / "h", isolated=True)
    there = layout_at(open_path / "there")
    there.state.chmod(0o711)
    there.home.chmod(0o755)
    made = await backups_of(here, isolated=True, known=("alice",)).export("alice", b"{}", 0)

    async def uid_for(_agent: str) -> int:
        return AGENT + 65536

    backups = backups_of(there, isolated=True, writer=WRITER + 65536)
    await backups.take_in(made.path, "carol", peer_uid=0, uid_for=uid_for, take_rows=any_rows)

    assert owners_below(there.config_of("carol")) == {WRITER + 65536}
    assert owners_below(there.agent("carol").state) == {AGENT + 65536}
    assert owners_below(there.applied) == owners_below(here.applied)
    repositories = Repositories(there, isolated=True)
    assert await repositories.main("carol") == first
    assert await repositories.take_in("carol", None, "proposal/3") == second
    url = says(there.config_of("carol"), "config", "remote.applied.url").strip()
    assert url == "/applied/carol"


@pytest.mark.root
@needs_root
async def test_without_the_user_of_git_nothing_is_restored(
    open_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, _, _ = await a_hive(open_path / "h", isolated=True)
    made = await backups_of(layout, isolated=True).create()
    monkeypatch.setattr(git, "USER", "hive-git-missing")
    other = Layout(open_path / "o", open_path / "o" / "run", open_path / "o" / "state")

    with pytest.raises(OSError, match="there is no user hive-git-missing"):
        await restore(other, made.path, isolated=True)
    assert not other.state.exists()
